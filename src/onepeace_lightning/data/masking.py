"""Which positions of a sample are hidden from the students of the denoising objective (paper section 3.3).

A mask is a bool array over a modality's positions, True = hidden. Position 0 is CLS, and a text's last position is eos;
neither is ever hidden. Counts are exact, ``int`` rounding down: a tiny sample may have nothing hidden.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np

from onepeace_lightning.data.batch import DATA_TYPES

T = TypeVar("T")

Masks = dict[str, np.ndarray]
"""Modality name to its mask."""


@dataclass(frozen=True)
class MaskRatios:
    """How much is hidden. "Fused" is the student that sees both modalities of a pair together."""

    text: float = 0.15
    """Text alone: share of the words, rounded up."""
    fused_text_with_image: float = 0.4
    """Text beside an image: share of the tokens, CLS and eos not counted."""
    image: float = 0.75
    """Image alone: share of the patches."""
    fused_image: float = 0.6875
    """Image beside text: share of the patches."""
    audio: float = 0.55
    """Audio alone: share of the frames."""
    fused_audio: float = 0.45
    """Audio beside text: share of the frames."""
    fused_text_with_audio: float = 0.4
    """Text beside audio: share of the words, rounded up."""
    audio_span: int = 5
    """Frames hidden around each centre; odd."""
    audio_overdraw: float = 0.1
    """Added to an audio ratio when centres are drawn, because spans overlap."""

    def __post_init__(self) -> None:
        ratios = [entry.name for entry in fields(self) if entry.name not in ("audio_span", "audio_overdraw")]
        problems = [
            f"{name} is {getattr(self, name)}; expected a share from 0 to 1"
            for name in ratios
            if not 0 <= getattr(self, name) <= 1
        ]
        if self.audio_span < 1 or self.audio_span % 2 == 0:
            problems.append(f"audio_span is {self.audio_span}; expected an odd number of frames")
        if self.audio_overdraw < 0:
            problems.append(f"audio_overdraw is {self.audio_overdraw}; expected 0 or more")
        if problems:
            raise ValueError("mask ratios: " + ". ".join(problems))


PUBLISHED_RATIOS = MaskRatios()


def draw_masks(
    data_type: str,
    *,
    word_starts: Sequence[bool] | None = None,
    num_patches: int | None = None,
    num_frames: int | None = None,
    rng: np.random.Generator,
    ratios: MaskRatios = PUBLISHED_RATIOS,
) -> tuple[Masks, Masks]:
    """Draw all masks that one training sample needs.

    Args:
        data_type: one of ``DATA_TYPES``.
        word_starts: of the caption's tokens and eos, as an ``Encoding`` has them; needed where there is text.
        num_patches: patches of the image; needed where there is one.
        num_frames: audio frames; needed where there is a sound.
        rng: where the draws come from; the same state gives the same masks.
        ratios: how much to hide.

    Returns:
        The masks of the students that see one modality alone (none for text beside audio, whose only text loss is the
        fused one), and those of the fused student (empty unless the sample is a pair).

    Raises:
        ValueError: if the data type is unknown, or something it needs is missing or empty.
    """

    def need(value: T | None, name: str) -> T:
        if value is None:
            raise ValueError(f"masks of {data_type!r} samples need {name}; pass it to draw_masks")
        return value

    match data_type:
        case "text":
            return {"text": text_mask(need(word_starts, "word_starts"), rng, ratios.text)}, {}
        case "image":
            return {"image": image_mask(need(num_patches, "num_patches"), rng, ratios.image)}, {}
        case "audio":
            return {"audio": audio_mask(need(num_frames, "num_frames"), rng, ratios.audio, ratios)}, {}
        case "image-text":
            text = text_mask(need(word_starts, "word_starts"), rng, ratios.text)
            image = image_mask(need(num_patches, "num_patches"), rng, ratios.image)
            fused_text = fused_text_with_image_mask(text, rng, ratios.fused_text_with_image)
            fused_image = fused_image_mask(image, rng, ratios.fused_image)
            return {"text": text, "image": image}, {"text": fused_text, "image": fused_image}
        case "audio-text":
            starts, frames = need(word_starts, "word_starts"), need(num_frames, "num_frames")
            audio = audio_mask(frames, rng, ratios.audio, ratios)
            fused_text = text_mask(starts, rng, ratios.fused_text_with_audio)
            fused_audio = audio_mask(frames, rng, ratios.fused_audio, ratios)
            return {"audio": audio}, {"text": fused_text, "audio": fused_audio}
    raise ValueError(f"data type {data_type!r} has no masks; expected one of {', '.join(DATA_TYPES)}")


def text_mask(word_starts: Sequence[bool], rng: np.random.Generator, ratio: float) -> np.ndarray:
    """Hide ``ceil(ratio * words)`` whole words: text alone, and text beside audio.

    Args:
        word_starts: L flags, those of the tokens and of eos, which both begin with a word start.
        rng: where the draws come from.
        ratio: share of the words.

    Returns:
        (1 + L,) bool, over CLS, tokens, eos.

    Raises:
        ValueError: if there is no token before eos, or the first does not start a word.
    """
    starts = np.asarray(word_starts, dtype=bool)
    if len(starts) < 2 or not starts[0] or not starts[-1]:
        raise ValueError(
            f"word_starts is {list(word_starts)}; expected one flag for each token and one for eos, at least two, "
            "the first and last True, as Encoding.word_starts has them"
        )
    word_of_token = np.cumsum(starts[:-1]) - 1
    words = int(word_of_token[-1]) + 1
    hidden = rng.choice(words, math.ceil(ratio * words), replace=False)
    return np.concatenate([[False], np.isin(word_of_token, hidden), [False]])


def fused_text_with_image_mask(text_mask: np.ndarray, rng: np.random.Generator, ratio: float) -> np.ndarray:
    """Hide ``int(ratio * n)`` of a text's n tokens, first of all those that ``text_mask`` (1 + n + 1,) left visible."""
    return np.concatenate([[False], _draw_first_from(~text_mask[1:-1], rng, ratio), [False]])


def image_mask(num_patches: int, rng: np.random.Generator, ratio: float) -> np.ndarray:
    """Hide ``int(ratio * N)`` of N patches at random; gives (1 + N,) bool."""
    _check_size(num_patches, "num_patches")
    return np.concatenate([[False], _draw_first_from(np.ones(num_patches, dtype=bool), rng, ratio)])


def fused_image_mask(image_mask: np.ndarray, rng: np.random.Generator, ratio: float) -> np.ndarray:
    """Hide ``int(ratio * N)`` of N patches, first of all those that ``image_mask`` (1 + N,) left visible."""
    return np.concatenate([[False], _draw_first_from(~image_mask[1:], rng, ratio)])


def audio_mask(
    num_frames: int, rng: np.random.Generator, ratio: float, ratios: MaskRatios = PUBLISHED_RATIOS
) -> np.ndarray:
    """Hide ``int(ratio * F)`` of F frames, mostly in spans.

    Spans around centres drawn with replacement come first; single frames are then hidden or shown at random until the
    count is exact.

    Args:
        num_frames: F.
        rng: where the draws come from.
        ratio: share of the frames.
        ratios: gives ``audio_span`` and ``audio_overdraw``.

    Returns:
        (1 + F,) bool.

    Raises:
        ValueError: if there are no frames.
    """
    _check_size(num_frames, "num_frames")
    span = ratios.audio_span
    centres = rng.integers(num_frames, size=int(num_frames * (ratio + ratios.audio_overdraw) / span))
    around = np.arange(span) - span // 2
    mask = np.zeros(num_frames, dtype=bool)
    mask[np.clip(centres[:, None] + around, 0, num_frames - 1)] = True

    excess = int(mask.sum()) - int(ratio * num_frames)
    wrong = rng.choice(np.flatnonzero(mask == (excess > 0)), abs(excess), replace=False)
    mask[wrong] = excess < 0
    return np.concatenate([[False], mask])


def _draw_first_from(preferred: np.ndarray, rng: np.random.Generator, ratio: float) -> np.ndarray:
    """Mark ``int(ratio * n)`` of n places at random: the ``preferred`` (n,) first, others once those are used up."""
    order = rng.permutation(len(preferred))
    order = order[np.argsort(~preferred[order], kind="stable")]
    mask = np.zeros(len(preferred), dtype=bool)
    mask[order[: int(ratio * len(preferred))]] = True
    return mask


def _check_size(size: int, name: str) -> None:
    if size < 1:
        raise ValueError(f"{name} is {size}; expected at least 1")
