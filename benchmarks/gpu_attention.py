"""FlexAttention and padded attention of a few blocks, relative biases learned or fixed; for ``benchmarks.gpu``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.packed import make_batch
from benchmarks.timing import Device, Measured, timed
from onepeace_lightning.modalities.presets import Preset, preset_config
from onepeace_lightning.models import Tokens
from onepeace_lightning.models.attention.base import RelativeBias
from onepeace_lightning.models.encoder import BACKENDS
from onepeace_lightning.models.packing import View, pack
from onepeace_lightning.models.patches import PATCH
from onepeace_lightning.models.relative_bias import grid_buckets, grid_rows, sequence_buckets, sequence_rows

MODALITIES = ("text", "image", "audio")
TEXT_BUCKETS = 256
ATTENTION_BLOCKS = 4


@dataclass(frozen=True)
class AttentionCase:
    """Attention of a few blocks.

    Attributes:
        preset: whose width and heads.
        side: of the images in pixels.
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
            {name: part.hide(masks[name].to(device)) for name, part in tokens.items()}
            for masks in (batch.masks, batch.fused_masks)
        )
        return [{name: part} for whole in (tokens, alone) for name, part in whole.items()] + [fused]

    def relative(self, device: Device, *, learned: bool) -> dict[str, RelativeBias]:
        """Random tables."""
        heads = preset_config(self.preset).encoder.heads
        grid, where = self.side // PATCH, torch.device(device)
        kinds = {
            "text": (sequence_rows(TEXT_BUCKETS), sequence_buckets(TEXT_BUCKETS, TEXT_BUCKETS, where)),
            "image": (grid_rows(grid), grid_buckets(grid, where)),
        }
        generator = torch.Generator().manual_seed(1)
        tables = ATTENTION_BLOCKS if self.per_block else 1

        def table(rows: int) -> Tensor:
            return torch.randn(rows, heads, generator=generator).to(device).requires_grad_(learned)

        return {
            name: RelativeBias([table(rows) for _ in range(tables)], buckets) for name, (rows, buckets) in kinds.items()
        }


def attention_pass(
    kind: str, case: AttentionCase, device: Device, dtype: torch.dtype, *, learned: bool = True
) -> Callable[[], list[Tensor]]:
    """A function that attends and gives the output of every block and, on CUDA, the gradients.

    Args:
        kind: name of the backend.
        case: what is attended to.
        device: where.
        dtype: of queries, keys and values.
        learned: the tables have gradients, as queries, keys and values have.
    """
    views, relative = case.views(device), case.relative(device, learned=learned)
    encoder = preset_config(case.preset).encoder
    packed = pack(views, MODALITIES)
    generator = torch.Generator().manual_seed(2)
    shape = (3, len(packed.values_TD), encoder.width)
    qkv = [part.to(device, dtype).requires_grad_() for part in torch.randn(shape, generator=generator)]
    leaves = [*qkv, *(table for bias in relative.values() for table in bias.tables_RH if learned)]

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
    """The greatest difference between both attentions in float32, as a fraction of each tensor's greatest value."""
    ours, theirs = (attention_pass(kind, case, device, torch.float32)() for kind in ("flex", "padded"))
    return max(
        float((one - two).abs().max() / two.abs().max().clamp(min=1e-6)) for one, two in zip(ours, theirs, strict=True)
    )


def attention_measured(
    kind: str, case: AttentionCase, device: Device, repetitions: int, learned: bool
) -> Measured | None:
    """Time and memory, in bfloat16 on CUDA."""
    run = attention_pass(kind, case, device, torch.bfloat16 if device == "cuda" else torch.float32, learned=learned)
    found = timed(device, repetitions, lambda _: run())
    return None if found is None else Measured(*found, case.batch_size)
