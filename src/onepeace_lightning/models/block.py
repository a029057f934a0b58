"""The transformer block: self-attention shared by all modalities, a feed-forward network for each (paper section 3.2).

T = tokens of all views laid flat, D = width.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace_lightning.models.attention.base import Attend
from onepeace_lightning.models.config import TransformerConfig
from onepeace_lightning.models.layers import Linear, PerModality, autocasted
from onepeace_lightning.models.packing import Packed


class Block(nn.Module):
    """Pre-norm transformer block: attention over each sequence, then the feed-forward network of each token's modality.

    Args:
        config: sizes of the stack.
        modalities: those that have a feed-forward network.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, config: TransformerConfig, modalities: Sequence[str], drop_path: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.heads, config.init_std)
        self.norm_ffn = nn.LayerNorm(config.width)
        self.ffns = ModalityFFNs(modalities, config.width, config.ffn_width, config.init_std)
        self.drop_path = DropPath(drop_path)
        self.layer_scale = config.layer_scale
        self.gamma_1: Tensor | float = 1.0  # without LayerScale, as in the decoder
        self.gamma_2: Tensor | float = 1.0
        if config.layer_scale is not None:
            self.gamma_1, self.gamma_2 = (nn.Parameter(torch.empty(config.width)) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set γ to its initial value."""
        for gamma in self.parameters(recurse=False):
            nn.init.constant_(gamma, self.layer_scale or 0.0)

    def forward(self, x_TD: Tensor, packed: Packed, attend: Attend) -> Tensor:
        """(T, D) -> (T, D).

        Args:
            x_TD: tokens of all views.
            packed: which of them belong to which sequence and modality.
            attend: what softmax attention does within each sequence.
        """
        x_TD = x_TD + self.drop_path(self.gamma_1 * self.attention(self.norm_attention(x_TD), attend), packed)
        return x_TD + self.drop_path(self.gamma_2 * self.ffns(self.norm_ffn(x_TD), packed.sizes), packed)


class Attention(nn.Module):
    """Multi-head self-attention, key projection without bias, LayerNorm before the output projection ("Sub-LN")."""

    def __init__(self, width: int, heads: int, init_std: float) -> None:
        super().__init__()
        self.heads = heads
        self.attended: Callable[[Attend, Tensor, Tensor, Tensor], Tensor] = attended
        self.query = Linear(width, width, init_std)
        self.key = Linear(width, width, init_std, bias=False)
        self.value = Linear(width, width, init_std)
        self.norm = nn.LayerNorm(width)
        self.out = Linear(width, width, init_std)

    def forward(self, x_TD: Tensor, attend: Attend) -> Tensor:
        """(T, D) -> (T, D)."""
        x_TD = autocasted(x_TD)
        mixed_TD = self.attended(attend, self.query(x_TD), self.key(x_TD), self.value(x_TD))
        return self.out(self.norm(mixed_TD))


def attended(attend: Attend, q_TD: Tensor, k_TD: Tensor, v_TD: Tensor) -> Tensor:
    """Attention itself, which ``encoder.compile_blocks`` keeps out of its graphs: FlexAttention compiles on its own."""
    return attend(q_TD, k_TD, v_TD)


class GeGLU(nn.Module):
    """Gated feed-forward network with a LayerNorm before the last projection ("Sub-LN")."""

    def __init__(self, width: int, inner: int, init_std: float) -> None:
        super().__init__()
        self.gate = Linear(width, inner, init_std, bias=False)
        self.up = Linear(width, inner, init_std, bias=False)
        self.norm = nn.LayerNorm(inner)
        self.down = Linear(inner, width, init_std)

    def forward(self, x_TD: Tensor) -> Tensor:
        """(T, D) -> (T, D)."""
        x_TD = autocasted(x_TD)
        return self.down(self.norm(F.gelu(self.gate(x_TD)) * self.up(x_TD)))


class ModalityFFNs(PerModality):
    """A feed-forward network for each modality."""

    def __init__(self, modalities: Sequence[str], width: int, inner: int, init_std: float) -> None:
        super().__init__({name: GeGLU(width, inner, init_std) for name in modalities})

    def forward(self, x_TD: Tensor, sizes: Mapping[str, int]) -> Tensor:
        """(T, D) -> (T, D); ``sizes`` are the numbers of tokens of each modality, one after the other."""
        parts = x_TD.split(list(sizes.values()))
        return torch.cat([self[name](part_TD) for name, part_TD in zip(sizes, parts, strict=True)])


class DropPath(nn.Module):
    """Stochastic depth: whole sequences skip a residual branch, the others make up for it."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        # A tensor and not a number, with which torch.compile would make a graph for every block's rate.
        self.keep = torch.tensor(1.0 - rate, device="cpu") if rate > 0 else None

    def forward(self, branch_TD: Tensor, packed: Packed) -> Tensor:
        """(T, D) -> (T, D), one draw per sequence of each view; unchanged outside training."""
        if not self.training or self.keep is None:
            return branch_TD
        draws = torch.rand(packed.num_sequences, 1, device=branch_TD.device)
        factors = (draws < self.keep).to(branch_TD.dtype) / self.keep
        return branch_TD * factors[packed.sequence_T]
