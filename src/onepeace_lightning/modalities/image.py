"""Images: a hierarchical convolutional stem of 16-pixel patches and learned grid positions.

B = images, S = side of the square image, H and W = height and width of a user's image.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor, nn

from onepeace_lightning.files import looks_like
from onepeace_lightning.modalities.arrays import stack
from onepeace_lightning.modalities.base import Inputs, Modality, Settings, training_only
from onepeace_lightning.modalities.cropping import fitted, random_crop
from onepeace_lightning.modalities.image_files import HEIC, register_heic, rgb_pixels, to_rgb, upright
from onepeace_lightning.modalities.registry import register
from onepeace_lightning.modalities.rendering import shrunk
from onepeace_lightning.models.adapter import Adapter
from onepeace_lightning.models.config import AdapterConfig, ModelConfig
from onepeace_lightning.models.flops import Flops
from onepeace_lightning.models.layers import init_normal_
from onepeace_lightning.models.packing import Tokens
from onepeace_lightning.models.patches import (
    MEAN,
    PATCH,
    STD,
    Pixels,
    grid_positions,
    patch_stem,
    patch_stem_flops,
)
from onepeace_lightning.models.relative_bias import grid_buckets, grid_rows

ImageItem = str | PathLike[str] | Pillow.Image | np.ndarray | Tensor
"""A path, a PIL image, an array (H, W, 3) uint8, or a tensor (3, H, W): uint8, or floating-point in [0, 1]."""


@dataclass
class Image(Pixels, Inputs):
    """Square images (B, C, S, S): RGB in uint8, as they are decoded, or floating-point and normalised already."""

    dynamic: ClassVar = {"pixels": {0: "batch"}}


@dataclass(frozen=True, kw_only=True)
class ImageConfig(AdapterConfig):
    """Square images in 16-pixel patches.

    Attributes:
        image_size: side in pixels that the relative bias is made for, a multiple of 16.
        position_grid: side of the learned absolute position grid in patches; None: that of ``image_size``.
        type_embedding: a vector is added to every token, and a further one to those of a second image.
        channels: values of a pixel.
    """

    channels: ClassVar[int] = 3
    decoder_positions_decay: ClassVar[bool] = True  # as in the published training, which exempts text and audio alone
    image_size: int = 256
    position_grid: int | None = None
    type_embedding: bool = False

    def __post_init__(self) -> None:
        if self.image_size < PATCH or self.image_size % PATCH:
            raise ValueError(f"{type(self).__name__}: image_size is {self.image_size}, must be a multiple of {PATCH}")

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // PATCH

    def build(self, model: ModelConfig) -> "ImageAdapter":
        """The adapter of these sizes."""
        return ImageAdapter(self, model)

    def resized(self, image_size: int | None = None, **sizes: Any) -> "ImageConfig":
        """The same for images of another side; the learned position grid stays what it is."""
        if image_size is None:
            return replace(self, **sizes)
        return replace(self, image_size=image_size, position_grid=self.position_grid or self.grid, **sizes)

    def problems(self, width: int) -> list[str]:
        """The stem's first convolutions have a quarter of the width."""
        return (
            [f"width {width} is not a multiple of 4, which the stem of {type(self).__name__} needs"]
            if width % 4
            else []
        )

    def decoder_rows(self) -> int:
        """CLS and the grid."""
        return 1 + (self.position_grid or self.grid) ** 2

    def decoder_positions(self, table_PD: Tensor) -> Tensor:
        """Resized to the grid of ``image_size``."""
        return grid_positions(table_PD, self.grid)

    def embed_flops(self, inputs: Any, width: int, *, learns: bool = True) -> Flops:
        """The stem's convolutions."""
        batch, channels, height, wide = inputs.pixels.shape
        return patch_stem_flops(batch * height * wide, channels, width, learns=learns)


class ImageAdapter(Adapter):
    """Pixels to patch tokens."""

    def __init__(self, config: ImageConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        width = model.encoder.width
        self.stem = patch_stem(config.channels, width)
        grid = config.position_grid or config.grid
        self.positions = nn.Parameter(torch.empty(1 + grid**2, width))
        if config.type_embedding:
            self.type_embedding = nn.Parameter(torch.empty(1, width))
            self.type_embedding_second = nn.Parameter(torch.empty(1, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw CLS and positions; type embeddings start at zero."""
        super().reset_parameters()
        init_normal_(self.positions, self.init_std)
        if self.config.type_embedding:
            nn.init.zeros_(self.type_embedding)
            nn.init.zeros_(self.type_embedding_second)

    def embed(self, inputs: Image) -> Tokens:
        """[CLS; patches] + positions.

        Raises:
            ValueError: as ``checked``.
        """
        return Tokens.of_padded(self.patches(self.checked(inputs)), inputs.token_lengths)

    def checked(self, inputs: Image) -> Tensor:
        """(B, C, S, S) normalised pixels.

        Raises:
            ValueError: where the images are not of the side that the relative bias is made for, or not of a type that
                ``Image`` names.
        """
        height, width = inputs.pixels.shape[2:]
        if (height, width) != (self.config.image_size,) * 2:
            raise ValueError(
                f"images of {height}×{width} pixels; this model takes {self.config.image_size}×{self.config.image_size}"
                f" (a multiple of {PATCH}): set size in the data's preprocessing and in the model alike"
            )
        pixels = inputs.normalised()
        if not pixels.is_floating_point():
            raise ValueError(
                f"images of {pixels.dtype} pixels; give torch.uint8, from 0 to 255, or floating-point pixels that are"
                " normalised by CLIP's mean and standard deviation"
            )
        return pixels

    def patches(self, pixels: Tensor) -> Tensor:
        """(B, 1 + N, D) [CLS; patches] + positions of floating-point pixels."""
        patches_BND = self.stem(pixels.to(self.positions.dtype)).flatten(2).transpose(1, 2)
        x_BLD = torch.cat([self.cls_token.expand(pixels.shape[0], 1, -1), patches_BND], 1)
        x_BLD = x_BLD + grid_positions(self.positions, self.config.grid)
        return x_BLD + self.type_embedding if self.config.type_embedding else x_BLD

    def padded(self, pixels: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """[CLS; patches] + positions, all of them there."""
        x_BLD = self.patches(Image(pixels).normalised())
        return x_BLD, torch.ones_like(x_BLD[..., 0], dtype=torch.bool)

    def as_second(self, tokens: Tokens) -> Tokens:
        """``embed``'s tokens marked as those of a sample's second image.

        Raises:
            ValueError: where the model was built without type embeddings.
        """
        if not self.config.type_embedding:
            raise ValueError("a second image needs type embeddings: set type_embedding=True for text and image")
        return tokens.with_values(self.marked_second(tokens.values_TD))

    def marked_second(self, x: Tensor) -> Tensor:
        """Values (…, D) of tokens with what marks those of a second image."""
        return x + self.type_embedding_second

    def no_weight_decay(self) -> set[str]:
        """Vectors and absolute positions."""
        return super().no_weight_decay() | {"positions"}

    def bias_rows(self) -> int:
        """Rows of a relative bias table."""
        return grid_rows(self.config.grid)

    def buckets(self, positions: int) -> Tensor:
        """(P, P) table rows."""
        return grid_buckets(self.config.grid, self.cls_token.device)


@dataclass(frozen=True, kw_only=True)
class RasterSettings(Settings):
    """Settings of images and other rasters.

    Attributes:
        size: side of the square in pixels, a multiple of 16.
        resize: in evaluation, "square" resizes to the square whatever the proportions; "crop" keeps them, resizes the
            shorter side and cuts out the middle: 224/256 of it up to 224 pixels, all of it above (ImageNet).
        crop_scale: smallest and largest fraction of the area that a random crop keeps in training.
        mask_ratio: fraction of the patches, rounded down.
        fused_mask_ratio: the same beside another modality; first those that were visible alone.
    """

    size: int = 256
    resize: Literal["square", "crop"] = "square"
    crop_scale: tuple[float, float] = training_only((0.9, 1.0))
    mask_ratio: float = training_only(0.75)
    fused_mask_ratio: float = training_only(0.6875)

    def problems(self) -> list[str]:
        """What is wrong with the values."""
        problems = super().problems()
        if self.size < PATCH or self.size % PATCH:
            below = max(self.size // PATCH, 1) * PATCH
            problems.append(f"size is {self.size}; give a multiple of {PATCH}, such as {below} or {below + PATCH}")
        if self.resize not in ("square", "crop"):
            problems.append(f"resize is {self.resize!r}; give 'square' or 'crop'")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            problems.append(f"crop_scale is {self.crop_scale}; give two fractions of the area, 0 < low <= high <= 1")
        return problems


@dataclass(frozen=True, kw_only=True)
class ImageSettings(RasterSettings):
    """Settings of images, besides those of rasters.

    Attributes:
        decoding: how a file becomes RGB. "upright" turns it by its EXIF orientation, puts transparency on white and
            scales grey of more than 8 bits; "stored" does none of it, as the original reads files.
    """

    decoding: Literal["upright", "stored"] = "upright"

    def problems(self) -> list[str]:
        """What is wrong with the values."""
        problems = super().problems()
        if self.decoding not in ("upright", "stored"):
            problems.append(f"decoding is {self.decoding!r}; give 'upright' or 'stored'")
        return problems


class RasterModality(Modality):
    """A modality of values on a grid of pixels, as images are: squares (C, S, S) in patches of 16 × 16.

    A subclass writes at least ``decode`` and ``raster``, and a config with its ``channels`` where they are not 3. Tasks
    that answer for each pixel take any such modality.
    """

    config_type = ImageConfig
    settings_type = RasterSettings
    agreed = (("size", "image_size"),)

    def raster(self, item: Any) -> Tensor:
        """A decoded item as (C, H, W) at its own size: RGB in uint8, or normalised floating-point values."""
        raise NotImplementedError

    def transform(self, item: Any) -> Tensor:
        """(C, S, S), resized to the square or, where the settings say so, the middle."""
        return fitted(self.raster(item), self.settings.size, self.settings.resize)

    def augment(self, item: Any, rng: np.random.Generator) -> Tensor:
        """(C, S, S) of a random crop."""
        return random_crop(self.raster(item), self.settings.size, self.settings.crop_scale, rng)

    def num_tokens(self, array: Tensor) -> int:
        """The patches."""
        return (array.shape[-1] // PATCH) ** 2

    def collate(self, arrays: Sequence[Tensor]) -> Image:
        """Join squares."""
        # Pillow's images have their colours last. Stacking them so is one copy of plain bytes for each.
        return Image(stack([array.movedim(0, -1) for array in arrays]).movedim(-1, 1))

    def random(self, config: Any, batch: int, rng: np.random.Generator) -> Image:
        """Normalised noise."""
        shape = (batch, config.channels, config.image_size, config.image_size)
        return Image(torch.from_numpy(rng.standard_normal(shape, np.float32)))


@register
class ImageModality(RasterModality):
    """Photographs and drawings; decoded they are RGB PIL images, arrays are (3, S, S) uint8."""

    name = "image"
    plural = "images"
    settings_type = ImageSettings
    prompts = ("a photo of a {label}",)
    order = 1
    extensions = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic", "heif")

    def decode(self, data: bytes) -> Pillow.Image:
        """Decode an image file to 8-bit RGB, the right way up unless the settings say "stored".

        EXIF orientation is applied, transparency is composited on white, grey of more bits is scaled to 8 (see
        ``to_rgb``); palette, grey and CMYK images are converted.

        Raises:
            ValueError: the bytes are no whole image of a format that Pillow reads. AVIF needs Pillow 11.3, HEIC the
                plug-in ``pillow-heif`` (the extra ``heif``).
        """
        if data[4:12] in HEIC:
            register_heic()
        try:
            image = Pillow.open(io.BytesIO(data))
            return image.convert("RGB") if self.settings.decoding == "stored" else to_rgb(upright(image))
        except Exception as error:  # on broken bytes Pillow raises OSError, SyntaxError, struct.error and others
            raise ValueError(f"cannot decode the image ({looks_like(data)}): {error}") from error

    def convert(self, item: Any) -> Pillow.Image:
        """An RGB image from ``ImageItem``; floating-point pixels are rounded to 8 bits, as those of files are.

        Raises:
            ValueError: where the item is no such thing.
        """
        if isinstance(item, Pillow.Image):
            return to_rgb(upright(item))
        if isinstance(item, Tensor):
            return Pillow.fromarray(rgb_pixels(item).permute(1, 2, 0).cpu().numpy())
        if isinstance(item, np.ndarray):
            if item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 3 or not item.size:
                raise ValueError(f"an array of {item.dtype} {item.shape}; an image array is uint8 (height, width, 3)")
            return Pillow.fromarray(np.ascontiguousarray(item))
        raise ValueError(
            f"a {type(item).__name__} is no image; give a path, a PIL image, a uint8 array (height, width, 3) or a"
            " tensor (3, height, width), uint8 or floating-point in [0, 1]"
        )

    def raster(self, item: Pillow.Image) -> Tensor:
        """(3, H, W) uint8, with its colours last in memory."""
        return torch.from_numpy(np.array(item)).permute(2, 0, 1)

    def transform(self, item: Pillow.Image) -> Tensor:
        """(3, S, S) uint8, resized to the square or, where the settings say so, the middle of the image."""
        return self.raster(fitted(item, self.settings.size, self.settings.resize))

    def augment(self, item: Pillow.Image, rng: np.random.Generator) -> Tensor:
        """(3, S, S) uint8 of a random crop. There are no flips: captions speak of left and right."""
        return self.raster(random_crop(item, self.settings.size, self.settings.crop_scale, rng))

    def random(self, config: AdapterConfig, batch: int, rng: np.random.Generator) -> Image:
        """8-bit noise."""
        side = config.image_size  # type: ignore[attr-defined]
        return Image(torch.from_numpy(rng.integers(0, 256, (batch, 3, side, side), dtype=np.uint8)))

    def describe(self) -> str:
        """Resizing and normalisation."""
        how = "bicubic" if self.settings.resize == "square" else "cut from the middle, bicubic"
        stored = ", as stored" if self.settings.decoding == "stored" else ""
        return f"images {self.settings.size}×{self.settings.size} {how}{stored}, CLIP mean and std"

    def sample(self, inputs: Image, row: int) -> Pillow.Image:
        """The image of a row, square as the model sees it."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        fractions = Image(inputs.pixels[row : row + 1]).normalised()[0].float().cpu() * std + mean
        pixels = (fractions * 255).round().clamp(0, 255).to(torch.uint8)
        return Pillow.fromarray(pixels.permute(1, 2, 0).numpy())

    def thumbnail(self, item: Pillow.Image, side: int) -> Pillow.Image:
        """The image, shrunk in its proportions."""
        return shrunk(item, side)
