"""Cross-modal retrieval recall over a whole gallery, beside what chance would give.

N = keys of the gallery, Q = queries, B and C = rows of one update, d = embedding width.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

Ties = Literal["strict", "published"]

CUTOFFS = (1, 5, 10)
"""The k of every R@k."""

QUERIES_AT_ONCE = 1024
"""Bounds the score matrix to 1024 × N floats."""

TIE = 1e-6
"""Cosines closer than this are the same score: float32 products of equal rows differ by rounding."""


def caption_ids(captions: Sequence[str]) -> Tensor:
    """Give equal captions equal ids, the same in every process and run.

    Args:
        captions: one caption per row.

    Returns:
        (B,) int64: the first 8 bytes of each caption's SHA-256.

    Raises:
        ValueError: a caption is blank. Blank captions would all count as one another's right answer.
    """
    for row, caption in enumerate(captions):
        if not caption.strip():
            raise ValueError(
                f"caption {row} is {caption!r}: retrieval needs to know which rows match; give every sample a caption"
            )
    digests = [hashlib.sha256(caption.encode()).digest()[:8] for caption in captions]
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests], dtype=torch.int64)


class CrossModalRecall(Metric):
    """R@1, R@5 and R@10 in percent between two modalities, both ways, over every row that was given.

    A query is right at k when one of its k nearest keys (by cosine) has the query's id. With ``ties="strict"`` a wrong
    key that scores the same as the best right one ranks before it, so a model that maps everything to one point scores
    0, not 100; with "published" the first k are those that ``torch.topk`` gives, as in the original's evaluation. Every
    row is a query and a key, as it is: rows with one id (equal captions, repeated images) all stay in the gallery.
    The two sides may have different numbers of rows (five captions of each image). ``chance/…`` is the expectation
    of the same number under a random ranking, exact for these ids.

    Rows are kept as they come and gathered from all ranks when the metric is computed, so uneven ranks (an empty one
    too) give what one process gives.

    Args:
        first: name of the first modality, e.g. ``"image"``.
        second: name of the second, e.g. ``"text"``. Keys of the result are then ``image_to_text/R@1``,
            ``text_to_image/R@1``, ``chance/image_to_text/R@1``, ….
        ties: how keys of equal score are ranked, "strict" or "published".
        kwargs: see ``torchmetrics.Metric``.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    first_embeddings: list[Tensor]
    second_embeddings: list[Tensor]
    first_ids: list[Tensor]
    second_ids: list[Tensor]

    def __init__(self, first: str, second: str, *, ties: Ties = "strict", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if ties not in get_args(Ties):
            raise ValueError(f"ties is {ties!r}; choose one of {', '.join(get_args(Ties))}")
        self.ties = ties
        if first == second:
            raise ValueError(f"both sides are called {first!r}: retrieval is between two modalities, name them apart")
        self.first = first
        self.second = second
        # Embeddings are kept flat: torch can join an empty 1-D tensor, from a rank without rows, to rows of any width.
        self.add_state("first_embeddings", default=[], dist_reduce_fx="cat")
        self.add_state("second_embeddings", default=[], dist_reduce_fx="cat")
        self.add_state("first_ids", default=[], dist_reduce_fx="cat")
        self.add_state("second_ids", default=[], dist_reduce_fx="cat")

    def update(
        self, first_embeddings: Tensor, second_embeddings: Tensor, ids: Tensor, second_ids: Tensor | None = None
    ) -> None:
        """Add rows to both sides of the gallery.

        Args:
            first_embeddings: (B, d), of the first modality; normalised here in float32.
            second_embeddings: (C, d), of the second.
            ids: (B,) int64 label of each first row (``caption_ids``); rows with equal labels are right answers.
            second_ids: (C,) int64 labels of the second rows; None: row i is the pair of first row i.

        Raises:
            ValueError: shapes disagree, or an embedding holds NaN or infinity.
        """
        sides = (
            (self.first, first_embeddings, ids),
            (self.second, second_embeddings, ids if second_ids is None else second_ids),
        )
        shapes = [(tuple(embeddings.shape), tuple(labels.shape)) for _, embeddings, labels in sides]
        fits = all(len(rows) == 2 and labels == rows[:1] for rows, labels in shapes)
        if not fits or shapes[0][0][1] != shapes[1][0][1]:
            raise ValueError(
                f"{self.first} embeddings and ids {shapes[0]} and {self.second} embeddings and ids {shapes[1]} do not"
                " fit together: give (B, d) with (B,), and (C, d) with (C,)"
            )
        for name, embeddings, _ in sides:
            bad_rows = (~embeddings.isfinite()).any(1).nonzero().flatten().tolist()
            if bad_rows:
                raise ValueError(
                    f"{name} embeddings of rows {bad_rows[:8]} are not finite ({len(bad_rows)} of {len(embeddings)}"
                    " rows): the model has diverged; lower the learning rate or clip the gradient norm"
                )
        self.first_embeddings.append(F.normalize(first_embeddings.float(), dim=1).flatten())
        self.second_embeddings.append(F.normalize(second_embeddings.float(), dim=1).flatten())
        self.first_ids.append(sides[0][2].to(torch.int64))
        self.second_ids.append(sides[1][2].to(torch.int64))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather all ranks' rows; see ``torchmetrics.Metric.sync``."""
        if len(self.first_ids) == 0:
            # Left empty, torchmetrics would send a float tensor for the ids, which other ranks cannot receive as int64.
            for embeddings in (self.first_embeddings, self.second_embeddings):
                embeddings.append(torch.empty(0, dtype=torch.float32, device=self.device))
            for ids in (self.first_ids, self.second_ids):
                ids.append(torch.empty(0, dtype=torch.int64, device=self.device))
        super().sync(*args, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """Score the whole gallery.

        Returns:
            Scalars in percent: ``A_to_B/R@k`` and ``chance/A_to_B/R@k`` for k in 1, 5, 10, both directions.

        Raises:
            ValueError: no row was given.
        """
        first_ids, second_ids = (
            dim_zero_cat(ids) if len(ids) else torch.empty(0) for ids in (self.first_ids, self.second_ids)
        )
        if len(first_ids) == 0 or len(second_ids) == 0:
            raise ValueError(
                f"the {self.first}-{self.second} gallery is empty: no pair reached update(); "
                "check the validation data and limit_val_batches"
            )
        first = dim_zero_cat(self.first_embeddings).view(len(first_ids), -1)
        second = dim_zero_cat(self.second_embeddings).view(len(second_ids), -1)
        scores = {}
        for direction, queries, query_ids, keys, key_ids in (
            (f"{self.first}_to_{self.second}", first, first_ids, second, second_ids),
            (f"{self.second}_to_{self.first}", second, second_ids, first, first_ids),
        ):
            ranks = _ranks(queries, keys, query_ids, key_ids, self.ties)
            for k, chance in zip(CUTOFFS, _chance(query_ids, key_ids), strict=True):
                scores[f"{direction}/R@{k}"] = 100 * (ranks < k).float().mean()
                scores[f"chance/{direction}/R@{k}"] = 100 * chance
        return scores


def _ranks(queries: Tensor, keys: Tensor, query_ids: Tensor, key_ids: Tensor, ties: Ties) -> Tensor:
    """(Q,) how many keys come before each query's best right one, of queries (Q, d) and keys (N, d).

    With ties as published only the largest cutoff is searched; where no right key is within it, that many come before.
    """
    ranks = []
    with torch.autocast(queries.device.type, enabled=False):
        for some, some_ids in zip(queries.split(QUERIES_AT_ONCE), query_ids.split(QUERIES_AT_ONCE), strict=True):
            scores = some @ keys.T
            if ties == "published":
                nearest = key_ids[scores.topk(min(CUTOFFS[-1], len(keys))).indices] == some_ids[:, None]
                ranks.append(torch.where(nearest.any(1), nearest.int().argmax(1), CUTOFFS[-1]))
                continue
            right = some_ids[:, None] == key_ids
            best_right = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
            ranks.append((~right & (scores >= best_right - TIE)).sum(1))
    return torch.cat(ranks)


def _chance(query_ids: Tensor, key_ids: Tensor) -> list[Tensor]:
    """Expected hit rate of a random ranking at each cutoff: 1 - C(N-m, k) / C(N, k) for a query with m right keys."""
    total = len(key_ids)
    ids, inverse = torch.cat([query_ids, key_ids]).unique(return_inverse=True)
    counts = torch.bincount(inverse[len(query_ids) :], minlength=len(ids))
    wrong = (total - counts[inverse[: len(query_ids)]]).cpu().double()
    rates = []
    for k in CUTOFFS:
        draws = torch.arange(min(k, total), dtype=torch.float64)
        # The ratio of binomials, draw by draw: each of the k keys is another wrong one.
        all_wrong = ((wrong[:, None] - draws).clamp(min=0) / (total - draws)).prod(1)
        rates.append((1 - all_wrong).mean().float().to(key_ids.device))
    return rates
