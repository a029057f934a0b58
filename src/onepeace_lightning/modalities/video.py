"""Videos: frames in 16-pixel patches as images are, with a learned vector for each frame's place in time.

B = videos, V = views of a video, T = frames of a view, S = side of a frame, N = patches of a frame, P = 1 + T·N.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor, nn

from onepeace_lightning.modalities.arrays import stack
from onepeace_lightning.modalities.base import Inputs, Modality, Settings, training_only
from onepeace_lightning.modalities.image import ImageAdapter, ImageConfig
from onepeace_lightning.modalities.registry import register
from onepeace_lightning.modalities.rendering import shrunk
from onepeace_lightning.modalities.video_files import VideoFile, VideoFrames
from onepeace_lightning.modalities.video_views import evaluation_views, training_clip
from onepeace_lightning.models.config import ModelConfig, at_least
from onepeace_lightning.models.flops import Flops
from onepeace_lightning.models.layers import init_normal_
from onepeace_lightning.models.packing import Tokens
from onepeace_lightning.models.patches import PATCH, grid_positions, normalised, patch_stem_flops
from onepeace_lightning.models.relative_bias import grid_buckets


@dataclass
class Video(Inputs):
    """Views of RGB videos, frames (B, V, T, 3, S, S): uint8, as they are decoded, or normalised already."""

    frames: Tensor

    @property
    def token_lengths(self) -> list[int]:
        """CLS and the patches of all frames of a view."""
        batch, _, count, _, height, width = self.frames.shape
        return [1 + count * (height // PATCH) * (width // PATCH)] * batch


@dataclass(frozen=True, kw_only=True)
class VideoConfig(ImageConfig):
    """Frames in 16-pixel patches.

    Attributes:
        image_size: side of a frame in pixels, a multiple of 16.
        frames: T.
    """

    frames: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if problems := at_least(self, frames=1):
            raise ValueError(f"video: {problems[0]}")

    def build(self, model: ModelConfig) -> "VideoAdapter":
        """The adapter of these sizes."""
        return VideoAdapter(self, model)

    def decoder_rows(self) -> int:
        """CLS and the patches of all frames."""
        return 1 + self.frames * self.grid**2

    def decoder_positions(self, table_PD: Tensor) -> Tensor:
        """As they are."""
        return table_PD

    def embed_flops(self, inputs: Any, width: int, *, learns: bool = True) -> Flops:
        """The stem's convolutions."""
        batch, views, count, channels, height, wide = inputs.frames.shape
        return patch_stem_flops(batch * views * count * height * wide, channels, width, learns=learns)


class VideoAdapter(ImageAdapter):
    """Frames to patch tokens; two patches' relative bias is that of their places in a frame, whatever the frames."""

    def __init__(self, config: VideoConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.frame_positions = nn.Parameter(torch.empty(config.frames, model.encoder.width))
        init_normal_(self.frame_positions, self.init_std)

    def reset_parameters(self) -> None:
        """Draw CLS and all positions."""
        super().reset_parameters()
        if hasattr(self, "frame_positions"):  # not yet while the image's part is built
            init_normal_(self.frame_positions, self.init_std)

    def embed(self, inputs: Video) -> Tokens:  # type: ignore[override]
        """[CLS; patches of all frames] + positions.

        Raises:
            ValueError: where there are several views, or frames of another number or side than the adapter's.
        """
        _, views, count, _, height, width = inputs.frames.shape
        side = self.config.image_size
        if (views, count, height, width) != (1, self.config.frames, side, side):
            raise ValueError(
                f"videos of {views} views of {count} frames of {height}×{width} pixels; this model takes 1 view of"
                f" {self.config.frames} frames of {side}×{side}: set clips and crops to 1, frames and size alike in the"
                " data's preprocessing and in the model"
            )
        return Tokens.of_padded(self.patches(inputs.frames[:, 0]), inputs.token_lengths)

    def patches(self, frames: Tensor) -> Tensor:
        """(B, 1 + T·N, D) [CLS; patches of all frames] + positions of (B, T, 3, S, S) frames."""
        batch, count = frames.shape[:2]
        pixels = normalised(frames.flatten(0, 1)).to(self.positions.dtype)
        positions = grid_positions(self.positions, self.config.grid)
        patches_BTND = self.stem(pixels).flatten(2).mT.unflatten(0, (batch, count))
        patches_BTND = patches_BTND + positions[1:] + self.frame_positions[:, None]
        cls_B1D = (self.cls_token + positions[0]).expand(batch, 1, -1)
        return torch.cat([cls_B1D, patches_BTND.flatten(1, 2)], 1)

    def padded(self, frames: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """[CLS; patches] + positions of (B, 1, T, 3, S, S) frames, all of them there."""
        x_BLD = self.patches(frames[:, 0])
        return x_BLD, torch.ones_like(x_BLD[..., 0], dtype=torch.bool)

    def no_weight_decay(self) -> set[str]:
        """Vectors and absolute positions, those in time too."""
        return super().no_weight_decay() | {"frame_positions"}

    def buckets(self, positions: int) -> Tensor:
        """(P, P) table rows."""
        patches = torch.arange(1, 1 + self.config.grid**2, device=self.cls_token.device)
        place_P = torch.cat([patches.new_zeros(1), patches.repeat(self.config.frames)])
        rows = grid_buckets(self.config.grid, self.cls_token.device)
        return rows[place_P[:, None], place_P]


@dataclass(frozen=True, kw_only=True)
class VideoSettings(Settings):
    """Settings of videos.

    Attributes:
        size: side of a square frame in pixels, a multiple of 16; the shorter side is resized to it, then a square cut.
        frames: of a clip.
        step: distance between frames of a clip; a video that is too short begins again.
        clips: that evaluation looks at, spread over the video.
        crops: that evaluation looks at in each clip: 1, the middle, or 3, spread over the longer side.
        crop_scale: smallest and largest fraction of the area that a training crop keeps.
        flip: fraction of training videos mirrored left to right.
        colour_noise: deviation of the colours of training videos along their principal axes.
    """

    size: int = 256
    frames: int = 8
    step: int = 8
    clips: int = 1
    crops: int = 1
    crop_scale: tuple[float, float] = training_only((0.9, 1.0))
    flip: float = training_only(0.0)
    colour_noise: float = training_only(0.0)

    def problems(self) -> list[str]:
        """What is wrong with the values."""
        problems = [*super().problems(), *at_least(self, frames=1, step=1, clips=1)]
        if self.size < PATCH or self.size % PATCH:
            problems.append(f"size is {self.size}; give a multiple of {PATCH}")
        if self.crops not in (1, 3):
            problems.append(f"crops is {self.crops}; give 1 or 3")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            problems.append(f"crop_scale is {self.crop_scale}; give two fractions of the area, 0 < low <= high <= 1")
        if not (0 <= self.flip <= 1 and self.colour_noise >= 0):
            problems.append(f"flip is {self.flip}, colour_noise {self.colour_noise}; give a fraction, and 0 or more")
        return problems


@register
class VideoModality(Modality):
    """Videos without their sound; decoded they are ``VideoFile``s, arrays are (V, T, 3, S, S) uint8."""

    name = "video"
    plural = "videos"
    prompts = ("a video of {label}",)
    order = 3
    extensions = ("mp4", "webm", "mkv", "avi", "mov")
    config_type = VideoConfig
    settings_type = VideoSettings
    agreed = (("size", "image_size"), ("frames", "frames"))

    def decode(self, data: bytes) -> VideoFile:
        """Open a video; its frames are decoded when they are needed.

        Raises:
            ValueError: the bytes are no video, or hold no frame.
        """
        return VideoFile(data)

    def convert(self, item: Any) -> VideoFile | VideoFrames:
        """A video from frames in memory.

        Raises:
            ValueError: the item is no such thing.
        """
        if isinstance(item, VideoFile):
            return item
        if (
            isinstance(item, np.ndarray)
            and item.dtype == np.uint8
            and item.ndim == 4
            and item.shape[3] == 3
            and item.size
        ):
            return VideoFrames(torch.from_numpy(item).permute(0, 3, 1, 2))
        raise ValueError(
            f"a {type(item).__name__} is no video; give a path or a uint8 array (frames, height, width, 3)"
        )

    def transform(self, item: Any) -> Tensor:
        """(V, T, 3, S, S) uint8, the crops of all clips."""
        s = self.settings
        return evaluation_views(
            item.read, item.total, frames=s.frames, step=s.step, side=s.size, clips=s.clips, crops=s.crops
        )

    def augment(self, item: Any, rng: np.random.Generator) -> Tensor:
        """(1, T, 3, S, S) uint8 of a random clip and crop."""
        s = self.settings
        clip = training_clip(
            item.read, item.total, rng, frames=s.frames, step=s.step, side=s.size, crop_scale=s.crop_scale, flip=s.flip,
            colour_noise=s.colour_noise,
        )  # fmt: skip
        return clip[None]

    def num_tokens(self, array: Tensor) -> int:
        """The patches of all frames of a view."""
        return array.shape[1] * (array.shape[-1] // PATCH) ** 2

    def collate(self, arrays: Sequence[Tensor]) -> Video:
        """Join videos."""
        return Video(stack(arrays))

    def describe(self) -> str:
        """Frames, views and resizing."""
        s = self.settings
        return (
            f"videos: {s.clips} clips of {s.frames} frames, every {s.step}th, × {s.crops} crops of {s.size}×{s.size}"
            " bilinear, CLIP mean and std"
        )

    def sample(self, inputs: Video, row: int) -> VideoFrames:
        """The first view of a row.

        Raises:
            ValueError: the frames are normalised already.
        """
        if inputs.frames.dtype != torch.uint8:
            raise ValueError("normalised frames are not shown; give uint8")
        return VideoFrames(inputs.frames[row, 0].cpu())

    def thumbnail(self, item: Any, side: int) -> Pillow.Image:
        """The frame in the middle, shrunk in its proportions."""
        frame = item.read([item.total // 2])[0]
        return shrunk(Pillow.fromarray(frame.permute(1, 2, 0).cpu().numpy()), side)
