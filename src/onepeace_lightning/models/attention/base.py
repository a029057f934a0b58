"""Self-attention over packed views: projections once over all tokens; a ``Mixer`` attends within each sequence.

T = tokens of all views laid flat, D = width, P = positions, H = heads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor, nn

from onepeace_lightning.models.layers import Linear, autocasted

AttentionChoice = Literal["auto", "dense", "flex"]
"""How attention is computed; ``encoder.set_attention`` says what they are."""


@dataclass(frozen=True)
class RelativeBias:
    """A modality's bias tables (rows, H), one for all blocks or one for each, and the row of any two positions (P, P).

    Tokens of different modalities have no bias between them.
    """

    tables_RH: Sequence[Tensor]
    buckets_PP: Tensor

    def table(self, block: int) -> Tensor:
        """(rows, H) the table that a block reads."""
        return self.tables_RH[block if len(self.tables_RH) > 1 else 0]


Mix = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q, k and v, each (T, D), to what every token attends to in its own sequence, (T, D), heads side by side."""


class Mixer(Protocol):
    """Attention over the sequences of one pass (``dense.Dense``, ``flex.Flex``)."""

    def block(self, index: int) -> Mix:
        """The attention of one block, with its relative bias."""
        ...


class Attention(nn.Module):
    """Multi-head self-attention, key projection without bias, LayerNorm before the output projection ("Sub-LN")."""

    def __init__(self, width: int, heads: int, init_std: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(width, width, init_std)
        self.key = Linear(width, width, init_std, bias=False)
        self.value = Linear(width, width, init_std)
        self.norm = nn.LayerNorm(width)
        self.out = Linear(width, width, init_std)

    def project(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all tokens, each (T, D)."""
        x_TD = autocasted(x_TD)
        return self.query(x_TD), self.key(x_TD), self.value(x_TD)

    def finish(self, mixed_TD: Tensor) -> Tensor:
        """(T, D) -> (T, D) what a ``Mix`` gives to what the block adds."""
        return self.out(self.norm(mixed_TD))
