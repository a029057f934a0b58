"""What only a large GPU can say, in one command with a limit of time: the most valuable figures first.

1. A training step at ``4b`` (forward, backward, clipping, AdamW, image-text pairs in bfloat16) with activation
   checkpointing at the largest batch that fits, its MFU, and the same view by view with padding instead of packed. MFU
   is of the step's model FLOPs, by which recomputation counts for nothing.
2. FlexAttention against padded attention, forward and backward of a few blocks' attention alone, with the learned bias
   whose tables all blocks share, on the views of a pretraining step at 256 pixels; FlexAttention also with tables that
   do not learn: what it is slower by is the price of their gradient, which it adds up with atomic operations. Outputs
   and gradients of both are compared first, in float32.
3. The other ways to train: without checkpointing, at ``large``, compiled.
4. Embedding: items per second of each modality.
5. Attention on fused pairs with tables per block, as in fine-tuning, at several sizes of images.

Every row is printed when it is there, each measured in a process of its own that is stopped where the time ends; what
was not reached is named. ``--device cpu --preset tiny`` runs all of it on the processor, to see that it works:
FlexAttention then runs forward only, and peak memory is that of the process.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from jsonargparse import auto_cli
from torch import Tensor, nn

from benchmarks.gpu_attention import (
    ATTENTION_BLOCKS,
    MODALITIES,
    AttentionCase,
    attention_difference,
    attention_measured,
)
from benchmarks.packed import VOCAB_SIZE, make_batch, view_by_view
from benchmarks.timing import Device, Measured, fresh, largest_that_fits, timed
from onepeace_lightning.data.batch import Batch
from onepeace_lightning.losses.pretraining import pretraining_loss
from onepeace_lightning.modalities.audio import Audio
from onepeace_lightning.modalities.image import Image
from onepeace_lightning.modalities.presets import Preset, preset_config
from onepeace_lightning.modalities.text import Text
from onepeace_lightning.models import ModelConfig, PretrainModel
from onepeace_lightning.models.encoder import compile_blocks
from onepeace_lightning.training.parallelize import ParallelConfig, parallelize
from onepeace_lightning.training.peaks import peak_flops
from onepeace_lightning.training.pretraining_flops import step_flops, total_flops

Table = Literal["step", "attention", "training", "embedding", "per_block"]

Call = Callable[..., Any]
"""Calls a function with its arguments in a process of its own."""

BATCHES = 4
"""Different batches that the steps of a case take in turn: their captions have other lengths."""
TOLERANCE = 1e-3
"""Of what both attentions give, as a fraction of its greatest value."""
CLIP_SECONDS = 10


# attention

ATTENTION_COLUMNS = (
    "width of", "images", "pairs", "difference", "flex s", "flex GiB", "flex, fixed tables s", "padded s", "padded GiB",
)  # fmt: skip


def attention_row(case: AttentionCase, device: Device, repetitions: int, call: Call) -> str:
    """Flex against padded attention, and flex without the gradient of the tables.

    Raises:
        RuntimeError: where both do not give the same numbers.
    """
    small = AttentionCase(case.preset, case.side, case.per_block, min(case.batch_size, 4))
    difference = call(attention_difference, small, device)
    if not difference <= TOLERANCE:
        raise RuntimeError(f"{case}: flex and padded differ by {difference:.1e} of the greatest value")
    flex, fixed, padded = (
        _time_and_memory(call(attention_measured, kind, case, device, repetitions, learned))
        for kind, learned in (("flex", True), ("flex", False), ("padded", True))
    )
    return _row(case.preset, f"{case.side} px", case.batch_size, f"{difference:.0e}", *flex, fixed[0], *padded)


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
        options = [name for name in ("compile", "checkpoint") if getattr(self, name)]
        return " + ".join(["packed" if self.packed else "view by view with padding", *options])


FIRST_WAYS = [Training(checkpoint=True), Training(checkpoint=True, packed=False)]
WAYS = [Training(), Training(packed=False), Training(compile=True, checkpoint=True), Training(compile=True)]


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
    """Seconds of a step at the largest batch that fits; None where not even one pair does."""
    try:
        model = make_model(preset, way, device, backend, ("text", "image"))
    except torch.OutOfMemoryError:
        return None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.05, fused=device == "cuda")

    def measure(size: int) -> tuple[float, int] | None:
        optimizer.zero_grad()
        batches = [batch.to(device) for batch in training_batches(model.config, size)]

        def step(repetition: int) -> None:
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16):
                loss = pretraining_loss(model, {"image-text": batches[repetition % BATCHES]}).total
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 3.0)
            optimizer.step()

        return timed(device, repetitions, step)

    return largest_that_fits(measure, batch_size)


def training_row(
    preset: Preset, way: Training, device: Device, backend: str, repetitions: int, batch_size: int, call: Call
) -> str:
    """One way to train one preset."""
    peak = peak_flops(torch.cuda.get_device_name(), "bf16-mixed") if device == "cuda" else None
    found = call(training_measured, preset, way, device, backend, repetitions, batch_size)
    if found is None:
        return _row(preset, way, "-", "out of memory", "-", "-", "-", "-")
    config = preset_config(preset, modalities=("text", "image"), sizes={"text": {"vocab_size": VOCAB_SIZE}})
    batches = training_batches(config, found.batch_size)
    flops = sum(total_flops(step_flops(config, {"image-text": batch})) for batch in batches) / len(batches)
    rate = flops / found.seconds
    mfu = "-" if peak is None else f"{100 * rate / peak:.1f} %"
    speed = f"{found.batch_size / found.seconds:.1f}"
    return _row(preset, way, found.batch_size, *_time_and_memory(found), speed, f"{rate / 1e12:.3g}", mfu)


# embedding


def embedding_measured(
    preset: Preset, modality: str, device: Device, repetitions: int, batch_size: int
) -> Measured | None:
    """Seconds to embed the largest batch that fits; None where not even one item does."""
    try:
        model = make_model(preset, Training(), device, "inductor", MODALITIES).eval()
    except torch.OutOfMemoryError:
        return None

    def measure(size: int) -> tuple[float, int] | None:
        try:
            inputs = _inputs(model.config, modality, size).to(device)
        except torch.OutOfMemoryError:
            return None

        def embed(_: int) -> Tensor:
            with torch.no_grad(), torch.autocast(device, torch.bfloat16):
                return model.heads(modality, model.backbone({modality: inputs}))

        return timed(device, repetitions, embed)

    return largest_that_fits(measure, batch_size)


def _inputs(config: ModelConfig, modality: str, batch_size: int) -> Text | Image | Audio:
    if modality == "audio":
        return Audio.pad(list(torch.randn(batch_size, 16_000 * CLIP_SECONDS)))
    return training_batches(config, batch_size)[0].inputs[modality]


def embedding_row(preset: Preset, modality: str, device: Device, repetitions: int, batch_size: int, call: Call) -> str:
    """One modality."""
    found = call(embedding_measured, preset, modality, device, repetitions, batch_size)
    if found is None:
        return _row(preset, modality, "-", "out of memory", "-")
    speed = f"{found.batch_size / found.seconds:.1f}"
    return _row(preset, modality, found.batch_size, speed, _time_and_memory(found)[1])


def _time_and_memory(found: Measured | None) -> tuple[str, str]:
    return ("out of memory", "-") if found is None else (f"{found.seconds:.4f}", f"{found.memory / 2**30:.2f}")


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


@dataclass(frozen=True)
class Section:
    """A table: its title, the names of its columns, and what gives each of its rows."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Callable[[Call], str]]


def print_tables(sections: Sequence[Section], minutes: float) -> None:
    """Measure and print, row by row, until the time ends."""
    end = time.monotonic() + 60 * minutes

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        if (left := end - time.monotonic()) <= 0:
            raise TimeoutError
        return fresh(function, *arguments, seconds=left)

    unmeasured = 0
    for section in sections:
        if not unmeasured:
            print(f"### {section.title}\n", _row(*section.columns), _row(*["---"] * len(section.columns)), sep="\n")
        for row in section.rows:
            try:
                if not unmeasured:
                    print(row(call), flush=True)
            except TimeoutError:
                unmeasured += 1
            else:
                unmeasured += bool(unmeasured)
        if not unmeasured:
            print(flush=True)
    if unmeasured:
        print(f"\n{unmeasured} rows were not measured: the {minutes:g} minutes were over (--minutes)")


def run(
    device: Device = "cuda",
    minutes: float = 60.0,
    tables: tuple[Table, ...] = get_args(Table),
    preset: Preset | None = None,
    sides: tuple[int, ...] = (256, 384, 512),
    attention_pairs: int = 32,
    training_pairs: int = 256,
    embedded_items: int = 1024,
    repetitions: int = 8,
    backend: str = "inductor",
) -> None:
    """Check and measure everything, the most valuable figures first.

    Args:
        device: cuda, or cpu to see that it works.
        minutes: limit of the whole command.
        tables: which of them.
        preset: one size for everything; None: attention at 4b and base, the others at 4b and large.
        sides: of the images in fine-tuning, in pixels; pretraining takes the first.
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
    presets: list[Preset] = ["4b", "large"] if preset is None else [preset]
    widths: list[Preset] = ["4b", "base"] if preset is None else [preset]
    training = [(presets[0], way) for way in WAYS]
    training += [(other, way) for other in presets[1:] for way in [*FIRST_WAYS, *WAYS]]

    def train(ways: Sequence[tuple[Preset, Training]]) -> list[Callable[[Call], str]]:
        sizes = (device, backend, repetitions, training_pairs)
        return [partial(training_row, name, way, *sizes) for name, way in ways]

    def attend(cases: Sequence[AttentionCase]) -> list[Callable[[Call], str]]:
        return [partial(attention_row, case, device, repetitions) for case in cases]

    shared = [AttentionCase(name, sides[0], False, attention_pairs) for name in widths]
    per_block = [AttentionCase(name, side, True, attention_pairs) for name in widths for side in sides]
    embedding: list[Callable[[Call], str]] = [
        partial(embedding_row, name, modality, device, repetitions, embedded_items)
        for name in presets
        for modality in MODALITIES
    ]
    step = ("preset", "step", "pairs", "step s", "GiB", "pairs/s", "model TFLOP/s", "MFU")
    attention = f"Attention of {ATTENTION_BLOCKS} blocks"
    sections: dict[Table, Section] = {
        "step": Section("Training step, image-text", step, train([(presets[0], way) for way in FIRST_WAYS])),
        "attention": Section(f"{attention}, views of pretraining, shared tables", ATTENTION_COLUMNS, attend(shared)),
        "training": Section("Training step, image-text, other ways", step, train(training)),
        "embedding": Section("Embedding", ("preset", "modality", "batch", "items/s", "GiB"), embedding),
        "per_block": Section(f"{attention}, fused pairs, tables per block", ATTENTION_COLUMNS, attend(per_block)),
    }
    where = torch.cuda.get_device_name() if device == "cuda" else "processor"
    print(f"{time.strftime('%Y-%m-%d')}, {where}, torch {torch.__version__}\n")
    print_tables([sections[name] for name in sections if name in tables], minutes)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line; ``None`` takes the process's own."""
    auto_cli(run, args=list(sys.argv[1:] if arguments is None else arguments), as_positional=False)


if __name__ == "__main__":
    main()
