"""Where a sharded checkpoint is, and its files. ``sharded`` reads them, and takes long to import."""

from pathlib import Path
from typing import IO

import fsspec

METADATA_FILE = ".metadata"
REST_FILE = "meta.pt"
"""All that is not a model's or an optimizer's state."""


def is_url(path: str | Path) -> bool:
    """Whether a path names its protocol, as in ``s3://bucket/run``."""
    return "://" in str(path)


def is_sharded(path: str | Path) -> bool:
    """Whether a path or URL is the folder of a sharded checkpoint; a local one may be incomplete."""
    if is_url(path):
        return exists(path, METADATA_FILE)
    path = Path(path)
    return path.is_dir() and ((path / METADATA_FILE).is_file() or any(path.glob("*.distcp")))


def join(folder: str | Path, name: str) -> str:
    """A file in a folder that is a path or a URL."""
    return f"{str(folder).rstrip('/')}/{name}"


def exists(folder: str | Path, name: str) -> bool:
    """Whether such a file is there."""
    files, path = fsspec.url_to_fs(join(folder, name))
    return bool(files.isfile(path))


def open_in(folder: str | Path, name: str, mode: str = "rb") -> IO[bytes]:
    """Open such a file."""
    return fsspec.open(join(folder, name), mode).open()
