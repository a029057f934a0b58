"""What all downstream tasks are: a head on the shared backbone, trained, measured, saved and used alike."""

import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torchmetrics import MetricCollection

from onepeace_lightning.checkpoints.loading import LoadReport, fill, read_checkpoint
from onepeace_lightning.checkpoints.pretrained import model_parts
from onepeace_lightning.checkpoints.released.protocol import names_compared, published_result
from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.data_types import ANSWERS, DataType, data_type
from onepeace_lightning.data.datamodule import DataModule
from onepeace_lightning.inference.onepeace import OnePeace
from onepeace_lightning.modalities.preprocessing import Preprocessing, config_from_dict
from onepeace_lightning.modalities.registry import modality, text_modality
from onepeace_lightning.models.adapter import SECOND
from onepeace_lightning.models.attention.base import AttentionChoice
from onepeace_lightning.models.encoder import set_attention
from onepeace_lightning.models.layers import modality_parameters
from onepeace_lightning.models.quantised import with_quantised
from onepeace_lightning.tasks.arguments import built, show_inherited
from onepeace_lightning.tasks.lora import Lora, add_lora, base_layers, merged
from onepeace_lightning.tasks.opening import of_checkpoint
from onepeace_lightning.tasks.predicting import PredictingModule
from onepeace_lightning.tasks.source import BackboneSource, finetune_config, load_source, open_backbone
from onepeace_lightning.tasks.training import ENTRIES
from onepeace_lightning.training.optimizer import Optimization, adamw
from onepeace_lightning.training.parallelize import ParallelConfig, class_name, parallelize
from onepeace_lightning.training.strategy import placement

FINETUNING = Optimization(lr=1e-4, min_lr=1e-6, warmup_steps=0.1, layer_decay=0.9, betas=(0.9, 0.999))
"""Where a task is not told otherwise; the published choices are in ``configs/finetune``."""

TASKS: dict[str, type["FinetuneTask"]] = {}
"""Every task that has been imported, by the name of its class."""


class FinetuneTask(PredictingModule):
    """A downstream task.

    A subclass sets the class attributes and implements ``build``, ``loss``, ``forward``, ``make_metrics``, ``measure``
    and ``answers``. The arguments that its constructor passes on as ``**options`` stand in its signature and help.

    Args:
        backbone: a preset's name (from scratch), a ``save_pretrained`` folder, a checkpoint of this project or of the
            original, a hub name, an ``OnePeace``, or sizes. Another task's ``backbone`` is an ``OnePeace``.
        optimization: learning rates and steps; also a mapping of them, as are ``lora`` and ``parallel``.
        tokenizer: folder of the tokenizer that the data use; needed where the backbone has none.
        preprocessing: modality to its settings, as the data have them; sizes of the model follow from them, such as the
            image's. None: the backbone's.
        drop_path: stochastic depth of the last block.
        per_block_tables: give each block relative bias tables of its own (paper appendix A).
        trainable: "all"; "head" (the backbone stays as it is); or modalities, whose adapters, feed-forward networks and
            final norms train with the head.
        lora: train low-rank updates of the encoder instead of its weights, which may be held in 8 or 4 bits.
        parallel: how the model is laid out on its devices.
        attention: "padded", "cpu", "flex", or "auto" for what suits the device (``models.encoder.set_attention``).

    Raises:
        ValueError: the backbone lacks a modality, its vocabulary is another, or a setting is out of its range.
    """

    modalities: tuple[str, ...]
    """What the model takes in; a constructor to which the user gives them sets them before it calls its parent's."""
    learns: ClassVar[tuple[str | None, ...]] = ()
    """Kinds of answers (``data.data_types.ANSWERS``, None for none) that its data have; empty: any."""
    score_name: ClassVar[str]
    """The metric to choose checkpoints by; more is better."""
    carried: ClassVar[tuple[str, ...]] = ("backbone",)
    """Parts of the model that are taken over from the backbone's source."""
    entries: ClassVar[tuple[str, ...]] = ENTRIES
    """Methods that use the model; see ``parallelize``."""
    type_embedding: ClassVar[bool] = False
    """Whether images are told apart by learned vectors."""
    published: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Corpus to its published results (``PUBLISHED``), printed where a gallery's name or path contains the corpus's."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not issubclass(cls, FSDPModule):  # fully_shard derives a class of each that it shards
            TASKS[cls.__name__] = cls
            show_inherited(cls)

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
        lora = None if lora is None else built(Lora, lora)
        _check_trainable(trainable, self.modalities, lora)
        given = None if preprocessing is None else Preprocessing(preprocessing)
        self.source = open_backbone(backbone, tokenizer, given, self.modalities)
        self.config = finetune_config(
            self.source.config, self.modalities, name=self.source.name, preprocessing=given, drop_path=drop_path,
            per_block_tables=per_block_tables, type_embedding=self.type_embedding,
        )  # fmt: skip
        self.optimization, self.parallel = built(Optimization, optimization), built(ParallelConfig, parallel)
        self.trainable, self.lora = trainable, lora
        self.attention: AttentionChoice = attention
        self.tokenizer = self.source.tokenizer
        self.preprocessing = (given or self.source.preprocessing).fitting(self.config)
        self.model: Any = None

    # What a task is made of

    @abstractmethod
    def build(self) -> nn.Module:
        """The model of ``self.config``, with a ``backbone``; new parts have their initial values."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """The training loss of a batch, a scalar: features of its views, and the loss of the features."""

    @abstractmethod
    def make_metrics(self) -> MetricCollection:
        """New metrics of one gallery; a metric that gives several numbers names them itself."""

    def settings(self) -> dict[str, Any]:
        """Arguments besides the backbone that the task must be built with again; plain containers."""
        return {}

    def score(self, values: Mapping[str, Tensor]) -> Tensor:
        """The metric called ``score_name``."""
        return values[self.score_name]

    def gallery_metrics(self, kind: DataType | None) -> MetricCollection:
        """``make_metrics``."""
        return self.make_metrics()

    def gallery_score(self, kind: DataType | None, values: Mapping[str, Tensor]) -> Tensor | None:
        """``score``."""
        return self.score(values)

    def load_source(self) -> LoadReport:
        """Fill the model with what the backbone's source has of it (``carried``); the rest keeps its initial values."""
        return load_source(self.model, self.source, self.carried)

    # Lightning

    def setup(self, stage: str) -> None:
        """As ``TrainedModule.setup``; the first line beside the scores is the preprocessing."""
        super().setup(stage)
        self.score_context.insert(0, f"preprocessing: {self.preprocessing.describe(self.read_modalities)}")

    def gallery_context(self, name: str, data: DataModule) -> list[str]:
        """What chance would give, as the manifest says, and what was published."""
        stream, lines = {**data.val, **data.test}[name], []
        if chance := data.stream_manifest(stream).about.get("chance"):  # {"metric", "percent", "definition"}
            lines.append(f"{name}: chance is {chance['percent']} % {chance['metric']} ({chance['definition']})")
        if corpus := _named(f"{name} {stream.path}", self.published):
            manifest, run = data.stream_manifest(stream), self.protocol(data)
            for result in self.published[corpus]:
                lines.append(published_result(result, name, manifest.about, manifest.samples, run))
        return lines

    def protocol(self, data: DataModule) -> dict[str, Any]:
        """What of the run the published protocols speak of, by their names."""
        found = {}
        for name in names_compared():
            of, _, setting = name.rpartition(".")
            owner: Any = data.preprocessing[of] if of else self
            if hasattr(owner, setting):
                found[name] = getattr(owner, setting)
        return found

    def data_problems(self, data: DataModule) -> list[str]:
        """What of the data does not go with the task or its model."""
        problems = super().data_problems(data)
        if text_modality() in self.modalities and self.tokenizer is None:
            problems.insert(0, "tokenizer: this task reads text; give the data the folder of one")
        for where, manifest in data.manifests().items():
            kind = data_type(manifest.data_type)
            if not self.takes(kind):
                accepted = " or ".join(_type_name(self.read_modalities, answer) for answer in self.learns)
                problems.append(f"{where} holds {str(kind)!r}; {class_name(self)} takes {accepted} here")
        return problems

    def takes(self, kind: DataType) -> bool:
        """Whether samples of a data type are the task's; they may have further modalities, which it does not read."""
        return not self.learns or (kind.answer in self.learns and set(self.read_modalities) <= set(kind.inputs))

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """The inputs of a batch that the model takes."""
        return {name: part for name, part in batch.inputs.items() if name.removeprefix(SECOND) in self.modalities}

    def configure_model(self) -> None:
        """Build the model, freeze what does not train, lay it out on its devices, fill it.

        A task that was opened whole is laid out anew, with its own weights, by a trainer that shards it.
        """
        if self.source.weights is not None:
            self.started_from = {"source": self.source.name, "record": self.source.record}
        if self.model is not None:
            if placement(self).get("mesh") is None or isinstance(self, FSDPModule):
                return
            self.source = replace(self.source, weights=self.model.state_dict(), name="the opened task", whole=True)
            self.model = None
        with torch.device("meta"):
            self.model = self.build()
        set_attention(self.model, self.attention)
        if self.trainable != "all":
            own = () if self.trainable == "head" else self.trainable
            trained = modality_parameters(self.model.backbone, own)
            for name, parameter in self.model.backbone.named_parameters():
                parameter.requires_grad = name in trained
        if self.lora is not None:
            if self.lora.weights != "full" and self.source.weights is None:
                raise ValueError(
                    f"lora: weights is {self.lora.weights!r}, and {self.source.name} has none; give a trained backbone"
                )
            with torch.device("meta"):
                add_lora(self.model.backbone, self.lora)
        where = placement(self)
        whole = self.source.weights if self.source.whole else None
        if whole is not None and where.get("mesh") is None:
            self._fill_whole(whole)  # the tensors themselves: nothing is drawn or copied
            whole = {}
        parallelize(self, self.parallel, entries=self.entries, **where)
        if whole is None:
            with base_layers(self.model.backbone):
                report, scratch = self._load_quantised(), self.source.weights is None
                self.untrained = sum(
                    p.numel() for name, p in self.model.named_parameters() if scratch or name in report.missing
                )
        elif whole:
            self._fill_whole(whole)

    def _load_quantised(self) -> LoadReport:
        """``load_source``, of weights quantised as the model holds them, which are not kept."""
        source = self.source
        try:
            if source.weights is not None:
                self.source = replace(source, weights=with_quantised(self.model, source.weights))
            return self.load_source()
        finally:
            self.source = source

    def _fill_whole(self, weights: Mapping[str, Tensor]) -> None:
        """Fill the model, head and all, with weights that may be from before there were low-rank updates."""
        own = self.lora is None or any(".lora_A." in name for name in weights)
        with nullcontext() if own else base_layers(self.model.backbone):
            fill(self.model, with_quantised(self.model, weights), self.source.name)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        loss = self.loss(batch)
        self.log_means({"train/loss": loss}, len(batch))
        return loss

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
                "name": class_name(self),
                "settings": {**self.settings(), "lora": None if self.lora is None else asdict(self.lora)},
            },
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another task, of other sizes or of another vocabulary.

        Raises:
            ValueError: naming what differs.
        """
        task = checkpoint.get("onepeace", {}).get("task")
        if task is None or task["name"] != class_name(self):
            found = "pretraining" if task is None else task["name"]
            raise ValueError(f"the checkpoint is of {found}, not of {class_name(self)}")
        ours = {key: value for key, value in self.settings().items() if value is not None}
        differing = [key for key, value in ours.items() if task["settings"].get(key) != value]
        if differing:
            raise ValueError(
                "the checkpoint's task differs: "
                + "; ".join(f"{key} is {task['settings'].get(key)!r}, configured {ours[key]!r}" for key in differing)
            )
        if (theirs := config_from_dict(checkpoint["onepeace"]["config"])) != self.config:
            raise ValueError(f"the checkpoint's model is {theirs}, the configured one {self.config}")

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = None, **options: Any
    ) -> Self:
        """Open a task from its checkpoint alone, with its weights, vocabulary and settings.

        Args:
            checkpoint_path: what training has written.
            map_location: the device to put it on; None: the CPU.
            **options: of the task, such as ``optimization``; they come before those of the file.

        Raises:
            ValueError: it is a checkpoint of another task, naming which.
        """
        task = of_checkpoint(checkpoint_path, read_checkpoint(checkpoint_path), options, TASKS)
        if not isinstance(task, cls):
            raise ValueError(f"{checkpoint_path} is a checkpoint of {type(task).__name__}, not of {cls.__name__}")
        return task if map_location is None else task.to(map_location)

    # In use

    @property
    def backbone(self) -> OnePeace:
        """A copy of the backbone with its tokenizer and preprocessing, for another task or for ``encode``.

        Raises:
            ValueError: the task has not been built yet.
        """
        return OnePeace(merged(self._built().backbone), tokenizer=self.tokenizer, preprocessing=self.preprocessing)


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Names of registered modalities.

    Raises:
        ValueError: there is none, one is named twice or unknown, or they are a single word.
    """
    if isinstance(names, str) or not names or len(set(names)) < len(names):
        raise ValueError(f"modalities is {names!r}; give a list of at least one, none twice, such as ['image']")
    return tuple(modality(name).name for name in names)


def _named(where: str, corpora: Iterable[str]) -> str | None:
    """The corpus whose name is in a text, the longest one: RefCOCOg's has RefCOCO's in it."""
    found = [corpus for corpus in corpora if _plain(corpus) in _plain(where)]
    return max(found, key=len, default=None)


def _type_name(names: Sequence[str], answer: str | None) -> str:
    """A data type of modalities, those whose text an answer brings left out."""
    texts = answer is not None and (ANSWERS[answer].text or ANSWERS[answer].captions)
    parts = [name for name in names if not (texts and modality(name).reads_text)]
    return "-".join(parts if answer is None else [*parts, answer])


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", name.lower())


def _check_trainable(trainable: str | Sequence[str], modalities: Sequence[str], lora: Lora | None) -> None:
    unknown = [] if trainable in ("all", "head") else [name for name in trainable if name not in modalities]
    if unknown or (isinstance(trainable, str) and trainable not in ("all", "head")):
        raise ValueError(f"trainable is {trainable!r}; give 'all', 'head' or some of {', '.join(modalities)}")
    if lora is not None and trainable != "all":
        raise ValueError(f"lora freezes the backbone by itself; leave trainable={trainable!r} out")
