"""Depth maps: rasters of one channel in 16-pixel patches, as images are.

Rasters of another quantity are a subclass with another name: ``class ThermalModality(DepthModality)`` with
``name = "thermal"`` and ``extensions = ("thermal.png", "thermal.npy")``.

H and W = height and width of a raster, S = side of the square that the model sees.
"""

import io
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from onepeace_lightning.files import looks_like
from onepeace_lightning.modalities.arrays import read_npy
from onepeace_lightning.modalities.image import Image, ImageConfig, RasterModality, RasterSettings
from onepeace_lightning.modalities.registry import register
from onepeace_lightning.modalities.rendering import grey_image, shrunk

_ONE_CHANNEL = ("I;16", "I;16B", "I", "F", "L")
_MEAN, _STD = 0.5, 0.25


@dataclass(frozen=True, kw_only=True)
class DepthConfig(ImageConfig):
    """Sizes as an image's, with one channel."""

    channels: ClassVar[int] = 1
    decoder_positions_decay: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class DepthSettings(RasterSettings):
    """Settings of depth maps, besides those of rasters.

    Attributes:
        unit: what 1 means in a raster of whole numbers, such as a 16-bit PNG: a millimetre by default. Rasters of
            floating-point numbers are in metres already.
        low: metres that become the lowest value that the model sees; what is nearer is as near as this.
        high: metres that become the highest.
    """

    unit: float = 0.001
    low: float = 0.0
    high: float = 10.0

    def problems(self) -> list[str]:
        """What is wrong with the values."""
        problems = super().problems()
        if not self.unit > 0:
            problems.append(f"unit is {self.unit}; give a number above 0")
        if not self.low < self.high:
            problems.append(f"low is {self.low} and high {self.high}; low must be below high")
        return problems


@register
class DepthModality(RasterModality):
    """Depth maps; decoded they are (H, W) float32 in metres, NaN where nothing was measured; arrays are (1, S, S)."""

    name = "depth"
    plural = "depth maps"
    order = 4
    extensions = ("depth.png", "depth.npy", "depth.tif", "depth.tiff")
    config_type = DepthConfig
    settings_type = DepthSettings

    def decode(self, data: bytes) -> Tensor:
        """Decode a raster of one channel: PNG of 16 or 8 bits, TIFF, or an .npy array.

        Raises:
            ValueError: the bytes are no such raster.
        """
        try:
            if data.startswith(b"\x93NUMPY"):
                return self.convert(read_npy(data))
            image = Pillow.open(io.BytesIO(data))
            image.load()
        except Exception as error:  # on broken bytes Pillow raises OSError, SyntaxError, struct.error and others
            raise ValueError(f"cannot decode the {self.name} raster ({looks_like(data)}): {error}") from error
        return self.convert(image)

    def convert(self, item: Any) -> Tensor:
        """Metres from a PIL image of one channel, or an array or tensor (H, W): whole numbers in ``unit``, or metres.

        The whole number 0 and floating-point values that are not finite mean that nothing was measured.

        Raises:
            ValueError: the item is no such thing, or nothing was measured at all.
        """
        if isinstance(item, Pillow.Image):
            if item.mode not in _ONE_CHANNEL:
                raise ValueError(
                    f"an image of mode {item.mode}; {self.plural or self.name} have one channel of 8, 16 or 32 bits,"
                    " colours do not say what they mean"
                )
            item = np.array(item)
        if not isinstance(item, (np.ndarray, Tensor)) or item.ndim != 2 or not np.prod(item.shape):
            found = tuple(item.shape) if isinstance(item, (np.ndarray, Tensor)) else f"a {type(item).__name__}"
            raise ValueError(f"{found} is no {self.name}; give a path, a PIL image or an array (height, width)")
        values = torch.as_tensor(
            item.astype("f4" if item.dtype.kind == "f" else "i8") if isinstance(item, np.ndarray) else item
        )
        whole, raster = not values.is_floating_point(), values.detach().float()
        missing = values == 0 if whole else ~raster.isfinite()
        if missing.all():
            raise ValueError(f"the {self.name} raster has no measurement: every value is 0 or not finite")
        return (raster * self.settings.unit if whole else raster).masked_fill(missing, float("nan"))

    def raster(self, item: Tensor) -> Tensor:
        """(1, H, W) float32: ``low`` to ``high`` as -2 to 2, without a measurement as ``low``."""
        s = self.settings
        fractions = ((item - s.low) / (s.high - s.low)).clamp(0, 1).nan_to_num(0.0)
        return (fractions[None] - _MEAN) / _STD

    def transform(self, item: Tensor) -> Tensor:
        """(1, S, S) float32 from -2 to 2."""
        return super().transform(item).clamp(-2, 2)

    def augment(self, item: Tensor, rng: np.random.Generator) -> Tensor:
        """(1, S, S) float32 of a random crop."""
        return super().augment(item, rng).clamp(-2, 2)

    def describe(self) -> str:
        """Range and resizing."""
        s = self.settings
        return f"{self.plural or self.name} {s.size}×{s.size} bicubic, {s.low:g} to {s.high:g}"

    def sample(self, inputs: Image, row: int) -> Tensor:
        """The raster of a row in metres, square as the model sees it."""
        s = self.settings
        return s.low + (inputs.pixels[row, 0].float().cpu() * _STD + _MEAN) * (s.high - s.low)

    def thumbnail(self, item: Tensor, side: int) -> Pillow.Image:
        """The raster in grey, its own lowest value black and its highest white."""
        return shrunk(grey_image(item), side)
