"""Backbone, contrastive heads and denoiser: what pretraining trains."""

from torch import nn

from .backbone import Backbone
from .config import ModelConfig
from .denoiser import Denoiser
from .heads import ContrastiveHeads


class PretrainModel(nn.Module):
    """ONE-PEACE with its pretraining heads (paper section 3.3); ``losses.pretraining`` says how they are used.

    Args:
        config: sizes.
        denoise: build the denoising decoder.
    """

    def __init__(self, config: ModelConfig, *, denoise: bool = True) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.heads = ContrastiveHeads(config.encoder.width, tuple(config.adapters), config.encoder.init_std)
        self.denoiser = Denoiser(config) if denoise else None
