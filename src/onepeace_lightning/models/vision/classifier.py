"""Classification as published for ImageNet: mean over the tokens' features, LayerNorm, Linear."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from onepeace_lightning.models.backbone import Backbone
from onepeace_lightning.models.config import ModelConfig
from onepeace_lightning.models.layers import Linear
from onepeace_lightning.models.packing import Tokens

HEAD_SCALE = 1e-3
"""Factor on the classifier's initial weights."""


class MeanHead(nn.Module):
    """Mean over all tokens but CLS, LayerNorm, Linear."""

    def __init__(self, width: int, classes: int, init_std: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.classifier = SmallLinear(width, classes, init_std)

    def forward(self, features: Tokens) -> Tensor:
        """(B, classes) logits."""
        x_BLD, valid_BL = features.padded()
        kept_BL1 = valid_BL[:, 1:, None]
        mean_BD = (x_BLD[:, 1:] * kept_BL1).sum(1) / kept_BL1.sum(1)
        return self.classifier(self.norm(mean_BD))


class SmallLinear(Linear):
    """A linear layer whose answers are near zero at first."""

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        super().reset_parameters()
        with torch.no_grad():
            self.weight.mul_(HEAD_SCALE)


class MeanClassifier(nn.Module):
    """The branch of one modality (of images, as published) without its final norm, a head over the mean of its tokens.

    Args:
        config: sizes; of one modality.
        classes: how many.
    """

    def __init__(self, config: ModelConfig, classes: int) -> None:
        super().__init__()
        [self.modality] = config.adapters
        # The published classifier has no final norm: the mean is over what the last block gives.
        self.config = replace(config, encoder=replace(config.encoder, final_norm=False))
        self.backbone = Backbone(self.config)
        self.head = MeanHead(config.encoder.width, classes, config.encoder.init_std)

    def forward(self, inputs: Mapping[str, Any]) -> Tensor:
        """(B, classes) logits of {modality: …}."""
        return self.head(self.backbone(inputs)[self.modality])

    def lr_scale(self, name: str, layer_decay: float) -> float | None:
        """The bias table belongs to the adapter, as published."""
        return layer_decay ** (self.config.encoder.depth + 1) if ".bias_tables." in name else None
