"""A model's weights written as the original project writes them, tensor by tensor."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from onepeace_lightning.models import PretrainModel
from onepeace_lightning.models.config import TransformerConfig
from onepeace_lightning.models.encoder import Encoder

MODALITIES = ("text", "image", "audio")

Named = Iterator[tuple[str, Tensor]]


def to_original(model: PretrainModel) -> dict:
    """``{"cfg": …, "model": …}``, with the tensors that the original stores and never uses."""
    return {
        "cfg": {"model": _cfg(model), "task": {}},
        "model": {name: t.detach().clone() for name, t in _tensors(model)},
    }


def _tensors(model: PretrainModel) -> Named:
    yield "logit_scale", model.heads.logit_scale[0]
    for name in MODALITIES:
        yield from _layer(f"{name}_proj", model.heads.projections[name])
        yield f"{name}_mask_token", model.denoiser.inputs[name].mask_token[None]
        yield from _layer(f"decoder_{name}_embed", model.denoiser.inputs[name].project)
        yield from _layer(f"{name}_mask_head", model.denoiser.outputs[name])
        adapter, prefix = model.backbone.adapters[name], f"encoder_wrapper.{name}_adapter"
        yield f"{prefix}.cls_embedding", adapter.cls_token[None, None]
        for index, table in enumerate(adapter.bias_tables):
            yield f"{prefix}.rel_pos_table_list.{index}.weight", table
        yield f"decoder_wrapper.{name}_adapter.cls_embedding", torch.randn(1, 1, 5)
        yield f"{prefix}.rp_bucket", torch.zeros(3, 3)
    text, image, audio = (model.backbone.adapters[name] for name in MODALITIES)
    yield "encoder_wrapper.text_adapter.embed_tokens.weight", text.embedding.weight
    yield "encoder_wrapper.text_adapter.embed_positions.weight", text.positions
    yield "encoder_wrapper.text_adapter.version", torch.zeros(1)
    yield "encoder_wrapper.image_adapter.pos_embed", image.positions
    for index in (0, 3, 6):
        yield from _layer(f"encoder_wrapper.image_adapter.embed_images.{index}", image.stem[index])
    for index in (1, 4):
        yield from _layer(f"encoder_wrapper.image_adapter.embed_images.{index}.layer_norm", image.stem[index])
    sound = "encoder_wrapper.audio_adapter"
    yield f"{sound}.cls_pos_embed", audio.cls_position[None, None]
    for index in range(7):
        yield f"{sound}.embed_audios.0.conv_layers.{index}.0.weight", audio.features[index][0].weight
        yield from _layer(f"{sound}.embed_audios.0.conv_layers.{index}.2.1", audio.features[index][1])
    yield from _layer(f"{sound}.embed_audios.2", audio.norm)
    yield from _layer(f"{sound}.embed_audios.3", audio.project)
    for index, conv in enumerate(audio.position_convs, start=1):
        yield from _layer(f"{sound}.embed_positions.{index}.0", conv)
    yield f"{sound}.mask_embedding", torch.randn(1, 5)
    yield "decoder_wrapper.audio_adapter.mask_embedding", torch.randn(1, 5)
    inputs = model.denoiser.inputs
    yield "decoder_wrapper.text_adapter.embed_positions.weight", inputs["text"].positions
    yield "decoder_wrapper.image_adapter.pos_embed", inputs["image"].positions
    yield "decoder_wrapper.audio_adapter.embed_positions.weight", inputs["audio"].positions
    yield from _stack("encoder_wrapper.fusion_model", model.backbone.encoder)
    yield from _stack("decoder_wrapper.fusion_model", model.denoiser.decoder)


def _stack(prefix: str, stack: Encoder) -> Named:
    for index, block in enumerate(stack.blocks):
        layer, attention = f"{prefix}.layers.{index}", block.attention
        if block.layer_scale is not None:
            yield f"{layer}.gamma_1", block.gamma_1
            yield f"{layer}.gamma_2", block.gamma_2
        yield from _layer(f"{layer}.self_attn.ln", attention.norm)
        yield from _layer(f"{layer}.self_attn.q_proj", attention.query)
        yield from _layer(f"{layer}.self_attn.k_proj", attention.key)
        yield from _layer(f"{layer}.self_attn.v_proj", attention.value)
        yield from _layer(f"{layer}.self_attn.out_proj", attention.out)
        yield from _layer(f"{layer}.self_attn_layer_norm", block.norm_attention)
        yield from _layer(f"{layer}.final_layer_norm", block.norm_ffn)
        for name in MODALITIES:
            yield from _layer(f"{layer}.{name}_ffn.0.wi_0", block.ffns[name].gate)
            yield from _layer(f"{layer}.{name}_ffn.0.wi_1", block.ffns[name].up)
            yield from _layer(f"{layer}.{name}_ffn.2", block.ffns[name].norm)
            yield from _layer(f"{layer}.{name}_ffn.3", block.ffns[name].down)
    for name in MODALITIES:
        yield from _layer(f"{prefix}.{name}_layer_norm", stack.norms[name])


def _layer(prefix: str, layer: nn.Module) -> Named:
    yield f"{prefix}.weight", layer.weight
    if layer.bias is not None:
        yield f"{prefix}.bias", layer.bias


def _cfg(model: PretrainModel) -> dict:
    config = model.config
    text, image, audio = (config.adapters[name] for name in MODALITIES)
    n = audio.channels
    adapters = {
        "text_adapter": {"bucket_size": text.buckets},
        "image_adapter": {"bucket_size": image.position_grid or image.grid, "rel_bucket_size": image.grid},
        "audio_adapter": {
            "bucket_size": audio.buckets,
            "conv_pos_depth": audio.position_depth,
            "conv_pos_width": audio.position_kernel * audio.position_depth,
            "conv_pos_groups": audio.position_groups,
            "feature_encoder_spec": f"[({n}, 10, 5)] + [({n}, 3, 2)] * 4 + [({n},2,2)] + [({n},2,2)]",
        },
    }
    return {
        "encoder": _sizes(config.encoder) | adapters,
        "decoder": _sizes(config.decoder.transformer),
    }


def _sizes(config: TransformerConfig) -> dict:
    return {
        "embed_dim": config.width,
        "layers": config.depth,
        "attention_heads": config.heads,
        "ffn_embed_dim": config.ffn_width,
        "drop_path_rate": config.drop_path,
        "use_layer_scale": config.layer_scale is not None,
        "layer_scale_init_value": 1e-6 if config.layer_scale is None else config.layer_scale,
    }
