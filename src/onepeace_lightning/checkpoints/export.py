"""Writing a model as the original project's checkpoints are written; ``original`` reads them."""

from typing import Any

import torch
from torch import Tensor

from onepeace_lightning.checkpoints.key_map import MODALITIES, original_name
from onepeace_lightning.checkpoints.loading import listed
from onepeace_lightning.checkpoints.original import (
    ADAPTER_CHOICES,
    HEAD_CHOICES,
    STACK_CHOICES,
    OriginalModel,
    named,
)
from onepeace_lightning.modalities.audio import AudioConfig
from onepeace_lightning.modalities.image import ImageConfig
from onepeace_lightning.modalities.text import TextConfig
from onepeace_lightning.models.config import ModelConfig, TransformerConfig
from onepeace_lightning.models.heads.classifier import ClassifyModel, PoolingConfig
from onepeace_lightning.models.pretraining import PretrainModel

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


def to_original(model: OriginalModel) -> dict[str, Any]:
    """``{"cfg": …, "model": …}`` for ``torch.save``; the tensors are the model's own, not copies.

    What the format holds and nobody uses (the decoder's CLS, mask embeddings of audio) is written as zeros.

    Raises:
        ValueError: where the format cannot say what the model has (a fourth modality, a head on another one).
    """
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
    return {"cfg": {"model": _cfg(model)}, "model": tensors | _unused(model)}


def _in_original_shape(name: str, tensor: Tensor) -> Tensor:
    dimensions = _DIMENSIONS.get(name.rpartition(".")[2], tensor.dim())
    if dimensions < tensor.dim():
        return tensor.detach().reshape(())
    return tensor.detach().reshape((1,) * (dimensions - tensor.dim()) + tuple(tensor.shape))


def _unused(model: OriginalModel) -> dict[str, Tensor]:
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


def _cfg(model: OriginalModel) -> dict[str, Any]:
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
    if config.modality not in ("image", modalities[0]):
        raise ValueError(
            f"the head pools {config.modality!r}; of {modalities}, the original's format can only pool 'image' or"
            f" {modalities[0]!r}"
        )
    return HEAD_CHOICES | {
        "head_scale_ratio": config.expansion,
        "use_pooler": config.pooler,
        "use_image_features": config.modality != modalities[0],
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
                "feature_encoder_spec": f"[({n}, 10, 5)] + [({n}, 3, 2)] * 4 + [({n},2,2)] + [({n},2,2)]",
                "conv_pos_depth": adapter.position_depth,
                "conv_pos_width": adapter.position_kernel * adapter.position_depth,
                "conv_pos_groups": adapter.position_groups,
            }
        cfg[f"{name}_adapter"] = ADAPTER_CHOICES[name] | sizes
    return cfg
