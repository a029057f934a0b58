"""Files of users: what lies in a folder, and names and contents that are not what they seem."""

import os
from collections.abc import Iterator
from pathlib import Path

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def files_below(folder: Path) -> Iterator[Path]:
    """Files of a folder and its sub-folders, in the order of their paths.

    Links are followed, to folders too; a folder that is reached twice on one way (a loop) is left out. Hidden files and
    folders are skipped: what programs keep for themselves (``.DS_Store``, ``.ipynb_checkpoints``).
    """
    yield from sorted(_below(folder, frozenset()))


def _below(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _below(folder / entry.name, above | {real})
            elif entry.is_file():
                yield folder / entry.name


def is_utf8(name: str) -> bool:
    """Whether a file's name can be written down; others come from systems with another encoding."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    """A file's name; of its bytes those that are no UTF-8 are spelled out in hexadecimal."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def check_name(name: str) -> None:
    """Refuse a file whose name cannot be kept in shards and tables.

    Raises:
        ValueError: the name is no UTF-8.
    """
    if not is_utf8(name):
        raise ValueError(f"the file name {printable(name)} is no UTF-8; rename the file")


def is_lfs_pointer(data: bytes) -> bool:
    """Whether bytes are what Git leaves in the place of a large file until ``git lfs pull`` fetches it."""
    return data.startswith(_LFS_POINTER)


def check_fetched(path: str | Path) -> None:
    """Refuse a Git LFS pointer in the place of a file.

    Raises:
        ValueError: the file is one.
        OSError: it cannot be opened.
    """
    with open(path, "rb") as stream:
        if is_lfs_pointer(stream.read(len(_LFS_POINTER))):
            raise ValueError(
                f"{path} is a Git LFS pointer of a few lines, not the file itself: fetch it with `git lfs pull`"
            )


_SIGNATURES = {
    b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"fLaC": "flac", b"OggS": "ogg", b"ID3": "mp3", b"\xff\xfb": "mp3",
    b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tif", b"MM\0*": "tif", b"\x1aE\xdf\xa3": "webm",
}  # fmt: skip
"""What files begin with, and their extension."""
_RIFF = {b"WAVE": "wav", b"WEBP": "webp", b"AVI ": "avi"}
_BRANDS = {b"avif": "avif", b"M4A ": "m4a", b"heic": "heic", b"heix": "heic", b"mif1": "heic"}
"""Of the ISO base media format; all others are taken for mp4."""


def extension_of(data: bytes) -> str:
    """The extension of a file that begins like some bytes, such as ``jpg``; "" where they are not known."""
    if data.startswith(b"RIFF"):
        return _RIFF.get(data[8:12], "")
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "mp4")
    return next((extension for start, extension in _SIGNATURES.items() if data.startswith(start)), "")


def looks_like(data: bytes) -> str:
    """What some bytes look like, for errors of decoding: how many there are, and the format that they begin with."""
    if not data:
        return "0 bytes"
    return f"{len(data)} bytes, {extension_of(data).upper() or f'begins with {data[:8]!r}'}"
