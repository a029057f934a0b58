"""Pretraining: aligning and denoising contrast over any data types without answers (paper sections 3.3 and 3.4)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any, Self, cast

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from onepeace_lightning.checkpoints.loading import LoadReport, listed, load_pretrained, read_checkpoint
from onepeace_lightning.checkpoints.pretrained import model_parts, recorded
from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.data_types import DataType, data_type
from onepeace_lightning.losses.plan import Sampled
from onepeace_lightning.losses.pretraining import Contrast, Embeddings, Objectives, pretraining_loss, weighted
from onepeace_lightning.metrics import CrossModalRecall, caption_ids
from onepeace_lightning.modalities.preprocessing import Preprocessing, config_from_dict
from onepeace_lightning.modalities.presets import Preset, preset_config
from onepeace_lightning.modalities.registry import text_modality
from onepeace_lightning.modalities.tokenizers import Tokenizer, load_tokenizer, tokenizer_from_files
from onepeace_lightning.models.attention.base import AttentionChoice
from onepeace_lightning.models.config import raise_all
from onepeace_lightning.models.encoder import set_attention
from onepeace_lightning.models.layers import copy_modality, modality_parameters
from onepeace_lightning.models.pretraining import PretrainModel
from onepeace_lightning.tasks.arguments import built
from onepeace_lightning.tasks.training import ENTRIES, SCORE, TrainedModule
from onepeace_lightning.training.data_counts import train_loaders
from onepeace_lightning.training.gradient_cache import cached_loss, encode
from onepeace_lightning.training.optimizer import Optimization, adamw
from onepeace_lightning.training.parallelize import ParallelConfig, class_name, parallelize
from onepeace_lightning.training.pretraining_flops import step_flops, total_flops
from onepeace_lightning.training.source_losses import SourceLosses
from onepeace_lightning.training.strategy import placement


class PretrainTask(TrainedModule):
    """Trains a model from scratch (stage 1), or new modalities of a trained one with all else frozen (stage 2).

    Args:
        tokenizer: folder of the saved tokenizer that the data use, or the tokenizer; the checkpoint carries a copy.
        optimization: learning rates and steps; also a mapping of them, as are ``objectives`` and ``parallel``.
        preset: size of the model.
        data_types: what is trained on; parameters that none of them uses are frozen.
        modalities: what the model is built for, in the order in which tokens are joined.
        preprocessing: modality to its settings, as the data have them; sizes of the model follow from them, such as the
            image's. None: the preset's.
        drop_path: stochastic depth of the last block.
        objectives: how the losses are computed.
        trainable: modalities that train while all others stay as they are (stage 2); None trains everything.
        init_from: a checkpoint of this project to start from (stage 2); its temperature is not taken over. Of
            another vocabulary the pieces that both have are (``checkpoints.vocabulary``).
        init_modality: modality that ``init_from`` lacks to one that it has, whose weights of the same shape it starts
            from, such as ``{depth: image}``: feed-forward networks, norms, heads, and what fits of the adapter.
        parallel: how the model is laid out on its devices.
        attention: how attention is computed, see ``models.encoder.set_attention``; the numbers do not depend on it.
    """

    to_percent = 1.0  # as the metric gives it

    def __init__(
        self,
        tokenizer: str | Tokenizer,
        optimization: Optimization = Optimization(),  # noqa: B008 (frozen)
        preset: Preset = "tiny",
        data_types: Sequence[str] = ("image-text", "audio-text"),
        modalities: Sequence[str] = ("text", "image", "audio"),
        preprocessing: dict[str, dict[str, Any]] | None = None,
        drop_path: float = 0.0,
        objectives: Objectives = Objectives(),  # noqa: B008 (frozen)
        trainable: list[str] | None = None,
        init_from: str | None = None,
        init_modality: dict[str, str] | None = None,
        parallel: ParallelConfig = ParallelConfig(),  # noqa: B008 (frozen)
        attention: AttentionChoice = "auto",
    ) -> None:
        super().__init__()
        self.optimization, self.parallel = built(Optimization, optimization), built(ParallelConfig, parallel)
        self.data_types = _parsed(data_types)
        self.objectives = built(Objectives, objectives)
        self.trainable = trainable
        self.init_from = init_from
        self.init_modality = init_modality or {}
        self.attention: AttentionChoice = attention
        self.tokenizer: Tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str | PathLike) else tokenizer
        given = Preprocessing(preprocessing)
        sizes = {} if preprocessing is None else given.sizes(modalities, None)
        sizes[text_modality()] = {"vocab_size": self.tokenizer.vocab_size}
        self.config = preset_config(preset, modalities=modalities, sizes=sizes, drop_path=drop_path)
        self.preprocessing = given.fitting(self.config)
        _check(self.data_types, modalities, trainable, denoise=self.objectives.denoise)
        _check_copies(self.init_modality, modalities, trainable, init_from)
        self.model: PretrainModel | None = None
        self.by_source = SourceLosses({})

    def configure_model(self) -> None:
        """Build the model, freeze what does not train, lay it out on its devices, load what it starts from."""
        if self.model is not None:
            return
        with torch.device("meta"):
            self.model = PretrainModel(
                self.config,
                denoise=self.objectives.denoise,
                logit_bias=self.objectives.contrast == "sigmoid",
            )
        set_attention(self.model, self.attention)
        used = {name for kind in self.data_types for name in kind.modalities}
        paired = {name for kind in self.data_types if kind.pairs for name in kind.modalities}
        unused = modality_parameters(self.model, set(self.config.adapters) - used)
        trained = None if self.trainable is None else self._stage2(self.model, self.trainable)
        for name, parameter in self.model.named_parameters():
            idle = name in unused or _unpaired(name, paired)
            parameter.requires_grad = not idle and (trained is None or name in trained)
        parallelize(self, self.parallel, entries=(*ENTRIES[1:], "learn", "encode"), **placement(self))
        if self.init_from is not None:
            new = modality_parameters(self.model, self.trainable or ())
            report = load_pretrained(self.model, self.init_from, new.__contains__, tokenizer=self.tokenizer)
            for name, other in self.init_modality.items():
                _start_from(self.model, name, other, report)
            self.model.heads.reset_parameters()
            self.started_from = {"source": str(self.init_from), "record": recorded(self.init_from)}
        else:
            self.untrained = sum(parameter.numel() for parameter in self.model.parameters())

    def monitor(self, data: Any) -> str | None:
        """``val/score``, where the validation data have pairs of a trained type."""
        try:
            kinds = [data.data_type(stream) for stream in getattr(data, "val", {}).values()]
        except (OSError, ValueError):  # the data's own set-up says what is wrong with them
            return None
        return SCORE if any(self._scored(kind) for kind in kinds) else None

    def _scored(self, kind: DataType) -> bool:
        """Whether the recall of a gallery counts: it has pairs, and they are trained."""
        return bool(kind.pairs) and kind in self.data_types

    def _stage2(self, model: PretrainModel, trainable: Sequence[str]) -> set[str]:
        """Names of the parameters that train; no embedding of a modality that is not named depends on them."""
        others = modality_parameters(model, set(self.config.adapters) - set(trainable))
        kept = {name for name in others if not name.startswith("denoiser.")}
        return model.trained_in_stage2(trainable) - kept

    def context(self) -> list[str]:
        """Preprocessing and vocabulary."""
        return [
            f"preprocessing: {self.preprocessing.describe(list(self.config.adapters))}",
            f"tokenizer: {self.tokenizer.vocab_size} ids, fingerprint {self.tokenizer.fingerprint()}",
        ]

    def gallery_metrics(self, kind: DataType | None) -> MetricCollection:
        """Recall of every pair of modalities."""
        recalls: dict[str, Metric | MetricCollection] = {}
        for pair in kind.pairs if kind is not None else ():
            first, second = _named(pair, str(kind))
            recalls[f"{first}-{second}"] = CrossModalRecall(first, second)
        return MetricCollection(recalls, compute_groups=False)

    def gallery_score(self, kind: DataType | None, values: Mapping[str, Tensor]) -> Tensor | None:
        """Mean R@1 over all directions, where the pairs are trained."""
        if kind is None or not self._scored(kind):
            return None
        found = [value for key, value in values.items() if key.endswith("R@1") and not key.startswith("chance/")]
        return torch.stack(found).mean()

    def on_train_start(self) -> None:
        """Find out which streams mix several sources, whose losses are logged apart."""
        super().on_train_start()
        self.by_source = SourceLosses({name: loader.names for name, loader in train_loaders(self.trainer).items()})

    def training_step(self, batches: Mapping[str, Batch | Sequence[Batch]], batch_idx: int) -> Tensor:
        """One batch of every stream, or several with one contrast (``gradient_cache``); the sum of weighted terms."""
        parts = _parts(batches)
        if len(parts) == 1:
            terms = self.learn(parts[0])
            total = weighted(terms)
        else:
            record = self.by_source.recorder(
                {stream: [source for part in parts for source in part[stream].sources] for stream in parts[0]}
            )
            terms, total = cached_loss(self.encode, self.learn, parts, self.objectives, self._backward, record)
        self.log_means({"train/loss": total, **{f"train/{name}": value for name, value in terms.items()}})
        for name, value in self.by_source.means(self.trainer.strategy).items() if self._trainer else ():
            self.log(f"train/{name}", value, batch_size=1)
        return total

    def learn(self, batches: Mapping[str, Sampled], contrast: Contrast | None = None) -> dict[str, Tensor]:
        """The loss terms of one batch of every stream."""
        model = cast(PretrainModel, self.model)
        self.log("train/inverse_temperature", model.heads.scale.detach().mean(), batch_size=1)
        record = self.by_source.recorder({name: getattr(batch, "sources", ()) for name, batch in batches.items()})
        return pretraining_loss(model, batches, self.objectives, self._frozen(), contrast, record).terms

    def encode(self, batches: Mapping[str, Sampled]) -> tuple[Embeddings, Tensor, Tensor | None]:
        """What of one batch of every stream enters the contrast."""
        return encode(cast(PretrainModel, self.model), batches, self.objectives, self._frozen())

    def _frozen(self) -> set[str]:
        return set() if self.trainable is None else set(self.config.adapters) - set(self.trainable)

    def _backward(self, loss: Tensor) -> None:
        """The backward pass as Lightning's closure has it for the loss that ``training_step`` returns."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        loss = loss / self.trainer.accumulate_grad_batches
        with torch.autocast(self.device.type, enabled=False):
            (loss if scaler is None else scaler.scale(loss)).backward()

    def step_flops(self, batches: Mapping[str, Batch | Sequence[Batch]]) -> int:
        """Model FLOPs of one training step on this rank, for ``Throughput``; none for what is done again."""
        parts = _parts(batches)
        ranks = self.trainer.world_size * len(parts)
        flops = (step_flops(self.config, part, self.objectives, self.trainable, ranks) for part in parts)
        return sum(total_flops(part) for part in flops)

    def forward(self, batch: Batch) -> dict[str, Any]:
        """Embed every modality of a batch alone: {"embeddings": {modality: (B, d)}}, float32 of unit length."""
        return {"embeddings": self.embed(batch.inputs)}

    def embed(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """(B, d) float32 unit-length embeddings of each modality, seen alone, in one pass."""
        return cast(PretrainModel, self.model).embed(inputs)

    def measure(self, outputs: dict[str, Any], batch: Batch, metrics: MetricCollection) -> None:
        """Add both sides of every pair to the gallery."""
        if not len(metrics):
            return
        ids = caption_ids(batch.targets["answer"]).to(self.device)
        for recall in cast(Any, metrics.values()):
            recall.update(outputs["embeddings"][recall.first], outputs["embeddings"][recall.second], ids)

    def answers(self, outputs: dict[str, Any], batch: Batch) -> list[dict[str, Tensor]]:
        """For each sample its (d,) embeddings by modality."""
        embeddings = {name: rows.cpu() for name, rows in outputs["embeddings"].items()}
        return [{name: rows[row] for name, rows in embeddings.items()} for row in range(len(batch))]

    def configure_optimizers(self) -> Any:
        """AdamW over parameter groups and the schedule, stepped by optimizer step."""
        return adamw(cast(PretrainModel, self.model), self.optimization, self.total_steps())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the model's sizes, the tokenizer's files and the data's preprocessing, which the weights depend on."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["onepeace"] = {
            "config": self.config.to_dict(),
            "tokenizer": self.tokenizer.to_files(),
            "preprocessing": self.preprocessing.to_dict(list(self.config.adapters)),
            "parts": model_parts(cast(PretrainModel, self.model)),
            "pretraining": {
                "data_types": [str(kind) for kind in self.data_types],
                "objectives": asdict(self.objectives),
                "trainable": self.trainable,
            },
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another task, of other sizes or of another vocabulary.

        Raises:
            ValueError: naming what differs.
        """
        saved = checkpoint.get("onepeace", {})
        if "pretraining" not in saved:
            found = saved["task"]["name"] if "task" in saved else "something else"
            raise ValueError(f"the checkpoint is of {found}, not of {class_name(self)}")
        if saved["tokenizer"] != self.tokenizer.to_files():
            raise ValueError("the checkpoint was trained with another tokenizer than the configured one")
        if (ours := config_from_dict(saved["config"])) != self.config:
            raise ValueError(f"the checkpoint's model is {ours}, the configured one {self.config}")

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = None, **options: Any
    ) -> Self:
        """Open pretraining from its checkpoint alone, to go on with it or to measure it.

        Args:
            checkpoint_path: what training has written.
            map_location: the device to put it on; None: the CPU.
            **options: of the task, such as ``optimization``; they come before those of the file.

        Raises:
            ValueError: it is no checkpoint of pretraining.
        """
        content = read_checkpoint(checkpoint_path)
        saved = content.get("onepeace", {})
        if "pretraining" not in saved:
            raise ValueError(f"{checkpoint_path} is no checkpoint of pretraining; tasks are opened by load_task")
        config = config_from_dict(saved["config"])
        tokenizer = tokenizer_from_files(saved["tokenizer"], source=str(checkpoint_path))
        own = {"tokenizer": tokenizer, "modalities": list(config.adapters), **saved["pretraining"]}
        task = cls(**{**own, **options})
        task.config, task.preprocessing = config, Preprocessing(saved["preprocessing"])
        task.configure_model()
        task.load_state_dict(content["state_dict"])
        task.untrained = 0
        return task if map_location is None else task.to(map_location)


def _parts(batches: Mapping[str, Batch | Sequence[Batch]]) -> list[dict[str, Batch]]:
    """A step's batches, stream to batch each, where a stream gives one or a sequence of them."""
    listed = {name: [given] if isinstance(given, Batch) else list(given) for name, given in batches.items()}
    return [dict(zip(listed, part, strict=True)) for part in zip(*listed.values(), strict=True)]


def _unpaired(name: str, paired: set[str]) -> bool:
    """Whether a head's parameter is idle because no pair contrasts its modality."""
    if name.startswith("heads.logit_"):
        return not paired
    return name.startswith("heads.projections.") and name.split(".")[2] not in paired


def _parsed(data_types: Sequence[str]) -> tuple[DataType, ...]:
    parsed, problems = [], []
    for name in data_types:
        try:
            parsed.append(data_type(name))
        except ValueError as error:
            problems.append(str(error))
    problems += [
        f"data type {str(kind)!r} has an answer, which pretraining does not learn" for kind in parsed if kind.answer
    ]
    raise_all("task", problems if data_types else ["data_types is empty"])
    return tuple(parsed)


def _named(pair: tuple[str, str], kind: str) -> tuple[str, str]:
    """Two modalities in the order in which a data type's name has them."""
    first, second = sorted(pair, key=kind.split("-").index)
    return first, second


def _check(
    data_types: Sequence[DataType], modalities: Sequence[str], trainable: Sequence[str] | None, *, denoise: bool
) -> None:
    problems = [
        f"data type {str(kind)!r} needs a modality out of {list(modalities)}"
        for kind in data_types
        if not set(kind.modalities) <= set(modalities)
    ]
    problems += [f"trainable names {m!r}, out of {list(modalities)}" for m in trainable or () if m not in modalities]
    problems += [
        f"data type {str(kind)!r} teaches nothing without denoising"
        for kind in data_types
        if not denoise and not kind.pairs
    ]
    raise_all("task", problems)


def _check_copies(
    copies: Mapping[str, str], modalities: Sequence[str], trainable: Sequence[str] | None, init_from: str | None
) -> None:
    problems = []
    for new, other in copies.items():
        said = f"init_modality {{{new}: {other}}}"
        if unknown := [name for name in (new, other) if name not in modalities]:
            problems.append(f"{said} names {', '.join(unknown)}, out of {list(modalities)}")
        if other in copies:
            problems.append(f"{said}: {other} is new itself; name one that init_from has")
        if trainable is not None and new not in trainable:
            problems.append(f"{said}: {new} does not train; add it to trainable")
    if copies and init_from is None:
        problems.append("init_modality needs init_from, the checkpoint that has the modality to start from")
    raise_all("task", problems)


def _start_from(model: PretrainModel, new: str, other: str, report: LoadReport) -> None:
    """Copy what fits of a modality to one that a checkpoint lacked, and say so in a line.

    Raises:
        ValueError: the checkpoint has the new modality, or lacks the other one.
    """
    missing = set(report.missing)
    if present := sorted(modality_parameters(model, [new]) - missing):
        raise ValueError(
            f"init_modality {{{new}: {other}}}: init_from has {new} already ({len(present)} tensors, such as"
            f" {present[0]}); leave it out of init_modality"
        )
    if modality_parameters(model, [other]) & missing:
        raise ValueError(f"init_modality {{{new}: {other}}}: init_from has no {other}")
    copied, kept = copy_modality(model, new, other)
    parts = ", ".join(dict.fromkeys(name.split(f".{new}.")[0].rpartition(".")[2] for name in copied))
    rest = f"; as drawn: {listed(kept, ', ', 4)}" if kept else ""
    rank_zero_only(print)(f"{new} starts from {other}: {len(copied)} tensors ({parts}){rest}")
