"""The original project's checkpoints: parameter names and sizes.

A checkpoint is ``{"cfg": {...}, "model": {name: tensor}}``; names are translated by the ordered rules below.
"""

import ast
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onepeace_lightning.checkpoints.weights import fill
from onepeace_lightning.models.config import (
    PATCH,
    AudioConfig,
    DecoderConfig,
    ImageConfig,
    ModelConfig,
    TextConfig,
    TransformerConfig,
)

_MODALITY = "(text|image|audio)"
_RULES: tuple[tuple[str, str], ...] = (
    (r"^logit_scale$", "heads.logit_scale"),
    (rf"^{_MODALITY}_proj\.", r"heads.projections.\1."),
    (rf"^{_MODALITY}_mask_token$", r"denoiser.inputs.\1.mask_token"),
    (rf"^decoder_{_MODALITY}_embed\.", r"denoiser.inputs.\1.project."),
    (rf"^{_MODALITY}_mask_head\.", r"denoiser.outputs.\1."),
    (rf"^decoder_wrapper\.{_MODALITY}_adapter\.(embed_positions\.weight|pos_embed)$", r"denoiser.inputs.\1.positions"),
    (r"^decoder_wrapper\.fusion_model\.", "denoiser.decoder."),
    (r"^encoder_wrapper\.fusion_model\.", "backbone.encoder."),
    (rf"^encoder_wrapper\.{_MODALITY}_adapter\.", r"backbone.adapters.\1."),
    # in an adapter
    (r"\.cls_embedding$", ".cls_token"),
    (r"\.rel_pos_table_list\.(\d+)\.weight$", r".bias_tables.\1"),
    (r"(adapters\.text)\.embed_tokens\.", r"\1.embedding."),
    (r"(adapters\.text)\.embed_positions\.weight$", r"\1.positions"),
    (r"(adapters\.image)\.pos_embed$", r"\1.positions"),
    (r"(adapters\.image)\.embed_images\.(\d)\.(?:layer_norm\.)?", r"\1.stem.\2."),
    (r"(adapters\.audio)\.cls_pos_embed$", r"\1.cls_position"),
    (r"(adapters\.audio)\.embed_audios\.0\.conv_layers\.(\d)\.0\.", r"\1.features.\2.0."),
    (r"(adapters\.audio)\.embed_audios\.0\.conv_layers\.(\d)\.2\.1\.", r"\1.features.\2.1."),
    (r"(adapters\.audio)\.embed_audios\.2\.", r"\1.norm."),
    (r"(adapters\.audio)\.embed_audios\.3\.", r"\1.project."),
    # in a stack of blocks
    (rf"\.{_MODALITY}_layer_norm\.", r".norms.\1."),
    (r"\.layers\.(\d+)\.", r".blocks.\1."),
    (r"\.self_attn_layer_norm\.", ".norm_attention."),
    (r"\.final_layer_norm\.", ".norm_ffn."),
    (r"\.self_attn\.q_proj\.", ".attention.query."),
    (r"\.self_attn\.k_proj\.", ".attention.key."),
    (r"\.self_attn\.v_proj\.", ".attention.value."),
    (r"\.self_attn\.out_proj\.", ".attention.out."),
    (r"\.self_attn\.ln\.", ".attention.norm."),
    (rf"\.{_MODALITY}_ffn\.0\.wi_0\.", r".ffns.\1.gate."),
    (rf"\.{_MODALITY}_ffn\.0\.wi_1\.", r".ffns.\1.up."),
    (rf"\.{_MODALITY}_ffn\.2\.", r".ffns.\1.norm."),
    (rf"\.{_MODALITY}_ffn\.3\.", r".ffns.\1.down."),
)
_POSITION_CONV = re.compile(r"(adapters\.audio)\.embed_positions\.(\d+)\.0\.")
_UNUSED = re.compile(
    r"^decoder_wrapper\.\w+_adapter\.cls_embedding$|_adapter\.mask_embedding$|\.(rp_bucket|position_idx|version)$"
)
"""Parameters that the original never uses, and its buffers."""


def our_name(original: str) -> str | None:
    """This project's name of a parameter; None for one that is present but unused."""
    if _UNUSED.search(original):
        return None
    name = original
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    # Positional layers are counted from 1 there.
    return _POSITION_CONV.sub(lambda found: f"{found[1]}.position_convs.{int(found[2]) - 1}.", name)


def name_map(names: Iterable[str]) -> dict[str, str]:
    """Original name to ours, without the unused ones."""
    return {name: ours for name in names if (ours := our_name(name)) is not None}


def read_original(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint file, nothing in it executed, tensors mapped from disk."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def config_from_original(checkpoint: Mapping[str, Any]) -> ModelConfig:
    """Sizes from ``cfg``; those that ``cfg`` does not hold (vocabulary, position rows) from the tensors.

    Raises:
        ValueError: where ``cfg`` asks for something that this model does not have.
    """
    cfg, tensors = checkpoint["cfg"]["model"], checkpoint["model"]
    encoder, decoder = cfg["encoder"], cfg["decoder"]

    def rows(name: str) -> int:
        return tensors[name].shape[0]

    image, audio = encoder["image_adapter"], encoder["audio_adapter"]
    return ModelConfig(
        encoder=_transformer(encoder),
        adapters={
            "text": TextConfig(
                vocab_size=rows("encoder_wrapper.text_adapter.embed_tokens.weight"),
                positions=rows("encoder_wrapper.text_adapter.embed_positions.weight"),
                buckets=encoder["text_adapter"]["bucket_size"],
            ),
            "image": ImageConfig(image_size=image["rel_bucket_size"] * PATCH, position_grid=image["bucket_size"]),
            "audio": AudioConfig(
                channels=_channels(audio["feature_encoder_spec"]),
                position_depth=audio["conv_pos_depth"],
                position_kernel=audio["conv_pos_width"] // audio["conv_pos_depth"],
                position_groups=audio["conv_pos_groups"],
                buckets=audio["bucket_size"],
            ),
        },
        decoder=DecoderConfig(
            transformer=_transformer(decoder),
            positions={
                "text": rows("decoder_wrapper.text_adapter.embed_positions.weight"),
                "image": rows("decoder_wrapper.image_adapter.pos_embed"),
                "audio": rows("decoder_wrapper.audio_adapter.embed_positions.weight"),
            },
        ),
        per_block_tables="encoder_wrapper.text_adapter.rel_pos_table_list.1.weight" in tensors,
    )


def load_original(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's tensors into a model of the same sizes.

    Raises:
        ValueError: listing every missing, unexpected and misshapen tensor.
    """
    own = model.state_dict()
    state = {ours: tensors[original] for original, ours in name_map(tensors).items()}
    for name, tensor in state.items():
        # The original keeps vectors in tensors of up to three dimensions.
        if name in own and tensor.squeeze().shape == own[name].squeeze().shape:
            state[name] = tensor.reshape(own[name].shape)
    fill(model, state, "the original's checkpoint")


def _transformer(cfg: Mapping[str, Any]) -> TransformerConfig:
    return TransformerConfig(
        width=cfg["embed_dim"],
        depth=cfg["layers"],
        heads=cfg["attention_heads"],
        ffn_width=cfg["ffn_embed_dim"],
        drop_path=cfg["drop_path_rate"],
        layer_scale=cfg["layer_scale_init_value"] if cfg["use_layer_scale"] else None,
    )


def _channels(spec: str) -> int:
    """Channels of a specification such as ``[(512, 10, 5)] + [(512, 3, 2)] * 4``."""
    channels = {node.elts[0].value for node in ast.walk(ast.parse(spec)) if isinstance(node, ast.Tuple)}  # type: ignore[attr-defined]
    if len(channels) != 1:
        raise ValueError(f"feature_encoder_spec {spec!r} has channels {sorted(channels)}; one number is supported")
    return channels.pop()
