"""The transformer: self-attention shared by all modalities, a feed-forward network per modality (paper section 3.2)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from onepeace_lightning.models.attention import Attention, Mix, RelativeBias
from onepeace_lightning.models.config import TransformerConfig
from onepeace_lightning.models.dense import Dense
from onepeace_lightning.models.layers import GeGLU
from onepeace_lightning.models.tokens import Packed, Tokens, View, pack


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
        self.heads = config.heads
        rates = torch.linspace(0.0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(config, modalities, rate) for rate in rates)
        self.norms = nn.ModuleDict({name: nn.LayerNorm(config.width) for name in modalities})

    def forward(
        self, views: Sequence[View], relative: Mapping[str, RelativeBias] | None = None
    ) -> list[dict[str, Tokens]]:
        """Encode all views in one pass; the result has their features in place of their tokens.

        Args:
            views: B sequences each, any subset of the modalities, B may differ between views.
            relative: modality to its bias, for as many positions as the views have.
        """
        packed = pack(views, self.modalities)
        mixer = Dense(packed, views, self.heads, relative or {})
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
