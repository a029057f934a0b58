"""The fusion encoder: a stack of blocks that runs once over any number of views (paper section 3.2)."""

from collections.abc import Mapping, Sequence
from typing import get_args

import torch
from torch import nn

from onepeace_lightning.models.attention.base import AttentionBackend, AttentionChoice, RelativeBias
from onepeace_lightning.models.attention.cpu import CPUAttention
from onepeace_lightning.models.attention.flex import FlexAttention
from onepeace_lightning.models.attention.padded import PaddedAttention
from onepeace_lightning.models.block import Block, attended
from onepeace_lightning.models.compiling import compiled, outside_of_graphs
from onepeace_lightning.models.config import TransformerConfig
from onepeace_lightning.models.layers import PerModality
from onepeace_lightning.models.packing import Packed, Tokens, View, pack

BACKENDS: dict[str, type[AttentionBackend]] = {"padded": PaddedAttention, "cpu": CPUAttention, "flex": FlexAttention}

MIN_FLEX_WIDTH = 16
"""Features of a head that FlexAttention's kernel on CUDA needs at least."""

COMPILED_MULTIPLE = 128
"""Of which compiled blocks have each modality's number of tokens: few sizes, so that memory of one step fits the next,
and none of 0 or 1, for which PyTorch compiles anew."""


class Encoder(nn.Module):
    """A stack of blocks and a final LayerNorm per modality, run once over any number of views."""

    def __init__(self, config: TransformerConfig, modalities: Sequence[str]) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        self.heads, self.head_width = config.heads, config.width // config.heads
        self.attention: AttentionChoice = "auto"
        self.multiple = 1
        rates = torch.linspace(0.0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(config, modalities, rate) for rate in rates)
        final = (lambda: nn.LayerNorm(config.width)) if config.final_norm else nn.Identity
        self.norms = PerModality({name: final() for name in modalities})

    def forward(
        self, views: Sequence[View], relative: Mapping[str, RelativeBias] | None = None
    ) -> list[dict[str, Tokens]]:
        """Encode all views in one pass; the result has their features in place of their tokens.

        Args:
            views: B sequences each, any subset of the modalities, B may differ between views.
            relative: modality to its bias, for as many positions as the views have.
        """
        packed = pack(views, self.modalities, self.multiple)
        attention = self.backend(packed, views, relative or {})
        x_TD = packed.values_TD
        for index, block in enumerate(self.blocks):
            x_TD = block(x_TD, packed, attention.block(index))
        features = {name: self.norms[name](rows_TD) for name, rows_TD in packed.by_modality(x_TD).items()}
        first: dict[str, int] = {}
        start = 0
        for name, size in packed.sizes.items():
            first[name], start = start, start + size
        return [
            {
                name: view[name].with_values(features[name][rows.start - first[name] : rows.stop - first[name]])
                for name, rows in part.items()
            }
            for view, part in zip(views, packed.parts, strict=True)
        ]

    def backend(self, packed: Packed, views: Sequence[View], relative: Mapping[str, RelativeBias]) -> AttentionBackend:
        """The attention of one pass, as ``set_attention`` chose it."""
        choice = self.attention
        if choice == "auto":
            on_cuda: AttentionChoice = "flex" if self.head_width >= MIN_FLEX_WIDTH else "padded"
            choice = on_cuda if packed.values_TD.is_cuda else "cpu"
        return BACKENDS[choice](packed, views, self.heads, relative)


def set_attention(model: nn.Module, choice: AttentionChoice) -> None:
    """Choose how all encoders of a model attend; the numbers are the same to float tolerance.

    Args:
        model: with any number of encoders.
        choice: "padded" pads every view and writes the relative bias out, and runs anywhere; "cpu" does so in groups
            of like length; "flex" does neither, but has no backward pass on the CPU; "auto" is flex on CUDA (padded
            for heads of fewer than 16 features) and cpu elsewhere.

    Raises:
        ValueError: for another choice.
    """
    if choice not in get_args(AttentionChoice):
        raise ValueError(f"attention is {choice!r}; choose one of {', '.join(get_args(AttentionChoice))}")
    for module in model.modules():
        if isinstance(module, Encoder):
            module.attention = choice


def compile_blocks(model: nn.Module, backend: str = "inductor") -> None:
    """Compile every block of all encoders of a model, in place; parameters keep their names.

    Attention itself stays outside, between the graphs of its block: FlexAttention is compiled on its own. Lengths are
    symbols and padded to multiples of 128 for each modality, and blocks share their graphs, so that no step of other
    lengths compiles anything. It comes before activation checkpointing, which wraps a block as a whole, and sharding.

    Args:
        model: with any number of encoders.
        backend: of ``torch.compile``.

    Raises:
        ValueError: where a block's ``forward`` has been wrapped already.
    """
    for encoder in model.modules():
        if isinstance(encoder, Encoder):
            encoder.multiple = COMPILED_MULTIPLE
            for block in encoder.blocks:
                if "forward" in vars(block):
                    raise ValueError("a block is checkpointed or compiled already: compile first, and once")
                block.forward = compiled(block.forward, backend)
                block.attention.attended = outside_of_graphs(attended)  # type: ignore[union-attr]
