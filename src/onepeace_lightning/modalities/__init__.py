"""What is particular to each modality: one file a modality."""

from onepeace_lightning.modalities.audio import AudioAdapter
from onepeace_lightning.modalities.image import ImageAdapter
from onepeace_lightning.modalities.text import TextAdapter
from onepeace_lightning.models.adapter import Adapter, adapter_type, register_adapter

__all__ = ["Adapter", "AudioAdapter", "ImageAdapter", "TextAdapter", "adapter_type", "register_adapter"]
