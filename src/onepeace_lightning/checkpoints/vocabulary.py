"""Token embeddings for another vocabulary: those of the pieces that both have are taken over."""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from onepeace_lightning.modalities.registry import text_modality
from onepeace_lightning.modalities.tokenizers.base import UNK, TextRules, Tokenizer

_AS_IT_IS = TextRules(cleaning="none", truncate=False)


def fit_vocabulary(state: Mapping[str, Tensor], before: Tokenizer, now: Tokenizer) -> tuple[dict[str, Tensor], str]:
    """Put a checkpoint's token embeddings in the order of another vocabulary.

    The special ids are the same in every vocabulary. A piece that the old one lacks begins as the mean of the old
    pieces that spell it.

    Args:
        state: weights by name.
        before: the vocabulary that they were trained with.
        now: the one that is wanted.

    Returns:
        The weights, and a line that says what was taken over; "" where the vocabularies are the same.
    """
    if before.fingerprint() == now.fingerprint():
        return dict(state), ""
    old, new = before.pieces(), now.pieces()
    place = {piece: index for index, piece in enumerate(_numbered(old))}
    common = {
        index: place.get((piece, number), place[piece, 0])
        for index, (piece, number) in enumerate(_numbered(new))
        if piece and (piece, 0) in place
    }
    name = f"adapters.{text_modality()}.embedding.weight"
    fitted = dict(state)
    for key, table_VD in state.items():
        if not key.endswith(name) or len(table_VD) != len(old):
            continue
        mean_D = table_VD[UNK + 1 :].mean(0)
        rows = [
            table_VD[index] if index <= UNK
            else table_VD[common[index]] if index in common
            else _spelled(piece, before, table_VD, mean_D)
            for index, piece in enumerate(new)
        ]  # fmt: skip
        fitted[key] = torch.stack(rows)
    return fitted, (
        f"another vocabulary: {len(common)} of its {sum(map(bool, new))} pieces are in the old one too and keep their"
        " embeddings; the others begin as the mean of the old pieces that spell them"
    )


def _numbered(pieces: list[bytes]) -> list[tuple[bytes, int]]:
    """Each piece with how many like it come before: a letter may be there as a byte as well."""
    seen: Counter[bytes] = Counter()
    numbered = []
    for piece in pieces:
        numbered.append((piece, seen[piece]))
        seen[piece] += 1
    return numbered


def _spelled(piece: bytes, tokenizer: Tokenizer, table_VD: Tensor, mean_D: Tensor) -> Tensor:
    try:
        ids = tokenizer.encode(piece.decode().strip(), _AS_IT_IS).ids[:-1]
    except ValueError:  # a part of a character, or nothing that can be seen
        return mean_D
    return table_VD[ids].mean(0)
