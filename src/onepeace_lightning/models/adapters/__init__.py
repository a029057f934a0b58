"""One adapter per modality: raw input to tokens (paper section 3.1)."""

from onepeace_lightning.models.adapters.audio import AudioAdapter
from onepeace_lightning.models.adapters.base import Adapter, adapter_type, register_adapter
from onepeace_lightning.models.adapters.image import ImageAdapter
from onepeace_lightning.models.adapters.text import TextAdapter

__all__ = ["Adapter", "AudioAdapter", "ImageAdapter", "TextAdapter", "adapter_type", "register_adapter"]
