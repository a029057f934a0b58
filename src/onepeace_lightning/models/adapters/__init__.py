"""One adapter per modality: raw input to tokens (paper section 3.1)."""

from .audio import AudioAdapter
from .base import Adapter, adapter_type, register_adapter
from .image import ImageAdapter
from .text import TextAdapter

__all__ = ["Adapter", "AudioAdapter", "ImageAdapter", "TextAdapter", "adapter_type", "register_adapter"]
