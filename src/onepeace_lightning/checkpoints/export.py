"""Writing a model as the original project's checkpoints are written; ``original`` reads them."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from onepeace_lightning.checkpoints.key_map import MODALITIES, original_name
from onepeace_lightning.checkpoints.loading import listed
from onepeace_lightning.checkpoints.original import (
    ADAPTER_CHOICES,
    HEAD_CHOICES,
    STACK_CHOICES,
    AnyModel,
    named,
)
from onepeace_lightning.modalities.audio import AudioConfig
from onepeace_lightning.modalities.image import ImageConfig
from onepeace_lightning.modalities.text import TextConfig
from onepeace_lightning.models.config import ModelConfig, TransformerConfig
from onepeace_lightning.models.heads.classifier import ClassifyModel, PoolingConfig
from onepeace_lightning.models.pretraining import PretrainModel
from onepeace_lightning.models.relative_bias import MAX_POSITIONS

_DIMENSIONS = {
    "logit_scale": 0,
    "cls_embedding": 3,
    "cls_pos_embed": 3,
    "type_embedding": 3,
    "type_embedding_2": 3,
    "q": 4,
    **{f"{name}_mask_token": 2 for name in MODALITIES},
}
"""Of the tensors that the original keeps with more or fewer dimensions than this project."""


def to_original(
    model: AnyModel, *, audio_seconds: float = 15.0, multi_label: bool = False, training: bool = True
) -> dict[str, Any]:
    """A checkpoint for ``torch.save`` that the original's hub and evaluation read.

    The tensors are the model's own, not copies. What the format holds and nobody uses (the decoder's CLS, mask
    embeddings of audio) is written as zeros.

    Args:
        model: of the modalities and heads that the original knows.
        audio_seconds: longer clips are cut to their first seconds.
        multi_label: a sample may be in several classes.
        training: keep the decoder and mask tokens, which only the original's pretraining reads, and the temperature,
            which its classification refuses; without them a pretrained model is like ``one-peace.pt``.

    Raises:
        ValueError: where the format cannot say what the model has (a fourth modality, a head on another one).
    """
    if not training and isinstance(model, PretrainModel):
        model = _without_denoiser(model)
    tensors, unknown = {}, []
    for ours, tensor in named(model).state_dict().items():
        if name := original_name(ours):
            tensors[name] = _in_original_shape(name, tensor)
        else:
            unknown.append(ours)
    if unknown:
        raise ValueError(
            f"the original's format holds {', '.join(MODALITIES)} and heads of its own; it has no name for"
            f" {listed(unknown, ', ')}"
        )
    if not training:
        tensors.pop("logit_scale", None)
    kind = _kind(model, multi_label)
    cfg: dict[str, Any] = {group: {"_name": None} for group in _GROUPS} | dict.fromkeys(_EMPTY_GROUPS)
    cfg |= {"_name": None, "model": _cfg(model), "criterion": kind.criterion}
    cfg["task"] = _task(model, kind, audio_seconds)
    history = {
        "criterion_name": kind.criterion["_name"],
        "optimizer_name": "MemoryEfficientFP16Optimizer",
        "lr_scheduler_state": {"best": None},
        "num_updates": 0,
    }
    return {
        "args": None,
        "cfg": cfg,
        "model": tensors | _unused(model),
        "criterion": None,
        "optimizer_history": [history],
        "task_state": {},
        "extra_state": {"train_iterator": {"version": 2, "epoch": 1, "iterations_in_epoch": 0, "shuffle": True}},
    }


_GROUPS = (
    *("common", "common_eval", "distributed_training", "dataset", "optimization", "checkpoint", "bmuf", "generation"),
    *("eval_lm", "interactive", "optimizer", "lr_scheduler", "ema"),
)
_EMPTY_GROUPS = ("scoring", "bpe", "tokenizer")
"""Of fairseq's configuration; reading a model needs their names alone."""


@dataclass(frozen=True)
class _Kind:
    """What the original calls a task and its loss, and the columns of its tables."""

    task: str
    columns: str
    criterion: dict[str, Any]
    extra: dict[str, Any] = field(default_factory=dict)


def _kind(model: AnyModel, multi_label: bool) -> _Kind:
    present = tuple(name for name in MODALITIES if name in model.config.adapters)
    if not isinstance(model, ClassifyModel):
        if present == ("text", "audio"):
            criterion = {"_name": "audio_text_retrieval_criterion", "label_smoothing": 0.0}
            return _Kind("audio_text_retrieval", _AUDIO, criterion, {"valid_file": None, "use_template": False})
        if isinstance(model, PretrainModel) and model.denoiser is not None:
            return _Kind("image_text_pretrain", _IMAGE, {"_name": "image_text_pretrain_loss"}, {"valid_file": None})
        criterion = {"_name": "image_text_retrieval_criterion", "label_smoothing": 0.0}
        return _Kind("image_text_retrieval", _IMAGE, criterion, {"valid_file": None})
    head = model.head.config
    classify = {"_name": "classify_criterion", "use_multi_label": multi_label, "label_smoothing": 0.0}
    if present == ("text", "audio"):
        return _Kind("aqa", _AUDIO, {"_name": "hinge_loss", "margin": 1.0, "num_choices": 4})
    if present == ("audio",):
        return _Kind("fsd50k" if multi_label else "vggsound", _AUDIO, classify)
    if present == ("image",):
        return _Kind("image_classify", "image,label", classify)
    if head.images == 2:
        return _Kind("nlvr2", "uniq_id,text,image1,image2,label", classify)
    if head.outputs == 4 and not head.pooler:
        return _Kind("refcoco", "image,text,region_coord", {"_name": "refcoco_criterion"})
    return _Kind("vqa", "uniq_id,image,question,refs", classify | {"use_multi_label": True})


_AUDIO, _IMAGE = "uniq_id,audio,text,duration", "image_id,image,caption"


def _task(model: AnyModel, kind: _Kind, audio_seconds: float) -> dict[str, Any]:
    adapters = model.config.adapters
    image, audio = adapters.get("image"), adapters.get("audio")
    head = model.head.config if isinstance(model, ClassifyModel) else None
    present = [name for name in MODALITIES if name in adapters]
    branches: dict[tuple[str, ...], str] = {("text", "image"): "vl", ("text", "audio"): "al"}
    several = branches.get(tuple(present), "val")
    task: dict[str, Any] = {
        "_name": kind.task,
        "data": "",
        "valid_data": "",
        "selected_cols": kind.columns,
        "bpe_dir": "../../utils/BPE",
        "max_positions": MAX_POSITIONS,
        "max_src_length": 70,
        "patch_image_size": image.image_size if isinstance(image, ImageConfig) else 256,
        "max_duration": int(audio_seconds) if float(audio_seconds).is_integer() else audio_seconds,
        "reader_separator": "\t",
        "feature_encoder_spec": _feature_spec(audio.channels if isinstance(audio, AudioConfig) else 512),
        "head_type": present[0] if len(present) == 1 else several,
        "num_classes": head.outputs if head else None,
        "use_two_images": bool(head and head.images == 2),
        "zero_shot": not model.config.per_block_tables and head is None,
    }
    return task | kind.extra


def _feature_spec(channels: int) -> str:
    return f"[({channels}, 10, 5)] + [({channels}, 3, 2)] * 4 + [({channels},2,2)] + [({channels},2,2)]"


def _without_denoiser(model: PretrainModel) -> PretrainModel:
    """Backbone and contrastive heads of a model, the very tensors."""
    with torch.device("meta"):
        plain = PretrainModel(model.config, denoise=False)
    kept = plain.state_dict().keys()
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name in kept}
    plain.load_state_dict(tensors, assign=True)
    return plain


def _in_original_shape(name: str, tensor: Tensor) -> Tensor:
    dimensions = _DIMENSIONS.get(name.rpartition(".")[2], tensor.dim())
    if dimensions < tensor.dim():
        return tensor.detach().reshape(())
    return tensor.detach().reshape((1,) * (dimensions - tensor.dim()) + tuple(tensor.shape))


def _unused(model: AnyModel) -> dict[str, Tensor]:
    config = model.config
    tensors = {}
    if "audio" in config.adapters:
        tensors["encoder_wrapper.audio_adapter.mask_embedding"] = torch.zeros(1, config.encoder.width)
    if isinstance(model, PretrainModel) and model.denoiser is not None:
        width = config.decoder.transformer.width
        for name in config.adapters:
            tensors[f"decoder_wrapper.{name}_adapter.cls_embedding"] = torch.zeros(1, 1, width)
        if "audio" in config.adapters:
            tensors["decoder_wrapper.audio_adapter.mask_embedding"] = torch.zeros(1, width)
    return tensors


def _cfg(model: AnyModel) -> dict[str, Any]:
    config = model.config
    cfg: dict[str, Any] = {"_name": "one_peace_retrieval", "encoder": _encoder(config)}
    cfg["copy_rel_pos_table"] = config.per_block_tables
    if isinstance(model, ClassifyModel):
        return (
            cfg
            | {"_name": "one_peace_classify"}
            | _head(model.head.config, [name for name in MODALITIES if name in config.adapters])
        )
    if isinstance(model, PretrainModel) and model.denoiser is not None:
        return cfg | {"_name": "one_peace_pretrain", "decoder": _stack(config.decoder.transformer, config)}
    return cfg


def _head(config: PoolingConfig, modalities: list[str]) -> dict[str, Any]:
    # The format tells images from all else; else the text is pooled where there is any.
    if config.pooled not in (("image",), (modalities[0],)):
        raise ValueError(
            f"the head pools {' and '.join(config.pooled)}; of {modalities}, the original's format can only pool"
            f" 'image' or {modalities[0]!r}"
        )
    return HEAD_CHOICES | {
        "head_scale_ratio": config.expansion,
        "use_pooler": config.pooler,
        "use_image_features": config.pooled != (modalities[0],),
    }


def _stack(config: TransformerConfig, model: ModelConfig) -> dict[str, Any]:
    sizes = {
        "embed_dim": config.width,
        "ffn_embed_dim": config.ffn_width,
        "layers": config.depth,
        "attention_heads": config.heads,
        "drop_path_rate": config.drop_path,
        "use_layer_scale": config.layer_scale is not None,
    }
    if config.layer_scale is not None:
        sizes["layer_scale_init_value"] = config.layer_scale
    return STACK_CHOICES | sizes | {f"use_{name}_moe": name in model.adapters for name in MODALITIES}


def _encoder(config: ModelConfig) -> dict[str, Any]:
    cfg = _stack(config.encoder, config)
    for name, adapter in config.adapters.items():
        sizes: dict[str, Any] = {}
        if isinstance(adapter, TextConfig):
            sizes = {"bucket_size": adapter.buckets, "add_type_embedding": adapter.type_embedding}
        elif isinstance(adapter, ImageConfig):
            sizes = {"bucket_size": adapter.position_grid or adapter.grid, "rel_bucket_size": adapter.grid}
            sizes["add_type_embedding"] = adapter.type_embedding
        elif isinstance(adapter, AudioConfig):
            n = adapter.channels
            sizes = {
                "bucket_size": adapter.buckets,
                "feature_embed_dim": n,
                "feature_encoder_spec": _feature_spec(n),
                "conv_pos_depth": adapter.position_depth,
                "conv_pos_width": adapter.position_kernel * adapter.position_depth,
                "conv_pos_groups": adapter.position_groups,
            }
        cfg[f"{name}_adapter"] = ADAPTER_CHOICES[name] | sizes
    return cfg
