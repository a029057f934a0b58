"""A pretraining step in bfloat16 against the same step in float32, on this processor.

A step is forward and backward of ``losses.pretraining.pretraining_loss`` on a batch of image-text pairs, the same model
and batches on both sides (``benchmarks.packed`` says what they are); the optimizer, which is float32 in both, is left
out. bfloat16 is autocast: matrix products in bfloat16, weights, residual stream and losses in float32, as
``--trainer.precision bf16-mixed`` trains.
"""

import sys
from collections.abc import Sequence
from statistics import median

import torch
from jsonargparse import auto_cli

from benchmarks.packed import Precision, _image_size, make_batch, make_model, step
from benchmarks.timing import in_fresh_process, interleaved, ratio_line, table
from onepeace_lightning.modalities.presets import Preset
from onepeace_lightning.training.pretraining_flops import step_flops, total_flops

PRECISIONS: tuple[Precision, ...] = ("bf16", "float32")
TOLERANCE = 0.02
"""Of the loss terms, relative: bfloat16 keeps 8 bits, so that one rounding is up to 0.4 % off."""


def check_same(preset: Preset, batch_size: int, seed: int) -> float:
    """The greatest relative difference between both formats' loss terms.

    Raises:
        RuntimeError: where it is past 2 %, so that timing them would compare different things.
    """
    model = make_model(preset, seed)
    batch = make_batch(batch_size, _image_size(model), seed)
    half, single = ({name: float(t.detach()) for name, t in step(model, batch, kind).items()} for kind in PRECISIONS)
    differences = {name: abs(half[name] - value) / abs(value) for name, value in single.items()}
    if past := {name: value for name, value in differences.items() if not value <= TOLERANCE}:
        raise RuntimeError(f"bfloat16 and float32 differ by more than {TOLERANCE:.0%}: {past}")
    return max(differences.values())


def _two_steps(preset: Preset, batch_size: int, precision: Precision, seed: int) -> None:
    """What is measured for memory: the second step's peak includes what the first left behind."""
    model = make_model(preset, seed)
    batch = make_batch(batch_size, _image_size(model), seed)
    for _ in range(2):
        step(model, batch, precision)


def run(preset: Preset = "small", batch_size: int = 32, repetitions: int = 9, seed: int = 0) -> None:
    """Measure one training step in both formats.

    Args:
        preset: size of the model.
        batch_size: image-text pairs.
        repetitions: timed steps of each, taking turns.
        seed: of weights, captions, images and masks.
    """
    peaks = {kind: in_fresh_process(_two_steps, preset, batch_size, kind, seed) for kind in PRECISIONS}
    difference = check_same(preset, batch_size, seed)
    model = make_model(preset, seed)
    batches = [make_batch(batch_size, _image_size(model), seed + repetition) for repetition in range(repetitions)]
    steps = {
        "bf16": lambda repetition: step(model, batches[repetition], "bf16"),
        "float32": lambda repetition: step(model, batches[repetition], "float32"),
    }
    interleaved(steps, 1)
    seconds = interleaved(steps, repetitions)

    flops = median(total_flops(step_flops(model.config, {"image-text": batch})) for batch in batches)
    print(
        f"training step at {preset!r} on {torch.get_num_threads()} threads, {batch_size} image-text pairs, "
        f"{_image_size(model)}-pixel images, {flops / 1e9:.0f} GFLOP; bfloat16 instructions of this processor: "
        f"{_instructions()}"
    )
    print(f"loss terms of both agree within {difference:.0e} (relative)")
    memory = {str(kind): f"peak memory {peak.process / 2**20:.0f} MiB" for kind, peak in peaks.items()}
    speed = {kind: f"{flops / median(times) / 1e9:.0f} GFLOP/s" for kind, times in seconds.items()}
    print(table(seconds, {kind: f"{speed[kind]}, {memory[kind]}" for kind in seconds}))
    print(ratio_line(seconds["bf16"], seconds["float32"], "bfloat16 against float32"))


def _instructions() -> str:
    abilities = torch.cpu.get_capabilities()
    return ", ".join(name for name in ("amx_bf16", "avx512_bf16") if abilities.get(name)) or "none"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line; ``None`` takes the process's own."""
    auto_cli(run, args=list(sys.argv[1:] if arguments is None else arguments), as_positional=False)


if __name__ == "__main__":
    main()
