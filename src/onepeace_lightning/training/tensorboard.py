"""TensorBoard without charts of what never changes."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

_CHANCE = "chance/"


class ChangingScalars(TensorBoardLogger):
    """Writes a scalar from the time on when its value changes, so that counts that stay zero make no charts.

    The first value is kept back until another one comes. One that was logged a single time is written when the run
    ends; chance, which stands beside the scores in the table of results, never is.

    Args:
        *args: see Lightning's ``TensorBoardLogger``.
        **options: as well.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._first: dict[str, tuple[float, int | None]] = {}
        self._seen: dict[str, int] = {}
        self._changing: set[str] = set()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write what has changed, and its first value before."""
        changing: dict[str, Any] = {}
        for name, value in metrics.items():
            if name == "epoch" or f"/{name}".rpartition(_CHANCE)[1]:
                continue
            number = float(value)
            first, since = self._first.setdefault(name, (number, step))
            self._seen[name] = self._seen.get(name, 0) + 1
            if name not in self._changing and number != first:
                self._changing.add(name)
                super().log_metrics({name: first}, since)
            if name in self._changing:
                changing[name] = number
        if changing:
            super().log_metrics(changing, step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what was logged once, and close the file."""
        for name, times in self._seen.items():
            if times == 1 and name not in self._changing:
                self._changing.add(name)
                value, step = self._first[name]
                super().log_metrics({name: value}, step)
        super().finalize(status)
