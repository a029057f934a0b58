"""Low-rank adaptation of the encoder (arXiv 2106.09685) through the ``peft`` package, an optional extra."""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from onepeace_lightning.models.backbone import Backbone

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
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    targets: Sequence[str] = ("query", "value")

    def __post_init__(self) -> None:
        unknown = [name for name in self.targets if name not in TARGETS]
        if self.rank < 1 or unknown or not self.targets:
            raise ValueError(
                f"lora: rank is {self.rank} and targets are {list(self.targets)}; give a rank of at least 1 and some of"
                f" {', '.join(TARGETS)}"
            )


def add_lora(backbone: Backbone, settings: Lora) -> None:
    """Put low-rank updates beside a backbone's layers, in place; everything else in it is frozen.

    Raises:
        ImportError: ``peft`` is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError("lora needs the peft package: pip install 'onepeace-lightning[lora]'") from error
    names = [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear)
        and (found := LINEAR.fullmatch(name))
        and (found["attention"] or found["ffn"]) in settings.targets
    ]
    config = peft.LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=names
    )
    peft.inject_adapter_in_model(config, backbone)


def merged(backbone: Branch) -> Branch:
    """A copy of a backbone or image branch, its low-rank updates, if there are any, made part of the weights."""
    backbone = copy.deepcopy(backbone)
    for name, module in list(backbone.named_modules()):
        if hasattr(module, "get_base_layer"):  # what peft put around a layer
            module.merge()
            backbone.set_submodule(name, module.get_base_layer())
    return backbone.requires_grad_(True)
