"""Low-rank adaptation of the encoder (arXiv 2106.09685) through the ``peft`` package, an optional extra."""

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from torch import nn

from onepeace_lightning.models.backbone import Backbone
from onepeace_lightning.models.quantised import Bits, QuantisedLinear, check_torchao, quantised_layers

LINEAR = re.compile(r"encoder\.blocks\.\d+\.(attention\.(?P<attention>\w+)|ffns\.\w+\.(?P<ffn>\w+))")
Branch = TypeVar("Branch", bound=nn.Module)
TARGETS = ("query", "key", "value", "out", "gate", "up", "down")


@dataclass(frozen=True)
class Lora:
    """Low-rank updates of the encoder's linear layers, whose own weights stay as they are.

    Attributes:
        rank: of the updates.
        alpha: they are scaled by alpha / rank.
        dropout: on their input.
        targets: which layers: query, key, value and out of attention; gate, up and down of the feed-forward networks.
        weights: how the weights of all those layers of the encoder are held, which do not train: "full", as they are;
            "int8" or "nf4", in 8 or 4 bits (``models.quantised``). What is handed on, merged or exported is float32.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    targets: Sequence[str] = ("query", "value")
    weights: Literal["full", Bits] = "full"

    def __post_init__(self) -> None:
        unknown = [name for name in self.targets if name not in TARGETS]
        if self.rank < 1 or unknown or not self.targets:
            raise ValueError(
                f"lora: rank is {self.rank} and targets are {list(self.targets)}; give a rank of at least 1 and some of"
                f" {', '.join(TARGETS)}"
            )
        if self.weights not in ("full", *get_args(Bits)):
            raise ValueError(
                f"lora: weights is {self.weights!r}; give 'full', {' or '.join(map(repr, get_args(Bits)))}"
            )


class _Zeros(nn.Linear):
    """A layer that starts at zero, as the second factor of an update does."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


def add_lora(backbone: Backbone, settings: Lora) -> None:
    """Put low-rank updates beside a backbone's layers, in place; everything else in it is frozen.

    A backbone on the meta device keeps its new layers there; ``materialise`` draws them like all others.

    Raises:
        ImportError: ``peft`` is not installed, or ``torchao``, which quantises.
        ValueError: the layers cannot be quantised so.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError("lora needs the peft package: pip install 'onepeace-lightning[lora]'") from error
    linear = {
        name: found["attention"] or found["ffn"]
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and (found := LINEAR.fullmatch(name))
    }
    names = [name for name, kind in linear.items() if kind in settings.targets]
    config = peft.LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=names
    )
    peft.inject_adapter_in_model(config, backbone)
    for _, layer in _adapted(backbone):
        for name, second in layer.lora_B.items():
            layer.lora_B[name] = _Zeros(
                second.in_features, second.out_features, bias=False, device=second.weight.device
            )
    if settings.weights != "full":
        check_torchao()
        for name in linear:
            place = f"{name}.base_layer" if name in names else name
            backbone.set_submodule(place, QuantisedLinear(backbone.get_submodule(place), settings.weights))


@contextmanager
def base_layers(backbone: Backbone) -> Iterator[None]:
    """Shows a backbone without its low-rank updates, its layers under their own names; afterwards they are back."""
    adapted = _adapted(backbone)
    for name, layer in adapted:
        backbone.set_submodule(name, layer.get_base_layer())
    try:
        yield
    finally:
        for name, layer in adapted:
            backbone.set_submodule(name, layer)


def merged(backbone: Branch) -> Branch:
    """A copy of a backbone or image branch with ordinary layers: weights dequantised, low-rank updates added."""
    backbone = copy.deepcopy(backbone)
    for name, layer in list(quantised_layers(backbone)):
        backbone.set_submodule(name, layer.full())
    for name, layer in _adapted(backbone):
        layer.merge()
        backbone.set_submodule(name, layer.get_base_layer())
    return backbone.requires_grad_(True)


def _adapted(backbone: nn.Module) -> list[tuple[str, Any]]:
    """Names of the layers that peft has put its own around, and these."""
    return [(name, module) for name, module in backbone.named_modules() if hasattr(module, "get_base_layer")]
