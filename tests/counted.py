"""FLOPs as torch counts them while they are computed."""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def counted(*steps: Callable[[], object]) -> list[int]:
    """FLOPs of each step.

    The counter does not know the processor's fused attention, so attention is split into its two products.
    """
    totals = []
    for step in steps:
        with ExitStack() as stack:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            counter = stack.enter_context(FlopCounterMode(display=False))
            step()
        totals.append(counter.get_total_flops())
    return totals


def forward_backward(compute: Callable[[], torch.Tensor]) -> tuple[int, int]:
    """FLOPs of computing something, and of its gradients."""
    out: list[torch.Tensor] = []
    forward, backward = counted(lambda: out.append(compute()), lambda: out[0].sum().backward())
    return forward, backward
