"""Pretraining: aligning and denoising contrast over any data types without answers (paper sections 3.3 and 3.4)."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from onepeace_lightning.checkpoints.loading import load_pretrained
from onepeace_lightning.checkpoints.pretrained import model_parts
from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.data_types import DataType, data_type
from onepeace_lightning.losses.plan import Sampled
from onepeace_lightning.losses.pretraining import Contrast, Embeddings, Objectives, pretraining_loss, weighted
from onepeace_lightning.metrics import CrossModalRecall, caption_ids
from onepeace_lightning.modalities.preprocessing import Preprocessing, config_from_dict
from onepeace_lightning.modalities.presets import Preset, preset_config
from onepeace_lightning.modalities.registry import text_modality
from onepeace_lightning.modalities.tokenizers import Tokenizer, load_tokenizer
from onepeace_lightning.models.attention.base import AttentionChoice
from onepeace_lightning.models.config import ModelConfig, raise_all
from onepeace_lightning.models.encoder import set_attention
from onepeace_lightning.models.layers import modality_parameters
from onepeace_lightning.models.pretraining import PretrainModel
from onepeace_lightning.tasks.training import TrainedModule
from onepeace_lightning.training.gradient_cache import cached_loss, encode
from onepeace_lightning.training.optimizer import Optimization, adamw
from onepeace_lightning.training.parallelize import ParallelConfig, parallelize
from onepeace_lightning.training.pretraining_flops import step_flops, total_flops
from onepeace_lightning.training.strategy import placement

SCORE = "R@1"
"""What the mean over trained pairs is taken of: the monitored ``val/mean_R@1``."""


class PretrainTask(TrainedModule):
    """Trains a model from scratch (stage 1), or new modalities of a trained one with all else frozen (stage 2).

    Args:
        tokenizer: folder of the saved tokenizer that the data use; the checkpoint carries a copy.
        optimization: learning rates and steps.
        preset: size of the model.
        data_types: what is trained on; parameters that none of them uses are frozen.
        modalities: what the model is built for, in the order in which tokens are joined.
        preprocessing: modality to its settings, as the data have them; sizes of the model follow from them, such as the
            image's. None: the preset's.
        drop_path: stochastic depth of the last block.
        objectives: how the losses are computed.
        trainable: modalities that train while all others stay as they are (stage 2); None trains everything.
        init_from: a checkpoint of this project to start from (stage 2); its temperature is not taken over.
        parallel: how the model is laid out on its devices.
        attention: how attention is computed, see ``models.encoder.set_attention``; the numbers do not depend on it.
    """

    def __init__(
        self,
        tokenizer: str,
        optimization: Optimization,
        preset: Preset = "tiny",
        data_types: Sequence[str] = ("image-text", "audio-text"),
        modalities: Sequence[str] = ("text", "image", "audio"),
        preprocessing: dict[str, dict[str, Any]] | None = None,
        drop_path: float = 0.0,
        objectives: Objectives = Objectives(),  # noqa: B008 (frozen)
        trainable: list[str] | None = None,
        init_from: str | None = None,
        parallel: ParallelConfig = ParallelConfig(),  # noqa: B008 (frozen)
        attention: AttentionChoice = "auto",
    ) -> None:
        super().__init__()
        self.optimization = optimization
        self.data_types = _parsed(data_types)
        self.objectives = objectives
        self.trainable = trainable
        self.init_from = init_from
        self.parallel = parallel
        self.attention: AttentionChoice = attention
        self.tokenizer: Tokenizer = load_tokenizer(tokenizer)
        sizes = {} if preprocessing is None else Preprocessing(preprocessing).sizes(modalities, None)
        sizes[text_modality()] = {"vocab_size": self.tokenizer.vocab_size}
        self.config: ModelConfig = preset_config(preset, modalities=modalities, sizes=sizes, drop_path=drop_path)
        _check(self.data_types, modalities, trainable, denoise=objectives.denoise)
        self.model: PretrainModel | None = None
        self.galleries: list[str] = []
        self.recalls = nn.ModuleList()
        self.trained: list[bool] = []

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
        entries = ("learn", "encode", "validation_step", "embed")
        parallelize(self, self.parallel, entries=entries, **placement(self))
        if self.init_from is not None:
            new = modality_parameters(self.model, self.trainable or ())
            load_pretrained(self.model, self.init_from, new.__contains__)
            self.model.heads.reset_parameters()
        else:
            self.untrained = sum(parameter.numel() for parameter in self.model.parameters())

    def monitor(self, data: Any) -> str | None:
        """``val/mean_R@1``, where the validation data have pairs of a trained type."""
        try:
            kinds = [data.data_type(stream) for stream in getattr(data, "val", {}).values()]
        except (OSError, ValueError):  # the data's own set-up says what is wrong with them
            return None
        return f"val/mean_{SCORE}" if any(kind.pairs and kind in self.data_types for kind in kinds) else None

    def _stage2(self, model: PretrainModel, trainable: Sequence[str]) -> set[str]:
        """Names of the parameters that train; no embedding of a modality that is not named depends on them."""
        others = modality_parameters(model, set(self.config.adapters) - set(trainable))
        kept = {name for name in others if not name.startswith("denoiser.")}
        return model.trained_in_stage2(trainable) - kept

    def setup(self, stage: str) -> None:
        """Make one recall metric per validation gallery.

        Raises:
            ValueError: where the data module reads text with another vocabulary.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is None:
            return
        if data.tokenizer is not None and data.tokenizer.fingerprint() != self.tokenizer.fingerprint():
            raise ValueError(
                f"the data's tokenizer ({data.tokenizer_folder}) is not the model's: its ids would mean other words; "
                "give both the same folder"
            )
        if wrong := data.preprocessing.misfits(self.config):
            raise ValueError("data: " + "; ".join(f"preprocessing: the data's {line}" for line in wrong))
        self.galleries = list(data.val)
        types = [data.data_type(data.val[name]) for name in self.galleries]
        self.recalls = nn.ModuleList(
            nn.ModuleList(CrossModalRecall(*_named(pair, str(kind))) for pair in kind.pairs) for kind in types
        )
        self.trained = [kind in self.data_types for kind in types]
        self.score_context = [
            f"preprocessing: {data.preprocessing.describe(list(self.config.adapters))}",
            f"tokenizer: {self.tokenizer.vocab_size} ids, fingerprint {self.tokenizer.fingerprint()}",
            *(
                f"{name}: {data.val[name].path}, fingerprint {data.stream_manifest(data.val[name]).fingerprint()}"
                for name in self.galleries
            ),
        ]

    def training_step(self, batches: Mapping[str, Batch | Sequence[Batch]], batch_idx: int) -> Tensor:
        """One batch of every stream, or several with one contrast (``gradient_cache``); the sum of weighted terms."""
        parts = _parts(batches)
        if len(parts) == 1:
            terms = self.learn(parts[0])
            total = weighted(terms)
        else:
            terms, total = cached_loss(self.encode, self.learn, parts, self.objectives, self._backward)
        self.log_means({"train/loss": total, **{f"train/{name}": value for name, value in terms.items()}})
        return total

    def learn(self, batches: Mapping[str, Sampled], contrast: Contrast | None = None) -> dict[str, Tensor]:
        """The loss terms of one batch of every stream."""
        model = cast(PretrainModel, self.model)
        self.log("train/inverse_temperature", model.heads.scale.detach().mean(), batch_size=1)
        return pretraining_loss(model, batches, self.objectives, self._frozen(), contrast).terms

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
        """Model FLOPs of one training step on this rank, for ``callbacks.Throughput``; none for what is done again."""
        parts = _parts(batches)
        ranks = self.trainer.world_size * len(parts)
        flops = (step_flops(self.config, part, self.objectives, self.trainable, ranks) for part in parts)
        return sum(total_flops(part) for part in flops)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, dict[str, Tensor]]:
        """Embed every modality of the batch alone and add both sides to the gallery.

        Returns:
            {"embeddings": {modality: (B, d)}}, for callbacks.
        """
        embeddings = self.embed(batch.inputs)
        recalls: Any = () if batch.filler else self.recalls[dataloader_idx]
        for recall in recalls:
            ids = caption_ids(batch.targets["answer"]).to(self.device)
            recall.update(embeddings[recall.first], embeddings[recall.second], ids)
        return {"embeddings": embeddings}

    def on_validation_epoch_end(self) -> None:
        """Log recall and chance of every gallery, and the mean R@1 over the trained pairs' galleries."""
        trained = []
        for name, recalls, is_trained in zip(self.galleries, self.recalls, self.trained, strict=True):
            for recall in cast(Any, recalls):
                prefix = "val/" if name == f"{recall.first}-{recall.second}" else f"val/{name}/"
                scores = recall.compute()
                recall.reset()
                # Every rank has the whole gallery's scores; Lightning would warn that they were not averaged.
                self.log_dict({prefix + key: value for key, value in scores.items()}, sync_dist=True)
                if is_trained:
                    trained += [value for key, value in scores.items() if key.endswith(SCORE) and "chance" not in key]
        if trained:
            self.log(f"val/mean_{SCORE}", torch.stack(trained).mean(), prog_bar=True, sync_dist=True)

    def embed(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """(B, d) float32 unit-length embeddings of each modality, seen alone, in one pass."""
        model = cast(PretrainModel, self.model)
        tokens = model.backbone.embed(inputs)
        features = model.backbone.encode([model.backbone.view({name: part}) for name, part in tokens.items()])
        return {name: model.heads(name, view) for name, view in zip(tokens, features, strict=True)}

    def configure_optimizers(self) -> Any:
        """AdamW over parameter groups and the schedule, stepped by optimizer step."""
        return adamw(cast(PretrainModel, self.model), self.optimization, self.total_steps())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the model's sizes, the tokenizer's files and the data's preprocessing, which the weights depend on."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["onepeace"] = {
            "config": self.config.to_dict(),
            "tokenizer": self.tokenizer.to_files(),
            "parts": model_parts(cast(PretrainModel, self.model)),
        }
        if (data := getattr(self.trainer, "datamodule", None)) is not None:
            checkpoint["onepeace"]["preprocessing"] = data.preprocessing.to_dict(list(self.config.adapters))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other sizes or of another vocabulary.

        Raises:
            ValueError: naming what differs.
        """
        saved = checkpoint["onepeace"]
        if saved["tokenizer"] != self.tokenizer.to_files():
            raise ValueError("the checkpoint was trained with another tokenizer than the configured one")
        if (ours := config_from_dict(saved["config"])) != self.config:
            raise ValueError(f"the checkpoint's model is {ours}, the configured one {self.config}")


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
