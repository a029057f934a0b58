"""From decoded pictures and waveforms to what the adapters take.

S = side of the square picture, N = waveform samples.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as tvf

from onepeace_lightning.data.decoding import SAMPLE_RATE
from onepeace_lightning.models.config import PATCH

# What the audio adapter's convolutions need for one frame.
_MIN_SAMPLES = 400
_NORMALISE_EPS = 1e-5


@dataclass(frozen=True)
class Preprocessing:
    """Sizes of what the model is fed with.

    Attributes:
        image_size: side of the square picture in pixels, a multiple of 16.
        max_audio_seconds: longer sounds are cut to their first seconds.
        min_audio_seconds: shorter sounds are repeated up to this.
        crop_scale: smallest and largest share of a training picture's area that a random crop keeps.
    """

    image_size: int = 256
    max_audio_seconds: float = 15.0
    min_audio_seconds: float = 1.0
    crop_scale: tuple[float, float] = (0.9, 1.0)

    def __post_init__(self) -> None:
        problems = []
        if self.image_size < PATCH or self.image_size % PATCH:
            below = max(self.image_size // PATCH, 1) * PATCH
            problems.append(
                f"image_size is {self.image_size}; give a multiple of {PATCH}, such as {below} or {below + PATCH}"
            )
        for name in ("max_audio_seconds", "min_audio_seconds"):
            seconds = getattr(self, name)
            if not (math.isfinite(seconds) and seconds * SAMPLE_RATE >= _MIN_SAMPLES):
                shortest = _MIN_SAMPLES / SAMPLE_RATE
                problems.append(f"{name} is {seconds}; give at least {shortest} (one frame of sound)")
        if self.min_audio_seconds > self.max_audio_seconds:
            problems.append(
                f"min_audio_seconds ({self.min_audio_seconds}) is above max_audio_seconds ({self.max_audio_seconds})"
            )
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            problems.append(f"crop_scale is {self.crop_scale}; give two shares of the area with 0 < low <= high <= 1")
        if problems:
            raise ValueError("preprocessing: " + "; ".join(problems))

    def describe(self) -> str:
        """Say in one line what evaluation does to its input, to print beside scores."""
        return (
            f"images {self.image_size}×{self.image_size} bicubic, CLIP mean and std; sounds {SAMPLE_RATE // 1000} kHz "
            f"mono, normalised, first {self.max_audio_seconds:g} s, repeated up to {self.min_audio_seconds:g} s"
        )

    def image(self, picture: Image.Image) -> Tensor:
        """Prepare an RGB picture for evaluation: (3, S, S) uint8; resized to the square, not cropped."""
        return tvf.pil_to_tensor(_resize(picture, self.image_size))

    def augmented_image(self, picture: Image.Image, rng: np.random.Generator) -> Tensor:
        """Prepare an RGB picture for training: (3, S, S) uint8 of a random crop.

        There are no flips: captions speak of left and right.
        """
        crop = RandomResizedCrop(self.image_size, scale=self.crop_scale, interpolation=InterpolationMode.BICUBIC)
        # torchvision draws from PyTorch's global generator. Only the CPU's is seeded and put back: the training process
        # itself may run this, and its dropout on CUDA must not repeat.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(rng.integers(2**63)))
            return tvf.pil_to_tensor(crop(picture))

    def waveform(self, waveform: Tensor) -> Tensor:
        """Prepare a 16 kHz mono waveform (N,): normalise it, keep the first seconds, repeat it where too short.

        A silent (constant) sound becomes zeros.
        """
        normalised = F.layer_norm(waveform, waveform.shape, eps=_NORMALISE_EPS)[
            : round(self.max_audio_seconds * SAMPLE_RATE)
        ]
        shortest = round(self.min_audio_seconds * SAMPLE_RATE)
        if len(normalised) >= shortest:
            return normalised
        return normalised.repeat(math.ceil(shortest / len(normalised)))[:shortest]


def _resize(picture: Image.Image, side: int) -> Image.Image:
    return tvf.resize(picture, [side, side], interpolation=InterpolationMode.BICUBIC)
