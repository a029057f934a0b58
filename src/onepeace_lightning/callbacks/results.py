"""One table of retrieval results at the end of a run, and the same numbers as JSON."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from rich.table import Table

_PREFIX = "val/"
_SCORE = re.compile(r"(?:(?!chance/)(?P<gallery>.+?)/)?(?P<chance>chance/)?(?P<query>[^/]+?)_to_(?P<key>[^/]+)/R@\d+")


class ResultsTable(L.Callback):
    """Prints the last validation's retrieval scores and writes them to ``<folder>/results.json``.

    Scores are what the task logged as ``val/A_to_B/R@k`` and ``val/chance/A_to_B/R@k`` (percent), with the gallery's
    name after ``val/`` where there are several of one kind. The file is flat: the logged names without ``val/``,
    percent with two decimals. Under the table stand the lines of the task's ``score_context`` (prompt, split,
    preprocessing), where it has one. Happens once, when ``fit`` or ``validate`` ends, on rank zero.

    Args:
        folder: where ``results.json`` goes; made where it does not exist, an older file is replaced.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self._validated = False
        self._scores: dict[str, float] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget an earlier run's scores."""
        self._validated = False
        self._scores = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the scores: the last validation's are the ones to show."""
        if not trainer.sanity_checking:
            self._validated = True
            self._scores = retrieval_scores(trainer.callback_metrics)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Print and write, now that progress bars and Lightning's own tables are done."""
        if not self._validated or not trainer.is_global_zero:
            return
        if not self._scores:
            rank_zero_warn("validation logged no val/…_to_…/R@k: there are no retrieval results to show or write")
            return
        console = Console()
        console.print(results_table(self._scores))
        for line in getattr(pl_module, "score_context", []):
            console.print(line, markup=False, highlight=False)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "results.json"
        path.write_text(json.dumps(self._scores, indent=2) + "\n", encoding="utf-8")
        console.print(f"written to {path}", markup=False, highlight=False, soft_wrap=True)


def retrieval_scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Pick the retrieval scores of validation out of logged metrics.

    Args:
        metrics: logged name to a number or scalar tensor, in percent.

    Returns:
        Name without ``val/`` to percent, rounded to two decimals, in the order of ``metrics``.
    """
    return {
        name.removeprefix(_PREFIX): round(float(value), 2)
        for name, value in metrics.items()
        if name.startswith(_PREFIX) and _SCORE.fullmatch(name.removeprefix(_PREFIX))
    }


def results_table(scores: Mapping[str, float]) -> Table:
    """Lay out scores as one row per gallery and direction.

    Args:
        scores: percent by name, as ``retrieval_scores`` gives them; a number that is missing leaves its cell empty.
    """
    rows: dict[tuple[str, str, str], None] = {}
    for name in scores:
        match = _SCORE.fullmatch(name)
        if match is not None:
            rows[match["gallery"] or "", match["query"], match["key"]] = None
    table = Table(title="Retrieval, percent")
    table.add_column("direction")
    for column in ("R@1", "R@5", "R@10", "chance R@1"):
        table.add_column(column, justify="right")
    for gallery, query, key in rows:
        prefix = f"{gallery}/" if gallery else ""
        names = [f"{prefix}{query}_to_{key}/R@{k}" for k in (1, 5, 10)] + [f"{prefix}chance/{query}_to_{key}/R@1"]
        label = f"{query} → {key}" + (f" ({gallery})" if gallery else "")
        table.add_row(label, *(f"{scores[name]:.2f}" if name in scores else "" for name in names))
    return table
