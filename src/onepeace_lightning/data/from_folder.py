"""Shards of a folder of files."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onepeace_lightning.data.data_types import DataType
from onepeace_lightning.data.make_shards import Content, Making, RawSample, make_shards
from onepeace_lightning.data.pixel_classes import PixelClasses, read_names
from onepeace_lightning.data.splits import splits_named
from onepeace_lightning.files import files_below, printable
from onepeace_lightning.modalities.registry import modalities, modality_of, text_modality
from onepeace_lightning.modalities.tokenizers.base import parsed_json

_STATISTICS = "_stats.json"
"""What img2dataset writes beside each of its folders."""


def from_folder(
    folder: str,
    *,
    out: str,
    labels_from_folders: bool = False,
    masks: str | None = None,
    classes: str | None = None,
    split: str | None = None,
    samples_per_shard: int = 1000,
    vocab_size: int = 8000,
    source: str | None = None,
    license: str = "not stated",
    skip_bad: bool = False,
) -> None:
    """Make shards of a folder and its sub-folders; files that differ in their extension alone are one sample.

    ``cow.jpg`` with ``cow.txt`` is an image with its caption, and a JSON object in ``cow.json`` is kept as metadata, as
    img2dataset writes them. All samples must be of one data type, which is found from what is there. Links are
    followed; hidden files and folders are left out. Where the folder holds nothing but folders that are called train,
    val (valid, validation, dev) and test, these are the splits.

    Args:
        folder: where the files are.
        out: data set folder to write ``train/``, ``val/``, ``test/`` and ``tokenizer/`` into.
        labels_from_folders: the folder that a file lies in, of those directly in the folder (or in one of its splits),
            is its class.
        masks: another folder, with a PNG for each image (or other raster) of the same name and sub-folder, whose values
            are the classes of the pixels, 255 for none: grey, with a palette, or black and white.
        classes: of the masks, a text file with their names, one a line in the order of the values; None: numbers.
        split: fractions for training and validation, 0.9,0.1, or for testing too, 0.9,0.05,0.05, chosen by the samples'
            contents: equal files stay together, and a later run chooses the same.
        samples_per_shard: samples in each shard.
        vocab_size: the most token ids of the tokenizer.
        source: where the data is from, for the manifest; the folder's name if None.
        license: the data's licence, for the manifest.
        skip_bad: leave samples out that cannot be used, instead of stopping.

    Raises:
        ValueError: the folder holds nothing usable, or different kinds of samples, or samples that cannot be used.
    """
    if classes is not None and masks is None:
        raise ValueError(f"--classes {classes} names the classes of masks: give --masks")
    names = None if classes is None else read_names(Path(classes))
    samples = find_samples(Path(folder), labels_from_folders, None if masks is None else Path(masks), names)
    making = Making(
        Path(out), split, samples_per_shard, vocab_size, source or Path(folder).resolve().name, license, skip_bad
    )
    make_shards(samples, common_type(samples), making)


def find_samples(
    top: Path, labels: bool, masks: Path | None = None, classes: Sequence[str] | None = None
) -> list[RawSample]:
    """The samples of a folder.

    Args:
        top: the folder.
        labels: whether folders are classes.
        masks: where their masks are.
        classes: names of the masks' classes.

    Raises:
        ValueError: there is no folder, no usable file, no folder that could be a class, or masks among the images.
    """
    if not top.is_dir():
        raise ValueError(f"there is no folder {top}")
    stems: dict[str, dict[str, Path]] = defaultdict(dict)
    facts: dict[str, Path] = {}
    left_out: Counter[str] = Counter()
    twice: dict[str, list[str]] = defaultdict(list)
    downloaded = False
    for file in files_below(top):
        relative = file.relative_to(top).as_posix()
        if found := modality_of(file.name):
            name, extension = found
            stem = relative[: -len(extension) - 1]
            if name in stems[stem]:
                twice[stem].append(name)
            stems[stem][name] = file
        elif relative.endswith(_STATISTICS):
            downloaded = True
        elif file.suffix.lower() == ".json":
            facts[relative[: -len(".json")]] = file
        else:
            left_out[file.suffix or "no extension"] += 1
    alone = [stem for stem in facts if stem not in stems]
    left_out |= Counter({".json": len(alone)} if alone else {})
    if left_out:
        print("left out: " + ", ".join(f"{count} with {extension}" for extension, count in sorted(left_out.items())))
    if not stems:
        known = [extension for cls in modalities().values() for extension in cls.extensions]
        raise ValueError(f"{top} holds no file that ends in {', '.join(known)}")
    if twice:
        stem, names = next(iter(twice.items()))
        raise ValueError(
            f"{printable(stem)} has several files of {' and '.join(sorted(set(names)))}; keep one file of each modality"
            f" per name (this is so for {len(twice)} of {len(stems)})"
        )
    splits = splits_named({stem.partition("/")[0] for stem in stems if "/" in stem}) or {}
    if any("/" not in stem for stem in stems):
        splits = {}
    if splits:
        print("folders as splits: " + ", ".join(f"{name} for {split}" for name, split in sorted(splits.items())))
    samples = [
        _sample(top, stem, files, facts.get(stem), splits.get(stem.partition("/")[0])) for stem, files in stems.items()
    ]
    if labels:
        _add_labels(samples, list(stems), bool(splits))
    if masks is not None:
        _add_masks(samples, list(stems), top, masks, classes)
    elif not labels and not downloaded:
        _warn_of_folders(top, stems, bool(splits))
    return samples


def _sample(top: Path, stem: str, files: dict[str, Path], facts: Path | None, split: str | None) -> RawSample:
    items: dict[str, Content] = dict(files)
    sample = RawSample(printable(stem), items, split=split, root=top)
    if facts is not None:
        try:
            content: Any = parsed_json(facts.read_bytes())
            sample.columns = content if isinstance(content, dict) else {"json": content}
        except (OSError, ValueError) as error:
            sample.problem = f"{facts} is no JSON: {error}"
    return sample


def _class_of(stem: str, in_splits: bool) -> str | None:
    parts = stem.split("/")[1 if in_splits else 0 : -1]
    return parts[0] if parts else None


def _add_labels(samples: list[RawSample], stems: list[str], in_splits: bool) -> None:
    lacking = []
    for sample, stem in zip(samples, stems, strict=True):
        label = _class_of(stem, in_splits)
        if label is None:
            lacking.append(sample.place)
        else:
            sample.labels = [printable(label)]
    if lacking:
        where = "its split's folder" if in_splits else "the folder"
        raise ValueError(
            f"{len(lacking)} files lie directly in {where}, in no class's: {', '.join(lacking[:5])}; move them into the"
            " folder of a class, or leave --labels-from-folders out"
        )


def _add_masks(
    samples: list[RawSample], stems: list[str], top: Path, folder: Path, classes: Sequence[str] | None
) -> None:
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    if folder.resolve().is_relative_to(top.resolve()):
        raise ValueError(f"the masks' folder {folder} lies in {top}, so that masks are samples too: move it out")
    for sample, stem in zip(samples, stems, strict=True):
        sample.mask = PixelClasses(folder / f"{stem}.png", classes)


def _warn_of_folders(top: Path, stems: Mapping[str, Mapping[str, Path]], in_splits: bool) -> None:
    """Folders that look like classes, of files without texts."""
    classes = {_class_of(stem, in_splits) for stem in stems}
    if None in classes or len(classes) < 2 or any(text_modality() in files for files in stems.values()):
        return
    names = sorted(printable(str(name)) for name in classes)
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    print(
        f"warning: the files of {top} lie in {len(names)} folders ({shown}), whose names are not kept. Are they"
        " classes? Then give --labels-from-folders"
    )


def common_type(samples: list[RawSample]) -> DataType:
    """The one data type of a folder's samples."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        kinds[" + ".join(sorted(sample.items))].append(sample.place)
    if len(kinds) > 1:
        counts = "; ".join(f"{len(places)} of {kind} (such as {places[0]})" for kind, places in kinds.items())
        raise ValueError(f"the folder mixes kinds of samples: {counts}. Put each kind in a folder of its own")
    return samples[0].kind
