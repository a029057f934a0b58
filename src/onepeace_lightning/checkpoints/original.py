"""Reading the original project's checkpoints, ``{"cfg": {...}, "model": {name: tensor}}``; ``export`` writes them."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onepeace_lightning.checkpoints.key_map import MODALITIES, name_map, original_name
from onepeace_lightning.checkpoints.loading import LoadReport, fill, listed, never
from onepeace_lightning.checkpoints.released.base import ReleasedFile
from onepeace_lightning.checkpoints.resize import fit_tables, for_finetuning
from onepeace_lightning.modalities.audio import AudioConfig
from onepeace_lightning.modalities.image import ImageConfig
from onepeace_lightning.modalities.text import TextConfig
from onepeace_lightning.models.backbone import Backbone
from onepeace_lightning.models.config import DecoderConfig, ModelConfig, TransformerConfig, raise_all
from onepeace_lightning.models.heads.classifier import ClassifyModel, PoolingConfig
from onepeace_lightning.models.patches import PATCH
from onepeace_lightning.models.pretraining import PretrainModel

AnyModel = PretrainModel | ClassifyModel | Backbone
"""What the files of the original's fairseq part, and ``save_pretrained`` folders, hold."""

# Choices that the original's cfg leaves open and this model has made.
STACK_CHOICES = {
    "normalize_before": True,
    "magneto_scale_attn": True,
    "scale_attn": False,
    "scale_fc": True,
    "scale_heads": False,
    "activation_fn": "gelu",
}
_ADAPTER = {"layernorm_embedding": False, "use_attn_bias": True}
ADAPTER_CHOICES: dict[str, dict[str, Any]] = {
    "text": _ADAPTER,
    "image": _ADAPTER | {"vision_encoder_type": "hmlp"},
    "audio": _ADAPTER | {"abs_pos_type": "conv", "conv_pos_pre_ln": False, "conv_bias": False},
}
HEAD_CHOICES = {"attn_pooling": True}


def read_original(path: str | Path) -> dict[str, Any]:
    """The content of a fairseq checkpoint, nothing in it executed, tensors mapped from disk.

    Returns:
        What is in the file; ``cfg`` in plain dictionaries and ``model`` without buffers.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is refused, damaged, or not a checkpoint of the original project.
    """
    file = ReleasedFile.read(path)
    if not file.has("encoder_wrapper."):
        raise ValueError(
            f"{path} is a checkpoint of another model: none of its tensors is called encoder_wrapper.…; it has"
            f" {listed(sorted(file.tensors)[:5], ', ')} …"
        )
    return {**file.content, "cfg": file.cfg, "model": file.tensors}


def config_from_original(checkpoint: Mapping[str, Any], *, final_norm: bool = True) -> ModelConfig:
    """Sizes and modalities, all from the tensors.

    ``cfg["model"]`` of a released file is that of pretraining, whatever was trained. Only what no tensor shows is taken
    from it: stochastic depth, the heads of a decoder, and that the computation is the one that is known here.

    Args:
        checkpoint: from ``read_original``; ``cfg`` may be empty.
        final_norm: whether the encoder ends with a LayerNorm for each modality.

    Raises:
        ValueError: where ``cfg`` asks for something that this model does not have, or the tensors are incomplete.
    """
    cfg, state = checkpoint["cfg"].get("model", {}), _State(checkpoint["model"])
    encoder = cfg.get("encoder", {})
    present = [name for name in MODALITIES if state.has(f"backbone.adapters.{name}.")]
    if not present:
        raise ValueError(f"the checkpoint has none of the modalities {', '.join(MODALITIES)}")
    differing = _differing(encoder, STACK_CHOICES, "encoder")
    for name in present:
        differing += _differing(encoder.get(f"{name}_adapter", {}), ADAPTER_CHOICES[name], f"encoder.{name}_adapter")
    decoder = DecoderConfig()
    if state.has("denoiser.decoder."):
        differing += _differing(cfg.get("decoder", {}), STACK_CHOICES, "decoder")
        decoder = DecoderConfig(
            transformer=_transformer(cfg.get("decoder", {}), state, "denoiser.decoder", present),
            positions={name: state.shape(f"denoiser.inputs.{name}.positions")[0] for name in present},
        )
    raise_all("this model does not have what the checkpoint's cfg asks for", differing)
    readers = {"text": _text, "image": _image, "audio": _audio}
    return ModelConfig(
        encoder=replace(_transformer(encoder, state, "backbone.encoder", present), final_norm=final_norm),
        adapters={name: readers[name](state) for name in present},
        decoder=decoder,
        per_block_tables=any(state.has(f"backbone.adapters.{name}.bias_tables.1") for name in present),
    )


def head_from_original(checkpoint: Mapping[str, Any]) -> PoolingConfig | None:
    """The pooling head of a classification checkpoint; None for any other.

    Raises:
        ValueError: where ``cfg`` asks for something that this model does not have.
    """
    cfg, state = checkpoint["cfg"].get("model", {}), _State(checkpoint["model"])
    if not state.has("head."):
        return None
    raise_all("this model does not have what the checkpoint's cfg asks for", _differing(cfg, HEAD_CHOICES, "model"))
    width = state.shape("head.norm.weight")[0]
    inner, joined = state.shape("head.classifier.0.weight")
    present = tuple(name for name in MODALITIES if state.has(f"backbone.adapters.{name}."))
    return PoolingConfig(
        outputs=state.shape("head.classifier.3.weight")[0],
        pooled=("image",) if cfg.get("use_image_features") and "image" in present else present[:1],
        images=joined // width,
        pooler=state.has("head.pooler."),
        expansion=inner // width,
    )


def model_from_original(
    checkpoint: Mapping[str, Any],
    *,
    modalities: Collection[str] | None = None,
    image_size: int | None = None,
    per_block_tables: bool = False,
    may_miss: Callable[[str], bool] = never,
    final_norm: bool = True,
) -> tuple[AnyModel, LoadReport]:
    """The model that a checkpoint holds, its tensors mapped from the file that ``read_original`` opened.

    Which it is follows from the tensors: a ``PretrainModel`` (with a denoiser where there is a decoder) for pretraining
    and retrieval, a ``ClassifyModel`` where there is a classification head, a bare ``Backbone`` where there is neither.

    Args:
        checkpoint: from ``read_original``.
        modalities: only these (the image branch alone: ``["image"]``); None: all that the checkpoint has.
        image_size: side of the images in pixels; None: the checkpoint's.
        per_block_tables: give each block a copy of relative bias tables that all share, for fine-tuning.
        may_miss: tells by name which tensors may keep their initial values where the checkpoint lacks them.
        final_norm: whether the encoder ends with a LayerNorm for each modality.

    Raises:
        ValueError: for a modality or image that the checkpoint lacks, missing tensors, or ones that contradict ``cfg``.
    """
    config, head = config_from_original(checkpoint, final_norm=final_norm), head_from_original(checkpoint)
    state = _State(checkpoint["model"])

    def build(sizes: ModelConfig) -> AnyModel:
        with torch.device("meta"):
            if head is not None:
                return ClassifyModel(sizes, head)
            if state.has("heads."):
                return PretrainModel(sizes, denoise=state.has("denoiser.decoder."))
            return Backbone(sizes)

    model = build(config)
    _check_shapes(model, checkpoint["model"])
    wanted = config
    if modalities is not None:
        if lacking := sorted(set(modalities) - set(config.adapters)):
            raise ValueError(f"the checkpoint has no {', '.join(lacking)}; it has {', '.join(config.adapters)}")
        wanted = replace(wanted, adapters={k: v for k, v in wanted.adapters.items() if k in modalities})
    if image_size is not None or per_block_tables:
        tables = per_block_tables or config.per_block_tables
        wanted = replace(for_finetuning(wanted, image_size), per_block_tables=tables)
    if wanted != config:
        model = build(wanted)
    return model, load_original(model, checkpoint["model"], may_miss)


def named(model: nn.Module) -> nn.Module:
    """A bare backbone under the name that it has in every model; any other model as it is."""
    return nn.ModuleDict({"backbone": model}) if isinstance(model, Backbone) else model


def load_original(
    model: nn.Module, tensors: Mapping[str, Tensor], may_miss: Callable[[str], bool] = never
) -> LoadReport:
    """Fill a model from a checkpoint's tensors, relative bias tables fitted to the model's images and blocks.

    Tensors that the model has no place for (a decoder, another modality) are reported and logged.

    Args:
        model: a pretraining or classification model, or a backbone; on the meta device it takes the tensors themselves.
        tensors: the checkpoint's ``model``.
        may_miss: tells by name which tensors may keep their initial values where the checkpoint lacks them.

    Raises:
        ValueError: listing every missing and misshapen tensor.
    """
    model = named(model)
    state, resized = fit_tables(model, _in_our_shapes(model, tensors))
    report = fill(
        model,
        state,
        "the original's checkpoint",
        # The published pretrained file has no temperature; it starts at its initial value, as the original's does.
        may_miss=lambda name: name == "heads.logit_scale" or may_miss(name),
        may_drop=lambda name: True,
    )
    return replace(report, resized=resized)


class _State:
    """A checkpoint's tensors by this project's names."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = {ours: tensors[original] for original, ours in name_map(tensors).items()}

    def has(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.tensors)

    def shape(self, name: str) -> torch.Size:
        if name not in self.tensors:
            raise ValueError(f"the checkpoint does not fit: it lacks {name} ({original_name(name)})")
        return self.tensors[name].shape

    def count(self, prefix: str) -> int:
        """Members of a list of modules or parameters."""
        indices = {name.removeprefix(prefix).split(".")[0] for name in self.tensors if name.startswith(prefix)}
        return len(indices)


def _in_our_shapes(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    own = model.state_dict()
    state = _State(tensors).tensors
    for name, tensor in state.items():
        # The original keeps vectors in tensors of up to four dimensions.
        if name in own and tensor.squeeze().shape == own[name].squeeze().shape:
            state[name] = tensor.reshape(own[name].shape)
    return state


def _check_shapes(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    model = named(model)
    own, state = model.state_dict(), _in_our_shapes(model, tensors)
    problems = [
        f"{name} is {tuple(tensor.shape)}, the others make it {tuple(own[name].shape)}"
        for name, tensor in state.items()
        if name in own and tensor.shape != own[name].shape
    ]
    problems += [f"{name} has no place" for name in state if name not in own and original_name(name) is not None]
    if problems:
        raise ValueError(f"the checkpoint's tensors contradict each other: {listed(problems, '; ')}")


def _differing(cfg: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> list[str]:
    return [
        f"{where}.{key} is {cfg[key]!r}, only {value!r} is known"
        for key, value in expected.items()
        if key in cfg and cfg[key] != value
    ]


def _transformer(cfg: Mapping[str, Any], state: _State, stack: str, modalities: Sequence[str]) -> TransformerConfig:
    first = f"{stack}.blocks.0."
    if stack == "backbone.encoder":
        heads = state.shape(f"backbone.adapters.{modalities[0]}.bias_tables.0")[1]
    elif "attention_heads" in cfg:
        heads = cfg["attention_heads"]
    else:
        raise ValueError("the checkpoint's cfg['model']['decoder'] lacks attention_heads, which no tensor shows")
    return TransformerConfig(
        width=state.shape(first + "norm_attention.weight")[0],
        depth=state.count(f"{stack}.blocks."),
        heads=heads,
        ffn_width=state.shape(f"{first}ffns.{modalities[0]}.down.weight")[1],
        drop_path=cfg.get("drop_path_rate", 0.0),
        layer_scale=cfg.get("layer_scale_init_value", 1e-6) if state.has(first + "gamma_1") else None,
    )


def _text(state: _State) -> TextConfig:
    name = "backbone.adapters.text."
    return TextConfig(
        vocab_size=state.shape(name + "embedding.weight")[0],
        positions=state.shape(name + "positions")[0],
        buckets=(state.shape(name + "bias_tables.0")[0] - 2) // 2,
        type_embedding=state.has(name + "type_embedding"),
    )


def _image(state: _State) -> ImageConfig:
    name = "backbone.adapters.image."
    grid = (math.isqrt(state.shape(name + "bias_tables.0")[0] - 3) + 1) // 2
    return ImageConfig(
        image_size=grid * PATCH,
        position_grid=math.isqrt(state.shape(name + "positions")[0] - 1),
        type_embedding=state.has(name + "type_embedding"),
    )


def _audio(state: _State) -> AudioConfig:
    name = "backbone.adapters.audio."
    width, per_group, kernel = state.shape(name + "position_convs.0.weight")
    return AudioConfig(
        channels=state.shape(name + "norm.weight")[0],
        position_depth=state.count(name + "position_convs."),
        position_kernel=kernel,
        position_groups=width // per_group,
        buckets=(state.shape(name + "bias_tables.0")[0] - 2) // 2,
    )
