"""Samples that cannot be used: named by who prepares them, counted by the workers, judged over all ranks.

A worker sees a few hundred samples while a run sees millions, and bad samples lie together (a spoilt shard). So workers
only count; the training processes add their counts up and stop the run where a one-sided binomial test says that the
fraction of bad samples is past the limit.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

LEVEL = 1e-9
"""Probability below which chance does not explain the number of bad samples. At each look, a run whose true fraction is
the limit itself is stopped with at most this probability; one well below the limit with one far smaller."""

KINDS = ("seen", "bad", "empty_captions", "lost", "lost_shards")
"""What is counted for each source: samples taken; of these the bad ones, those whose caption is empty, and those in
shards that could not be read; and such shards."""

IN_A_ROW = 1000
"""Unusable samples in a row, out of several shards, that end a worker: it would make no batch for the others to wait
for."""

Counts = NDArray[np.int64]
"""(S, len(KINDS)): the counts of each source."""


class BadSample(ValueError):  # noqa: N818 - it names the sample, and is no failure of the program
    """A sample that cannot be used: undecodable, empty, or without a field.

    Whoever prepares a sample raises ``BadSample(reason)``; the loader fills in where it was.

    Attributes:
        reason: what is wrong.
        key: the sample's key.
        shard: the tar file that holds it.
    """

    def __init__(self, reason: str, key: str = "", shard: str = "") -> None:
        super().__init__(reason, key, shard)
        self.reason, self.key, self.shard = reason, key, shard

    def __str__(self) -> str:
        return f"{self.shard}: sample {self.key!r}: {self.reason}" if self.key else self.reason


class EmptyCaption(BadSample):
    """A sample whose caption has no words, as web data have; loaders may drop it without calling it bad."""


class NoRow(ValueError):  # noqa: N818 - nothing is wrong
    """A sample has nothing to give in this place of a pass: it has fewer captions than others of its shard."""


class TooManyBadSamplesError(RuntimeError):
    """The fraction of bad samples is past what the user allows."""


class TooManyLostShardsError(RuntimeError):
    """More shards could not be read than may be skipped."""


def check_lost(name: str, counts: Sequence[int], skip_shards: int) -> None:
    """Stop a run in which too many shards could not be read.

    Args:
        name: the source, for the message.
        counts: by ``KINDS``, over all ranks and workers since the run began.
        skip_shards: how many may be skipped.

    Raises:
        TooManyLostShardsError: there are more.
    """
    if (lost := int(counts[KINDS.index("lost_shards")])) > skip_shards:
        raise TooManyLostShardsError(
            f"{name}: {lost} shards could not be read over all ranks (each was logged by its name), more than "
            f"storage.skip_shards={skip_shards}. Restore them, or raise it."
        )


def no_counts(sources: int) -> Counts:
    """Zeros for so many sources."""
    return np.zeros((sources, len(KINDS)), np.int64)


def described(counts: Sequence[int]) -> str:
    """A source's counts in words."""
    _, bad, empty, lost, shards = counts
    parts = {"bad": bad, "with an empty caption": empty, f"in {shards} shards that could not be read": lost}
    return ", ".join(f"{count} {what}" for what, count in parts.items() if count) or "none bad"


def judge(name: str, counts: Sequence[int], max_bad_fraction: float, *, drop_empty_captions: bool) -> None:
    """Stop a run whose fraction of bad samples is credibly past the limit.

    Args:
        name: the source, for the message.
        counts: by ``KINDS``, over all ranks and workers since the run began.
        max_bad_fraction: greatest fraction of bad samples that is put up with.
        drop_empty_captions: samples with an empty caption are no bad samples, and are not counted among all.

    Raises:
        TooManyBadSamplesError: were the true fraction the limit, so many would be bad with a probability below
            ``LEVEL`` only.
    """
    seen, bad, empty, lost, _ = (int(count) for count in counts)
    seen -= lost
    if drop_empty_captions:
        seen -= empty
    else:
        bad += empty
    if bad <= max_bad_fraction * seen:
        return
    from scipy.stats import binomtest  # a second and 60 MiB that a healthy run does without

    if (chance := float(binomtest(bad, seen, max_bad_fraction, alternative="greater").pvalue)) < LEVEL:
        raise TooManyBadSamplesError(
            f"{name}: {bad} of {seen} samples were bad over all ranks, credibly more than "
            f"max_bad_fraction={max_bad_fraction} (chance alone: {chance:.1g}, below {LEVEL:g}). Mend the data (each "
            "bad sample was logged with its shard and key) or raise max_bad_fraction."
        )


class WorkerCounts:
    """One worker's counts since its last batch, and the log lines about single samples.

    Args:
        names: of the sources.
        sizes: samples of each source.
    """

    def __init__(self, names: Sequence[str], sizes: Sequence[int]) -> None:
        self._names, self._sizes = names, sizes
        self._counts = no_counts(len(names))
        self._lost: set[str] = set()
        self._row = [0] * len(names)
        self._row_shards: list[set[str]] = [set() for _ in names]

    def add(self, source: int, kind: str, count: int = 1) -> None:
        """Count."""
        self._counts[source, KINDS.index(kind)] += count

    def good(self, source: int) -> None:
        """End a row of unusable samples."""
        if self._row[source]:
            self._row[source] = 0
            self._row_shards[source].clear()

    def skip(self, source: int, error: BadSample, *, first_pass: bool) -> None:
        """Count a bad sample. It is met once in every pass, so a warning in the first is one, whoever meets it.

        Raises:
            TooManyBadSamplesError: there is nothing but unusable samples, out of which no batch will come.
        """
        self.add(source, "empty_captions" if isinstance(error, EmptyCaption) else "bad")
        level = logging.WARNING if first_pass else logging.DEBUG
        log.log(level, "%s: skipped a bad sample: %s", self._names[source], error)
        self.unusable(source, error.shard, str(error))

    def lose(self, source: int, error: str) -> None:
        """Count a sample of a shard that cannot be read, and the shard where it is the first of it here.

        Raises:
            TooManyBadSamplesError: there is nothing else.
        """
        self.add(source, "lost")
        if error not in self._lost:
            self._lost.add(error)
            self.add(source, "lost_shards")
            log.warning("%s: skipped a shard: %s", self._names[source], error)
        self.unusable(source, error, error)

    def unusable(self, source: int, shard: str, last: str) -> None:
        """Lengthen the row of samples out of which nothing was made.

        Raises:
            TooManyBadSamplesError: there is nothing else.
        """
        self._row[source] += 1
        self._row_shards[source].add(shard)
        row, shards = self._row[source], len(self._row_shards[source])
        if row >= 2 * self._sizes[source] or (row >= IN_A_ROW and shards > 2):
            raise TooManyBadSamplesError(
                f"{self._names[source]}: none of the last {row} samples, out of {shards} shards, could be used; the "
                f"last one: {last}. Mend the data, or what reads them (a missing codec?)"
            )

    def take(self) -> Counts:
        """The counts since the last call."""
        taken, self._counts = self._counts, no_counts(len(self._names))
        return taken


def logged(names: Sequence[str], before: Counts, now: Counts) -> None:
    """Log the counts of those sources in which something was skipped since."""
    skipped = slice(1, None)
    for name, old, new in zip(names, before.tolist(), now.tolist(), strict=True):
        if old[skipped] != new[skipped]:
            log.info("%s: of %d samples over all ranks, %s", name, new[0], described(new))


def as_counts(values: Any) -> Counts:
    """Counts out of a checkpoint's lists."""
    return np.asarray(values, np.int64)
