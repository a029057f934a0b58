"""What the published scores were measured with, and how a run differs: only like scores may stand side by side."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from onepeace_lightning.checkpoints.released.published import PUBLISHED


@dataclass(frozen=True)
class Protocol:
    """How a published score was measured.

    Attributes:
        splits: name to number of samples, of the splits that it is of; one with 0 samples has no public answers.
        choices: settings of the run, any one of these: preprocessing as "modality.name", all others the task's.
    """

    splits: Mapping[str, int]
    choices: tuple[Mapping[str, Any], ...] = field(default=({},))

    def describe(self) -> str:
        """The protocol in a line."""
        splits = ", ".join(
            f"{name} of {count:,} samples" if count else f"{name}, whose answers are not public"
            for name, count in self.splits.items()
        )
        choices = " or ".join(
            ", ".join(f"{name} {_shown(value)}" for name, value in choice.items()) for choice in self.choices if choice
        )
        return f"{splits}; {choices}" if choices else splits


_SECONDS_15, _SECONDS_20 = {"audio.max_seconds": 15.0}, {"audio.max_seconds": 20.0, "ties": "published"}
_WORDS = {"image.size": 384, "text.max_words": 70}
_SCALES = tuple(side / 896 for side in range(384, 1153, 128))
PROTOCOLS = {
    "COCO": Protocol({"test": 5_000}, ({"image.size": 432, "ties": "published"},)),
    "COCO zero-shot": Protocol({"test": 5_000}, ({"image.size": 256, "ties": "published"},)),
    "Flickr30K": Protocol({"test": 1_000}, ({"image.size": 432, "ties": "published"},)),
    "Flickr30K zero-shot": Protocol({"test": 1_000}, ({"image.size": 256, "ties": "published"},)),
    "AudioCaps": Protocol({"test": 975}, (_SECONDS_20,)),
    "Clotho": Protocol({"test": 1_045}, (_SECONDS_20,)),
    "ESC-50 zero-shot": Protocol({"test": 2_000}, (_SECONDS_15 | {"prompts": ["This is a sound of {label}"]},)),
    "FSD50K": Protocol({"test": 10_231}, (_SECONDS_15,)),
    "VGGSound": Protocol({"test": 15_446}, (_SECONDS_15 | {"modalities": ["audio"]},)),
    "AVQA": Protocol({"val": 16_910}, (_SECONDS_15 | {"text.cleaning": "none", "text.truncate": False},)),
    "VQAv2": Protocol({"test-dev": 0, "test-std": 0}, ({"image.size": 768},)),
    "NLVR2": Protocol({"val": 6_982, "test": 6_967}, ({"image.size": 256},)),
    "RefCOCO": Protocol({"val": 10_834, "testA": 5_657, "testB": 5_095}, (_WORDS,)),
    "RefCOCO+": Protocol({"val": 10_758, "testA": 5_726, "testB": 4_889}, (_WORDS,)),
    "RefCOCOg": Protocol({"val": 4_896, "test": 9_602}, (_WORDS,)),
    "ImageNet-1k": Protocol(
        {"val": 50_000}, tuple({"image.size": side, "image.resize": "crop", "pooling": "mean"} for side in (384, 512))
    ),
    "Kinetics-400": Protocol(
        {"val": 0},
        tuple(
            {"video.size": 256, "video.frames": frames, "video.step": step, "video.clips": 3, "video.crops": 3}
            for frames, step in ((16, 8), (32, 4))
        ),
    ),
    "ADE20K": Protocol(
        {"val": 2_000},
        tuple(
            {"image.size": 896, "head": "published", "step": 512, "scales": scales, "flip": flip}
            for scales, flip in (((1.0,), False), (_SCALES, True))
        ),
    ),
    "COCO detection": Protocol({"val": 5_000}, ({"image.size": 1280},)),
}
"""Of the scores in ``PUBLISHED``; those that are not here have no file, and their protocol is not known."""
UNCOUNTED = ("Kinetics-400",)
"""Whose split everybody collects anew: its samples are not counted."""


def published_result(corpus: str, name: str, about: Mapping[str, Any], samples: int, run: Mapping[str, Any]) -> str:
    """The line with a published score that stands beside a run's.

    Args:
        corpus: a key of ``PUBLISHED``.
        name: the gallery's.
        about: what its manifest says; ``split`` is compared where it is there.
        samples: of the gallery.
        run: its settings by the names of ``Protocol.choices``; a name that is missing differs.
    """
    what = f"published for {corpus}"
    differences = list(_differences(corpus, about, samples, run))
    if not differences:
        return f"{what}, by the protocol of {name}: {PUBLISHED[corpus]}"
    return f"{what}, by another protocol than {name}'s: {PUBLISHED[corpus]} ({'; '.join(differences)})"


def names_compared() -> set[str]:
    """All settings that a protocol speaks of."""
    return {name for protocol in PROTOCOLS.values() for choice in protocol.choices for name in choice}


def _differences(corpus: str, about: Mapping[str, Any], samples: int, run: Mapping[str, Any]) -> Iterator[str]:
    protocol = PROTOCOLS.get(corpus)
    if protocol is None:
        yield "how it was measured is not known"
        return
    split = about.get("split")
    wanted = [count for name, count in protocol.splits.items() if split in (None, name)]
    if not wanted:
        yield f"the split is {split}, published {' and '.join(protocol.splits)}"
    elif corpus not in UNCOUNTED and samples not in wanted:
        counts = " or ".join(f"{count:,}" for count in wanted if count)
        yield f"{samples:,} samples, published {counts or 'without answers'}"
    apart = [[name for name, value in choice.items() if not _same(run.get(name), value)] for choice in protocol.choices]
    nearest = min(range(len(apart)), key=lambda index: len(apart[index]))
    for name in apart[nearest]:
        values = dict.fromkeys(_shown(choice[name]) for choice in protocol.choices if name in choice)
        yield f"{name} is {_shown(run.get(name))}, published {' or '.join(values)}"


def _same(ours: Any, published: Any) -> bool:
    if isinstance(published, tuple | list):
        same_length = isinstance(ours, tuple | list) and len(ours) == len(published)
        return same_length and all(_same(one, other) for one, other in zip(ours, published, strict=True))
    if isinstance(published, float) and isinstance(ours, int | float):
        return abs(ours - published) < 1e-3
    return bool(ours == published)


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_shown, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
