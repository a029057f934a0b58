"""The few layers that the whole model is made of, with the initialisation of a model trained from scratch."""

import re
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn


def init_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill with a normal truncated at one deviation: weights, embeddings, positions, CLS."""
    return nn.init.trunc_normal_(tensor, std=std, a=-std, b=std)


class Linear(nn.Linear):
    """A linear layer, weights drawn by ``init_normal_``, bias zero."""

    def __init__(self, features_in: int, features_out: int, init_std: float, *, bias: bool = True) -> None:
        self.init_std = init_std
        super().__init__(features_in, features_out, bias)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        init_normal_(self.weight, self.init_std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """A table of token embeddings drawn by ``init_normal_``; the padding row is zero."""

    def __init__(self, rows: int, width: int, padding: int, init_std: float) -> None:
        self.init_std = init_std
        super().__init__(rows, width, padding_idx=padding)

    def reset_parameters(self) -> None:
        """Draw the embeddings anew."""
        init_normal_(self.weight, self.init_std)
        with torch.no_grad():
            self.weight[self.padding_idx].zero_()


def autocasted(x: Tensor) -> Tensor:
    """``x`` in the type that autocast multiplies in; several projections of it then share one conversion."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class BiasTables(nn.ParameterList):
    """Relative position bias tables (rows, heads), one per block or one for all; zero at first."""

    def __init__(self, tables: int, rows: int, heads: int) -> None:
        super().__init__(nn.Parameter(torch.empty(rows, heads)) for _ in range(tables))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero the tables."""
        for table in self:
            nn.init.zeros_(table)


class PerModality(nn.ModuleDict):
    """A module for each modality, whose parameters belong to that modality alone."""


def modality_parameters(module: nn.Module, modalities: Collection[str]) -> set[str]:
    """Names of the parameters that belong to one of the modalities: adapters, feed-forward networks, norms, heads."""
    return {
        f"{owner}.{modality}.{name}" if owner else f"{modality}.{name}"
        for owner, part in module.named_modules()
        if isinstance(part, PerModality)
        for modality in part.keys() & set(modalities)
        for name, _ in part[modality].named_parameters()
    }


@torch.no_grad()
def copy_modality(module: nn.Module, new: str, other: str) -> tuple[list[str], list[str]]:
    """Give a modality's parameters the values of another one's, wherever both have the same name and shape.

    Returns:
        Names of the new modality's parameters that were copied, and of those that keep their values.
    """
    parameters = dict(module.named_parameters())
    copied, kept = [], []
    for name in sorted(modality_parameters(module, [new])):
        source = parameters.get(".".join(other if part == new else part for part in name.split(".")))
        if source is not None and source.shape == parameters[name].shape:
            parameters[name].copy_(source)
            copied.append(name)
        else:
            kept.append(name)
    return copied, kept


def layer_scale_of(name: str, blocks: int, layer_decay: float) -> float:
    """Factor of the learning rate under layer-wise decay, ``layer_decay ** (blocks + 1 - id)``.

    Adapters have id 0, block i and its relative bias table i + 1 (a shared table is the first block's), the rest
    blocks + 1.

    Args:
        name: of a parameter in a module that has ``adapters`` and ``encoder.blocks``.
        blocks: how many there are.
        layer_decay: rate.
    """
    if found := re.match(r"encoder\.blocks\.(\d+)\.|adapters\.\w+\.bias_tables\.(\d+)$", name):
        return layer_decay ** (blocks - int(found[1] or found[2]))
    return layer_decay ** (blocks + 1) if name.startswith("adapters.") else 1.0


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, …) tensors, as convolutions lay them out."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise dimension 1, keep the shape."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class _Gather(torch.autograd.Function):
    """Rows of a matrix by unique indices; its gradient is a plain copy, where autograd would add up atomically."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = x.shape[0]
        return x.index_select(0, index)  # on CPU several times as fast as x[index]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Scatter.apply(grad, ctx.saved_tensors[0], ctx.rows), None


class _Scatter(torch.autograd.Function):
    """The transpose of ``_Gather``: rows put at unique indices of a zero matrix."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(index)
        out = x.new_zeros(rows, *x.shape[1:])
        out[index] = x
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Gather.apply(grad, ctx.saved_tensors[0]), None, None


class _GatherPadded(torch.autograd.Function):
    """Rows copied to a longer layout whose other rows hold anything and give no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        return x.index_select(0, source)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """``x[index]`` for an index (M,) without repeats: (N, …) -> (M, …)."""
    return _Gather.apply(x, index)


def scatter_rows(x: Tensor, index: Tensor, rows: int) -> Tensor:
    """Zeros (rows, …) with ``x`` (M, …) at the rows of ``index`` (M,), which has no repeats."""
    return _Scatter.apply(x, index, rows)


def gather_padded(x: Tensor, source: Tensor, index: Tensor) -> Tensor:
    """``x[source]`` (N, …) -> (R, …), where only the rows of ``index`` (N,) matter: ``source[index]`` counts 0 … N - 1.

    Cheaper than ``scatter_rows`` where the other rows' values are ignored later, such as attention's padding. A
    permutation is the case without other rows.
    """
    return _GatherPadded.apply(x, source, index)
