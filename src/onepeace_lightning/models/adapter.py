"""What the encoder asks of a modality, and the list of modalities it knows."""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from onepeace_lightning.models.attention.base import RelativeBias
from onepeace_lightning.models.config import AdapterConfig, ModelConfig
from onepeace_lightning.models.layers import BiasTables, init_normal_
from onepeace_lightning.models.packing import Tokens


class Adapter(nn.Module):
    """Turns a modality's raw input into ``[CLS; tokens]`` of the encoder's width, with a relative position bias.

    A new modality subclasses this, sets ``modality`` and ``config_type``, implements ``embed``, ``bias_rows`` and
    ``buckets``, and is registered with ``register_adapter``. Subclasses call ``reset_parameters`` when they are built.
    """

    modality: ClassVar[str]
    config_type: ClassVar[type[AdapterConfig]]

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

    def view(self, tokens: Tokens, hidden_BP: np.ndarray | None = None) -> Tokens:
        """What the encoder sees: ``embed``'s tokens without those that a mask over positions (B, P) hides."""
        return tokens if hidden_BP is None else tokens.hide(hidden_BP)

    def bias_rows(self) -> int:
        """Rows of a relative bias table."""
        raise NotImplementedError

    def buckets(self, positions: int) -> Tensor:
        """(P, P) the table row of every pair of positions, P at least ``positions``."""
        raise NotImplementedError

    def relative_bias(self, positions: int) -> RelativeBias:
        """The bias of all blocks, for positions below ``positions``."""
        return RelativeBias(list(self.bias_tables), self.buckets(positions))


_ADAPTERS: dict[str, type[Adapter]] = {}


def register_adapter(adapter: type[Adapter]) -> type[Adapter]:
    """Make a modality known by its ``modality`` name; usable as a decorator.

    Raises:
        ValueError: where the name is taken by another class.
    """
    name = adapter.modality
    if _ADAPTERS.setdefault(name, adapter) is not adapter:
        raise ValueError(f"modality {name!r} is already registered by {_ADAPTERS[name].__qualname__}")
    return adapter


def adapter_type(modality: str) -> type[Adapter]:
    """The adapter registered for a modality.

    Raises:
        ValueError: where there is none.
    """
    import onepeace_lightning.modalities  # noqa: F401 (registers those of the package)

    if modality not in _ADAPTERS:
        raise ValueError(f"no adapter is registered for {modality!r}; known: {', '.join(sorted(_ADAPTERS))}")
    return _ADAPTERS[modality]
