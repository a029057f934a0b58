"""What all reports of a validation share: when they collect, over which processes, and where they write."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import numpy as np
import torch.distributed as dist
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image

from onepeace_lightning.reports.pages import facts, page
from onepeace_lightning.training.results import in_percent, scores_of, scores_title, written

PAGE, SHEET = "report.html", "report.png"
"""What a report writes into its folder."""

Entry = TypeVar("Entry")


class ValidationReport(L.Callback):
    """Writes ``report.html``, a page that stands alone, and ``report.png``: what a model does with held-out samples.

    Made once, when ``fit`` (from its last validation), ``validate`` or ``test`` ends, from the samples of all
    processes. The image also goes to TensorBoard.

    A subclass says what it keeps of a batch (``collect``), how the parts of several processes become one (``join``),
    and how that looks (``sections``, ``sheet``).

    Args:
        folder: where both files go, the trainer's ``default_root_dir`` if None; older files are replaced.
    """

    title = "Report"
    introduction = ""
    """HTML of the paragraph under the title."""

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self._collected: dict[str, Any] = {}

    # What a report is made of

    @abstractmethod
    def collect(self, kept: Any, name: str, batch: Any, outputs: Any, task: L.LightningModule) -> Any:
        """Keep what is needed of a batch.

        Args:
            kept: what was returned for the stream's batch before, None for its first.
            name: of the validation stream.
            batch: its samples.
            outputs: what the task's ``validation_step`` returned.
            task: the model.

        Returns:
            What is kept of the stream now, None for nothing; it travels between processes as a pickle.
        """

    @abstractmethod
    def join(self, parts: list[Any]) -> Any:
        """What was kept of one stream by every process that saw some of it, as one."""

    @abstractmethod
    def sections(self, streams: dict[str, Any]) -> str:
        """HTML of the page's body.

        Args:
            streams: name to what was kept of it.
        """

    @abstractmethod
    def sheet(self, streams: dict[str, Any]) -> Image.Image:
        """The same as one RGB image."""

    # Lightning

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the previous validation."""
        self._collected = {}

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect from a batch; a filler is another process's sample."""
        if trainer.sanity_checking or not outputs or getattr(batch, "filler", False):
            return
        loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
        name = list(loaders)[dataloader_idx] if isinstance(loaders, dict) else f"validation {dataloader_idx}"
        kept = self.collect(self._collected.get(name), name, batch, outputs, pl_module)
        if kept is not None:
            self._collected[name] = kept

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write after ``validate``."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._write(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write after ``fit``."""
        self._write(trainer, pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """As before a validation."""
        self.on_validation_start(trainer, pl_module)

    def on_test_batch_end(self, *args: Any, **options: Any) -> None:
        """As in a validation."""
        self.on_validation_batch_end(*args, **options)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write after ``test``."""
        self._write(trainer, pl_module)

    def _write(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        parts = gathered(self._collected)
        if not trainer.is_global_zero:
            return
        names = dict.fromkeys(name for part in parts for name in part)
        streams = {name: self.join([part[name] for part in parts if name in part]) for name in names}
        if not streams:  # nothing was validated, or nothing that the report shows
            return
        folder = Path(self.folder or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        head = score_section(
            scores_of(trainer.callback_metrics, percent=in_percent(task)),
            getattr(task, "score_context", []),
            percent=in_percent(task),
        )
        body = head + self.sections(streams)
        (folder / PAGE).write_text(page(self.title, self.introduction, body), encoding="utf-8")
        sheet = self.sheet(streams)
        sheet.save(folder / SHEET)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("report", np.asarray(sheet), trainer.global_step, dataformats="HWC")


def gathered(mine: Any) -> list[Any]:
    """What every process has, in the order of their ranks, on the first one; elsewhere nothing."""
    if not (dist.is_available() and dist.is_initialized()):
        return [mine]
    parts: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(mine, parts)
    return parts or []


def interleaved(parts: Iterable[Sequence[Entry]]) -> list[Entry]:
    """The first of each, the second of each, …: the order in which processes share out samples."""
    missing = object()
    return [one for some in zip_longest(*parts, fillvalue=missing) for one in some if one is not missing]  # type: ignore[misc]


def score_section(scores: dict[str, float], context: Sequence[str], *, percent: bool = True) -> str:
    """HTML of the scores, each with its chance, and of what is printed beside them.

    Args:
        scores: by name; ``chance/NAME`` is NAME's chance.
        context: lines of text.
        percent: whether the scores are percentages.
    """
    chance = {name.replace("chance/", "", 1): value for name, value in scores.items() if "chance/" in name}
    shown = {
        name: written(value, percent=percent)
        + (f", chance {written(chance[name], percent=percent)}" if name in chance else "")
        for name, value in scores.items()
        if "chance/" not in name
    }
    notes = "".join(f"<li>{escape(line)}</li>" for line in context)
    if not shown:
        return ""
    heading = f"<h2>{scores_title(percent=percent)}</h2>"
    return f"<section>{heading}{facts(shown)}{f'<ul>{notes}</ul>' if notes else ''}</section>"
