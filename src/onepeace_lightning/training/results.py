"""The scores of a run in one table at its end, and the same numbers as JSON."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from rich.table import Table

_SPLITS = ("val/", "test/")
_NOT_SCORES = ("loss", "score")
"""Logged names that repeat others, or are no scores."""
_RECALL = re.compile(r"(?:(?!chance/)(?P<gallery>.+?)/)?(?P<chance>chance/)?(?P<query>[^/]+?)_to_(?P<key>[^/]+)/R@\d+")


class ResultsTable(L.Callback):
    """Prints the scores of the last validation or test and writes them to ``<folder>/results.json``.

    Scores are what the task logged under ``val/`` or ``test/``, in percent unless its ``to_percent`` is None, with the
    gallery's name in front where there are several; recall (``A_to_B/R@k`` beside ``chance/A_to_B/R@k``) is shown as
    one row for each direction. The file is flat: the logged names without ``val/``, rounded to two decimals (to four
    where they are no percentages). Under the table stand the lines of the task's ``score_context`` (prompt, split,
    preprocessing, published result), where it has one. Happens once, when ``fit``, ``validate`` or ``test`` ends, on
    rank zero.

    Args:
        folder: where ``results.json`` goes, the trainer's ``default_root_dir`` if None; an older file is replaced.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self._measured = False
        self._scores: dict[str, float] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget an earlier run's scores."""
        self._measured = False
        self._scores = {}

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse to measure weights that nothing has trained.

        Raises:
            ValueError: parts of the model have their initial values, and no checkpoint was given.
        """
        if trainer.state.fn == TrainerFn.FITTING or trainer.ckpt_path:
            return
        if untrained := getattr(pl_module, "untrained", None):
            raise ValueError(
                f"{untrained} of the model's weights have their random initial values, so there is nothing to measure:"
                " give a checkpoint, such as --ckpt_path best"
            )

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """As before a validation."""
        self.on_validation_start(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the scores: the last validation's are the ones to show."""
        if not trainer.sanity_checking:
            self._measured = True
            self._scores = scores_of(trainer.callback_metrics, percent=in_percent(pl_module))

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the scores."""
        self.on_validation_end(trainer, pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Print and write, now that progress bars and Lightning's own tables are done."""
        if not self._measured or not trainer.is_global_zero:
            return
        if not self._scores:
            rank_zero_warn("nothing was logged under val/ or test/: there are no results to show or write")
            return
        console = Console()
        for table in results_tables(self._scores, percent=in_percent(pl_module)):
            console.print(table)
        for line in getattr(pl_module, "score_context", []):
            console.print(line, markup=False, highlight=False)
        folder = Path(self.folder or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "results.json"
        path.write_text(json.dumps(self._scores, indent=2) + "\n", encoding="utf-8")
        console.print(f"written to {path}", markup=False, highlight=False, soft_wrap=True)


def in_percent(task: Any) -> bool:
    """Whether a task's scores are percentages."""
    return getattr(task, "to_percent", 1.0) is not None


def scores_of(metrics: Mapping[str, Any], *, percent: bool = True) -> dict[str, float]:
    """Pick the scores out of logged metrics.

    Args:
        metrics: logged name to a number or scalar tensor.
        percent: whether they are percentages.

    Returns:
        Name without ``val/`` or ``test/`` to the number, of two decimals if percent and else of four, in their order.
    """
    return {
        name.removeprefix(split): round(float(value), 2 if percent else 4)
        for name, value in metrics.items()
        for split in _SPLITS
        if name.startswith(split) and name.removeprefix(split) not in _NOT_SCORES
    }


def scores_title(*, percent: bool) -> str:
    """The heading over scores."""
    return "Scores, percent" if percent else "Scores"


def written(value: float, *, percent: bool) -> str:
    """A score as it is shown."""
    return f"{value:.2f}" if percent else f"{value:.4g}"


def results_tables(scores: Mapping[str, float], *, percent: bool = True) -> list[Table]:
    """Lay out scores: recall as one row per gallery and direction, all others as one row each.

    Args:
        scores: by name, as ``scores_of`` gives them; a number that is missing leaves its cell empty.
        percent: whether they are percentages.
    """
    directions: dict[tuple[str, str, str], None] = {}
    others: dict[str, float] = {}
    for name, value in scores.items():
        if match := _RECALL.fullmatch(name):
            directions[match["gallery"] or "", match["query"], match["key"]] = None
        else:
            others[name] = value
    tables = []
    if directions:
        table = Table(title="Retrieval, percent")
        table.add_column("direction")
        for column in ("R@1", "R@5", "R@10", "chance R@1"):
            table.add_column(column, justify="right")
        for gallery, query, key in directions:
            prefix = f"{gallery}/" if gallery else ""
            names = [f"{prefix}{query}_to_{key}/R@{k}" for k in (1, 5, 10)]
            names.append(f"{prefix}chance/{query}_to_{key}/R@1")
            label = f"{query} → {key}" + (f" ({gallery})" if gallery else "")
            table.add_row(label, *(f"{scores[name]:.2f}" if name in scores else "" for name in names))
        tables.append(table)
    if others:
        table = Table(title=scores_title(percent=percent))
        table.add_column("score")
        table.add_column("", justify="right")
        for name, value in others.items():
            table.add_row(name, written(value, percent=percent))
        tables.append(table)
    return tables
