"""torch.compile for shapes that differ in every step."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

GRAPHS = 64
"""Graphs that one function may have: with and without gradient, in training and evaluation, for each set of modalities
and of frozen parts. PyTorch's own limit of 8 is too low for that; past this one, the call raises."""


def compiled(function: Callable[..., Any], backend: str = "inductor") -> Callable[..., Any]:
    """Compile a function with sizes that are symbols, so that another length is no reason to compile again."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    return torch.compile(function, backend=backend, dynamic=True)


@cache
def outside_of_graphs(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which compiled code calls as it is; always the same one, so that blocks share their graphs.

    Nothing is marked so on import, as that takes a second: PyTorch imports its compiler for it.
    """
    return torch.compiler.disable(function)
