"""What is particular to each modality: one file a modality; importing them registers them."""

from onepeace_lightning.modalities.audio import Audio, AudioConfig
from onepeace_lightning.modalities.base import Inputs, Modality, Preprocessing, Settings, modalities, modality, register
from onepeace_lightning.modalities.image import Image, ImageConfig
from onepeace_lightning.modalities.text import Text, TextConfig
from onepeace_lightning.modalities.video import Video, VideoConfig

__all__ = [
    "Audio", "AudioConfig", "Image", "ImageConfig", "Inputs", "Modality", "Preprocessing", "Settings", "Text",
    "TextConfig", "Video", "VideoConfig", "modalities", "modality", "register",
]  # fmt: skip
