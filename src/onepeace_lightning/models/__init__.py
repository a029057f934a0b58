"""The model in plain torch (paper section 3)."""

from onepeace_lightning.models.adapter import Adapter
from onepeace_lightning.models.backbone import Backbone
from onepeace_lightning.models.config import AdapterConfig, ModelConfig, TransformerConfig
from onepeace_lightning.models.packing import Tokens
from onepeace_lightning.models.pretraining import PretrainModel

__all__ = ["Adapter", "AdapterConfig", "Backbone", "ModelConfig", "PretrainModel", "Tokens", "TransformerConfig"]
