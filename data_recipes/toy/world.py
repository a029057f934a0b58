"""The toy world: which things there are, how they come in groups, what is said of them and what is held out.

A *group* is a count, a size and a thing ("three small bells"); a *combination* is one group or an ordered two. Images
show the groups from left to right, sounds play them one after the other, captions name them in that order.
"""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

THINGS = (
    "bell",
    "drum",
    "siren",
    "bird",
    "raincloud",
    "clock",
    "dog",
    "train",
    "frog",
    "guitar",
    "bee",
    "horn",
    "whistle",
    "cricket",
    "wave",
    "phone",
)
"""What both looks and sounds. Every plural is the name and an s."""

SIZES = ("small", "big")
"""Small is a small icon and a high pitch, big a big icon and a low pitch."""

COUNT_WORDS = {1: "a", 2: "two", 3: "three"}

COLOURS = {
    "red": (214, 40, 40),
    "green": (48, 160, 60),
    "blue": (40, 90, 215),
    "yellow": (242, 196, 15),
    "purple": (140, 50, 170),
    "orange": (245, 125, 20),
}
"""Name to RGB; images only, a sound has no colour."""

SPLIT_RULE = "sha256 of the combination's groups in sorted order, as text; held out where the digest is 0 modulo 10"


@dataclass(frozen=True, order=True)
class Group:
    """Some equal things: ``count`` (1 to 3) of one ``size`` and one ``thing``."""

    count: int
    size: str
    thing: str

    def __post_init__(self) -> None:
        for name, value, accepted in (
            ("count", self.count, tuple(COUNT_WORDS)),
            ("size", self.size, SIZES),
            ("thing", self.thing, THINGS),
        ):
            if value not in accepted:
                raise ValueError(f"the toy world has no {name} {value!r}: choose one of {accepted}")


Combination = tuple[Group, ...]
"""One group, or two that differ in size or thing, in the order of the caption."""


def all_combinations() -> list[Combination]:
    """Every combination of the world, in a fixed order: 96 of one group, 8 928 of two."""
    groups = [Group(*parts) for parts in itertools.product(COUNT_WORDS, SIZES, THINGS)]
    pairs = [(a, b) for a, b in itertools.permutations(groups, 2) if (a.size, a.thing) != (b.size, b.thing)]
    return [*((group,) for group in groups), *pairs]


def is_held_out(combination: Combination) -> bool:
    """Whether a combination is kept for validation: about one in ten, the same for every seed.

    The order of the groups does not matter, so (A, B) and (B, A) are held out together. Single groups are held out by
    the same rule; their count, size and thing are still seen in training, within pairs and in other single groups.
    """
    return is_text_held_out(";".join(f"{group.count} {group.size} {group.thing}" for group in sorted(combination)))


def is_text_held_out(text: str) -> bool:
    """The rule itself, for whatever a text says: one in ten."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big") % 10 == 0


def caption(combination: Combination, colours: Sequence[str] | None = None) -> str:
    """Say a combination, for instance "three small red bells and a big blue drum".

    Args:
        combination: the groups, in the order in which they are seen or heard.
        colours: one colour name a group, for an image; None for a sound.

    Raises:
        ValueError: if the number of colours is not the number of groups.
    """
    words = [""] * len(combination) if colours is None else [f"{colour} " for colour in colours]
    return " and ".join(
        f"{COUNT_WORDS[group.count]} {group.size} {colour}{group.thing}{'s' if group.count > 1 else ''}"
        for group, colour in zip(combination, words, strict=True)
    )
