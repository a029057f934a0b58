r"""Several streams as one, such as the sounds with captions of three corpora that are learned together.

    python -m data_recipes.merge data/audiocaps/train/audio-captions data/clotho/train/audio-captions \
        data/macs/train/audio-captions --out data/sounds/train/audio-captions

The shards are hard links where the disk can hold them, or else copies; the manifest names every source and licence.
"""

import argparse
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onepeace_lightning.data.counting import Shard
from onepeace_lightning.data.manifest import Manifest, read_manifest


def merge(folders: Sequence[Path], out: Path) -> Manifest:
    """Join stream folders of one data type.

    Args:
        folders: each with shards and a manifest.
        out: made; it must not hold anything.

    Raises:
        ValueError: one is no stream folder, they are of several data types or have other classes or answers than the
            first, or ``out`` is in use.
    """
    manifests = [read_manifest(folder) for folder in folders]
    first = manifests[0]
    for manifest in manifests:
        if manifest.data_type != first.data_type:
            raise ValueError(f"{manifest.folder} holds {manifest.data_type}, {first.folder} {first.data_type}")
        for name in ("classes", "answers"):
            if manifest.about.get(name) != first.about.get(name):
                raise ValueError(f"{manifest.folder} has other {name} than {first.folder}; they cannot be joined")
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise ValueError(f"{out} is not empty: choose another folder, or delete it")
    shards: list[Shard] = []
    for manifest in manifests:
        for shard in manifest.shards:
            name = f"{len(shards):05d}.tar"
            _link(Path(manifest.folder) / shard.name, out / name)
            shards.append(replace(shard, name=name))
    about: dict[str, Any] = {name: first.about[name] for name in ("classes", "answers") if name in first.about}
    about["merged"] = [manifest.about for manifest in manifests]
    merged = Manifest(
        out,
        first.data_type,
        tuple(shards),
        "; ".join(dict.fromkeys(manifest.source for manifest in manifests)),
        "; ".join(dict.fromkeys(manifest.license for manifest in manifests)),
        about,
    )
    merged.save()
    return merged


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(source, target)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m data_recipes.merge", description="Join streams of one data type.")
    parser.add_argument("folders", type=Path, nargs="+", help="stream folders, each with a manifest.json")
    parser.add_argument("--out", type=Path, required=True, help="folder for the joined stream")
    options = parser.parse_args(arguments)
    try:
        merged = merge(options.folders, options.out)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{options.out}: {merged.samples} samples of {merged.data_type} in {len(merged.shards)} shards")


if __name__ == "__main__":
    main()
