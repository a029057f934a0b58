"""Images and other rasters of any size made squares: resized whole, cut from the middle, or a random part.

C = channels, H and W = height and width. What is given, a PIL image or a tensor (C, H, W), comes back.
"""

from typing import Any, Literal

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor
from torch.nn import functional as F


def fitted(image: Any, size: int, resize: Literal["square", "crop"] = "square") -> Any:
    """A square of ``size`` pixels a side, for evaluation; what ``resize`` means stands in ``ImageSettings``."""
    if resize == "square":
        return _resized(image, size, size)
    height, width = image.shape[-2:] if isinstance(image, Tensor) else (image.height, image.width)
    shorter = size if size > 224 else int(size * 256 / 224)
    height, width = (int(shorter * n / min(height, width)) for n in (height, width))
    image = _resized(image, height, width)
    top, left = (round((n - size) / 2) for n in (height, width))
    if isinstance(image, Tensor):
        return image[..., top : top + size, left : left + size]
    return image.crop((left, top, left + size, top + size))


def _resized(image: Any, height: int, width: int) -> Any:
    """Bicubic, with anti-aliasing."""
    if isinstance(image, Tensor):
        return F.interpolate(image[None], (height, width), mode="bicubic", align_corners=False, antialias=True)[0]
    return image.resize((width, height), Pillow.Resampling.BICUBIC)


def random_crop(image: Any, size: int, scale: tuple[float, float], rng: np.random.Generator) -> Any:
    """A random part as a square of ``size`` pixels a side, for training.

    Args:
        image: a PIL image or a tensor.
        size: of the square.
        scale: smallest and largest fraction of the area that the part has.
        rng: the only source of randomness.
    """
    # Imported here, as evaluation does without torchvision, and it takes more than a second.
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import RandomResizedCrop

    crop = RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC)
    # torchvision draws from PyTorch's global generator. Only the CPU's is seeded and put back: the training process
    # itself may run this, and its dropout on CUDA must not repeat.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        return crop(image)
