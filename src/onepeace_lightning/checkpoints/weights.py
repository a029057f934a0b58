"""Filling a model with weights, and this project's training checkpoints."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

_log = logging.getLogger(__name__)


def fill(
    model: nn.Module, state: Mapping[str, Tensor], source: str, may_miss: Callable[[str], bool] = lambda name: False
) -> None:
    """Copy weights into a model; nothing keeps its initial value silently.

    Args:
        model: what is filled.
        state: the weights by the model's names.
        source: where they come from, for messages.
        may_miss: tells by name which tensors may keep their initial values where the source lacks them (a modality that
            is added); they are logged.

    Raises:
        ValueError: listing every other missing, every unexpected and every misshapen tensor.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    problems = [f"missing {name}" for name in missing if not may_miss(name)]
    problems += [f"unexpected {name}" for name in state if name not in own]
    problems += [
        f"{name} is {tuple(state[name].shape)}, the model has {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        raise ValueError(f"{source} does not fit the model: " + "; ".join(problems))
    if missing:
        _log.warning(
            "%s: %d tensors are new and keep their initial values: %s", source, len(missing), ", ".join(missing)
        )
    model.load_state_dict(state, strict=False)  # compared above


def load_pretrained(model: nn.Module, path: str | Path, may_miss: Callable[[str], bool] = lambda name: False) -> None:
    """Fill a model from a training checkpoint, ``{"state_dict": {"model.…": tensor}}``; see ``fill``."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    prefix = "model."
    weights = {name.removeprefix(prefix): t for name, t in checkpoint["state_dict"].items() if name.startswith(prefix)}
    fill(model, weights, str(path), may_miss)
