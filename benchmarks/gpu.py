"""Everything that needs a large GPU, checked and measured by one command, as Markdown tables.

* Attention: FlexAttention against padded attention, forward and backward of a few blocks' attention alone: on the
  views of a pretraining step with tables that all blocks share, and on fused pairs with tables per block, as in
  fine-tuning.
  Outputs and gradients of both are compared first, in float32.
* Training: a whole step (forward, backward, clipping, AdamW) on image-text pairs in bfloat16, with and without
  compilation and activation checkpointing, and view by view with padding instead of packed, each at the largest batch
  that fits (halved until it does). MFU is of the step's model FLOPs, by which recomputation counts for nothing.
* Embedding: items per second of each modality.

Every case runs in a process of its own. ``--device cpu --preset tiny`` runs all of it on the processor, to see that it
works: FlexAttention then runs forward only, and peak memory is that of the process.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, get_args

import torch
from jsonargparse import auto_cli
from torch import Tensor, nn

from benchmarks.packed import VOCAB_SIZE, make_batch, view_by_view
from benchmarks.timing import Device, fresh, own_peak
from onepeace_lightning.data.batch import Batch
from onepeace_lightning.losses.pretraining import pretraining_loss
from onepeace_lightning.modalities.audio import Audio
from onepeace_lightning.modalities.image import Image
from onepeace_lightning.modalities.presets import Preset, preset_config
from onepeace_lightning.modalities.text import Text
from onepeace_lightning.models import ModelConfig, PretrainModel, Tokens
from onepeace_lightning.models.attention.base import RelativeBias
from onepeace_lightning.models.encoder import BACKENDS, compile_blocks
from onepeace_lightning.models.packing import View, pack
from onepeace_lightning.models.patches import PATCH
from onepeace_lightning.models.relative_bias import grid_buckets, grid_rows, sequence_buckets, sequence_rows
from onepeace_lightning.training.parallelize import ParallelConfig, parallelize
from onepeace_lightning.training.peaks import peak_flops
from onepeace_lightning.training.pretraining_flops import step_flops, total_flops

Table = Literal["attention", "training", "embedding"]

MODALITIES = ("text", "image", "audio")
TEXT_BUCKETS = 256
ATTENTION_BLOCKS = 4
BATCHES = 4
"""Different batches that the steps of a case take in turn: their captions have other lengths."""
TOLERANCE = 1e-3
"""Of what both attentions give, as a share of its greatest value."""
CLIP_SECONDS = 10


@dataclass(frozen=True)
class Measured:
    """What a case took: median seconds, peak memory in bytes, and its batch size."""

    seconds: float
    memory: int
    batch_size: int


def largest_that_fits(case: Callable[..., Measured | None], *arguments: Any, batch_size: int) -> Measured | None:
    """Run a case with its batch halved until it fits; None where not even one sample does."""
    while batch_size:
        if (found := fresh(case, *arguments, batch_size)) is not None:
            return found
        batch_size //= 2
    return None


def timed(device: Device, repetitions: int, run: Callable[[int], object]) -> tuple[float, int] | None:
    """Median seconds of calls after two that warm up, and peak memory; None where memory does not suffice."""
    try:
        seconds = []
        for repetition in range(-2, repetitions):
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            run(repetition)
            if device == "cuda":
                torch.cuda.synchronize()
            if repetition >= 0:
                seconds.append(time.perf_counter() - start)
    except torch.OutOfMemoryError:
        return None
    return median(seconds), own_peak(device)


# attention


@dataclass(frozen=True)
class AttentionCase:
    """Attention of a few blocks.

    Attributes:
        preset: whose width and heads.
        side: of the pictures in pixels.
        per_block: every block has its own tables, and the views are those of fine-tuning, not of pretraining.
        batch_size: pairs.
    """

    preset: Preset
    side: int
    per_block: bool
    batch_size: int

    def views(self, device: Device) -> Sequence[View]:
        """A fused pair, or the five views that learn of a pretraining step; without values."""
        batch = make_batch(self.batch_size, self.side, seed=0)
        lengths = {name: inputs.token_lengths for name, inputs in batch.inputs.items()}
        tokens = {
            name: Tokens.of_padded(torch.zeros(len(part), max(part), 0, device=device), part)
            for name, part in lengths.items()
        }
        if self.per_block:
            return [tokens]
        alone, fused = (
            {name: part.hide(masks[name]) for name, part in tokens.items()}
            for masks in (batch.masks, batch.fused_masks)
        )
        return [{name: part} for whole in (tokens, alone) for name, part in whole.items()] + [fused]

    def relative(self, device: Device) -> dict[str, RelativeBias]:
        """Random tables that learn."""
        heads = preset_config(self.preset).encoder.heads
        grid, where = self.side // PATCH, torch.device(device)
        kinds = {
            "text": (sequence_rows(TEXT_BUCKETS), sequence_buckets(TEXT_BUCKETS, TEXT_BUCKETS, where)),
            "image": (grid_rows(grid), grid_buckets(grid, where)),
        }
        generator = torch.Generator().manual_seed(1)
        tables = ATTENTION_BLOCKS if self.per_block else 1
        return {
            name: RelativeBias(
                [torch.randn(rows, heads, generator=generator).to(device).requires_grad_() for _ in range(tables)],
                buckets,
            )
            for name, (rows, buckets) in kinds.items()
        }


def attention_pass(kind: str, case: AttentionCase, device: Device, dtype: torch.dtype) -> Callable[[], list[Tensor]]:
    """A function that attends and gives the output of every block and, on CUDA, the gradients of q, k, v and tables."""
    views, relative = case.views(device), case.relative(device)
    encoder = preset_config(case.preset).encoder
    packed = pack(views, MODALITIES)
    generator = torch.Generator().manual_seed(2)
    shape = (3, len(packed.values_TD), encoder.width)
    qkv = [part.to(device, dtype).requires_grad_() for part in torch.randn(shape, generator=generator)]
    leaves = [*qkv, *(table for bias in relative.values() for table in bias.tables_RH)]

    def run() -> list[Tensor]:
        learn = device == "cuda"
        with torch.set_grad_enabled(learn):
            attention = BACKENDS[kind](packed, views, encoder.heads, relative)
            outs = [attention.block(block)(*qkv) for block in range(ATTENTION_BLOCKS)]
            gradients = (
                torch.autograd.grad(torch.stack([out.float().sin().sum() for out in outs]).sum(), leaves)
                if learn
                else ()
            )
        return [*(out.detach() for out in outs), *gradients]

    return run


def attention_difference(case: AttentionCase, device: Device) -> float:
    """The greatest difference between both attentions in float32, as a share of each tensor's greatest value."""
    ours, theirs = (attention_pass(kind, case, device, torch.float32)() for kind in ("flex", "padded"))
    return max(
        float((one - two).abs().max() / two.abs().max().clamp(min=1e-6)) for one, two in zip(ours, theirs, strict=True)
    )


def attention_measured(kind: str, case: AttentionCase, device: Device, repetitions: int) -> Measured | None:
    """Time and memory, in bfloat16 on CUDA."""
    run = attention_pass(kind, case, device, torch.bfloat16 if device == "cuda" else torch.float32)
    found = timed(device, repetitions, lambda _: run())
    return None if found is None else Measured(*found, case.batch_size)


def attention_table(cases: Sequence[AttentionCase], device: Device, repetitions: int) -> list[str]:
    """Rows of flex against padded attention.

    Raises:
        RuntimeError: where both do not give the same numbers.
    """
    rows = []
    for case in cases:
        small = AttentionCase(case.preset, case.side, case.per_block, min(case.batch_size, 4))
        difference = fresh(attention_difference, small, device)
        if not difference <= TOLERANCE:
            raise RuntimeError(f"{case}: flex and padded differ by {difference:.1e} of the greatest value")
        found = {kind: fresh(attention_measured, kind, case, device, repetitions) for kind in ("flex", "padded")}
        tables = "fine-tuning, tables per block" if case.per_block else "pretraining, shared tables"
        cells = [cell for kind in ("flex", "padded") for cell in _time_and_memory(found[kind])]
        rows.append(_row(case.preset, f"{case.side} px", tables, case.batch_size, f"{difference:.0e}", *cells))
    return [
        _row("width of", "pictures", "views", "pairs", "difference", "flex s", "flex GiB", "padded s", "padded GiB"),
        _row(*["---"] * 9),
        *rows,
    ]


# training


@dataclass(frozen=True)
class Training:
    """A way to train.

    Attributes:
        compile: blocks are compiled.
        checkpoint: activations are computed again in the backward pass.
        packed: all views in one pass; otherwise view by view with padding.
    """

    compile: bool = False
    checkpoint: bool = False
    packed: bool = True

    def __str__(self) -> str:
        if not self.packed:
            return "view by view with padding"
        options = [name for name in ("compile", "checkpoint") if getattr(self, name)]
        return " + ".join(["packed", *options])


WAYS = [Training(c, r) for c in (False, True) for r in (False, True)] + [Training(packed=False)]


def make_model(
    preset: Preset, way: Training, device: Device, backend: str, modalities: tuple[str, ...]
) -> PretrainModel:
    """A model on its device, laid out as a task would do it."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = PretrainModel(preset_config(preset, modalities=modalities, sizes={"text": {"vocab_size": VOCAB_SIZE}}))
    if way.compile:
        compile_blocks(model, backend)
    parallelize(model, ParallelConfig(checkpoint_activations=way.checkpoint), device=torch.device(device))
    return model if way.packed else view_by_view(model)


def training_batches(config: ModelConfig, batch_size: int) -> list[Batch]:
    """Image-text batches whose captions differ in length."""
    return [make_batch(batch_size, config.adapters["image"].image_size, seed) for seed in range(BATCHES)]  # type: ignore[attr-defined]


def training_measured(
    preset: Preset, way: Training, device: Device, backend: str, repetitions: int, batch_size: int
) -> Measured | None:
    """Seconds of a step; None where the batch does not fit."""
    try:
        model = make_model(preset, way, device, backend, ("text", "image"))
    except torch.OutOfMemoryError:
        return None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.05, fused=device == "cuda")
    batches = [batch.to(device) for batch in training_batches(model.config, batch_size)]

    def step(repetition: int) -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            loss = pretraining_loss(model, {"image-text": batches[repetition % BATCHES]}).total
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()

    found = timed(device, repetitions, step)
    return None if found is None else Measured(*found, batch_size)


def training_table(
    presets: Sequence[Preset], device: Device, backend: str, repetitions: int, batch_size: int
) -> list[str]:
    """Rows of every way to train every preset."""
    peak = peak_flops(torch.cuda.get_device_name(), "bf16-mixed") if device == "cuda" else None
    rows = []
    for preset in presets:
        for way in WAYS:
            found = largest_that_fits(
                training_measured, preset, way, device, backend, repetitions, batch_size=batch_size
            )
            if found is None:
                rows.append(_row(preset, way, "-", "out of memory", "-", "-", "-", "-"))
                continue
            config = preset_config(preset, modalities=("text", "image"), sizes={"text": {"vocab_size": VOCAB_SIZE}})
            batches = training_batches(config, found.batch_size)
            flops = sum(total_flops(step_flops(config, {"image-text": batch})) for batch in batches) / len(batches)
            rate = flops / found.seconds
            mfu = "-" if peak is None else f"{100 * rate / peak:.1f} %"
            speed = f"{found.batch_size / found.seconds:.1f}"
            rows.append(_row(preset, way, found.batch_size, *_time_and_memory(found), speed, f"{rate / 1e12:.3g}", mfu))
    header = ("preset", "step", "pairs", "step s", "GiB", "pairs/s", "model TFLOP/s", "MFU")
    return [_row(*header), _row(*["---"] * len(header)), *rows]


# embedding


def embedding_measured(
    preset: Preset, modality: str, device: Device, repetitions: int, batch_size: int
) -> Measured | None:
    """Seconds to embed a batch; None where it does not fit."""
    try:
        model = make_model(preset, Training(), device, "inductor", MODALITIES).eval()
    except torch.OutOfMemoryError:
        return None
    inputs = _inputs(model.config, modality, batch_size).to(device)

    def embed(_: int) -> Tensor:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            return model.heads(modality, model.backbone({modality: inputs}))

    found = timed(device, repetitions, embed)
    return None if found is None else Measured(*found, batch_size)


def _inputs(config: ModelConfig, modality: str, batch_size: int) -> Text | Image | Audio:
    if modality == "audio":
        return Audio.pad(list(torch.randn(batch_size, 16_000 * CLIP_SECONDS)))
    return training_batches(config, batch_size)[0].inputs[modality]


def embedding_table(presets: Sequence[Preset], device: Device, repetitions: int, batch_size: int) -> list[str]:
    """Rows of every modality."""
    rows = []
    for preset in presets:
        for modality in MODALITIES:
            found = largest_that_fits(embedding_measured, preset, modality, device, repetitions, batch_size=batch_size)
            if found is None:
                rows.append(_row(preset, modality, "-", "out of memory", "-"))
            else:
                speed = f"{found.batch_size / found.seconds:.1f}"
                rows.append(_row(preset, modality, found.batch_size, speed, _time_and_memory(found)[1]))
    return [_row("preset", "modality", "batch", "items/s", "GiB"), _row(*["---"] * 5), *rows]


def _time_and_memory(found: Measured | None) -> tuple[str, str]:
    return ("out of memory", "-") if found is None else (f"{found.seconds:.4f}", f"{found.memory / 2**30:.2f}")


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def run(
    device: Device = "cuda",
    tables: tuple[Table, ...] = get_args(Table),
    preset: Preset | None = None,
    sides: tuple[int, ...] = (256, 384, 512),
    attention_pairs: int = 32,
    training_pairs: int = 1024,
    embedded_items: int = 1024,
    repetitions: int = 8,
    backend: str = "inductor",
) -> None:
    """Check and measure everything.

    Args:
        device: cuda, or cpu to see that it works.
        tables: which of them, in their order.
        preset: one size for everything; None: attention at base and 4b, the others at large and 4b.
        sides: of the pictures in fine-tuning, in pixels; pretraining takes the first.
        attention_pairs: image-text pairs that attention alone is measured on.
        training_pairs: of a training step, halved until they fit.
        embedded_items: that are embedded at once, halved until they fit.
        repetitions: timed calls of each case.
        backend: of ``torch.compile``.
    """
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "benchmarks.gpu: there is no CUDA device here; --device cpu --preset tiny runs all of it on the processor"
        )
    widths: list[Preset] = ["base", "4b"] if preset is None else [preset]
    presets: list[Preset] = ["large", "4b"] if preset is None else [preset]
    cases = [
        AttentionCase(name, side, per_block, attention_pairs)
        for name in widths
        for side, per_block in [(sides[0], False), *((side, True) for side in sides)]
    ]
    where = torch.cuda.get_device_name() if device == "cuda" else "processor"
    print(f"{time.strftime('%Y-%m-%d')}, {where}, torch {torch.__version__}\n")
    sections: Mapping[Table, tuple[str, Callable[[], list[str]]]] = {
        "attention": (f"Attention of {ATTENTION_BLOCKS} blocks", lambda: attention_table(cases, device, repetitions)),
        "training": (
            "Training step, image-text",
            lambda: training_table(presets, device, backend, repetitions, training_pairs),
        ),
        "embedding": ("Embedding", lambda: embedding_table(presets, device, repetitions, embedded_items)),
    }
    for name in tables:
        title, table = sections[name]
        print(f"### {title}\n", *table(), "", sep="\n", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line; ``None`` takes the process's own."""
    auto_cli(run, args=list(sys.argv[1:] if arguments is None else arguments), as_positional=False)


if __name__ == "__main__":
    main()
