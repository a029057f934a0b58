"""Audio files and their waveforms: decoding, checks of what users give, resampling.

N = waveform samples.
"""

import io

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from onepeace_lightning.files import looks_like
from onepeace_lightning.modalities.mp3 import with_right_length

SAMPLE_RATE = 16_000
"""Samples per second of every waveform that reaches a model."""

MIN_RATE = 1_000
MAX_RATE = 1_000_000
MAX_SAMPLE = 2.0**31
"""Largest magnitude of a floating-point sample: integers of 32 bits that were stored as they are."""

_BLOCK = 1 << 20
_UNKNOWN_LENGTH = 2**63 - 1


def decode_audio(data: bytes) -> tuple[Tensor, int]:
    """Decode an audio file to one channel, the mean of all.

    Returns:
        The waveform (N,) float32 in about [-1, 1], and its samples per second.

    Raises:
        ValueError: the bytes are no whole file of a format that libsndfile reads, or PyAV where it is installed (AAC,
            in .m4a files too), hold no samples, hold infinite, undefined or absurdly large values, or have an
            impossible sample rate.
    """
    if data[4:8] == b"ftyp" or data[:2] in (b"\xff\xf1", b"\xff\xf9"):
        return _decode_aac(data)
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
        raise ValueError(f"cannot decode the audio ({looks_like(data)}): {error}") from error
    except ValueError as error:
        raise ValueError(f"the audio ({looks_like(data)}) is refused: {error}") from error
    waveform = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if len(waveform) == 0:
        raise ValueError(f"the audio ({looks_like(data)}) has 0 samples")
    if codec == "FLAC" and len(waveform) < stated < _UNKNOWN_LENGTH:
        raise ValueError(
            f"the audio ({looks_like(data)}) is cut off: {len(waveform)} of its {stated} samples are there"
        )
    return torch.from_numpy(waveform), rate


def _decode_aac(data: bytes) -> tuple[Tensor, int]:
    """Decode what libsndfile does not know, see ``decode_audio``."""
    try:
        import av
    except ImportError as error:
        raise ValueError(
            f"the audio ({looks_like(data)}) is AAC or in an MP4 container, which needs PyAV: pip install"
            " 'onepeace-lightning[video]'; or save it as FLAC, WAV, Ogg or MP3"
        ) from error
    blocks = []
    try:
        with av.open(io.BytesIO(data), mode="r") as container:
            if not container.streams.audio:
                raise ValueError(f"the file ({looks_like(data)}) has no audio in it")
            stream = container.streams.audio[0]
            check_rate(rate := stream.codec_context.sample_rate)
            to_float = av.AudioResampler(format="fltp", rate=rate)
            for frame in container.decode(stream):
                blocks += [part.to_ndarray().mean(axis=0) for part in to_float.resample(frame)]
            blocks += [part.to_ndarray().mean(axis=0) for part in to_float.resample(None)]
    except av.error.FFmpegError as error:
        raise ValueError(f"cannot decode the audio ({looks_like(data)}): {error}") from error
    if not blocks:
        raise ValueError(f"the audio ({looks_like(data)}) has 0 samples")
    waveform = np.concatenate(blocks).astype(np.float32)
    check_samples(waveform)
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


def resample(waveform: Tensor, rate: int) -> Tensor:
    """Bring a waveform (N,) from ``rate`` to 16 kHz by soxr's high quality, as the original's hub does.

    It has ``ceil(N * 16000 / rate)`` samples.
    """
    if rate == SAMPLE_RATE:
        return waveform
    length = -(-len(waveform) * SAMPLE_RATE // rate)
    resampled = torch.from_numpy(soxr.resample(waveform.numpy(), rate, SAMPLE_RATE, quality="HQ"))
    return torch.nn.functional.pad(resampled, (0, length - len(resampled)))
