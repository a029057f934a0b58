"""Which samples are for training, which for validation and which for testing."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import isclose

SPLITS = ("train", "val", "test")

_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip


def split_named(name: str) -> str | None:
    """The split that a name means, such as ``Validation`` or ``val-00000-of-00002.parquet``; None for none."""
    return _NAMES.get(re.split(r"[^a-z]", name.strip().lower(), maxsplit=1)[0])


def splits_named(names: Iterable[str]) -> dict[str, str] | None:
    """Names to the splits that they mean, where all of them mean one and one of them is for training; else None."""
    found = {name: split_named(name) for name in names}
    if None in found.values() or "train" not in found.values():
        return None
    return {name: split for name, split in found.items() if split is not None}


def parse_fractions(given: str) -> tuple[float, ...]:
    """``0.9,0.05,0.05`` as the fractions of training, validation and testing.

    Raises:
        ValueError: these are no two or three fractions that add up to 1.
    """
    try:
        fractions = tuple(float(part) for part in given.split(","))
    except ValueError:
        fractions = ()
    if not (2 <= len(fractions) <= 3 and all(0 < part < 1 for part in fractions) and isclose(sum(fractions), 1)):
        raise ValueError(
            f"split is {given!r}; give the fractions of training and validation, such as 0.9,0.1, or of training,"
            " validation and testing, such as 0.9,0.05,0.05: above 0, and 1 together"
        )
    return fractions


def position(content: bytes) -> float:
    """A number in [0, 1) that depends on some bytes alone."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) / 2**64


def by_fractions(positions: Mapping[str, float], fractions: Sequence[float]) -> dict[str, str]:
    """Groups to splits: those whose position is lowest are for testing, then validation, all others for training.

    A group keeps its split when others are added. Where this leaves a split empty (there are few groups) it gets the
    one that is nearest to it.

    Args:
        positions: group to its number in [0, 1).
        fractions: of training, validation and perhaps testing.
    """
    bounds, low = [], 0.0
    for split, fraction in reversed(list(zip(SPLITS, fractions, strict=False))):
        bounds.append((split, low, low + fraction))
        low += fraction
    chosen = {
        group: next((split for split, _, high in bounds if at < high), SPLITS[0]) for group, at in positions.items()
    }
    for split, low, high in bounds:
        held = Counter(chosen.values())
        spare = [group for group, own in chosen.items() if held[own] > 1]
        if split not in held and spare:
            middle = (low + high) / 2
            chosen[min(spare, key=lambda group: abs(positions[group] - middle))] = split
    return chosen
