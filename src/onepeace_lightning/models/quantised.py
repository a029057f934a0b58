"""Frozen linear layers whose weights are held in 8 or 4 bits, quantised by the ``torchao`` package, an optional extra.

Weights are dequantised for each product, in the forward and again in the backward pass, and are never kept whole: what
an optimizer step needs is the quantised weights, the activations, and what trains beside the layer (low-rank updates).

O = output features, I = input features.
"""

from collections.abc import Iterator, Mapping
from math import gcd
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace_lightning.models.layers import autocasted

Bits = Literal["int8", "nf4"]
"""8-bit integers with a scale for each output feature; or 4-bit NormalFloat in blocks of 64 (arXiv 2305.14314)."""
BLOCK = 64
"""Weights that share a scale in nf4."""


def check_torchao() -> None:
    """Import what quantises.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import torchao.quantization  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "weights of 8 and 4 bits need the torchao package: pip install 'onepeace-lightning[lora]'"
        ) from error


def quantise(weight_OI: Tensor, bits: Bits) -> Any:
    """The weight as a tensor of torchao's.

    Raises:
        ValueError: nf4 cannot divide it into its blocks.
    """
    from torchao.quantization import Int8Tensor, to_nf4
    from torchao.quantization.granularity import PerRow

    weight_OI = weight_OI.detach().float().contiguous()
    if bits == "int8":
        return Int8Tensor.from_hp(weight_OI, PerRow())
    if weight_OI.numel() % BLOCK:
        raise ValueError(
            f"a weight of {tuple(weight_OI.shape)} is no multiple of {BLOCK} values, as nf4 needs; use int8"
        )
    return to_nf4(weight_OI, BLOCK, gcd(weight_OI.numel() // BLOCK, 256))


class QuantisedLinear(nn.Module):
    """``nn.Linear`` with a quantised weight that does not train, in buffers, and a bias in full precision.

    Its state dict holds plain tensors: those that torchao's quantised tensor is made of.

    Args:
        layer: what it stands in for; on the meta device its buffers are empty.
        bits: of the weight.
    """

    def __init__(self, layer: nn.Linear, bits: Bits) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits = layer.in_features, layer.out_features, bits
        self.bias = layer.bias
        weight = quantise(layer.weight, bits)
        self.kind, (self.parts, self.context) = type(weight), weight.__tensor_flatten__()
        for name in self.parts:
            self.register_buffer(name, getattr(weight, name))

    def reset_parameters(self) -> None:
        """Zero the layer: initial values would be of no use frozen, and weights are loaded next."""
        for tensor in (*self.parameters(), *self.buffers()):
            nn.init.zeros_(tensor)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{self.in_features}, {self.out_features}, {self.bits}"

    def state_of(self, weight_OI: Tensor) -> dict[str, Tensor]:
        """What the buffers hold when this is the weight; computed on the layer's device, returned on the weight's."""
        where = self.get_buffer(self.parts[0]).device
        weight = quantise(weight_OI if where.type == "meta" else weight_OI.to(where), self.bits)
        return {name: getattr(weight, name).to(weight_OI.device) for name in self.parts}

    def dequantised(self) -> Tensor:
        """(O, I) float32 weight."""
        inner = {name: self.get_buffer(name) for name in self.parts}
        shape = (self.out_features, self.in_features)
        weight = self.kind.__tensor_unflatten__(inner, self.context, shape, (self.in_features, 1))
        return weight.get_original_weight() if self.bits == "nf4" else weight.dequantize()

    def full(self) -> nn.Linear:
        """An ordinary layer with the dequantised weight."""
        layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        layer.weight = nn.Parameter(self.dequantised(), requires_grad=False)
        layer.bias = self.bias
        return layer

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        """(…, I) -> (…, O)."""
        return _Product.apply(autocasted(x), self)


class _Product(torch.autograd.Function):
    """x Wᵀ + b; for the backward pass it keeps the layer, not its dequantised weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return F.linear(x, layer.dequantised().to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        [gradient] = gradients
        return gradient @ ctx.layer.dequantised().to(gradient.dtype), None


def quantised_layers(module: nn.Module) -> Iterator[tuple[str, QuantisedLinear]]:
    """Names and layers of a module that hold quantised weights."""
    return ((name, layer) for name, layer in module.named_modules() if isinstance(layer, QuantisedLinear))


def with_quantised(module: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by name, those of a module's quantised layers quantised where they are not yet."""
    fitted = dict(weights)
    for name, layer in quantised_layers(module):
        if (weight := fitted.pop(f"{name}.weight", None)) is not None:
            fitted |= {f"{name}.{part}": tensor for part, tensor in layer.state_of(weight).items()}
    return fitted
