"""What pretraining and downstream tasks have in common under Lightning's trainer: steps, metrics and scores."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from math import ceil
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MetricCollection

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.data_types import DataType
from onepeace_lightning.data.datamodule import DataModule
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.modalities.tokenizers import Tokenizer
from onepeace_lightning.models.config import ModelConfig
from onepeace_lightning.models.heads.contrastive import ContrastiveHeads
from onepeace_lightning.training.clipping import gradient_norm, scale_gradients
from onepeace_lightning.training.finite import SkippedSteps, refuse_non_finite
from onepeace_lightning.training.optimizer import Optimization
from onepeace_lightning.training.seeding import seed_step

SCORE = "val/score"
"""What checkpoints are chosen by; more is better."""

ENTRIES = ("training_step", "validation_step", "test_step", "predict_step")
"""Methods that are called in place of ``forward``; the weights of a sharded model are whole only within."""


class TrainedModule(L.LightningModule):
    """Trains with steps that do not depend on where a run was started, and measures every evaluation stream.

    A stream of validation or test data is a gallery with metrics of its own. They are logged in percent as
    ``val/NAME``, or ``val/GALLERY/NAME`` where several galleries have one of that name, and the mean over galleries of
    ``gallery_score`` as ``val/score``.

    A subclass implements ``forward``, ``gallery_metrics``, ``measure``, ``gallery_score`` and ``answers``.

    Attributes:
        optimization: learning rates, decays and how many non-finite steps are borne.
        config: sizes of the model.
        tokenizer: None where there is no text.
        preprocessing: settings of the modalities, those of the data once there are any.
        galleries: name of each evaluation stream to what its samples are; None where nobody says.
        metrics: of each gallery.
        score_context: lines to print beside the scores.
    """

    optimization: Optimization
    config: ModelConfig
    tokenizer: Tokenizer | None
    preprocessing: Preprocessing
    untrained: int = 0
    """Numbers of the built model that have random initial values; a checkpoint is needed to measure it."""
    to_percent: ClassVar[float | None] = 100.0
    """What metrics are multiplied by to be percent; None: they are none, and logged as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.galleries: dict[str, DataType | None] = {}
        self.metrics = nn.ModuleList()
        self.score_context: list[str] = []
        self.started_from: dict[str, Any] | None = None

    # What a task is made of

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Any]:
        """What the model says of a batch, as in evaluation."""

    @abstractmethod
    def gallery_metrics(self, kind: DataType | None) -> MetricCollection:
        """New metrics of one evaluation stream; ``kind`` is what its samples are, None where nobody says."""

    @abstractmethod
    def measure(self, outputs: dict[str, Any], batch: Batch, metrics: MetricCollection) -> None:
        """Update metrics with what ``forward`` gave for a batch."""

    @abstractmethod
    def gallery_score(self, kind: DataType | None, values: Mapping[str, Tensor]) -> Tensor | None:
        """What to choose checkpoints by, out of such a stream's metrics in percent; None where they do not count."""

    def answers(self, outputs: dict[str, Any], batch: Batch) -> list[Any]:
        """One answer for each sample, out of what ``forward`` gave.

        Raises:
            NotImplementedError: unless a task says how.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what it answers: write its method answers")

    def adopt(self, data: DataModule) -> None:
        """Take over from the data what the task was not told (class names), or check that it fits."""

    def context(self) -> list[str]:
        """Lines to print beside the scores, such as a prompt."""
        return []

    def gallery_context(self, name: str, data: DataModule) -> list[str]:
        """Further lines to print of one evaluation stream."""
        return []

    def monitor(self, data: Any) -> str | None:
        """The logged score to choose checkpoints by, more is better; None where the data give none."""
        return SCORE if getattr(data, "val", None) else None

    # Lightning

    def setup(self, stage: str) -> None:
        """Check the data, adopt what they say, and make metrics for their evaluation streams.

        Raises:
            ValueError: the data's tokenizer, sizes or samples are not the task's.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, DataModule):
            self.galleries, self.metrics = {"val": None}, nn.ModuleList([self.gallery_metrics(None)])
            self.score_context = self.context()
            return
        if problems := self.data_problems(data):
            raise ValueError("data: " + "; ".join(problems))
        self.preprocessing = data.preprocessing
        self.adopt(data)
        streams = data.evaluated(stage)
        self.galleries = {name: data.data_type(stream) for name, stream in streams.items()}
        self.metrics = nn.ModuleList(self.gallery_metrics(kind) for kind in self.galleries.values())
        self.score_context = self.context()
        for name, stream in streams.items():
            manifest = data.stream_manifest(stream)
            self.score_context += [
                f"{name}: {stream.path}, {manifest.samples} samples, fingerprint {manifest.fingerprint()}",
                *self.gallery_context(name, data),
            ]

    def data_problems(self, data: DataModule) -> list[str]:
        """What of the data does not go with the model."""
        problems = []
        ours, theirs = self.tokenizer, data.tokenizer
        if ours is not None and theirs is not None and ours.fingerprint() != theirs.fingerprint():
            problems.append(
                f"tokenizer: the data's ({data.tokenizer_folder}) is not the model's: its ids would mean other words;"
                " give both the same folder"
            )
        return problems + [f"preprocessing: the data's {wrong}" for wrong in data.preprocessing.misfits(self.config)]

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Answer and measure one batch; the answers go to callbacks. A filler is answered and not measured."""
        outputs = self.forward(batch)  # not self(…): a sharded root is whole within this step already
        if batch.filler:
            return {}
        self.measure(outputs, batch, self.metrics[dataloader_idx])  # type: ignore[arg-type]
        return outputs

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """As ``validation_step``."""
        return self.validation_step(batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """For each sample of a batch its ``key`` and the ``prediction``."""
        outputs = self.forward(batch)
        if batch.filler:
            return []
        return [
            {"key": key, "prediction": answer}
            for key, answer in zip(batch.keys, self.answers(outputs, batch), strict=True)
        ]

    def on_validation_epoch_end(self) -> None:
        """Log every gallery's metrics."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log every gallery's metrics."""
        self._log_scores("test")

    def _log_scores(self, split: str) -> None:
        measured: dict[str, dict[str, Tensor]] = {}
        for name, metrics in zip(self.galleries, self.metrics, strict=True):
            values = metrics.compute()  # type: ignore[operator]
            metrics.reset()  # type: ignore[operator]
            measured[name] = {key: value.float() * (self.to_percent or 1.0) for key, value in values.items()}
        several = Counter(key for values in measured.values() for key in values)
        # Every rank has the same values; Lightning would warn that they were not averaged.
        for name, values in measured.items():
            prefixes = {key: f"{split}/{name}/" if several[key] > 1 else f"{split}/" for key in values}
            self.log_dict({prefixes[key] + key: value for key, value in values.items()}, sync_dist=True)
        found = [self.gallery_score(self.galleries[name], values) for name, values in measured.items()]
        scores = [score for score in found if score is not None]
        if scores:
            self.log(f"{split}/score", torch.stack(scores).mean(), prog_bar=True, sync_dist=True)

    def total_steps(self) -> int | None:
        """Optimizer steps of the run: as configured, or what the trainer's settings amount to; nothing is loaded."""
        if self.optimization.total_steps is not None:
            return self.optimization.total_steps
        trainer = self.trainer
        if trainer.max_steps > 0:
            return trainer.max_steps
        batches = getattr(getattr(trainer, "datamodule", None), "steps_per_epoch", None)
        if batches is None or trainer.max_epochs is None or trainer.max_epochs < 0:
            return None
        limit = trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        # The last step of an epoch is over what batches are left.
        return max(1, trainer.max_epochs * ceil(batches / trainer.accumulate_grad_batches))

    def configure_callbacks(self) -> list[L.Callback]:
        """Count steps that are skipped."""
        self.skipped = SkippedSteps(self.optimization.max_skipped_steps)
        return [self.skipped]

    def on_fit_start(self) -> None:
        """Remember the run's seed, which every step's random numbers are derived from; what trains may be measured."""
        self.seed = torch.initial_seed()
        self.untrained = 0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Give the step random numbers that do not depend on where the run was started; bound the temperature."""
        seed_step(self.seed, self.current_epoch, batch_idx, self.global_rank)
        for module in self.modules():
            if isinstance(module, ContrastiveHeads):  # where it is sharded, only here is it the parameter itself
                module.bound_temperature()

    def log_means(self, values: Mapping[str, Tensor], batch_size: int = 1) -> None:
        """Log scalars averaged over all ranks, by one collective call; ``train/loss`` is shown in the progress bar.

        Args:
            values: the same names in the same order on every rank.
            batch_size: for averages over an epoch.
        """
        if self._trainer is None:
            return
        means = self.trainer.strategy.reduce(torch.stack([v.detach().float() for v in values.values()]))
        for name, mean in zip(values, means.unbind(), strict=True):
            self.log(name, mean, prog_bar=name == "train/loss", batch_size=batch_size)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Log the gradient's norm, leave the step out where it is not finite, else clip as the trainer says.

        Without gradients the optimizer changes nothing: no weight, no moment, no count of steps.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = gradient_norm(parameters)
        if self.skipped.judge(self.trainer, norm):
            for parameter in parameters:
                parameter.grad = None
        elif gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            scale_gradients(parameters, (gradient_clip_val / (norm + 1e-6)).clamp(max=1.0))
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        self.log("train/gradient_norm", norm, batch_size=1)
        self.log("train/skipped_steps", float(self.skipped.total), batch_size=1)
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            self.log("train/overflows", float(self.skipped.overflows), batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to write what is not finite.

        Raises:
            FloatingPointError: on every rank, naming the tensors.
        """
        if self._trainer is not None:
            refuse_non_finite(self.trainer, checkpoint)
