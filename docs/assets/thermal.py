"""Thermal images: 16-bit PNG or TIFF files in hundredths of a kelvin, as radiometric cameras write them."""

import io
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from onepeace_lightning.modalities import Image, ImageConfig, RasterModality, RasterSettings, register


@dataclass(frozen=True, kw_only=True)
class ThermalConfig(ImageConfig):
    """The adapter: an image's, with one channel."""

    channels: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class ThermalSettings(RasterSettings):
    """A raster's settings, and the temperatures in °C that become -1 and 1."""

    coldest: float = -20.0
    hottest: float = 120.0


@register
class ThermalModality(RasterModality):
    """Decoded they are (H, W) °C; arrays are (1, S, S)."""

    name = "thermal"
    plural = "thermal images"
    extensions = ("thermal.png", "thermal.tiff")
    config_type = ThermalConfig
    settings_type = ThermalSettings

    def decode(self, data: bytes) -> Tensor:
        """Read a file."""
        try:
            image = Pillow.open(io.BytesIO(data))
            image.load()
        except Exception as error:  # Pillow raises many kinds
            raise ValueError(f"cannot decode the thermal image: {error}") from error
        if not image.mode.startswith("I"):
            raise ValueError(f"an image of mode {image.mode}; a thermal image has 16 bits a pixel")
        return self.convert(np.array(image) / 100 - 273.15)

    def convert(self, item: Any) -> Tensor:
        """Take an array (H, W) in °C."""
        celsius = torch.as_tensor(item).float()
        if celsius.dim() != 2 or not celsius.isfinite().all():
            raise ValueError(f"an array {tuple(celsius.shape)}; give (height, width), every value a temperature in °C")
        return celsius

    def raster(self, item: Tensor) -> Tensor:
        """(1, H, W) as the model sees it."""
        low, high = self.settings.coldest, self.settings.hottest
        return (2 * (item - low) / (high - low) - 1).clamp(-1, 1)[None]

    def sample(self, inputs: Image, row: int) -> Tensor:
        """°C again, for reports."""
        low, high = self.settings.coldest, self.settings.hottest
        return low + (inputs.pixels[row, 0].float().cpu() + 1) / 2 * (high - low)

    def thumbnail(self, item: Tensor, side: int) -> Pillow.Image:
        """Cold is black, hot is white."""
        grey = (item - item.min()) / (item.max() - item.min()).clamp(min=1e-6) * 255
        image = Pillow.fromarray(grey.byte().numpy()).convert("RGB")
        image.thumbnail((side, side))
        return image
