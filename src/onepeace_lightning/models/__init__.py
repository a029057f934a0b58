"""The model in plain torch (paper section 3)."""

from .adapters import Adapter, register_adapter
from .backbone import Backbone
from .config import AdapterConfig, AudioConfig, ImageConfig, ModelConfig, TextConfig, TransformerConfig
from .inputs import Audio, Image, Text
from .pretraining import PretrainModel
from .tokens import Tokens

__all__ = [
    "Adapter", "AdapterConfig", "Audio", "AudioConfig", "Backbone", "Image", "ImageConfig", "ModelConfig",
    "PretrainModel", "Text", "TextConfig", "Tokens", "TransformerConfig", "register_adapter",
]  # fmt: skip
