"""What all downstream tasks are: a head on the shared backbone, trained, measured, saved and used alike."""

import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from onepeace_lightning.checkpoints.loading import LoadReport, fill
from onepeace_lightning.checkpoints.pretrained import model_parts
from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.datamodule import DataModule
from onepeace_lightning.inference.onepeace import OnePeace
from onepeace_lightning.modalities.items import naming, read_batch
from onepeace_lightning.modalities.preprocessing import Preprocessing, config_from_dict
from onepeace_lightning.modalities.registry import text_modality
from onepeace_lightning.modalities.tokenizers import Tokenizer
from onepeace_lightning.models.attention.base import AttentionChoice
from onepeace_lightning.models.config import ModelConfig
from onepeace_lightning.models.encoder import set_attention
from onepeace_lightning.models.layers import modality_parameters
from onepeace_lightning.tasks.lora import Lora, add_lora, merged
from onepeace_lightning.tasks.source import BackboneSource, finetune_config, load_source, open_backbone
from onepeace_lightning.tasks.training import TrainedModule
from onepeace_lightning.training.optimizer import Optimization, adamw
from onepeace_lightning.training.parallelize import ParallelConfig, parallelize
from onepeace_lightning.training.strategy import placement

FINETUNING = Optimization(lr=1e-4, min_lr=1e-6, warmup_steps=0.1, layer_decay=0.9, betas=(0.9, 0.999))
"""Where a task is not told otherwise; the published choices are in ``configs/finetune``."""

TASKS: dict[str, type["FinetuneTask"]] = {}
"""Every task that has been imported, by the name of its class."""


class FinetuneTask(TrainedModule):
    """A downstream task.

    A subclass sets the class attributes and implements ``build``, ``loss``, ``make_metrics``, ``measure`` and
    ``predict``. Metrics are logged in percent as ``val/NAME`` (``val/GALLERY/NAME`` where there are several), and the
    mean over galleries of the one called ``score_name`` as ``val/score``.

    Args:
        backbone: a preset's name (from scratch), a ``save_pretrained`` folder, a checkpoint of this project or of the
            original, a hub name, an ``OnePeace``, or sizes. Another task's ``backbone`` is an ``OnePeace``.
        optimization: learning rates and steps.
        tokenizer: folder of the tokenizer that the data use; needed where the backbone has none.
        preprocessing: modality to its settings, as the data have them; sizes of the model follow from them, such as the
            image's. None: the backbone's.
        drop_path: stochastic depth of the last block.
        per_block_tables: give each block relative bias tables of its own (paper appendix A).
        trainable: "all"; "head" (the backbone stays as it is); or modalities, whose adapters, feed-forward networks and
            final norms train with the head.
        lora: train low-rank updates of the encoder instead of its weights.
        parallel: how the model is laid out on its devices.
        attention: "padded", "cpu", "flex", or "auto" for what suits the device (``models.encoder.set_attention``).

    Raises:
        ValueError: the backbone lacks a modality, its vocabulary is another, or a setting is out of its range.
    """

    modalities: ClassVar[tuple[str, ...]]
    """What the task takes in."""
    score_name: ClassVar[str]
    """The metric to choose checkpoints by; more is better."""
    to_percent: ClassVar[float] = 100.0
    """What metrics are multiplied by where they are logged: in percent."""
    carried: ClassVar[tuple[str, ...]] = ("backbone",)
    """Parts of the model that are taken over from the backbone's source."""
    type_embedding: ClassVar[bool] = False
    """Whether pictures are told apart by learned vectors."""
    published: ClassVar[Mapping[str, str]] = {}
    """Corpus to the original's published result, printed where a gallery's name or path contains the corpus's."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        TASKS[cls.__name__] = cls

    def __init__(
        self,
        backbone: BackboneSource,
        optimization: Optimization = FINETUNING,
        *,
        tokenizer: str | None = None,
        preprocessing: dict[str, dict[str, Any]] | None = None,
        drop_path: float = 0.0,
        per_block_tables: bool = True,
        trainable: Literal["all", "head"] | Sequence[str] = "all",
        lora: Lora | None = None,
        parallel: ParallelConfig = ParallelConfig(),  # noqa: B008 (frozen)
        attention: AttentionChoice = "auto",
    ) -> None:
        super().__init__()
        _check_trainable(trainable, self.modalities, lora)
        given = None if preprocessing is None else Preprocessing(preprocessing)
        self.source = open_backbone(backbone, tokenizer, given)
        self.config: ModelConfig = finetune_config(
            self.source.config, self.modalities, name=self.source.name, preprocessing=given, drop_path=drop_path,
            per_block_tables=per_block_tables, type_embedding=self.type_embedding,
        )  # fmt: skip
        self.optimization = optimization
        self.trainable, self.lora, self.parallel = trainable, lora, parallel
        self.attention: AttentionChoice = attention
        self.tokenizer: Tokenizer | None = self.source.tokenizer
        self.preprocessing: Preprocessing = (given or self.source.preprocessing).fitting(self.config)
        self.model: Any = None
        self.galleries: list[str] = []
        self.metrics = nn.ModuleList()
        self.score_context: list[str] = []

    # What a task is made of

    @abstractmethod
    def build(self) -> nn.Module:
        """The model of ``self.config``, with a ``backbone``; new parts have their initial values."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """The training loss of a batch, a scalar."""

    @abstractmethod
    def make_metrics(self) -> MetricCollection:
        """New metrics of one gallery; a metric that gives several numbers names them itself."""

    @abstractmethod
    def measure(self, batch: Batch, metrics: MetricCollection) -> dict[str, Any]:
        """Answer a batch of evaluation, update the metrics, and return what callbacks may show."""

    def settings(self) -> dict[str, Any]:
        """Arguments besides the backbone that the task must be built with again; plain containers."""
        return {}

    def context(self) -> list[str]:
        """Lines to print beside the scores, such as a prompt."""
        return []

    def score(self, values: Mapping[str, Tensor]) -> Tensor:
        """What to choose checkpoints by, out of one gallery's metrics."""
        return values[self.score_name]

    def load_source(self) -> LoadReport:
        """Fill the model with what the backbone's source has of it (``carried``); the rest keeps its initial values."""
        return load_source(self.model, self.source, self.carried)

    def adopt(self, data: DataModule) -> None:
        """Take over from the data what the task was not told (class names), or check that it fits."""

    # Lightning

    def setup(self, stage: str) -> None:
        """Adopt the data's vocabulary and make metrics for its galleries.

        Raises:
            ValueError: the data's tokenizer, picture size or vocabulary is not the task's.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, DataModule):
            self.galleries, self.metrics = ["val"], nn.ModuleList([self.make_metrics()])
            return
        self._check_data(data)
        self.preprocessing = data.preprocessing
        self.adopt(data)
        streams = data.evaluated(stage)
        self.galleries = list(streams)
        self.metrics = nn.ModuleList(self.make_metrics() for _ in streams)
        self.score_context = [f"preprocessing: {self.preprocessing.describe(self.modalities)}", *self.context()]
        for name, stream in streams.items():
            manifest = data.stream_manifest(stream)
            self.score_context.append(
                f"{name}: {stream.path}, {manifest.samples} samples, fingerprint {manifest.fingerprint()}"
            )
            if chance := manifest.about.get("chance"):  # {"metric", "percent", "definition"}
                self.score_context.append(
                    f"{name}: chance is {chance['percent']} % {chance['metric']} ({chance['definition']})"
                )
            if corpus := _named(f"{name} {stream.path}", self.published):
                self.score_context.append(f"published for {corpus}: {self.published[corpus]}")

    def configure_model(self) -> None:
        """Build the model, freeze what does not train, lay it out on its devices, fill it."""
        if self.model is not None:
            return
        with torch.device("meta"):
            self.model = self.build()
        set_attention(self.model, self.attention)
        if self.trainable != "all":
            own = () if self.trainable == "head" else self.trainable
            trained = modality_parameters(self.model.backbone, own)
            for name, parameter in self.model.backbone.named_parameters():
                parameter.requires_grad = name in trained
        where = placement(self)
        if self.lora is not None and where.get("mesh") is not None:
            raise ValueError("lora is for one device or strategy ddp; leave it out where the model is sharded")
        whole = self.source.weights if self.source.whole else None
        if whole is not None and where.get("mesh") is None:
            fill(self.model, whole, self.source.name)  # the tensors themselves: nothing is drawn or copied
            whole = {}
        parallelize(self, self.parallel, entries=("training_step", "validation_step", "test_step"), **where)
        if whole is None:
            report, scratch = self.load_source(), self.source.weights is None
            self.untrained = sum(
                p.numel() for name, p in self.model.named_parameters() if scratch or name in report.missing
            )
        elif whole:
            fill(self.model, whole, self.source.name)
        if self.lora is not None:
            add_lora(self.model.backbone, self.lora)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        loss = self.loss(batch)
        self.log_means({"train/loss": loss}, len(batch))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Answer and measure one batch; the answers go to callbacks. A filler is answered alone."""
        if batch.filler:
            self.measure(batch, self.make_metrics().to(self.device))
            return {}
        return self.measure(batch, self.metrics[dataloader_idx])  # type: ignore[arg-type]

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """As ``validation_step``."""
        return self.validation_step(batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log every gallery's metrics."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log every gallery's metrics."""
        self._log_metrics("test")

    def configure_optimizers(self) -> Any:
        """AdamW with layer decay, over what trains."""
        return adamw(self.model, self.optimization, self.total_steps())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add all that the task and its backbone can be opened from."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["onepeace"] = {
            "config": self.config.to_dict(),
            "tokenizer": None if self.tokenizer is None else self.tokenizer.to_files(),
            "preprocessing": self.preprocessing.to_dict(list(self.config.adapters)),
            "parts": None if self.lora else model_parts(self.model),
            "task": {
                "name": type(self).__name__,
                "settings": {**self.settings(), "lora": None if self.lora is None else asdict(self.lora)},
            },
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another task, of other sizes or of another vocabulary.

        Raises:
            ValueError: naming what differs.
        """
        task = checkpoint.get("onepeace", {}).get("task")
        if task is None or task["name"] != type(self).__name__:
            found = "pretraining" if task is None else task["name"]
            raise ValueError(f"the checkpoint is of {found}, not of {type(self).__name__}")
        if (theirs := config_from_dict(checkpoint["onepeace"]["config"])) != self.config:
            raise ValueError(f"the checkpoint's model is {theirs}, the configured one {self.config}")
        ours = {key: value for key, value in self.settings().items() if value is not None}
        differing = [key for key, value in ours.items() if task["settings"].get(key) != value]
        if differing:
            raise ValueError(
                "the checkpoint's task differs: "
                + "; ".join(f"{key} is {task['settings'].get(key)!r}, configured {ours[key]!r}" for key in differing)
            )

    # In use

    @property
    def backbone(self) -> OnePeace:
        """A copy of the backbone with its tokenizer and preprocessing, for another task or for ``encode``.

        Raises:
            ValueError: the task has not been built yet.
        """
        return OnePeace(merged(self._built().backbone), tokenizer=self.tokenizer, preprocessing=self.preprocessing)

    @contextmanager
    def answering(self) -> Iterator[Any]:
        """The model in evaluation mode without gradients; afterwards every module's mode is what it was.

        Raises:
            ValueError: the task has not been built yet.
        """
        model = self._built()
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with torch.no_grad():
                yield model
        finally:
            for module, training in modes.items():
                module.training = training

    def read(self, modality: str, items: Sequence[Any], first: int) -> Any:
        """Users' items as one batch of a modality's input on the model's device.

        Args:
            modality: a modality's name.
            items: a batch of them.
            first: the number of the first one, for messages.

        Raises:
            ValueError: naming the first item that cannot be read.
        """
        return read_batch(self.preprocessing.modality(modality, self.tokenizer), items, first).to(self.device)

    def load(self, modality: str, items: Sequence[Any], first: int) -> list[Any]:
        """Users' items decoded, at their own size, for answers in their pixels; ``read`` takes them too.

        Args:
            modality: a modality's name.
            items: a batch of them.
            first: the number of the first one, for messages.

        Raises:
            ValueError: naming the first item that cannot be read.
        """
        one, loaded = self.preprocessing.modality(modality, self.tokenizer), []
        for number, item in enumerate(items, first):
            with naming(one, number, item):
                loaded.append(one.load(item))
        return loaded

    def _built(self) -> Any:
        if self.model is None:
            self.configure_model()
        return self.model

    def _check_data(self, data: DataModule) -> None:
        problems = []
        ours, theirs = self.tokenizer, data.tokenizer
        if text_modality() in self.modalities and ours is None:
            problems.append("tokenizer: this task reads text; give the data the folder of one")
        if ours is not None and theirs is not None and ours.fingerprint() != theirs.fingerprint():
            problems.append(
                f"tokenizer: the data's ({data.tokenizer_folder}) is not the model's: its ids mean other words"
            )
        problems += [f"preprocessing: the data's {wrong}" for wrong in data.preprocessing.misfits(self.config)]
        if problems:
            raise ValueError("data: " + "; ".join(problems))

    def _log_metrics(self, split: str) -> None:
        scores = []
        for name, metrics in zip(self.galleries, self.metrics, strict=True):
            values = metrics.compute()  # type: ignore[operator]
            metrics.reset()  # type: ignore[operator]
            prefix = f"{split}/" if len(self.galleries) == 1 else f"{split}/{name}/"
            percent = {key: value.float() * self.to_percent for key, value in values.items()}
            self.log_dict({prefix + key: value for key, value in percent.items()})
            scores.append(self.score(percent))
        self.log(f"{split}/score", torch.stack(scores).mean(), prog_bar=True)


def _named(where: str, corpora: Iterable[str]) -> str | None:
    """The corpus whose name is in a text, the longest one: RefCOCOg's has RefCOCO's in it."""
    found = [corpus for corpus in corpora if _plain(corpus) in _plain(where)]
    return max(found, key=len, default=None)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", name.lower())


def _check_trainable(trainable: str | Sequence[str], modalities: Sequence[str], lora: Lora | None) -> None:
    unknown = [] if trainable in ("all", "head") else [name for name in trainable if name not in modalities]
    if unknown or (isinstance(trainable, str) and trainable not in ("all", "head")):
        raise ValueError(f"trainable is {trainable!r}; give 'all', 'head' or some of {', '.join(modalities)}")
    if lora is not None and trainable != "all":
        raise ValueError(f"lora freezes the backbone by itself; leave trainable={trainable!r} out")
