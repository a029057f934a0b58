"""The model in plain torch (paper section 3)."""

from onepeace_lightning.models.adapter import Adapter, register_adapter
from onepeace_lightning.models.backbone import Backbone
from onepeace_lightning.models.config import (
    AdapterConfig,
    AudioConfig,
    ImageConfig,
    ModelConfig,
    TextConfig,
    TransformerConfig,
)
from onepeace_lightning.models.inputs import Audio, Image, Text
from onepeace_lightning.models.packing import Tokens
from onepeace_lightning.models.pretraining import PretrainModel

__all__ = [
    "Adapter", "AdapterConfig", "Audio", "AudioConfig", "Backbone", "Image", "ImageConfig", "ModelConfig",
    "PretrainModel", "Text", "TextConfig", "Tokens", "TransformerConfig", "register_adapter",
]  # fmt: skip
