"""Which parameters train, with what share of the learning rate and what weight decay.

All rules go by parameter name, as ``named_parameters`` gives it for a model with a ``backbone``.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from torch import nn

_BLOCK = re.compile(r"backbone\.encoder\.blocks\.(\d+)\.")
_TABLE = re.compile(r"backbone\.adapters\.\w+\.bias_tables\.(\d+)$")
_POSITION_TABLE = re.compile(r"(adapters|inputs)\.(text|image)\.positions$")
_BY_MODALITY = ("adapters", "ffns", "norms", "projections", "inputs", "outputs")
_STAGE2_SHARED = re.compile(r"denoiser\.|heads\.logit_scale|heads\.projections\.image\.")


def layer_scales(names: Iterable[str], blocks: int, decay: float) -> dict[str, float]:
    """Share of the learning rate of every parameter under layer-wise decay: ``decay ** (blocks + 1 - id)``.

    Adapters have id 0, block i and its relative bias table id i + 1, all else (heads, final norms) id blocks + 1.
    """

    def layer(name: str) -> int:
        if found := _BLOCK.search(name) or _TABLE.search(name):
            return int(found[1]) + 1
        return 0 if "backbone.adapters." in name else blocks + 1

    return {name: decay ** (blocks + 1 - layer(name)) for name in names}


def weight_decays(dimensions: Mapping[str, int], weight_decay: float) -> dict[str, float]:
    """Weight decay of every parameter, given its number of dimensions.

    None for biases, vectors and scalars (among them CLS, γ and the temperature) and for the absolute position tables of
    text and image. Mask tokens and the audio CLS position decay although they are vectors here: the published model
    stores them with more dimensions.
    """

    def decays(name: str, dims: int) -> bool:
        if name.endswith((".mask_token", ".cls_position")):
            return True
        return dims > 1 and not _POSITION_TABLE.search(name)

    return {name: weight_decay if decays(name, dims) else 0.0 for name, dims in dimensions.items()}


def modality_trainable(name: str, modalities: Collection[str]) -> bool:
    """Whether a parameter belongs to one of the modalities alone: adapter, feed-forward networks, final norm, heads."""
    return any(f"{part}.{modality}." in name for modality in modalities for part in _BY_MODALITY)


def stage2_trainable(name: str, modalities: Collection[str] = ("audio",)) -> bool:
    """What trains when modalities are added to a trained model (paper section 3.4).

    Their own parameters, the denoiser, the temperature, and the image head (unused here, but part of the published
    list); all else stays as it is.
    """
    return bool(_STAGE2_SHARED.search(name)) or modality_trainable(name, modalities)


def parameter_rules(
    module: nn.Module, *, weight_decay: float, layer_decay: float = 1.0
) -> dict[str, tuple[float, float]]:
    """Factor of the learning rate and weight decay of every trainable parameter.

    A module with rules of its own names what does not decay by its method ``no_weight_decay()``, and gives a
    parameter's factor by ``lr_scale(name, layer_decay)``, None for the common one.
    """
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    blocks = 1 + max(
        (int(found[1]) for name, _ in module.named_parameters() if (found := _BLOCK.search(name))), default=0
    )
    scales = layer_scales(named, blocks, layer_decay)
    own_scale: Callable[[str, float], float | None] | None = getattr(module, "lr_scale", None)
    if own_scale is not None:
        scales |= {name: own for name in named if (own := own_scale(name, layer_decay)) is not None}
    own_rule: Callable[[], set[str]] | None = getattr(module, "no_weight_decay", None)
    if own_rule is not None:
        exempt = own_rule()
        decays = {name: 0.0 if name in exempt else weight_decay for name in named}
    else:
        decays = weight_decays({name: parameter.dim() for name, parameter in named.items()}, weight_decay)
    return {name: (scales[name], decays[name]) for name in named}


def parameter_groups(
    module: nn.Module, *, lr: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for an optimiser: trainable parameters by learning rate and weight decay; see ``parameter_rules``."""
    rules = parameter_rules(module, weight_decay=weight_decay, layer_decay=layer_decay)
    parameters = dict(module.named_parameters())
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, key in rules.items():
        group = groups.setdefault(key, {"params": [], "lr": lr * key[0], "weight_decay": key[1]})
        group["params"].append(parameters[name])
    return list(groups.values())
