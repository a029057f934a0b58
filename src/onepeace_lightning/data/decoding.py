"""Encoded bytes to pictures and waveforms; the only place that touches an image or sound decoder.

N = waveform samples.
"""

import io
from fractions import Fraction

import numpy as np
import soundfile
import torch
import torchaudio.functional
from PIL import Image
from torch import Tensor

from onepeace_lightning.data.shards import AUDIO_EXTENSIONS, IMAGE_EXTENSIONS, TEXT_EXTENSIONS
from onepeace_lightning.modalities.mp3 import with_right_length

SAMPLE_RATE = 16_000
"""Samples per second of every waveform that reaches a model."""

EXTENSIONS: dict[str, tuple[str, ...]] = {
    "text": TEXT_EXTENSIONS,
    "image": IMAGE_EXTENSIONS,
    "audio": AUDIO_EXTENSIONS,
}
"""Which file name endings hold which modality, in shards and in users' folders."""

MIN_RATE = 1_000
MAX_RATE = 1_000_000
MAX_SAMPLE = 2.0**31
"""Largest magnitude of a floating-point sample: integers of 32 bits that were stored as they are."""

# 44.1 kHz, its multiples, halves and quarters divided by 16 kHz have terms up to 640, so common rates stay exact.
_MAX_TERM = 640
_BLOCK = 1 << 20
_UNKNOWN_LENGTH = 2**63 - 1

# EXIF orientation to what sets the image upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


def decode_image(data: bytes) -> Image.Image:
    """Decode a picture to 8-bit RGB, the right way up.

    EXIF orientation is applied, transparency is composited on white, grey of more bits is scaled to 8 (see
    ``to_rgb``); palette, grey and CMYK pictures are converted.

    Raises:
        ValueError: the bytes are no whole picture of a format that Pillow reads.
    """
    try:
        return to_rgb(upright(Image.open(io.BytesIO(data))))
    except Exception as error:  # on broken bytes Pillow raises OSError, SyntaxError, struct.error and others
        raise ValueError(f"cannot decode the image ({_sniff(data)}): {error}") from error


def upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; metadata that cannot be read say nothing, as in every viewer."""
    image.load()  # what is wrong with the pixels is an error, outside of what follows
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # on broken metadata Pillow raises SyntaxError, struct.error, ValueError and others
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to 8-bit RGB, transparency over white.

    Grey of 16 bits is scaled by 1/257. Grey of 32 bits does not say what white is: integers are taken as 8 bits where
    all are up to 255 and as 16 bits where all are up to 65 535, floating-point values as fractions where all are in
    [0, 1] and as 8 bits where all are in [0, 255].

    Raises:
        ValueError: for grey of 32 bits in any other range.
    """
    if image.mode.startswith("I") or image.mode == "F":  # Pillow clips these at 255 instead of scaling them
        return Image.fromarray(_grey(np.asarray(image), image.mode)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _grey(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey of more than 8 bits as uint8."""
    low, high = values.min(), values.max()
    if mode.startswith("I;16"):
        white = 65535.0
    elif mode == "F":
        white = 1.0 if high <= 1 else 255.0
    else:
        white = 255.0 if high <= 255 else 65535.0
    if not (low >= 0 and high <= white):  # undefined values too
        raise ValueError(
            f"a grey image of mode {mode!r} with values in [{low:g}, {high:g}]; accepted are [0, 255], and "
            f"{'[0, 1]' if mode == 'F' else '[0, 65535]'}: scale it, or store it with 8 or 16 bits"
        )
    return np.round(values * (255.0 / white)).astype(np.uint8)


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
        ValueError: the bytes are no whole sound of a format that libsndfile reads, hold no samples, hold infinite,
            undefined or absurdly large values, or have an impossible sample rate.
    """
    data = with_right_length(data)
    try:
        with _Unseekable(io.BytesIO(data)) as file:
            rate, stated, codec = file.samplerate, file.frames, file.format
            check_rate(rate)
            blocks = []
            while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                check_samples(block)
                blocks.append(block.mean(axis=1))
    except (soundfile.SoundFileError, OSError) as error:
        raise ValueError(f"cannot decode the sound ({_sniff(data)}): {error}") from error
    except ValueError as error:
        raise ValueError(f"the sound ({_sniff(data)}) is refused: {error}") from error
    waveform = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if len(waveform) == 0:
        raise ValueError(f"the sound ({_sniff(data)}) has 0 samples")
    if codec == "FLAC" and len(waveform) < stated < _UNKNOWN_LENGTH:
        raise ValueError(f"the sound ({_sniff(data)}) is cut off: {len(waveform)} of its {stated} samples are there")
    return torch.from_numpy(waveform), rate


class _Unseekable(soundfile.SoundFile):
    """A file that is read to its end, whatever its header says of its length.

    The length of a FLAC file that was written into a pipe is unknown; soundfile would ask for memory for the largest.
    """

    def seekable(self) -> bool:
        return False


def check_rate(rate: int) -> None:
    """Refuse samples per second that no recording has.

    Raises:
        ValueError: the rate is outside of [``MIN_RATE``, ``MAX_RATE``].
    """
    if not MIN_RATE <= rate <= MAX_RATE:
        raise ValueError(f"a sample rate of {rate} Hz; {MIN_RATE} to {MAX_RATE} Hz are accepted")


def check_samples(samples: np.ndarray) -> None:
    """Refuse samples that no recording has; those of broken files are often absurdly large.

    Raises:
        ValueError: a sample is undefined, infinite, or above ``MAX_SAMPLE`` in magnitude.
    """
    low, high = samples.min(), samples.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("infinite or undefined (NaN) samples")
    if max(-low, high) > MAX_SAMPLE:
        raise ValueError(f"samples in [{low:g}, {high:g}]; floating-point samples lie in about [-1, 1]")


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
    largest = max(1, min(_MAX_TERM, _MAX_TERM * SAMPLE_RATE // rate))
    ratio = Fraction(rate, SAMPLE_RATE).limit_denominator(largest)
    return torchaudio.functional.resample(waveform, ratio.numerator, ratio.denominator)


def decode_text(data: bytes) -> str:
    """Decode UTF-8, with or without a byte order mark.

    Raises:
        ValueError: the bytes are no UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        raise ValueError(
            f"the text ({_sniff(data)}) is {'UTF-16' if utf16 else 'not UTF-8'} ({error}); save it as UTF-8"
        ) from error


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
        b"version https://git-lfs": "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`",
        b"RIFF": f"RIFF {data[8:12].decode('latin-1').strip()}",
    }
    name = next((name for start, name in signatures.items() if data.startswith(start)), f"begins with {data[:8]!r}")
    return f"{len(data)} bytes, {name}"
