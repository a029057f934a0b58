"""Backbone, contrastive heads and denoiser: what pretraining trains."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from onepeace_lightning.models.backbone import Backbone
from onepeace_lightning.models.config import ModelConfig
from onepeace_lightning.models.denoiser import Denoiser
from onepeace_lightning.models.heads.contrastive import ContrastiveHeads
from onepeace_lightning.models.layers import modality_parameters


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

    def embed(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """(rows, D) float32 unit-length embeddings of each modality, seen alone, in one pass; rows may differ."""
        tokens = self.backbone.embed(inputs)
        features = self.backbone.encode([self.backbone.view({name: part}) for name, part in tokens.items()])
        return {name: self.heads(name, view) for name, view in zip(tokens, features, strict=True)}

    def trained_in_stage2(self, modalities: Collection[str]) -> set[str]:
        """Names of the parameters that train when modalities are added to a trained model (paper section 3.4).

        Their own, the denoiser, temperature and bias, and the projection of images where there is one (unused here, but
        part of the published list); all else stays as it is.
        """
        shared = ("denoiser.", "heads.logit_", "heads.projections.image.")
        return modality_parameters(self, modalities) | {
            name for name, _ in self.named_parameters() if name.startswith(shared)
        }
