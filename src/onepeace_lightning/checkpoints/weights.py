"""Weights of this project's checkpoints."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

_log = logging.getLogger(__name__)


def load_pretrained(
    model: nn.Module, path: str | Path, may_miss: Callable[[str], bool] = lambda name: False
) -> None:
    """Take a model's weights from a training checkpoint, ``{"state_dict": {"model.…": tensor}}``.

    Args:
        model: what is filled.
        path: the checkpoint.
        may_miss: tells by name which tensors may keep their fresh values where the checkpoint lacks them (a modality
            that is added); they are logged.

    Raises:
        ValueError: listing every other missing, unexpected and misshapen tensor.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    prefix = "model."
    state = {name.removeprefix(prefix): t for name, t in checkpoint["state_dict"].items() if name.startswith(prefix)}
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
        raise ValueError(f"{path} does not fit the model: " + "; ".join(problems))
    if missing:
        _log.warning("%s: %d tensors are new and keep their initial values: %s", path, len(missing), ", ".join(missing))
    model.load_state_dict(state, strict=False)  # compared above
