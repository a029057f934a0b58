"""The largest contrast that a processor's memory holds, with and without gradient caching.

A step of the aligning contrast (image-text pairs, float32, forward and backward) runs in a process of its own at a few
numbers of pairs, once as one batch and once by ``training.gradient_cache`` in batches of a fixed number. Peak memory
grows by a constant for each pair, by which the largest contrast is extrapolated; the logits, which grow with the square
of the pairs up to ``losses.chunks.LOGITS``, are added by arithmetic. Beside it stands the difference of the gradients.
"""

import sys
from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from jsonargparse import auto_cli

from benchmarks.packed import make_batch, make_model
from benchmarks.timing import fresh, own_peak
from onepeace_lightning.data.batch import Batch
from onepeace_lightning.losses.chunks import LOGITS
from onepeace_lightning.losses.pretraining import Objectives, pretraining_loss
from onepeace_lightning.modalities.presets import Preset
from onepeace_lightning.models import PretrainModel
from onepeace_lightning.training.gradient_cache import cached_loss, encode

OBJECTIVES = Objectives(denoise=False)
LOGITS_BYTES = 4 * 4
"""Of a pair of samples: float32 logits and their gradient, in both directions."""


def step(model: PretrainModel, batches: Sequence[Batch]) -> None:
    """Forward and backward passes; of several batches by gradient caching."""
    if len(batches) == 1:
        pretraining_loss(model, {"image-text": batches[0]}, OBJECTIVES).total.backward()
        return
    _, last = cached_loss(
        lambda part: encode(model, part, OBJECTIVES),
        lambda part, contrast: pretraining_loss(model, part, OBJECTIVES, contrast=contrast).terms,
        [{"image-text": batch} for batch in batches],
        OBJECTIVES,
        lambda loss: loss.backward(),
    )
    last.backward()


def measured(preset: Preset, pairs: int, batches: int) -> int:
    """Peak memory in bytes of a step over ``batches`` batches of ``pairs`` each."""
    model = make_model(preset, seed=0)
    step(model, [make_batch(pairs, _side(model), seed) for seed in range(batches)])
    return own_peak()


def gradient_difference(preset: Preset, pairs: int, batches: int) -> float:
    """The greatest difference between both ways' gradients, as a fraction of each tensor's greatest value."""
    whole = make_batch(pairs * batches, _side(make_model(preset, seed=0)), seed=0)
    parts = [_part(whole, slice(first, first + pairs)) for first in range(0, pairs * batches, pairs)]
    found = []
    for batches_of in ([whole], parts):
        model = make_model(preset, seed=0)
        step(model, batches_of)
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    plain, cached = found
    if plain.keys() != cached.keys():
        raise RuntimeError(f"other parameters have gradients: {sorted(plain.keys() ^ cached.keys())[:5]}")
    return max(
        float((plain[name] - cached[name]).abs().max() / plain[name].abs().max().clamp(min=1e-12)) for name in plain
    )


def largest(points: Sequence[tuple[int, int]], limit: float) -> tuple[int, float, float]:
    """Pairs whose step takes ``limit`` bytes, and the straight line under it.

    Args:
        points: pairs and peak memory in bytes, two or more.
        limit: bytes.

    Returns:
        The number, bytes for each pair, and bytes without any.
    """
    counts, peaks = (torch.tensor(values, dtype=torch.float64) for values in zip(*points, strict=True))
    centred = counts - counts.mean()
    slope = float((centred * (peaks - peaks.mean())).sum() / centred.square().sum())
    start = float(peaks.mean() - slope * counts.mean())

    def memory(pairs: int) -> float:
        return start + slope * pairs + LOGITS_BYTES * min(pairs**2, LOGITS)

    low, high = 0, 2**40
    while low < high - 1:
        middle = (low + high) // 2
        low, high = (middle, high) if memory(middle) <= limit else (low, middle)
    return low, slope, start


def run(
    preset: Preset = "small",
    memory_gib: float = 24.0,
    batch_size: int = 4,
    plain: tuple[int, ...] = (4, 8),
    batches: tuple[int, ...] = (2, 8),
) -> None:
    """Measure and extrapolate.

    Args:
        preset: size of the model.
        memory_gib: what a process may take.
        batch_size: pairs of a batch where gradients are cached.
        plain: numbers of pairs of the steps in one batch.
        batches: numbers of batches of the steps that cache.
    """
    limit = memory_gib * 2**30
    difference = fresh(gradient_difference, preset, batch_size, 2)
    one = [(pairs, fresh(measured, preset, pairs, 1)) for pairs in plain]
    many = [(batch_size * count, fresh(measured, preset, batch_size, count)) for count in batches]
    print(f"contrast of image-text pairs at {preset!r}, float32, {memory_gib:g} GiB")
    results = []
    for name, points in (("one batch", one), (f"cached, batches of {batch_size}", many)):
        pairs, slope, start = largest(points, limit)
        seen = ", ".join(f"{count}: {peak / 2**30:.2f}" for count, peak in points)
        print(f"{name}: {start / 2**30:.2f} GiB and {slope / 2**20:.2f} MiB for each pair (GiB at {seen})")
        print(f"{name}: the largest contrast, extrapolated, is {pairs} pairs")
        results.append(pairs)
    print(f"gradients differ by {difference:.1e} of each tensor's greatest value")
    print(f"ratio: {results[1] / max(results[0], 1):.1f} (pairs with gradient caching against one batch)")


def _side(model: PretrainModel) -> int:
    return model.config.adapters["image"].image_size  # type: ignore[attr-defined]


def _part(batch: Batch, rows: slice) -> Batch:
    inputs = {
        name: replace(value, **{field.name: getattr(value, field.name)[rows] for field in fields(value)})
        for name, value in batch.inputs.items()
    }
    return Batch(batch.keys[rows], inputs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line; ``None`` takes the process's own."""
    auto_cli(run, args=list(sys.argv[1:] if arguments is None else arguments), as_positional=False)


if __name__ == "__main__":
    main()
