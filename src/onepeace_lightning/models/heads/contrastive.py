"""Contrastive heads: one projection per modality onto the common sphere, and the temperature."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace_lightning.models.layers import Linear, PerModality
from onepeace_lightning.models.packing import View

INITIAL_TEMPERATURE = 0.07
SIGMOID_TEMPERATURE = 0.1
SIGMOID_BIAS = -10.0


class ContrastiveHeads(nn.Module):
    """L2-normalised projections of the CLS features (paper section 3.3).

    Args:
        width: of the features.
        modalities: which have a projection.
        init_std: of the projections' weights.
        biased: learn a bias of the logits, for the sigmoid contrast (arXiv 2303.15343).
    """

    def __init__(self, width: int, modalities: Sequence[str], init_std: float, *, biased: bool = False) -> None:
        super().__init__()
        self.projections = PerModality({name: Linear(width, width, init_std) for name in modalities})
        self.logit_scale = nn.Parameter(torch.empty(1))  # sharding refuses 0-D parameters
        self.logit_bias = nn.Parameter(torch.empty(1)) if biased else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set temperature and bias to their initial values: 0.07, or with a bias 0.1 and -10."""
        temperature = INITIAL_TEMPERATURE if self.logit_bias is None else SIGMOID_TEMPERATURE
        nn.init.constant_(self.logit_scale, math.log(1 / temperature))
        if self.logit_bias is not None:
            nn.init.constant_(self.logit_bias, SIGMOID_BIAS)

    @torch.no_grad()
    def bound_temperature(self) -> None:
        """Put the parameter itself back between 0 and ln 100, so that its gradient does not die beyond a bound."""
        self.logit_scale.clamp_(0, math.log(100))

    @property
    def scale(self) -> Tensor:
        """(1,) what cosines are multiplied by: the inverse temperature, between 1 and 100."""
        self.bound_temperature()
        return self.logit_scale.exp()

    def forward(self, modality: str, features: View) -> Tensor:
        """(B, D) float32 embeddings of unit length from the CLS features of one modality."""
        return F.normalize(self.projections[modality](features[modality].cls).float(), dim=-1)
