"""Shards of a user's own samples, whatever lists them: a folder, a table, Parquet.

Every sample is read and checked before anything is written. What is written is laid out as training wants it::

    out/train/<data type>/   shards and manifest.json
    out/val/<data type>/     the same, where samples are kept for validation; and out/test/ for testing
    out/tokenizer/           a SentencePiece vocabulary of the training texts, where there are any
"""

import json
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, cast

from rich.console import Console
from rich.progress import track

from onepeace_lightning.data.data_types import DataType, data_type, of_modalities
from onepeace_lightning.data.pixel_classes import PixelClasses, class_names
from onepeace_lightning.data.shards import ShardWriter
from onepeace_lightning.data.splits import SPLITS, by_fractions, parse_fractions, position
from onepeace_lightning.files import check_name
from onepeace_lightning.modalities.base import Modality
from onepeace_lightning.modalities.image import RasterModality
from onepeace_lightning.modalities.registry import modality, text_modality
from onepeace_lightning.modalities.tokenizers import SentencePieceTokenizer

_SHOWN = 10
_OPEN = 4
"""Chunks of samples that are mixed with one another."""

Content = Path | Callable[[], tuple[bytes, str]]
"""A file, or what gives its bytes and a name that tells their kind."""


@dataclass
class RawSample:
    """One sample to be.

    Attributes:
        place: where it comes from, for messages and its metadata.
        items: modality to the content of its file.
        text: a text for the modality that reads text; several of them are captions.
        labels: names of its classes.
        targets: numbers to be learned, by name.
        mask: the classes of its pixels.
        columns: what else is known of it, for its metadata.
        split: where the source says it.
        group: samples of a group come into one split; None: those whose first item is the same.
        chunk: samples of a chunk are read cheaply one after the other.
        problem: why it cannot be used.
        root: folder that its metadata name its files relative to.
    """

    place: str
    items: dict[str, Content]
    text: str | list[str] | None = None
    labels: list[str] | None = None
    targets: dict[str, float] | None = None
    mask: PixelClasses | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    split: str | None = None
    group: str | None = None
    chunk: int = 0
    problem: str | None = None
    root: Path | None = None

    def fields(self) -> dict[str, bytes]:
        """Read the sample's bytes by extension.

        Raises:
            ValueError: a file cannot be read or decoded, or a text has no words.
        """
        if self.problem:
            raise ValueError(self.problem)
        about: dict[str, Any] = {"from": self.place}
        fields = {}
        for name, content in self.items.items():
            extension, data, item = _read(name, content)
            fields[extension] = data
            if self.mask:
                fields["mask.png"] = self.mask.read(name, _raster_size(name, item))
        if files := {name: self._named(file) for name, file in self.items.items() if isinstance(file, Path)}:
            about["files"] = files
        text = modality(text_modality())
        for caption in [self.text] if isinstance(self.text, str) else self.text or []:
            _check(text(), caption.encode())
        if isinstance(self.text, str):
            fields[text.extensions[0]] = self.text.encode()
        elif self.text:
            about["captions"] = self.text
        about |= {key: value for key, value in (("labels", self.labels), ("targets", self.targets)) if value}
        if self.columns:
            about["columns"] = self.columns
        fields["json"] = json.dumps(about, ensure_ascii=False, default=str).encode()
        return fields

    def _named(self, file: Path) -> str:
        """A file's name in the metadata."""
        if self.root is not None and file.is_relative_to(self.root):
            file = file.relative_to(self.root)
        return file.as_posix()

    @property
    def kind(self) -> DataType:
        """Its data type.

        Raises:
            ValueError: there is none of what it has.
        """
        names = [*self.items, *([text_modality()] if isinstance(self.text, str) else [])]
        answers = [("captions", isinstance(self.text, list)), ("label", self.labels), ("target", self.targets),
                   ("mask", self.mask)]  # fmt: skip
        given = [answer for answer, has in answers if has]
        if len(given) > 1:
            raise ValueError(f"{self.place}: {' and '.join(given)} of one sample; choose one of them")
        return data_type("-".join([str(of_modalities(names)), *given]))


@dataclass(frozen=True)
class Making:
    """How samples become shards.

    Attributes:
        out: folder to write into.
        split: fractions of training, validation and testing; None: as the samples say, or all for training.
        samples_per_shard: samples in each shard.
        vocab_size: the most token ids of the tokenizer.
        source: where the data is from.
        license: under which terms.
        skip_bad: leave samples out that cannot be used.
    """

    out: Path
    split: str | None
    samples_per_shard: int
    vocab_size: int
    source: str
    license: str
    skip_bad: bool


def make_shards(samples: Sequence[RawSample], kind: DataType, making: Making) -> None:
    """Check all samples, choose their splits, train a tokenizer where there are texts, and write the shards.

    Raises:
        ValueError: samples cannot be used (the first ten are listed), a split would be empty, or the folder is in use.
    """
    out, name = making.out, str(kind)
    fractions = None if making.split is None else parse_fractions(making.split)
    if fractions and (said := {sample.split for sample in samples} - {None}) - {"train"}:
        raise ValueError(f"the data say themselves what is for {', '.join(sorted(map(str, said)))}; leave split out")
    if used := [str(folder) for split in SPLITS if (folder := out / split / name).exists()]:
        raise ValueError(f"{' and '.join(used)} exist already; delete them or choose another out folder")
    good = _checked(samples, making.skip_bad)
    splits = _in_splits(good, fractions)
    texts = [text for sample in splits["train"] for text in _texts(sample)]
    # Before anything is written: a vocabulary size may be impossible.
    tokenizer = _train_tokenizer(texts, out / "tokenizer", making.vocab_size)

    about = _about(splits)
    for split, chosen in splits.items():
        folder = out / split / name
        with ShardWriter(
            folder,
            name,
            source=making.source,
            license=making.license,
            samples_per_shard=making.samples_per_shard,
            about={"split": split, **about},
        ) as writer:
            for index, sample in enumerate(_shown(list(_mixed(chosen)), f"writing {split}")):
                writer.write(f"{index:08d}", sample.fields())
        print(f"{folder}: {len(chosen)} samples of {name}{_described(about)}")
    if tokenizer is not None:
        tokenizer.save(out / "tokenizer")
        print(f"{out / 'tokenizer'}: {tokenizer.vocab_size} token ids")


def _read(name: str, content: Content) -> tuple[str, bytes, Any]:
    """An item's extension in a shard, its bytes, and what they were decoded to."""
    try:
        if isinstance(content, Path):
            check_name(str(content))
            file = str(content)
            extension = modality(name).field(file)
            data = content.read_bytes()
        else:
            data, file = content()
            extension = modality(name).field(file)
    except OSError as error:  # it names the file
        raise ValueError(str(error)) from error
    try:
        item = _check(modality(name)(), data)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return extension, data, item


def _check(one: Modality, data: bytes) -> Any:
    """A file's content, decoded; ValueError where it cannot be used."""
    item = one.decode(data)
    one.check(item)
    return item


def _raster_size(name: str, item: Any) -> Sequence[int]:
    """Rows and columns of a raster.

    Raises:
        ValueError: the modality has no pixels.
    """
    one = modality(name)()
    if not isinstance(one, RasterModality):
        raise ValueError(f"a mask is of an image or another raster, not of {name}")
    return cast(Sequence[int], one.raster(item).shape[1:])


def _texts(sample: RawSample) -> list[str]:
    """A sample's texts, those of a file too."""
    text = text_modality()
    if text in sample.items:
        return [_read(text, sample.items[text])[2]]
    return [sample.text] if isinstance(sample.text, str) else list(sample.text or ())


def _checked(samples: Sequence[RawSample], skip_bad: bool) -> list[RawSample]:
    """Those that can be used, each with its group."""
    good, problems = [], []
    text = modality(text_modality()).extensions[0]
    for sample in _shown(samples, "checking"):
        try:
            fields = sample.fields()
        except ValueError as error:
            problems.append(f"{sample.place}: {error}")
            continue
        if sample.group is None:
            content = next((data for name, data in fields.items() if name not in ("json", text)), fields.get(text))
            sample.group = f"{position(content or fields['json'])}"
        good.append(sample)
    _report(problems, len(samples), skip_bad)
    return good


def _in_splits(samples: Sequence[RawSample], fractions: Sequence[float] | None) -> dict[str, list[RawSample]]:
    splits: dict[str, list[RawSample]] = {split: [] for split in SPLITS}
    wanted = set(SPLITS[: len(fractions)]) if fractions else {"train"}
    if fractions:
        groups = {str(sample.group) for sample in samples}
        chosen = by_fractions({group: position(group.encode()) for group in groups}, fractions)
    for sample in samples:
        splits[chosen[str(sample.group)] if fractions else sample.split or "train"].append(sample)
    if empty := [split for split in SPLITS if split in wanted and not splits[split]]:
        counts = ", ".join(f"{len(held)} for {split}" for split, held in splits.items() if held or split in wanted)
        raise ValueError(
            f"not enough samples: {counts}; there is nothing for {' and '.join(empty)}. Give more samples, more groups,"
            " or other fractions"
        )
    return {split: held for split, held in splits.items() if held}


def _mixed(samples: Sequence[RawSample]) -> Iterator[RawSample]:
    """Tables and folders are sorted by class or by image; neighbours in a shard should not be."""
    generator = random.Random(0)
    chunks: dict[int, list[RawSample]] = defaultdict(list)
    for sample in samples:
        chunks[sample.chunk].append(sample)
    order = list(chunks.values())
    generator.shuffle(order)
    for start in range(0, len(order), _OPEN):
        together = [sample for chunk in order[start : start + _OPEN] for sample in chunk]
        generator.shuffle(together)
        yield from together


def _about(splits: Mapping[str, Sequence[RawSample]]) -> dict[str, Any]:
    """What all manifests say: every class, of samples or pixels, or mean and deviation of the training targets."""
    everything = [sample for samples in splits.values() for sample in samples]
    if labels := {label for sample in everything for label in sample.labels or ()}:
        _warn_of_classes(splits)
        several = any(len(sample.labels or ()) > 1 for sample in everything)
        return {"classes": sorted(labels, key=_natural), "several_labels": several}
    if masks := [sample.mask for sample in everything if sample.mask]:
        return {"classes": class_names(masks)}
    if everything[0].targets:
        names = list(everything[0].targets)
        values = {name: [(sample.targets or {})[name] for sample in splits["train"]] for name in names}
        return {"targets": {name: {"mean": fmean(of), "std": pstdev(of)} for name, of in values.items()}}
    return {}


def _warn_of_classes(splits: Mapping[str, Sequence[RawSample]]) -> None:
    held = {split: Counter(label for s in samples for label in s.labels or ()) for split, samples in splits.items()}
    if unseen := sorted({label for split in held for label in held[split]} - set(held["train"]), key=_natural):
        print(f"warning: no training sample is in {_some(unseen)}, so this cannot be learned")
    for split in held:
        if unmeasured := sorted(held["train"].keys() - held[split].keys(), key=_natural):
            print(f"note: no sample for {split} is in {_some(unmeasured)}, so its scores say nothing of this")


def _described(about: Mapping[str, Any]) -> str:
    if "classes" in about:
        return f" in {len(about['classes'])} classes ({_some(about['classes'])})"
    return f" with {', '.join(about['targets'])}" if "targets" in about else ""


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f", … {len(names) - most} more" if len(names) > most else "")


def _natural(label: str) -> tuple[bool, int, str]:
    """A key that sorts whole numbers by their value, in front of words."""
    number = label.isascii() and label.isdigit()
    return (not number, int(label) if number else 0, label)


def _report(problems: Sequence[str], total: int, skip_bad: bool) -> None:
    if not problems:
        return
    shown = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
    rest = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    told = f"{len(problems)} of {total} samples cannot be used:{shown}{rest}"
    if not skip_bad:
        raise ValueError(f"{told}\nMend them, or leave them out with --skip-bad")
    print(f"left out: {told}")


def _shown(samples: Sequence[RawSample], what: str) -> Iterable[RawSample]:
    """A bar in a terminal, where it takes long."""
    console = Console(stderr=True)
    return track(samples, what, console=console, transient=True, disable=not sys.stderr.isatty())


def _train_tokenizer(captions: Sequence[str], folder: Path, vocab_size: int) -> SentencePieceTokenizer | None:
    if not captions:
        return None
    if folder.exists():
        print(f"{folder}: kept as it is; delete it first to have one trained on these captions")
        return None
    return SentencePieceTokenizer.train(captions, vocab_size)
