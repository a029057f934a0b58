"""Weights of this project's checkpoints."""

from pathlib import Path

import torch
from torch import nn


def load_pretrained(model: nn.Module, path: str | Path) -> None:
    """Take a model's weights from a training checkpoint, ``{"state_dict": {"model.…": tensor}}``.

    Raises:
        ValueError: listing every missing, unexpected and misshapen tensor.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    prefix = "model."
    state = {name.removeprefix(prefix): t for name, t in checkpoint["state_dict"].items() if name.startswith(prefix)}
    own = model.state_dict()
    problems = [f"missing {name}" for name in own if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in own]
    problems += [
        f"{name} is {tuple(state[name].shape)}, the model has {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        raise ValueError(f"{path} does not fit the model: " + "; ".join(problems))
    model.load_state_dict(state)
