"""Where a downstream task's backbone comes from: a preset, a saved model of any kind, or a model in memory."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from torch import Tensor, nn

from onepeace_lightning.checkpoints.loading import LoadReport, fill
from onepeace_lightning.checkpoints.original import named
from onepeace_lightning.checkpoints.pretrained import Pretrained, read_pretrained
from onepeace_lightning.checkpoints.resize import fit_tables
from onepeace_lightning.checkpoints.vocabulary import fit_vocabulary
from onepeace_lightning.inference.onepeace import OnePeace
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.modalities.presets import Preset, preset_config
from onepeace_lightning.modalities.registry import text_modality
from onepeace_lightning.modalities.tokenizers import Tokenizer, load_tokenizer
from onepeace_lightning.models.config import ModelConfig
from onepeace_lightning.models.vision.trunk import LAYER_SCALE

_log = logging.getLogger(__name__)

BackboneSource = str | Path | OnePeace | ModelConfig
"""A preset's name, a ``save_pretrained`` folder, a checkpoint of this project or of the original, a hub name, a model,
or sizes alone (a model from scratch)."""


@dataclass(frozen=True)
class BackboneWeights:
    """A backbone before it is fitted to a task.

    Attributes:
        config: its sizes.
        weights: by name ("backbone.…", "heads.…"); None: from scratch.
        tokenizer: its vocabulary, if it has one.
        preprocessing: settings of its modalities.
        name: for messages.
        whole: the weights are those of the whole model, head and all.
        record: of the run that trained it (``training.record``), where it is known.
    """

    config: ModelConfig
    weights: Mapping[str, Tensor] | None
    tokenizer: Tokenizer | None
    preprocessing: Preprocessing
    name: str
    whole: bool = False
    record: Mapping[str, Any] | None = None


def open_backbone(
    backbone: BackboneSource,
    tokenizer: str | None = None,
    preprocessing: Preprocessing | None = None,
    modalities: Sequence[str] = (),
) -> BackboneWeights:
    """Find out what a backbone is; weights in a file are mapped, not read.

    Args:
        backbone: what the user gave.
        tokenizer: folder of the tokenizer that the data use; a model from scratch takes over its vocabulary, and a
            trained one is fitted to it (``checkpoints.vocabulary``).
        preprocessing: what sizes of a preset follow from; other models are resized later.
        modalities: that a preset is to have besides its own.

    Raises:
        ValueError: as ``read_pretrained``.
    """
    given = None if tokenizer is None else load_tokenizer(tokenizer)
    if isinstance(backbone, str) and backbone in get_args(Preset):
        own = preset_config(backbone).adapters  # type: ignore[arg-type]
        config = preset_config(backbone, modalities=list(dict.fromkeys([*own, *modalities])))  # type: ignore[arg-type]
        sizes = {} if preprocessing is None else preprocessing.sizes(config.adapters, None)
        backbone = _sized(config, sizes, kept=False)
    if isinstance(backbone, ModelConfig):
        if given is not None:
            backbone = _sized(backbone, {text_modality(): {"vocab_size": given.vocab_size}}, kept=False)
        return BackboneWeights(backbone, None, given, Preprocessing().fitting(backbone), "a model from scratch")
    if isinstance(backbone, OnePeace):
        name = "the given model"
        pretrained = Pretrained(backbone.model, backbone.preprocessing, backbone.tokenizer, record=backbone.record)
    else:
        name, pretrained = str(backbone), read_pretrained(backbone)
    vocabulary = pretrained.tokenizer
    config, weights = pretrained.model.config, named(pretrained.model).state_dict()
    if given is not None and vocabulary is not None and given.fingerprint() != vocabulary.fingerprint():
        weights, said = fit_vocabulary(weights, vocabulary, given)
        config = _sized(config, {text_modality(): {"vocab_size": given.vocab_size}}, kept=True)
        _log.warning("%s: %s", name, said)
    return BackboneWeights(
        config, weights, given or vocabulary, pretrained.preprocessing, name, record=pretrained.record
    )


def finetune_config(
    source: ModelConfig,
    modalities: Sequence[str],
    *,
    name: str,
    preprocessing: Preprocessing | None = None,
    drop_path: float = 0.0,
    per_block_tables: bool = True,
    type_embedding: bool = False,
) -> ModelConfig:
    """Sizes of the model that a task trains.

    Args:
        source: sizes of the backbone.
        modalities: what the task needs; the others are left out.
        name: of the backbone, for messages.
        preprocessing: what sizes follow from, such as the image's; None: the backbone's own.
        drop_path: stochastic depth of the last block.
        per_block_tables: give each block relative bias tables of its own.
        type_embedding: tell text, first and second item apart by learned vectors.

    Raises:
        ValueError: the backbone lacks a modality.
    """
    if lacking := [modality for modality in modalities if modality not in source.adapters]:
        raise ValueError(f"{name} has no {', '.join(lacking)}; it has {', '.join(source.adapters)}")
    adapters = {key: value for key, value in source.adapters.items() if key in modalities}
    if type_embedding:
        adapters = {key: replace(value, type_embedding=True) for key, value in adapters.items()}  # type: ignore[call-arg]
    config = replace(source, encoder=replace(source.encoder, drop_path=drop_path), adapters=adapters)
    sizes = {} if preprocessing is None else preprocessing.sizes(adapters, None)
    fitted = _sized(config, sizes, kept=True)
    return replace(fitted, per_block_tables=per_block_tables or source.per_block_tables)


def _sized(config: ModelConfig, sizes: Mapping[str, Mapping[str, Any]], *, kept: bool) -> ModelConfig:
    """Other sizes of some adapters, whose weights are kept or made anew."""
    adapters = dict(config.adapters)
    for name, own in sizes.items():
        if own and name in adapters:
            adapters[name] = adapters[name].resized(**own) if kept else replace(adapters[name], **own)
    return replace(config, adapters=adapters)


def with_own_positions(config: ModelConfig, **encoder: Any) -> ModelConfig:
    """Sizes of a model whose learned positions are resized to its input's grid once and stored so, as of vision models.

    Where nothing gives γ, it starts at ``LAYER_SCALE``, or higher as a small model's sizes say.

    Args:
        config: sizes.
        **encoder: other sizes of the encoder.
    """
    adapters = {
        name: replace(one, position_grid=None) if hasattr(one, "position_grid") else one  # type: ignore[call-arg]
        for name, one in config.adapters.items()
    }
    gamma = max(config.encoder.layer_scale or 0.0, LAYER_SCALE)
    return replace(config, encoder=replace(config.encoder, **{"layer_scale": gamma, **encoder}), adapters=adapters)


def load_source(model: nn.Module, source: BackboneWeights, parts: Sequence[str]) -> LoadReport:
    """Fill a task's model with what its source has of some parts, bias tables copied and resized; the rest is new.

    Args:
        model: the task's, with a ``backbone``.
        source: the weights.
        parts: names of the model's children to fill; only the backbone must be there.

    Raises:
        ValueError: listing every tensor of the backbone that the source lacks or that has another shape.
    """
    if source.weights is None:
        return LoadReport()
    prefixes = tuple(f"{part}." for part in parts)
    fitted, resized = fit_tables(model, {k: v for k, v in source.weights.items() if k.startswith(prefixes)})
    own = model.state_dict()
    weights = {name: tensor for name, tensor in fitted.items() if name in own}  # other modalities are left behind
    new = fill(model, weights, source.name, lambda name: not name.startswith("backbone.") or "type_embedding" in name)
    return replace(new, resized=resized)
