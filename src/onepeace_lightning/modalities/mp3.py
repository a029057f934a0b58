"""Lengths of MP3 files: decoders believe what the first frame says of it, which may be missing or wrong.

An MP3 file is a row of frames of 576 or 1 152 samples. A first frame without sound ("Xing" or "Info") may state how
many follow. Where it does not, libsndfile estimates the length from the first frame's bit rate and cuts what is beyond;
where it states too many, the decoder fills up with silence, gigabytes of it.
"""

from typing import NamedTuple

_SYNC = b"\xff"
_KBITS = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG-1
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG-2
    0: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG-2.5
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_LAYER_III = 1
_MONO = 3
_TAGS = (b"Xing", b"Info")
_COUNTED = 1
"""The flag of a tag that states the number of frames."""
_TAG_KBITS = 9
"""Index of the bit rate of a frame that is made for its tag: one that leaves room for it."""


class _Frame(NamedTuple):
    """A frame's header.

    Attributes:
        version: of MPEG, as it is coded.
        rate: samples per second.
        mono: whether it has one channel.
        checked: whether a checksum follows the header.
        size: bytes, the header included.
    """

    version: int
    rate: int
    mono: bool
    checked: bool
    size: int

    @property
    def tag(self) -> int:
        """Where a tag begins in the frame: behind header, checksum and side information."""
        mono, stereo = (17, 32) if self.version == 3 else (9, 17)
        return 4 + 2 * self.checked + (mono if self.mono else stereo)


def with_right_length(data: bytes) -> bytes:
    """The same MP3 file with a first frame that states how many frames it has; anything else unchanged."""
    start = _behind_id3(data)
    first = _frame(data, start)
    if first is None:
        return data
    count = _count(data, start, first)
    tag = start + first.tag
    if data[tag : tag + 4] in _TAGS:
        count -= 1
        if data[tag + 7] & _COUNTED:
            stated = slice(tag + 8, tag + 12)
            if int.from_bytes(data[stated]) == count:
                return data
            return data[: tag + 8] + count.to_bytes(4) + data[tag + 12 :]
        start += first.size
    return _tag_frame(data[start : start + 4], count) + data[start:]


def _behind_id3(data: bytes) -> int:
    """Where the first frame should begin."""
    start = 0
    while data[start : start + 3] == b"ID3" and len(data) >= start + 10:
        size = sum(
            (byte & 0x7F) << shift for byte, shift in zip(data[start + 6 : start + 10], (21, 14, 7, 0), strict=True)
        )
        start += 10 + size + (10 if data[start + 5] & 0x10 else 0)
    return start


def _frame(data: bytes, start: int) -> _Frame | None:
    """The header of a layer III frame, or None where there is none."""
    if len(data) < start + 4 or data[start] != 0xFF or data[start + 1] & 0xE0 != 0xE0:
        return None
    version, layer = data[start + 1] >> 3 & 3, data[start + 1] >> 1 & 3
    bits, rate, padding = data[start + 2] >> 4, data[start + 2] >> 2 & 3, data[start + 2] >> 1 & 1
    if version not in _RATES or layer != _LAYER_III or rate == 3 or bits in (0, 15):
        return None
    hertz = _RATES[version][rate]
    size = (144 if version == 3 else 72) * _KBITS[version][bits] * 1000 // hertz + padding
    return _Frame(version, hertz, data[start + 3] >> 6 == _MONO, not data[start + 1] & 1, size)


def _count(data: bytes, start: int, first: _Frame) -> int:
    """Whole frames like the first one; what lies between is skipped, as decoders do."""
    count, position = 0, start
    while 0 <= position < len(data):
        frame = _like(data, position, first)
        if frame is None or position + frame.size > len(data):
            position = _next(data, position + 1, first)
            continue
        count += 1
        position += frame.size
    return count


def _like(data: bytes, position: int, first: _Frame) -> _Frame | None:
    frame = _frame(data, position)
    return frame if frame and (frame.version, frame.rate) == (first.version, first.rate) else None


def _next(data: bytes, position: int, first: _Frame) -> int:
    """Where two frames follow each other again; -1 where that is nowhere."""
    while (position := data.find(_SYNC, position)) >= 0:
        frame = _like(data, position, first)
        if frame and _like(data, position + frame.size, first):
            break
        position += 1
    return position


def _tag_frame(header: bytes, count: int) -> bytes:
    """A frame without sound that states how many follow, in the form of the frame with this header."""
    made = bytes([header[0], header[1] | 1, _TAG_KBITS << 4 | header[2] & 0x0C, header[3]])
    frame = _frame(made, 0)
    assert frame is not None  # the header of a frame with another bit rate
    tag = b"Info" + _COUNTED.to_bytes(4) + count.to_bytes(4)
    return (made + bytes(frame.tag - 4) + tag).ljust(frame.size, b"\0")
