"""Frames of video files, decoded with PyAV (the extra ``video``)."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class VideoFile:
    """A video whose frames are decoded when they are asked for.

    Args:
        source: the file's content, or its path.

    Raises:
        ValueError: it is no video, or holds no frame.
    """

    def __init__(self, source: bytes | str | Path) -> None:
        self.source = source
        if not self.total:
            raise ValueError("cannot decode the video: it has no frame")

    @cached_property
    def total(self) -> int:
        """Frames of the video, counted without decoding them."""
        with _opened(self.source) as container:
            return sum(packet.size > 0 for packet in container.demux(_stream(container)))

    @cached_property
    def seconds(self) -> float | None:
        """Length in seconds; None where the file does not say its rate."""
        with _opened(self.source) as container:
            rate = _stream(container).average_rate
        return self.total / float(rate) if rate else None

    def read(self, indices: Sequence[int]) -> Tensor:
        """(T, 3, Y, X) uint8 RGB, the right way up.

        Args:
            indices: of frames, from 0, in any order; they may repeat.

        Raises:
            ValueError: an index is out of range, or the file is damaged before the last of these frames.
        """
        if not indices or min(indices) < 0 or max(indices) >= self.total:
            raise ValueError(f"frames {list(indices)} of a video with {self.total}; give some of 0 to {self.total - 1}")
        wanted, last = set(indices), max(indices)
        frames: dict[int, np.ndarray] = {}
        with _opened(self.source) as container:
            number, frame = -1, None
            for number, frame in enumerate(_decoded(container)):
                if number in wanted:
                    frames[number] = _upright(frame)
                if number == last:
                    break
            else:
                # Containers may announce a few packets that show nothing; the last frame stands in for those.
                if frame is None or last - number > 1 + self.total // 20:
                    raise ValueError(f"cannot decode the video: it ends before frame {last} of {self.total}")
                frames |= dict.fromkeys(wanted - set(frames), _upright(frame))
        return torch.from_numpy(np.stack([frames[index] for index in indices])).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class VideoFrames:
    """A video whose frames (total, 3, Y, X) uint8 are in memory."""

    frames: Tensor

    @property
    def total(self) -> int:
        """Frames of the video."""
        return len(self.frames)

    def read(self, indices: Sequence[int]) -> Tensor:
        """(T, 3, Y, X) uint8 RGB of some frames."""
        return self.frames[list(indices)]


def _opened(source: bytes | str | Path) -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError("videos need PyAV: pip install onepeace-lightning[video]") from error
    try:
        return av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source))
    except (av.error.FFmpegError, ValueError) as error:
        raise ValueError(f"cannot decode the video: {error}") from error


def _stream(container: Any) -> Any:
    if not container.streams.video:
        raise ValueError("cannot decode the video: the file has no video stream")
    return container.streams.video[0]


def _decoded(container: Any) -> Iterator[Any]:
    import av

    try:
        yield from container.decode(_stream(container))
    except av.error.FFmpegError as error:
        raise ValueError(f"cannot decode the video: {error}") from error


def _upright(frame: Any) -> np.ndarray:
    """(Y, X, 3) with the rotation applied that phones write beside the pixels."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), (frame.rotation % 360) // 90))


def write_video(path: str | Path, frames: Sequence[np.ndarray], rate: int = 8) -> None:
    """Write (Y, X, 3) uint8 RGB frames of even sides as an MP4 file.

    Args:
        path: the file.
        frames: at least one.
        rate: frames per second.
    """
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
