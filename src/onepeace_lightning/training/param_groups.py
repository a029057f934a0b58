"""Which learning rate and weight decay each parameter has, by the rules that the modules which own it declare.

A module may have two methods, both of names relative to itself:

* ``no_weight_decay() -> set[str]``: those of its parameters, its submodules' included, that do not decay; all others
  do. Outside of such modules vectors and scalars (biases, norms, γ, CLS, the temperature) do not decay.
* ``lr_scale(name, layer_decay) -> float | None``: the factor of a parameter's learning rate, None to leave it to its
  submodules. Without any rule the factor is 1.

The outermost module that has a rule decides: a model of a published recipe overrides what its parts say.
"""

from typing import Any

from torch import nn


def parameter_rules(
    module: nn.Module, *, weight_decay: float, layer_decay: float = 1.0
) -> dict[str, tuple[float, float]]:
    """Factor of the learning rate, and weight decay, of every trainable parameter."""
    exempt = _without_decay(module)
    return {
        name: (_lr_scale(module, name, layer_decay), 0.0 if name in exempt else weight_decay)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def parameter_groups(
    module: nn.Module, *, lr: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for an optimiser: trainable parameters by learning rate and weight decay; see ``parameter_rules``."""
    parameters = dict(module.named_parameters())
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, rule in parameter_rules(module, weight_decay=weight_decay, layer_decay=layer_decay).items():
        group = groups.setdefault(rule, {"params": [], "lr": lr * rule[0], "weight_decay": rule[1]})
        group["params"].append(parameters[name])
    return list(groups.values())


def _without_decay(module: nn.Module, prefix: str = "") -> set[str]:
    if rule := getattr(module, "no_weight_decay", None):
        return {prefix + name for name in rule()}
    exempt = {prefix + name for name, parameter in module.named_parameters(recurse=False) if parameter.dim() < 2}
    for name, child in module.named_children():
        exempt |= _without_decay(child, f"{prefix}{name}.")
    return exempt


def _lr_scale(module: nn.Module, name: str, layer_decay: float) -> float:
    if rule := getattr(module, "lr_scale", None):
        scale: float | None = rule(name, layer_decay)
        if scale is not None:
            return scale
    child, _, rest = name.partition(".")
    return _lr_scale(module.get_submodule(child), rest, layer_decay) if rest else 1.0
