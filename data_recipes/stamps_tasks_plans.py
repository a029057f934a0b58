"""Questions, expressions and labels about scenes of stamps.

Each plan takes the stamps of one side of the split and makes a number of samples: what is to be known about them (an
``Item``) and their files.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_recipes.stamps_tasks_scenes import (
    CATEGORIES,
    Cutout,
    PlacedStamp,
    class_mask,
    draw_scene,
    encode_mask,
    place_stamps,
)
from data_recipes.toy_scenes import PLACES, RELATIONS
from data_recipes.toy_tasks_items import Item

SEGMENTATION_CLASSES = ("background", *CATEGORIES)

_COUNTS = (1, 2, 3, 4)
_ONE = {category: words[0] for category, words in CATEGORIES.items()}
_SEVERAL = {category: words[1] for category, words in CATEGORIES.items()}

ANSWERS = (*(str(count) for count in _COUNTS), *_ONE.values(), "yes", "no")
"""Everything that a question about a scene can be answered with."""

HOW_MANY, IS_THERE = "how many {} are there?", "is there a {}?"
WHAT_IS_AT, WHAT_IS_BESIDE = "what is {}?", "what is {} the {}?"

Sample = tuple[Item, dict[str, bytes]]


def sentences() -> Iterator[str]:
    """What is asked and said of categories, for a vocabulary that has its words."""
    yield from (WHAT_IS_AT.format(place) for place in PLACES)
    for category, one in _ONE.items():
        yield from (HOW_MANY.format(_SEVERAL[category]), IS_THERE.format(one))
        yield from (f"the {one} {place}" for place in PLACES)
        for words in RELATIONS:
            yield WHAT_IS_BESIDE.format(words, one)
            yield from (f"the {one} {words} the {other}" for other in _ONE.values() if other != one)


@dataclass
class Draw:
    """What a plan draws from: the stamps of one side of the split by category, the scenes' side in pixels, chance."""

    cutouts: dict[str, list[Cutout]]
    side: int
    rng: np.random.Generator

    def one_of(self, values: Sequence[Any]) -> Any:
        """Any of some values."""
        return values[int(self.rng.integers(len(values)))]

    def categories(self, count: int, without: Sequence[str] = ()) -> list[str]:
        """Different categories, none of them ``without``."""
        known = [category for category in self.cutouts if category not in without]
        return [known[index] for index in self.rng.permutation(len(known))[:count]]

    def scene(self, categories: Sequence[str]) -> list[PlacedStamp]:
        """Any stamps of these categories, anywhere."""
        return place_stamps([self.one_of(self.cutouts[category]) for category in categories], self.side, self.rng)

    def sample(self, scene: list[PlacedStamp], facts: dict[str, Any], text: str | None = None) -> Sample:
        """A scene with what is known about it, drawn."""
        item = Item({**facts, "things": [placed.describe() for placed in scene]}, text=text)
        fields = {"png": draw_scene(scene, self.side, self.rng), "json": json.dumps(item.facts).encode()}
        return item, fields if text is None else {**fields, "txt": text.encode()}


def visual_grounding(count: int, draw: Draw) -> Iterator[Sample]:
    """Scenes with an expression that fits one stamp alone, by its noun or its category."""
    made = 0
    while made < count:
        # Half of the scenes have a rival of the target's category.
        target = draw.one_of(list(draw.cutouts))
        number = draw.one_of((3, 4))
        names = [target] * draw.one_of((1, 2))
        scene = draw.scene([*names, *draw.categories(number - len(names), [target])])
        forms = [form for form in _expressions(scene) if form]
        if forms:
            made += 1
            yield draw.sample(scene, {"box": list(scene[0].box)}, draw.one_of(draw.one_of(forms)))


def _expressions(scene: list[PlacedStamp]) -> list[list[str]]:
    """What fits the first stamp of a scene alone: by noun, by category, by place, by relation."""
    target, others = scene[0], scene[1:]
    kind = _ONE[target.cutout.category]
    rivals = [other for other in others if other.cutout.category == target.cutout.category]
    noun = _own_noun(target, scene)
    by_noun = [f"the {noun}"] if noun else []
    by_kind = [] if rivals else [f"the {kind}"]
    by_place = [
        f"the {kind} {place}"
        for place, words in PLACES.items()
        if rivals and all(RELATIONS[words](target, rival) for rival in rivals)
    ]
    by_relation = [
        f"the {kind} {words} the {_own_noun(other, scene) or _ONE[other.cutout.category]}"
        for other in others
        if other not in rivals
        for words, stands in RELATIONS.items()
        if stands(target, other) and not any(stands(rival, other) for rival in rivals)
    ]
    return [by_noun, by_kind, by_place, by_relation]


def _own_noun(placed: PlacedStamp, scene: list[PlacedStamp]) -> str | None:
    """The noun of a stamp, unless another of its category may go by it too."""
    noun = placed.cutout.noun
    rivals = [one for one in scene if one is not placed and one.cutout.category == placed.cutout.category]
    others = [one.cutout.noun for one in rivals]
    return None if noun is None or any(other is None or f" {other}".endswith(f" {noun}") for other in others) else noun


def semantic_segmentation(count: int, draw: Draw) -> Iterator[Sample]:
    """Scenes of stamps; each pixel's class is the category of what it shows."""
    for _ in range(count):
        scene = draw.scene(draw.categories(draw.one_of((2, 3, 4))))
        mask = class_mask(scene, SEGMENTATION_CLASSES, draw.side)
        item, fields = draw.sample(scene, {"ink": round(float((mask > 0).mean()), 4)})
        yield item, {**fields, "mask.png": encode_mask(mask)}


def visual_question_answering(count: int, draw: Draw) -> Iterator[Sample]:
    """How many, whether there is one, what is where; what is asked is drawn first, then the answer, evenly."""
    for index in range(count):
        yield _QUESTIONS[index % len(_QUESTIONS)](draw)


def _how_many(draw: Draw) -> Sample:
    (asked,) = draw.categories(1)
    count = draw.one_of(_COUNTS)
    others = draw.categories(int(draw.rng.integers(0, _COUNTS[-1] + 1 - count)), [asked])
    scene = draw.scene([asked] * count + others)
    return draw.sample(scene, {"answers": {str(count): 1.0}}, HOW_MANY.format(_SEVERAL[asked]))


def _is_there(draw: Draw) -> Sample:
    (asked,), answer = draw.categories(1), draw.one_of(("yes", "no"))
    number = draw.one_of((2, 3, 4))
    shown = [asked] * (answer == "yes")
    scene = draw.scene([*shown, *draw.categories(number - len(shown), [asked])])
    return draw.sample(scene, {"answers": {answer: 1.0}}, IS_THERE.format(_ONE[asked]))


def _what_is_beside(draw: Draw) -> Sample:
    """About the stamp that has one of the two others on each side of it."""
    words = draw.one_of(list(RELATIONS))
    scene = draw.scene(draw.categories(3))
    middle = sorted(scene, key=lambda placed: placed.x if words in ("left of", "right of") else placed.y)[1]
    (answer,) = (other for other in scene if other is not middle and RELATIONS[words](other, middle))
    facts = {"answers": {_ONE[answer.cutout.category]: 1.0}}
    return draw.sample(scene, facts, WHAT_IS_BESIDE.format(words, _ONE[middle.cutout.category]))


def _what_is_at(draw: Draw) -> Sample:
    place = draw.one_of(list(PLACES))
    scene = draw.scene(draw.categories(draw.one_of((2, 3, 4))))
    stands = RELATIONS[PLACES[place]]
    (answer,) = (one for one in scene if all(stands(one, other) for other in scene if other is not one))
    return draw.sample(scene, {"answers": {_ONE[answer.cutout.category]: 1.0}}, WHAT_IS_AT.format(place))


_QUESTIONS = (_how_many, _is_there, _what_is_beside, _what_is_at)
