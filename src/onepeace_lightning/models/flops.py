"""Floating point operations of matrix products: what ``training.flops`` counts with."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Flops:
    """Operations of one part of a step.

    Attributes:
        forward: of the forward pass.
        backward: of the backward pass, gradients of inputs and of weights.
    """

    forward: int = 0
    backward: int = 0

    @property
    def total(self) -> int:
        """Both passes."""
        return self.forward + self.backward

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.forward + other.forward, self.backward + other.backward)


def product(rows: int, inner: int, columns: int, *, gradients: int) -> Flops:
    """A (rows × inner) by (inner × columns) product, and its backward pass for 0, 1 or both factors."""
    forward = 2 * rows * inner * columns
    return Flops(forward, gradients * forward)
