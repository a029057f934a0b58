"""Adapters and fusion encoder: any views of any modalities in, features out."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from onepeace_lightning.models.adapter import Adapter
from onepeace_lightning.models.config import ModelConfig
from onepeace_lightning.models.encoder import Encoder
from onepeace_lightning.models.inputs import TokenMask
from onepeace_lightning.models.layers import PerModality, layer_scale_of
from onepeace_lightning.models.packing import Tokens, View


class Backbone(nn.Module):
    """The part that every task shares (paper section 3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.adapters = PerModality({name: sizes.build(config) for name, sizes in config.adapters.items()})
        self.encoder = Encoder(config.encoder, tuple(config.adapters))

    def lr_scale(self, name: str, layer_decay: float) -> float:
        """Layer-wise learning rates of fine-tuning, from the final norms down to the adapters."""
        return layer_scale_of(name, self.config.encoder.depth, layer_decay)

    def adapter(self, modality: str) -> Adapter:
        """A modality's adapter.

        Raises:
            ValueError: where the model was built without that modality.
        """
        if modality not in self.adapters:
            raise ValueError(f"this model has no {modality!r} modality; it has {', '.join(self.adapters)}")
        return self.adapters[modality]  # type: ignore[return-value]

    def embed(self, inputs: Mapping[str, Any]) -> dict[str, Tokens]:
        """Every modality's tokens of one batch, to make views of."""
        return {name: self.adapter(name).embed(raw) for name, raw in inputs.items()}

    def view(self, tokens: View, masks: Mapping[str, TokenMask] | None = None) -> dict[str, Tokens]:
        """A view of embedded tokens; ``masks`` say which tokens of a modality it does not show."""
        masks = masks or {}
        return {name: self.adapter(name).view(part, masks.get(name)) for name, part in tokens.items()}

    def encode(self, views: Sequence[View]) -> list[dict[str, Tokens]]:
        """Final-normed features of all views, in one pass through the blocks."""
        relative = {name: self.adapter(name).relative_bias(span) for name, span in _spans(views).items()}
        return self.encoder(views, relative)

    def forward(self, inputs: Mapping[str, Any]) -> dict[str, Tokens]:
        """Features of one batch in which every given modality is seen together."""
        return self.encode([self.view(self.embed(inputs))])[0]


def _spans(views: Sequence[View]) -> dict[str, int]:
    """How many positions each modality has at most."""
    spans: dict[str, int] = {}
    for view in views:
        for name, tokens in view.items():
            spans[name] = max(spans.get(name, 0), tokens.span)
    return spans
