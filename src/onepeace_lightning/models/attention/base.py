"""What all forms of attention have in common: sequences of many views lie flat, each token sees its own sequence only.

T = tokens of all views laid flat, D = width, P = positions, H = heads.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from onepeace_lightning.models.packing import Packed, View

AttentionChoice = Literal["auto", "padded", "cpu", "flex"]
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


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(T, D) queries, keys, values to (T, D), heads side by side: softmax(q kᵀ / √(D/H) + bias) v within each sequence."""


class AttentionBackend(Protocol):
    """Attention over the sequences of one pass: ``PaddedAttention``, ``CPUAttention`` and ``FlexAttention``.

    Args:
        packed: all tokens.
        views: what was packed.
        heads: H.
        relative: modality to its bias.
    """

    def __init__(
        self, packed: Packed, views: Sequence[View], heads: int, relative: Mapping[str, RelativeBias]
    ) -> None: ...

    def block(self, index: int) -> Attend:
        """The attention of one block, with its relative bias."""
        ...
