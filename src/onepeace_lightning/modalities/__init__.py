"""What is particular to each modality: one file a modality; importing them registers them.

A modality of one's own needs what is listed here, and ``Adapter``, ``AdapterConfig`` and ``Tokens`` of
``onepeace_lightning.models``.
"""

from onepeace_lightning.modalities.arrays import hide, pad, span_mask, stack
from onepeace_lightning.modalities.audio import Audio, AudioConfig, AudioModality
from onepeace_lightning.modalities.base import Inputs, Modality, Settings, training_only
from onepeace_lightning.modalities.cropping import fitted, random_crop
from onepeace_lightning.modalities.depth import DepthConfig, DepthModality
from onepeace_lightning.modalities.image import (
    Image,
    ImageConfig,
    ImageModality,
    ImageSettings,
    RasterModality,
    RasterSettings,
)
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.modalities.registry import modalities, modality, register
from onepeace_lightning.modalities.series import SeriesModality
from onepeace_lightning.modalities.text import Text, TextConfig
from onepeace_lightning.modalities.vectors import Vectors, VectorsConfig, VectorsModality
from onepeace_lightning.modalities.video import Video, VideoConfig

__all__ = [
    "Audio", "AudioConfig", "AudioModality", "DepthConfig", "DepthModality", "Image", "ImageConfig", "ImageModality",
    "ImageSettings", "Inputs", "Modality", "Preprocessing", "RasterModality", "RasterSettings", "SeriesModality",
    "Settings", "Text", "TextConfig", "Vectors", "VectorsConfig", "VectorsModality", "Video", "VideoConfig", "fitted",
    "hide", "modalities", "modality", "pad", "random_crop", "register", "span_mask", "stack", "training_only",
]  # fmt: skip
