"""Real data to learn from on a laptop: Tux Paint's stamps, about 950 images with captions, speech and sound effects.

    python -m data_recipes.stamps --out data/stamps [--source FOLDER_OR_DEB]

Streams, each a folder of shards with a manifest:

* ``train|val/image-text``: image with its English caption (in training with those of ``image_languages``).
* ``train|val/audio-text``: every recording with the caption in its language (an effect: English).
* ``train|val/image``, ``audio`` and ``text``: images; recordings, also those without a caption in their language;
  captions in all of some 75 languages. No caption of ``val/text`` is in ``train/text``.
* ``val/audio-image``: for measuring only. One item per stamp; ``txt`` is its English caption.
* ``train_gallery/image-text|audio-text|audio-image``: the same three measures over the training stamps, one item per
  stamp, to see how well training is learned.

Where one recording per stamp is wanted it is, in this order: English speech, an English effect, speech in the language
with the most recordings in the package. A stamp is in training or in validation, never in both.
"""

import argparse
import hashlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_recipes.stamps.media import check_svg_support, encode_all
from data_recipes.stamps.package import LICENSE, Clip, Package, Stamp, fetch, read_package, unpack
from onepeace_lightning.data.manifest import Manifest, read_manifest
from onepeace_lightning.data.shards import ShardWriter
from onepeace_lightning.modalities.tokenizers import SentencePieceTokenizer

MIN_SHARDS = 8
"""Shards per stream (as far as it has samples), so that that many workers or ranks get a share."""

Sample = tuple[str, dict[str, bytes]]


@dataclass(frozen=True)
class Media:
    """The package's stamps with their encoded files: images by stamp, sounds by clip. Unusable ones are absent."""

    package: Package
    pictures: dict[str, bytes]
    sounds: dict[Clip, bytes]

    def clips(self, stamp: Stamp, *, captioned: bool) -> list[Clip]:
        """A stamp's usable recordings; ``captioned``: only those with a caption in their language."""
        return [
            clip for clip in stamp.clips if clip in self.sounds and (clip.language in stamp.captions or not captioned)
        ]


def build(
    out: Path,
    source: Path | None = None,
    *,
    image_size: int = 160,
    max_seconds: float = 3.0,
    vocab_size: int = 4000,
    val_fraction: float = 0.1,
    image_languages: Sequence[str] = ("en",),
    workers: int = 2,
    overwrite: bool = False,
) -> dict[str, Manifest]:
    """Write all streams and the tokenizer.

    Args:
        out: the data set's folder.
        source: the package's ``.deb``, or a folder that holds it unpacked or installed; None: download it (apt-get).
        image_size: most pixels of an image's side.
        max_seconds: sounds are cut after this time.
        vocab_size: of the SentencePiece vocabulary, trained on ``train/text`` and what the downstream tasks say.
        val_fraction: share of the stamps that is for validation, about.
        image_languages: a training image is paired once with its caption in each of these. Most recordings are in
            other languages than English, so images meet them through text only where the languages are shared.
        workers: processes that encode.
        overwrite: replace what is in ``out``.

    Returns:
        The manifests, by the streams' folders below ``out``.

    Raises:
        FileNotFoundError: the source is missing.
        ValueError: the source holds no stamps, ``out`` is in use, no caption is in one of ``image_languages``, or a
            stream would be empty.
        RuntimeError: the package cannot be downloaded.
        ImportError: the package has SVG images and nothing here draws them.
    """
    check_unused(out, overwrite)
    with tempfile.TemporaryDirectory() as scratch:
        package = open_package(source, Path(scratch))
        _check_languages(package, image_languages)
        media = encode(package, image_size=image_size, max_seconds=max_seconds, workers=workers)
    validation = split(media, val_fraction)
    streams = make_streams(media, validation, image_languages)
    about = {
        "split": "by stamp: stamps that share a picture, a recording or a caption (English, or in a spoken language) "
        f"are one group, in validation where the hash of its first stamp's path is below {val_fraction}",
        "stamps": {
            "train": sum(name not in validation for name in package.stamps),
            "val": sum(name in validation for name in package.stamps),
        },
        "image_size": image_size,
        "max_seconds": max_seconds,
        "dropped": dict(sorted(package.dropped.items())),
    }
    for folder, samples in streams.items():
        _write(out / folder, samples, package.source, about, overwrite)
    captions = [fields["txt"].decode("utf-8") for _, fields in streams["train/text"]]
    SentencePieceTokenizer.train(captions, vocab_size).save(out / "tokenizer")
    return {folder: read_manifest(out / folder) for folder in streams}


def check_unused(out: Path, overwrite: bool) -> None:
    """Raise ValueError where ``out`` holds something that may not be replaced."""
    if not overwrite and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: choose another folder, or replace it with --overwrite (overwrite=True)")


def open_package(source: Path | None, scratch: Path) -> Package:
    """Read the package: its folder, its ``.deb`` (unpacked into ``scratch``), or None to download it there."""
    source = source or fetch(scratch)
    if source.is_file():
        unpack(source, scratch / "package")
        source = scratch / "package"
    return read_package(source)


def _check_languages(package: Package, wanted: Sequence[str]) -> None:
    known = {language for stamp in package.stamps.values() for language in stamp.captions}
    if unknown := set(wanted) - known:
        raise ValueError(f"no captions in {', '.join(sorted(unknown))}; there are some in {', '.join(sorted(known))}")


def encode(package: Package, *, image_size: int, max_seconds: float, workers: int) -> Media:
    """Encode every image and sound; what is unusable joins ``package.dropped``."""
    pictures = {stamp.name: stamp.picture for stamp in package.stamps.values() if stamp.picture}
    clips = {clip: clip.path for stamp in package.stamps.values() for clip in stamp.clips}
    if any(path.suffix == ".svg" for path in pictures.values()):
        check_svg_support()
    paths = [*pictures.values(), *clips.values()]
    results = encode_all(paths, image_size=image_size, max_seconds=max_seconds, workers=workers)
    encoded = {}
    for path, result in zip(paths, track(results, "Pictures and sounds", total=len(paths)), strict=True):
        if isinstance(result, bytes):
            encoded[path] = result
        else:
            package.dropped[result] += 1
    return Media(
        package,
        {name: encoded[path] for name, path in pictures.items() if path in encoded},
        {clip: encoded[path] for clip, path in clips.items() if path in encoded},
    )


def split(media: Media, val_fraction: float) -> set[str]:
    """Choose the validation stamps: whole groups of stamps that share an image, a recording or a caption.

    Captions count in English and in every language that is spoken in some recording.
    """
    stamps = list(media.package.stamps.values())
    spoken = {"en"} | {clip.language for clip in media.sounds}
    rows, columns = [], []
    numbers: dict[Any, int] = {}
    for row, stamp in enumerate(stamps):
        things: list[Any] = [(lang, text.casefold()) for lang, text in stamp.captions.items() if lang in spoken]
        things += [media.sounds[clip] for clip in media.clips(stamp, captioned=False)]
        things += [media.pictures[stamp.name]] if stamp.name in media.pictures else []
        for thing in things:
            rows.append(row)
            columns.append(len(stamps) + numbers.setdefault(thing, len(numbers)))
    size = len(stamps) + len(numbers)
    _, groups = connected_components(
        coo_array(([True] * len(rows), (rows, columns)), shape=(size, size)), directed=False
    )
    first: dict[int, str] = {}
    for stamp, group in sorted(zip(stamps, groups[: len(stamps)], strict=True), key=lambda pair: pair[0].name):
        first.setdefault(group, stamp.name)
    chosen = {group for group, name in first.items() if _hash(name) < val_fraction}
    return {stamp.name for stamp, group in zip(stamps, groups[: len(stamps)], strict=True) if group in chosen}


def _hash(text: str) -> float:
    """A number in [0, 1) that looks random and is the same everywhere."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8]) / 2**64


def make_streams(media: Media, validation: set[str], image_languages: Sequence[str]) -> dict[str, list[Sample]]:
    """All samples of all streams, by the stream's folder below the data set's; what some lack joins ``dropped``."""
    stamps = media.package.stamps.values()
    train = [stamp for stamp in stamps if stamp.name not in validation]
    val = [stamp for stamp in stamps if stamp.name in validation]
    train_text, val_text = _text(train), _text(val)
    train_captions = {fields["txt"] for _, fields in train_text}
    new_text = [(key, fields) for key, fields in val_text if fields["txt"] not in train_captions]
    uncaptioned = sum(len(media.clips(s, captioned=False)) - len(media.clips(s, captioned=True)) for s in stamps)
    media.package.dropped.update(
        {
            "caption of a validation stamp that is in train/text too (not in val/text)": len(val_text) - len(new_text),
            "sound without a caption in its language (in the audio streams only)": uncaptioned,
            "sound that repeats another's samples (once in the audio streams)": len(media.sounds)
            - len(set(media.sounds.values())),
        }
    )
    streams = {
        "train/image-text": _image_text(media, train, image_languages),
        "train/audio-text": _audio_text(media, train),
        "train/image": _image(media, train),
        "train/audio": _audio(media, train),
        "train/text": train_text,
        "val/image-text": _image_text(media, val, ("en",)),
        "val/audio-text": _audio_text(media, val),
        "val/image": _image(media, val),
        "val/audio": _audio(media, val),
        "val/text": new_text,
        "val/audio-image": _audio_image(media, val),
        "train_gallery/image-text": _image_text(media, train, ("en",)),
        "train_gallery/audio-text": _one_audio_text(media, train),
        "train_gallery/audio-image": _audio_image(media, train),
    }
    # In the package's order neighbours are alike, more of them than a loader's shuffle buffer can mix.
    return {folder: sorted(samples, key=lambda sample: _hash(sample[0])) for folder, samples in streams.items()}


def _image_text(media: Media, stamps: Iterable[Stamp], languages: Sequence[str]) -> list[Sample]:
    return [
        _sample(stamp, language, png=media.pictures[stamp.name], txt=stamp.captions[language])
        for stamp in stamps
        for language in languages
        if stamp.name in media.pictures and language in stamp.captions
    ]


def _image(media: Media, stamps: Iterable[Stamp]) -> list[Sample]:
    return [_sample(s, "", png=media.pictures[s.name]) for s in stamps if s.name in media.pictures]


def _audio_text(media: Media, stamps: Iterable[Stamp]) -> list[Sample]:
    """Every recording with its caption; one that several stamps share with the same caption comes once."""
    samples: dict[tuple[bytes, str], Sample] = {}
    for stamp in stamps:
        for clip in media.clips(stamp, captioned=True):
            caption = stamp.captions[clip.language]
            sample = _sample(stamp, clip.language, clip.kind, flac=media.sounds[clip], txt=caption)
            samples.setdefault((media.sounds[clip], caption), sample)
    return list(samples.values())


def _audio(media: Media, stamps: Iterable[Stamp]) -> list[Sample]:
    """Every recording once."""
    samples: dict[bytes, Sample] = {}
    for stamp in stamps:
        for clip in media.clips(stamp, captioned=False):
            sound = media.sounds[clip]
            samples.setdefault(sound, _sample(stamp, clip.language, clip.kind, flac=sound))
    return list(samples.values())


def _text(stamps: Iterable[Stamp]) -> list[Sample]:
    """Every caption once, though several stamps or languages have it."""
    samples: dict[str, Sample] = {}
    for stamp in stamps:
        for language, caption in stamp.captions.items():
            samples.setdefault(caption, _sample(stamp, language, txt=caption))
    return list(samples.values())


def _one_audio_text(media: Media, stamps: Iterable[Stamp]) -> list[Sample]:
    return [
        _sample(stamp, clip.language, clip.kind, flac=media.sounds[clip], txt=stamp.captions[clip.language])
        for stamp, clip in _one_clip_each(media, stamps)
    ]


def _audio_image(media: Media, stamps: Iterable[Stamp]) -> list[Sample]:
    return [
        _sample(
            stamp,
            clip.language,
            clip.kind,
            flac=media.sounds[clip],
            png=media.pictures[stamp.name],
            txt=stamp.captions["en"],
        )
        for stamp, clip in _one_clip_each(media, stamps)
        if stamp.name in media.pictures
    ]


def _one_clip_each(media: Media, stamps: Iterable[Stamp]) -> Iterator[tuple[Stamp, Clip]]:
    """The recording that stands for a stamp (see the module's docstring), for every stamp that has one."""
    frequency = Counter(clip.language for clip in media.sounds)

    def rank(clip: Clip) -> tuple[bool, bool, int, str]:
        english = clip.language.partition("_")[0] == "en"
        return not english, clip.kind != "speech", -frequency[clip.language], clip.language

    for stamp in stamps:
        if clips := media.clips(stamp, captioned=True):
            yield stamp, min(clips, key=rank)


def _sample(stamp: Stamp, language: str, kind: str = "", **fields: bytes | str) -> Sample:
    """A sample whose key names the stamp; ``json`` adds language and kind where there are any."""
    facts = {"stamp": stamp.name, "language": language, "kind": kind}
    known = {name: value for name, value in facts.items() if value}
    parts = (stamp.name.replace("/", "__"), language, kind)
    key = re.sub(r"[^\w-]", "-", "--".join(part for part in parts if part))
    encoded = {name: value.encode("utf-8") if isinstance(value, str) else value for name, value in fields.items()}
    return key, {**encoded, "json": json.dumps(known).encode("utf-8")}


def _write(folder: Path, samples: list[Sample], source: str, about: dict[str, Any], overwrite: bool) -> None:
    languages = Counter(json.loads(fields["json"]).get("language", "") for _, fields in samples)
    languages.pop("", None)
    with ShardWriter(
        folder,
        folder.name,
        source=source,
        license=LICENSE,
        samples_per_shard=min(1000, -(-len(samples) // MIN_SHARDS) or 1),
        about={**about, "languages": dict(languages.most_common())} if languages else about,
        overwrite=overwrite,
    ) as writer:
        for key, fields in track(samples, f"{folder.parent.name}/{folder.name}"):
            writer.write(key, fields)


def report(manifests: Mapping[str, Manifest], console: Console) -> None:
    """Print what each stream holds and what was left out."""
    streams = Table("stream", "samples", "shards", "MB", title="Written")
    for folder, manifest in manifests.items():
        size = sum(shard.bytes for shard in manifest.shards) / 1e6
        streams.add_row(folder, str(manifest.samples), str(len(manifest.shards)), f"{size:.1f}")
    console.print(streams)
    dropped = Table("what", "files or captions", title="Left out")
    for reason, count in manifests["train/image-text"].about["dropped"].items():
        dropped.add_row(reason, str(count))
    console.print(dropped)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; errors in the source or the folder end it with one message."""
    parser = argparse.ArgumentParser(
        prog="python -m data_recipes.stamps", description="Write the streams and the tokenizer of Tux Paint's stamps."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the data set, e.g. data/stamps")
    parser.add_argument("--source", type=Path, help="the package's .deb or folder (default: apt-get download)")
    parser.add_argument("--image-size", type=int, default=160, help="most pixels a side (default: %(default)s)")
    parser.add_argument("--max-seconds", type=float, default=3.0, help="sounds are cut after (default: %(default)s)")
    parser.add_argument("--vocab-size", type=int, default=4000, help="of the tokenizer (default: %(default)s)")
    parser.add_argument("--val-fraction", type=float, default=0.1, help="stamps held out (default: %(default)s)")
    parser.add_argument(
        "--image-languages",
        nargs="+",
        default=["en"],
        metavar="LANG",
        help="training captions of images (default: en)",
    )
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the folder")
    options = vars(parser.parse_args(arguments))
    try:
        manifests = build(options.pop("out"), **options)
    except (FileNotFoundError, ValueError, RuntimeError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error
    report(manifests, Console())
