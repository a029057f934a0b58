"""What the toy versions of the downstream tasks are planned from: items, and the draws that fill them."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data_recipes.toy.images import PlacedIcon, place_icons
from data_recipes.toy.scenes import SceneThing, place_things
from data_recipes.toy.world import (
    COLOURS,
    COUNT_WORDS,
    SIZES,
    THINGS,
    Combination,
    Group,
    is_held_out,
    is_text_held_out,
)

COUNTS = tuple(COUNT_WORDS)
COLOUR_NAMES = tuple(COLOURS)
ASKED_THINGS = THINGS[:8]
"""What expressions, questions, statements and masks are about: that a word means what is seen must be learned for every
word by itself, and takes a tiny model thousands of examples each."""

TOLD_APART_THINGS, TOLD_APART_COLOURS = ASKED_THINGS[:4], COLOUR_NAMES[:4]
"""What expressions and statements are about: a box, or yes and no, teach words slower than answers that name things."""


@dataclass(frozen=True)
class Item:
    """One sample to be; made first, rendered by any process.

    Attributes:
        facts: the sample's ``json``: what its data type asks for, and what the images and the sound show.
        pictures: the icons of each image.
        sound: the groups that are heard.
        text: the question, statement or expression.
    """

    facts: dict[str, Any]
    pictures: tuple[Sequence[PlacedIcon], ...] = ()
    sound: Combination = ()
    text: str | None = None


@dataclass
class Draw:
    """What a plan draws from.

    Attributes:
        held_out: whether the items are for validation.
        image_side: side of the images in pixels.
        rng: of everything that is drawn.
        names: the things that may be drawn.
        colours: that they may have.
    """

    held_out: bool
    image_side: int
    rng: np.random.Generator
    names: Sequence[str] = THINGS
    colours: Sequence[str] = COLOUR_NAMES

    def one_of(self, values: Sequence[Any]) -> Any:
        """Any of some values."""
        return values[int(self.rng.integers(len(values)))]

    def shuffled(self, values: Sequence[Any]) -> list[Any]:
        """The values in any order."""
        return [values[index] for index in self.rng.permutation(len(values))]

    def balanced(self, values: Sequence[Any], count: int) -> list[Any]:
        """``count`` values in any order, each as often as every other, or once more."""
        return self.shuffled([values[index % len(values)] for index in range(count)])

    def things(self, count: int, without: Sequence[str] = ()) -> list[str]:
        """Different things, none of them ``without``."""
        return self.shuffled([thing for thing in self.names if thing not in without])[:count]

    def group(self, thing: str | None = None, count: int | None = None) -> Group:
        """Any group, or one of a thing or a count, that is together with some other on this side of the split."""
        while True:
            group = Group(count or self.one_of(COUNTS), self.one_of(SIZES), thing or self.one_of(self.names))
            others = itertools.product(COUNTS, SIZES, (name for name in self.names if name != group.thing))
            if any(is_held_out((group, Group(*other))) == self.held_out for other in others):
                return group

    def combination(
        self,
        *fixed: Group,
        numbers: Sequence[int] = (2,),
        without: Sequence[str] = (),
        counts: Sequence[int] = COUNTS,
    ) -> Combination:
        """Groups of different things, in any order, that are on this side of the split.

        Args:
            fixed: groups that must be among them.
            numbers: of groups; one of them.
            without: things that must not be among them.
            counts: that the other groups may have.
        """
        taken = [*without, *(group.thing for group in fixed)]
        while True:
            others = [
                Group(self.one_of(counts), self.one_of(SIZES), thing)
                for thing in self.things(self.one_of(numbers) - len(fixed), taken)
            ]
            groups = tuple(self.shuffled([*fixed, *others]))
            if is_held_out(groups) == self.held_out:
                return groups

    def picture(
        self, combination: Combination, known: dict[str, str] | None = None
    ) -> tuple[list[PlacedIcon], list[dict[str, Any]]]:
        """Lay groups out with colours drawn at random, except those ``known`` by thing.

        Returns:
            The icons, and what the metadata say of each group.
        """
        colours = [(known or {}).get(group.thing) or self.one_of(self.colours) for group in combination]
        icons = place_icons(combination, colours, self.image_side, self.rng)
        facts = [asdict(group) | {"colour": colour} for group, colour in zip(combination, colours, strict=True)]
        return icons, facts

    def scene(self, names: Callable[[], Sequence[str]]) -> list[SceneThing]:
        """Single things of any size and colour, anywhere, that are on this side of the split.

        Args:
            names: draws the things, until they are on this side.
        """
        while True:
            groups = tuple(Group(1, self.one_of(SIZES), name) for name in names())
            if is_held_out(groups) == self.held_out:
                things = [(group.size, self.one_of(self.colours), group.thing) for group in groups]
                return place_things(things, self.image_side, self.rng)

    def coloured_scene(self, names: Callable[[], Sequence[str]]) -> list[SceneThing]:
        """The same, where the side is of sizes, colours and things: few things make too few scenes without colours."""
        while True:
            things = [(self.one_of(SIZES), self.one_of(self.colours), name) for name in names()]
            if is_text_held_out(";".join(" ".join(thing) for thing in sorted(things))) == self.held_out:
                return place_things(things, self.image_side, self.rng)


def heard(combination: Combination) -> list[dict[str, Any]]:
    """What the metadata of a sound say of its groups."""
    return [asdict(group) for group in combination]


def count_word(count: int) -> str:
    """A number as a word: "one", not the article that captions have."""
    return "one" if count == 1 else COUNT_WORDS[count]
