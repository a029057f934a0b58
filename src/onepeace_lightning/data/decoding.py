"""Encoded bytes to pictures and waveforms; the only place that touches an image or sound decoder.

N = waveform samples.
"""

import io
from fractions import Fraction

import numpy as np
import soundfile
import torch
import torchaudio.functional
from PIL import Image, ImageOps
from torch import Tensor

from onepeace_lightning.data.shards import AUDIO_EXTENSIONS, IMAGE_EXTENSIONS, TEXT_EXTENSIONS

SAMPLE_RATE = 16_000
"""Samples per second of every waveform that reaches a model."""

EXTENSIONS: dict[str, tuple[str, ...]] = {
    "text": TEXT_EXTENSIONS,
    "image": IMAGE_EXTENSIONS,
    "audio": AUDIO_EXTENSIONS,
}
"""Which file name endings hold which modality, in shards and in users' folders."""

MIN_RATE = 1_000
# 44.1 kHz and its halves and quarters divided by 16 kHz have denominators up to 640, so common rates stay exact.
_MAX_DENOMINATOR = 640


def decode_image(data: bytes) -> Image.Image:
    """Decode a picture to 8-bit RGB, the right way up.

    EXIF orientation is applied, transparency is composited on white, 16-bit grey is scaled to 8 bits; palette, grey
    and CMYK pictures are converted.

    Raises:
        ValueError: the bytes are no whole picture of a format that Pillow reads.
    """
    try:
        return to_rgb(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    except Exception as error:  # on broken bytes Pillow raises OSError, SyntaxError, struct.error and others
        raise ValueError(f"cannot decode the image ({_sniff(data)}): {error}") from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode to RGB: 16-bit values scaled, transparency over white."""
    if picture.mode.startswith("I"):
        # Pillow clips 16-bit values above 255 instead of scaling them.
        return Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return picture.convert("RGB")


def decode_mask(data: bytes) -> np.ndarray:
    """Decode a picture whose grey values are class indices, as they are: (rows, columns) uint8.

    Raises:
        ValueError: the bytes are no whole picture, or it is not grey of 8 bits.
    """
    try:
        mask = Image.open(io.BytesIO(data))
        mask.load()
    except Exception as error:  # as in decode_image
        raise ValueError(f"cannot decode the mask ({_sniff(data)}): {error}") from error
    if mask.mode != "L":
        raise ValueError(f"the mask's mode is {mask.mode!r}; give a grey picture of 8 bits ('L') of class indices")
    return np.array(mask)


def decode_audio(data: bytes) -> tuple[Tensor, int]:
    """Decode a sound to one channel, the mean of all.

    Returns:
        The waveform (N,) float32 in about [-1, 1], and its samples per second.

    Raises:
        ValueError: the bytes are no whole sound of a format that libsndfile reads, hold no samples, hold infinite or
            undefined values, or have an impossible sample rate.
    """
    try:
        channels, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise ValueError(f"cannot decode the sound ({_sniff(data)}): {error}") from error
    if len(channels) == 0:
        raise ValueError(f"the sound ({_sniff(data)}) has 0 samples")
    if rate < MIN_RATE:
        raise ValueError(f"the sound's sample rate is {rate} Hz; at least {MIN_RATE} Hz is accepted")
    waveform = channels.mean(axis=1)
    if not np.isfinite(waveform).all():
        raise ValueError(f"the sound ({_sniff(data)}) holds infinite or undefined (NaN) samples")
    return torch.from_numpy(waveform), rate


def load_waveform(data: bytes) -> Tensor:
    """Decode a sound and resample it: (N,) float32 at 16 kHz, the mean of its channels.

    Raises:
        ValueError: as ``decode_audio``.
    """
    return resample(*decode_audio(data))


def resample(waveform: Tensor, rate: int) -> Tensor:
    """Bring a waveform (..., N) from ``rate`` to 16 kHz."""
    # The filter bank grows with both terms of the reduced ratio (gigabytes at 44 101 Hz), so odd rates are rounded to a
    # ratio of small numbers: the pitch is off by less than 0.1 %.
    ratio = Fraction(rate, SAMPLE_RATE).limit_denominator(_MAX_DENOMINATOR)
    return torchaudio.functional.resample(waveform, ratio.numerator, ratio.denominator)


def _sniff(data: bytes) -> str:
    """Say what the bytes look like, for error messages."""
    if not data:
        return "0 bytes"
    signatures = {
        b"\xff\xd8\xff": "JPEG",
        b"\x89PNG": "PNG",
        b"fLaC": "FLAC",
        b"OggS": "Ogg",
        b"ID3": "MP3",
        b"\xff\xfb": "MP3",
        b"GIF8": "GIF",
        b"RIFF": f"RIFF {data[8:12].decode('latin-1').strip()}",
    }
    name = next((name for start, name in signatures.items() if data.startswith(start)), f"begins with {data[:8]!r}")
    return f"{len(data)} bytes, {name}"
