"""What a terminal shows of a run: a line that says what trains, and one bar that counts its steps."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import nn

_SHOWN = ("train/loss", "val/score")
"""Logged values beside the bar, where there are such."""


class Announcement(L.Callback):
    """Says in a line what trains, before it does."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the line."""
        if trainer.is_global_zero:
            print(describe(trainer, pl_module), flush=True)


class StepBar(ProgressBar):
    """Counts the optimizer steps of a whole run or the batches of an evaluation; silent where there is no terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._progress: Progress | None = None
        self._steps: TaskID | None = None
        self._batches: TaskID | None = None

    def disable(self) -> None:
        """Show nothing: what Lightning asks of all ranks but the first."""
        self._enabled = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count where the run goes on."""
        total = trainer.estimated_stepping_batches
        self._steps = self._bar("training", None if total == float("inf") else int(total), trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step, and show the loss."""
        if self._progress is not None and self._steps is not None:
            values = {name.partition("/")[2]: trainer.callback_metrics.get(name) for name in _SHOWN}
            shown = "  ".join(f"{name} {float(value):.2f}" for name, value in values.items() if value is not None)
            self._progress.update(self._steps, completed=trainer.global_step, values=shown)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count batches."""
        if not trainer.sanity_checking:
            self._batches = self._bar("validating", _total(trainer.num_val_batches))

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count batches."""
        self._batches = self._bar("testing", _total(trainer.num_test_batches))

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        """Count the batch."""
        if self._progress is not None and self._batches is not None:
            self._progress.advance(self._batches)

    def on_test_batch_end(self, *_: Any, **__: Any) -> None:
        """Count the batch."""
        self.on_validation_batch_end()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the bar of batches away."""
        if self._progress is not None and self._batches is not None:
            self._progress.remove_task(self._batches)
            self._batches = None

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the bar of batches away."""
        self.on_validation_end(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._stop()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the terminal back."""
        self._stop()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Write above the bar."""
        if self._progress is not None:
            self._progress.console.print(*args, **kwargs)
        else:
            print(*args, **kwargs)

    def _bar(self, description: str, total: int | None, completed: int = 0) -> TaskID | None:
        console = Console(stderr=True)
        if not self._enabled or not console.is_terminal:
            return None
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[values]}"), console=console,
            )  # fmt: skip
            self._progress.start()
        return self._progress.add_task(description, total=total, completed=completed, values="")

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def describe(trainer: L.Trainer, module: L.LightningModule) -> str:
    """One line: how many parameters, what trains, in which numbers, on what, for how long, and where it is kept."""
    devices = f"{trainer.world_size} {'CPU' if trainer.strategy.root_device.type == 'cpu' else 'GPU'}"
    devices += " processes" if trainer.world_size > 1 and devices.endswith("CPU") else ""
    steps = trainer.max_steps
    length = f"{steps} steps" if steps > 0 else f"{trainer.max_epochs} epoch{'s' if trainer.max_epochs != 1 else ''}"
    return f"{_parameters(module)}, {trainer.precision}, {devices}; {length}; written to {trainer.default_root_dir}"


def _parameters(module: nn.Module) -> str:
    parameters = list(module.parameters())
    whole = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return f"{_short(whole)} parameters, " + ("all trained" if whole == trained else f"{_short(trained)} trained")


def _short(count: int) -> str:
    for unit, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return str(count)


def _total(batches: Any) -> int | None:
    counts = batches if isinstance(batches, list) else [batches]
    return None if float("inf") in counts else int(sum(counts))
