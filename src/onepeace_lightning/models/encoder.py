"""The transformer: self-attention shared by all modalities, a feed-forward network per modality (paper section 3.2)."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from onepeace_lightning.models.attention import Attention, RelativeBias, dense_bias
from onepeace_lightning.models.config import TransformerConfig
from onepeace_lightning.models.layers import GeGLU
from onepeace_lightning.models.tokens import Packed, Tokens, View, pack


class DropPath(nn.Module):
    """Stochastic depth: whole sequences skip a residual branch, the others make up for it."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x_TD: Tensor, packed: Packed) -> Tensor:
        """One draw per sequence of each view; nothing happens outside training."""
        if not self.training or self.rate == 0.0:
            return x_TD
        keep = x_TD.new_empty(packed.num_sequences).bernoulli_(1.0 - self.rate) / (1.0 - self.rate)
        return x_TD * keep[packed.sequence_T, None]


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

    def forward(self, x_TD: Tensor, packed: Packed, biases: Sequence[Tensor | None]) -> Tensor:
        """(T, D) -> (T, D)."""
        attended = self.attention(self.norm_attention(x_TD), packed, biases)
        if self.layer_scale is not None:
            attended = self.gamma_1 * attended
        x_TD = x_TD + self.drop_path(attended, packed)
        normed = packed.by_modality(self.norm_ffn(x_TD))
        fed = torch.cat([self.ffns[name](rows_TD) for name, rows_TD in normed.items()])
        if self.layer_scale is not None:
            fed = self.gamma_2 * fed
        return x_TD + self.drop_path(fed, packed)


class Encoder(nn.Module):
    """A stack of blocks and a final LayerNorm per modality, run once over any number of views."""

    def __init__(self, config: TransformerConfig, modalities: Sequence[str]) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        rates = torch.linspace(0.0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(config, modalities, rate) for rate in rates)
        self.norms = nn.ModuleDict({name: nn.LayerNorm(config.width) for name in modalities})

    def forward(
        self, views: Sequence[View], relative_bias: Callable[[int], Mapping[str, RelativeBias]] | None = None
    ) -> list[dict[str, Tokens]]:
        """Encode all views in one pass; the result has their features in place of their tokens.

        Args:
            views: B sequences each, any subset of the modalities, B may differ between views.
            relative_bias: gives block i its modalities' biases; the same object again means that the bias is shared.
        """
        packed = pack(views, self.modalities)
        x_TD = packed.values_TD
        relative: Mapping[str, RelativeBias] = {}
        biases: list[Tensor | None] = [None] * len(views)
        for index, block in enumerate(self.blocks):
            if relative_bias is not None and (current := relative_bias(index)) is not relative:
                relative = current
                biases = [dense_bias(sequences, relative) for sequences in packed.sequences]
            x_TD = block(x_TD, packed, biases)
        features = {name: self.norms[name](rows_TD) for name, rows_TD in packed.by_modality(x_TD).items()}
        first = {name: rows.start for name, rows in packed.groups.items()}
        return [
            {
                name: view[name].with_values(features[name][rows.start - first[name] : rows.stop - first[name]])
                for name, rows in part.items()
            }
            for view, part in zip(views, packed.parts, strict=True)
        ]
