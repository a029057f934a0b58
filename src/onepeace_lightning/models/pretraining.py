"""Backbone, contrastive heads and denoiser: what pretraining trains."""

from torch import nn

from onepeace_lightning.models.backbone import Backbone
from onepeace_lightning.models.config import ModelConfig
from onepeace_lightning.models.denoiser import Denoiser
from onepeace_lightning.models.heads.contrastive import ContrastiveHeads


class PretrainModel(nn.Module):
    """ONE-PEACE with its pretraining heads (paper section 3.3); ``losses.pretraining`` says how they are used.

    Args:
        config: sizes.
        denoise: build the denoising decoder.
        logit_bias: learn a bias of the contrast's logits, which the sigmoid contrast needs.
    """

    def __init__(self, config: ModelConfig, *, denoise: bool = True, logit_bias: bool = False) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.heads = ContrastiveHeads(
            config.encoder.width, tuple(config.adapters), config.encoder.init_std, biased=logit_bias
        )
        self.denoiser = Denoiser(config) if denoise else None
