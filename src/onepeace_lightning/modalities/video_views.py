"""Which frames and which parts of them a video classifier sees, as published for Kinetics-400.

In evaluation three clips, spread over the video, and three square crops of each, spread over the longer side: nine
views. In training one clip from anywhere, one random crop, perhaps mirrored, its colours shifted along their principal
axes.

T = frames of a clip, V = views, S = side of a crop, Y and X = rows and columns of a frame.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

CLIPS = 3
"""Clips of a video in evaluation."""

Frames = Callable[[Sequence[int]], Tensor]
"""Indices of frames, which may repeat, to (T, 3, Y, X) uint8."""

_PRINCIPAL = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
_VARIANCE = torch.tensor([55.4625, 4.7940, 1.1475])
"""Principal axes of ImageNet's colours (columns) and their eigenvalues (Krizhevsky et al. 2012), for 0 to 255."""


def clip_indices(total: int, frames: int, step: int, clips: int = CLIPS) -> list[list[int]]:
    """Frames of each clip of an evaluation: T of them, ``step`` apart, beginning again where the video is too short.

    Args:
        total: frames of the video, at least 1.
        frames: T.
        step: distance between frames of a clip.
        clips: how many.
    """
    room = total - frames * step + 1
    between = max(room, 0) / clips
    return [_indices(int(clip * between + between / 2), total, frames, step) for clip in range(clips)]


def random_indices(total: int, frames: int, step: int, rng: np.random.Generator) -> list[int]:
    """Frames of a training clip, which begins anywhere that it fits, or with the first frame where it does not."""
    room = total - frames * step + 1
    return _indices(int(rng.integers(room)) if room > 0 else 0, total, frames, step)


def evaluation_views(
    read: Frames, total: int, *, frames: int, step: int, side: int, clips: int = CLIPS, crops: int = 3
) -> Tensor:
    """(V, T, 3, S, S) uint8 the crops of all clips.

    Args:
        read: the video's frames.
        total: how many it has.
        frames: T.
        step: distance between frames of a clip.
        side: S.
        clips: how many.
        crops: 3, or 1 for the middle one.
    """
    views = []
    for indices in clip_indices(total, frames, step, clips):
        resized = resize_shorter_side(read(indices), side)
        views += [
            resized[..., top : top + side, left : left + side] for top, left in crop_corners(resized, side, crops)
        ]
    return torch.stack(views)


def training_clip(
    read: Frames,
    total: int,
    rng: np.random.Generator,
    *,
    frames: int,
    step: int,
    side: int,
    crop_scale: tuple[float, float] = (0.08, 1.0),
    flip: float = 0.5,
    colour_noise: float = 0.1,
) -> Tensor:
    """(T, 3, S, S) uint8 a clip; all of its frames are cut, mirrored and coloured alike.

    Args:
        read: the video's frames.
        total: how many it has.
        rng: randomness.
        frames: T.
        step: distance between frames of a clip.
        side: S.
        crop_scale: least and greatest area of the crop as a fraction of the frame's; its sides are within 3:4 and 4:3.
        flip: fraction of clips mirrored left to right.
        colour_noise: deviation of the shift along each principal axis of colours.
    """
    resized = resize_shorter_side(read(random_indices(total, frames, step, rng)), side)
    top, left, rows, columns = random_crop(resized.shape[-2], resized.shape[-1], crop_scale, rng)
    clip = resize(resized[..., top : top + rows, left : left + columns], (side, side))
    if rng.random() < flip:
        clip = clip.flip(-1)
    if not colour_noise:
        return clip
    weights = torch.from_numpy(rng.normal(0.0, colour_noise, 3)).float()
    shift = _PRINCIPAL @ (weights * _VARIANCE)
    return (clip.float() + shift[:, None, None]).round().clamp(0, 255).to(torch.uint8)


def random_crop(
    rows: int, columns: int, scale: tuple[float, float], rng: np.random.Generator, attempts: int = 10
) -> tuple[int, int, int, int]:
    """Top, left, rows and columns of a crop of random area and proportions; the middle square where none fits."""
    for _ in range(attempts):
        area = rows * columns * rng.uniform(*scale)
        proportion = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        wide, high = round((area * proportion) ** 0.5), round((area / proportion) ** 0.5)
        if 0 < wide <= columns and 0 < high <= rows:
            return int(rng.integers(rows - high + 1)), int(rng.integers(columns - wide + 1)), high, wide
    side = min(rows, columns)
    return (rows - side) // 2, (columns - side) // 2, side, side


def crop_corners(images: Tensor, side: int, crops: int = 3) -> list[tuple[int, int]]:
    """Top and left of square crops of (…, Y, X): at both ends and in the middle of the longer side.

    Raises:
        ValueError: for another number of crops than 1 or 3.
    """
    if crops not in (1, 3):
        raise ValueError(f"crops is {crops}; give 3, or 1 for the middle one")
    down, right = ((length - side) // 2 for length in images.shape[-2:])
    middle = (down, right)
    return [middle] if crops == 1 else [(0, 0), middle, (2 * down, 2 * right)]


def resize_shorter_side(images: Tensor, side: int) -> Tensor:
    """(…, 3, Y, X) uint8 in their proportions with a shorter side of ``side`` pixels, bilinear."""
    rows, columns = images.shape[-2:]
    factor = side / min(rows, columns)
    return resize(images, (max(side, int(rows * factor + 0.5)), max(side, int(columns * factor + 0.5))))


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 3, Y, X) uint8 at another size, bilinear without antialiasing; the same where they have that size."""
    if tuple(images.shape[-2:]) == size:
        return images
    resized = F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8)


def _indices(start: int, total: int, frames: int, step: int) -> list[int]:
    return [(start + index * step) % total for index in range(frames)]
