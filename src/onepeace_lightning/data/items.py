"""Samples described before they are read: where their files are, and their way into the shards of a split."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.progress import track

from onepeace_lightning.data.manifest import Manifest, read_manifest
from onepeace_lightning.data.shards import ShardWriter
from onepeace_lightning.modalities.registry import modality
from onepeace_lightning.modalities.tokenizers.base import whole_characters, whole_strings
from onepeace_lightning.models.adapter import SECOND

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Item:
    """One sample to be.

    Attributes:
        key: its name, no other sample's.
        files: what each of its files is (a modality's name, ``second_`` before one, or "mask"), and the file.
        text: what becomes its ``txt``.
        facts: what becomes its ``json``.
    """

    key: str
    files: tuple[tuple[str, Path], ...]
    text: str | None = None
    facts: Mapping[str, Any] | None = None

    def missing(self) -> list[Path]:
        """Those of its files that are not there."""
        return [file for _, file in self.files if not file.is_file()]

    def extensions(self) -> list[str]:
        """What its files are called in a shard.

        Raises:
            ValueError: a file's name has an extension that does not go with what it is.
        """
        return [field_of(part, file) for part, file in self.files]

    def fields(self) -> dict[str, bytes]:
        """Read the sample's bytes by extension; nothing is decoded."""
        fields = {name: file.read_bytes() for name, (_, file) in zip(self.extensions(), self.files, strict=True)}
        if self.text is not None:
            fields["txt"] = whole_characters(self.text).encode()
        if self.facts is not None:
            fields["json"] = json.dumps(whole_strings(self.facts), ensure_ascii=False).encode()
        return fields


def field_of(part: str, file: Path) -> str:
    """The extension in a shard of a file that is a modality, a second item of one, or a mask.

    Raises:
        ValueError: the file's name does not go with what it is.
    """
    if part == "mask":
        if file.suffix.lower() != ".png":
            raise ValueError(f"{file}: as mask a file named *.png is accepted")
        return "mask.png"
    name = part.removeprefix(SECOND)
    extension = modality(name).field(str(file))
    return extension if name == part else f"second.{extension}"


def shard_key(*parts: object) -> str:
    """A key that shards accept from any names, different for different names: "a/b.wav" gives "a%2Fb%2Ewav"."""
    key = quote("-".join(map(str, parts)), safe=" ").replace(".", "%2E")
    return "%5F" + key[1:] if key.startswith("__") else key


def present(items: Sequence[Item], name: str, max_missing: float) -> list[Item]:
    """The items all of whose files are there.

    Args:
        items: a split's samples.
        name: the split, for the message.
        max_missing: the greatest fraction of items that may lack a file.

    Raises:
        ValueError: more do; or two items have the same key, or a file is of another kind, or there is no item.
    """
    if not items:
        raise ValueError(f"{name}: there is no sample")
    seen: set[str] = set()
    for item in items:
        if item.key in seen:
            raise ValueError(f"{name}: two samples have the key {item.key!r}; each must be listed once")
        seen.add(item.key)
    there, missing = [], []
    for item in items:
        item.extensions()
        if absent := item.missing():
            missing += absent[:1]
        else:
            there.append(item)
    if len(missing) > max_missing * len(items) or not there:
        shown = "".join(f"\n  {path}" for path in missing[:_SHOWN])
        rest = f"\n  and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise ValueError(
            f"{name}: files of {len(missing)} of {len(items)} samples are missing, more than the fraction of "
            f"{max_missing:g} that is accepted:{shown}{rest}\nGet them, or accept more with max_missing"
        )
    return there


def write_items(
    folder: Path,
    items: Sequence[Item],
    data_type: str,
    *,
    source: str,
    license: str,
    about: dict[str, Any],
    samples_per_shard: int = 1000,
    overwrite: bool = False,
    read: Callable[[Item], dict[str, bytes]] = Item.fields,
) -> Manifest:
    """Write a split's shards and manifest.

    Args:
        folder: the stream's.
        items: mixed before they are written, for corpora list neighbours that are alike.
        data_type: what the samples are, see ``data_types``.
        source: where the data comes from.
        license: under which terms.
        about: for the manifest.
        samples_per_shard: the last shard may have fewer.
        overwrite: replace the shards that are there.
        read: an item's bytes by extension.

    Raises:
        ValueError: the folder is in use, or a sample cannot be read or lacks what the data type needs.
    """
    mixed = list(items)
    random.Random(0).shuffle(mixed)
    with ShardWriter(
        folder,
        data_type,
        source=source,
        license=license,
        samples_per_shard=samples_per_shard,
        about=about,
        overwrite=overwrite,
    ) as writer:
        for item in track(mixed, f"{folder.parent.name}/{folder.name}"):
            writer.write(item.key, read(item))
    return read_manifest(folder)
