"""Images and sounds of the stamps, made small and quick to decode: square PNG on white, 16 kHz mono FLAC."""

import io
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image, ImageChops

from onepeace_lightning.modalities.audio_files import SAMPLE_RATE, decode_audio, resample
from onepeace_lightning.modalities.image import ImageModality

_SILENCE = 1e-3
"""Peak amplitude under which a clip counts as silent."""

OPAQUE = 128
"""Alpha from which a pixel counts as the thing's."""


class UnusableError(ValueError):
    """An image or sound that is left out; the message is the reason, the same for all files that share it."""


def check_svg_support() -> None:
    """Raise ImportError, with the command that helps, where SVG images cannot be drawn."""
    if find_spec("resvg_py") is None:
        raise ImportError("the package's SVG pictures need resvg_py: pip install 'onepeace-lightning[recipes]'")


def encode_picture(path: Path, size: int) -> bytes:
    """A PNG or SVG file on white, padded to a square of at most ``size`` pixels a side, as PNG bytes.

    An image that is smaller stays as small as it is.

    Raises:
        UnusableError: it cannot be decoded, or nothing of it is to be seen on white.
    """
    try:
        data = path.read_bytes() if path.suffix != ".svg" else _draw(path, size)
        picture = ImageModality().decode(data)
    except ValueError as error:
        raise UnusableError("picture that cannot be decoded") from error
    if ImageChops.invert(picture).getbbox() is None:
        raise UnusableError("picture that is blank on white")
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    side = max(picture.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    file = io.BytesIO()
    square.save(file, "PNG")
    return file.getvalue()


def cut_out(path: Path, size: int) -> Image.Image:
    """A PNG or SVG file on its transparent ground, RGBA, cut to what is seen and at most ``size`` pixels a side.

    Raises:
        UnusableError: it cannot be decoded, nothing of it is to be seen, or it has no transparent ground.
    """
    data = path.read_bytes() if path.suffix != ".svg" else _draw(path, size)
    try:
        picture = Image.open(io.BytesIO(data)).convert("RGBA")
    except OSError as error:
        raise UnusableError("picture that cannot be decoded") from error
    seen = np.asarray(picture)[..., 3] >= OPAQUE
    if not seen.any():
        raise UnusableError("picture that is transparent")
    if seen.all():
        raise UnusableError("picture without a transparent ground")
    picture = picture.crop(Image.fromarray(seen).getbbox())
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    return picture


def _draw(path: Path, size: int) -> bytes:
    import resvg_py  # an optional dependency

    # Width alone, for with both sides resvg would distort the image; encode_picture shrinks a tall one. Without dpi,
    # sizes in pt, mm or cm are refused.
    return bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=size, dpi=96))


def encode_sound(path: Path, max_seconds: float) -> bytes:
    """The first ``max_seconds`` of a sound file, mono at 16 kHz, as 16-bit FLAC bytes.

    Raises:
        UnusableError: it cannot be decoded, holds no samples or is silent.
    """
    try:
        waveform, rate = decode_audio(path.read_bytes())
    except ValueError as error:
        raise UnusableError("sound that cannot be decoded or is empty") from error
    waveform = resample(waveform[: round(max_seconds * rate)], rate)
    if waveform.abs().amax() < _SILENCE:
        raise UnusableError("silent sound")
    file = io.BytesIO()
    soundfile.write(file, waveform.numpy(), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def encode_all(paths: list[Path], *, image_size: int, max_seconds: float, workers: int) -> Iterator[bytes | str]:
    """Encode images and sounds in order, in ``workers`` processes (1: in this one).

    Yields:
        The encoded bytes, or the reason why the file is unusable.
    """
    encode = partial(_encode, image_size=image_size, max_seconds=max_seconds)
    if workers == 1:
        yield from map(encode, paths)
        return
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        yield from pool.map(encode, paths, chunksize=16)


def _encode(path: Path, image_size: int, max_seconds: float) -> bytes | str:
    try:
        if path.suffix in (".png", ".svg"):
            return encode_picture(path, image_size)
        return encode_sound(path, max_seconds)
    except UnusableError as error:
        return str(error)
