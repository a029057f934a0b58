"""What the encoder asks of a modality."""

from typing import Any

import torch
from torch import Tensor, nn

from onepeace_lightning.models.attention.base import RelativeBias
from onepeace_lightning.models.config import ModelConfig
from onepeace_lightning.models.inputs import TokenMask
from onepeace_lightning.models.layers import BiasTables, init_normal_
from onepeace_lightning.models.packing import Tokens

SECOND = "second_"
"""Before the name of a modality: the second of a sample's two items of it, as an input of a model."""


class Adapter(nn.Module):
    """Turns a modality's raw input into ``[CLS; tokens]`` of the encoder's width, with a relative position bias.

    A new modality subclasses this and implements ``embed``, ``bias_rows`` and ``buckets``; its config's ``build`` makes
    it. Subclasses call ``reset_parameters`` when they are built.

    Args:
        config: the adapter's sizes, an ``AdapterConfig``.
        model: the whole model's sizes.
    """

    def __init__(self, config: Any, model: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.init_std = model.encoder.init_std
        self.cls_token = nn.Parameter(torch.empty(model.encoder.width))
        tables = model.encoder.depth if model.per_block_tables else 1
        self.bias_tables = BiasTables(tables, self.bias_rows(), model.encoder.heads)

    def reset_parameters(self) -> None:
        """Draw CLS; subclasses add what they own themselves."""
        init_normal_(self.cls_token, self.init_std)

    def embed(self, inputs: Any) -> Tokens:
        """All tokens of a batch of raw inputs, CLS first; once per batch, however many views are made of it."""
        raise NotImplementedError

    def view(self, tokens: Tokens, mask: TokenMask | None = None) -> Tokens:
        """What the encoder sees: ``embed``'s tokens without those that a mask hides."""
        return tokens if mask is None else tokens.hide(mask)

    def as_second(self, tokens: Tokens) -> Tokens:
        """``embed``'s tokens marked as those of a sample's second item, such as the second of two images.

        Raises:
            ValueError: where the adapter cannot tell items apart.
        """
        raise ValueError(f"{type(self).__name__} does not tell a second item from the first")

    def no_weight_decay(self) -> set[str]:
        """Names of the adapter's own parameters that do not decay: vectors, unless a modality says otherwise."""
        return {name for name, parameter in self.named_parameters() if parameter.dim() < 2}

    def padded(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """What one view of nothing hidden gives, padded: tokens (B, L, D), and (B, L) True where there is one.

        The form that is exported to other runtimes: a function of the tensors of ``Inputs.exported`` alone.

        Raises:
            NotImplementedError: unless an adapter says how.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method padded, so it cannot be exported")

    def bias_rows(self) -> int:
        """Rows of a relative bias table."""
        raise NotImplementedError

    def buckets(self, positions: int) -> Tensor:
        """(P, P) the table row of every pair of positions, P at least ``positions``."""
        raise NotImplementedError

    def relative_bias(self, positions: int) -> RelativeBias:
        """The bias of all blocks, for positions below ``positions``."""
        return RelativeBias(list(self.bias_tables), self.buckets(positions))
