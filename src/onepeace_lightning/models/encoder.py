"""The transformer: self-attention shared by all modalities, a feed-forward network per modality (paper section 3.2)."""

from collections.abc import Mapping, Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from onepeace_lightning.models.attention.base import Attention, AttentionChoice, Mix, Mixer, RelativeBias
from onepeace_lightning.models.attention.flex import Flex
from onepeace_lightning.models.attention.padded import Dense
from onepeace_lightning.models.compiling import compiled
from onepeace_lightning.models.config import TransformerConfig
from onepeace_lightning.models.layers import GeGLU
from onepeace_lightning.models.packing import Packed, Tokens, View, pack

MIN_FLEX_WIDTH = 16
"""Features of a head that FlexAttention's kernel on CUDA needs at least."""

COMPILED_MULTIPLE = 128
"""Of which compiled blocks have each modality's number of tokens: few sizes, so that memory of one step fits the next,
and none of 0 or 1, for which PyTorch compiles anew."""


class DropPath(nn.Module):
    """Stochastic depth: whole sequences skip a residual branch, the others make up for it."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, packed: Packed) -> Tensor | None:
        """(T, 1) what a branch is multiplied by, one draw per sequence of each view; None outside training."""
        if not self.training or self.rate == 0.0:
            return None
        keep = packed.values_TD.new_empty(packed.num_sequences).bernoulli_(1.0 - self.rate) / (1.0 - self.rate)
        return keep[packed.sequence_T, None]


class Block(nn.Module):
    """x + γ₁ Attention(LN x), then x + γ₂ FFN_m(LN x) with m the token's modality."""

    def __init__(self, config: TransformerConfig, modalities: Sequence[str], drop_path: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.heads, config.init_std)
        self.norm_ffn = nn.LayerNorm(config.width)
        self.ffns = nn.ModuleDict({name: GeGLU(config.width, config.ffn_width, config.init_std) for name in modalities})
        self.drop_path = DropPath(drop_path)
        self.layer_scale = config.layer_scale
        if config.layer_scale is not None:
            self.gamma_1 = nn.Parameter(torch.empty(config.width))
            self.gamma_2 = nn.Parameter(torch.empty(config.width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set γ to its initial value."""
        if self.layer_scale is not None:
            nn.init.constant_(self.gamma_1, self.layer_scale)
            nn.init.constant_(self.gamma_2, self.layer_scale)

    def forward(self, x_TD: Tensor, packed: Packed, mix: Mix) -> Tensor:
        """(T, D) -> (T, D)."""
        mixed_TD = mix(*self.before(x_TD))
        return self.after(x_TD, mixed_TD, packed.sizes, self.drop_path(packed), self.drop_path(packed))

    def before(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All up to the queries, keys and values, each (T, D)."""
        return self.attention.project(self.norm_attention(x_TD))

    def after(
        self, x_TD: Tensor, mixed_TD: Tensor, sizes: dict[str, int], keep_1: Tensor | None, keep_2: Tensor | None
    ) -> Tensor:
        """All that follows attention.

        Args:
            x_TD: the block's input.
            mixed_TD: what its tokens attended to.
            sizes: modality to its number of tokens.
            keep_1: (T, 1) factor of the first branch, if any.
            keep_2: of the second.
        """
        x_TD = x_TD + self._scaled(self.attention.finish(mixed_TD), "gamma_1", keep_1)
        parts = self.norm_ffn(x_TD).split(list(sizes.values()))
        fed_TD = torch.cat([self.ffns[name](part_TD) for name, part_TD in zip(sizes, parts, strict=True)])
        return x_TD + self._scaled(fed_TD, "gamma_2", keep_2)

    def _scaled(self, branch_TD: Tensor, gamma: str, keep: Tensor | None) -> Tensor:
        if self.layer_scale is not None:
            branch_TD = getattr(self, gamma) * branch_TD
        return branch_TD if keep is None else branch_TD * keep


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
        self.norms = nn.ModuleDict({name: final() for name in modalities})

    def forward(
        self, views: Sequence[View], relative: Mapping[str, RelativeBias] | None = None
    ) -> list[dict[str, Tokens]]:
        """Encode all views in one pass; the result has their features in place of their tokens.

        Args:
            views: B sequences each, any subset of the modalities, B may differ between views.
            relative: modality to its bias, for as many positions as the views have.
        """
        packed = pack(views, self.modalities, self.multiple)
        mixer = self.mixer(packed, views, relative or {})
        x_TD = packed.values_TD
        for index, block in enumerate(self.blocks):
            x_TD = block(x_TD, packed, mixer.block(index))
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

    def mixer(self, packed: Packed, views: Sequence[View], relative: Mapping[str, RelativeBias]) -> Mixer:
        """The attention of one pass, as ``set_attention`` chose it."""
        choice = self.attention
        if choice == "auto":
            choice = "flex" if packed.values_TD.is_cuda and self.head_width >= MIN_FLEX_WIDTH else "dense"
        return (Flex if choice == "flex" else Dense)(packed, views, self.heads, relative)


def set_attention(model: nn.Module, choice: AttentionChoice) -> None:
    """Choose how all encoders of a model attend; the numbers are the same to float tolerance.

    Args:
        model: with any number of encoders.
        choice: "dense" pads sequences and writes the relative bias out; "flex" does neither, but has no backward pass
            on the CPU; "auto" is flex on CUDA and dense elsewhere.

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

    Attention itself stays outside, between the two halves of its block: FlexAttention is compiled on its own. Lengths
    are symbols and padded to multiples of 128 for each modality, and blocks share their graphs, so that no step of
    other lengths compiles anything. It may come before or after activation checkpointing and sharding of the blocks.

    Args:
        model: with any number of encoders.
        backend: of ``torch.compile``.
    """
    for encoder in model.modules():
        if isinstance(encoder, Encoder):
            encoder.multiple = COMPILED_MULTIPLE
            for block in encoder.blocks:
                for half in ("before", "after"):
                    setattr(block, half, compiled(getattr(block, half), backend))
