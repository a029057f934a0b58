"""Plans of the toy tasks on scenes of single things: visual grounding, semantic segmentation, object detection."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from data_recipes.toy.items import ASKED_THINGS, Draw, Item
from data_recipes.toy.scenes import PLACES, RELATIONS, SceneThing, draw_mask, thing_mask
from onepeace_lightning.data.instances import encode_mask

SEGMENTATION_CLASSES = ("background", *ASKED_THINGS)

_TOLD_THINGS, _DESCRIBED_THINGS = (2, 3, 3), (2, 3)
"""How many things a scene of each half has; drawn evenly."""
_GROUNDING_RIVALS = (0, 1, 1, 1)
"""How many other things of a scene have the target's name; drawn evenly."""

_UNNAMED_SHARE = 1 / 3
"""Of the expressions: places are learned long before nouns."""

_SEGMENTATION_THINGS = (2, 3)
_DETECTION_THINGS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Expression:
    """What is said of one thing of a scene: its name if any, and any of size, colour, place and relation to another.

    A place is among the things that name, size and colour leave: "the big bird at the top" is the topmost big bird, and
    is not said where there is one big bird alone. Without a name it is "the big one at the top".
    """

    thing: str | None
    size: str | None = None
    colour: str | None = None
    place: str | None = None
    relation: tuple[str, str] | None = None

    def __str__(self) -> str:
        words = ["the", self.size, self.colour, self.thing or "one", self.place]
        if self.relation:
            words += [self.relation[0], "the", self.relation[1]]
        return " ".join(word for word in words if word)

    @property
    def form(self) -> tuple[bool, ...]:
        """Which parts it has."""
        return tuple(part is not None for part in (self.thing, self.size, self.colour, self.place, self.relation))

    def meant(self, scene: list[SceneThing]) -> list[SceneThing]:
        """The things of a scene that the expression fits."""
        left = [
            one
            for one in scene
            if self.thing in (None, one.thing) and self.size in (None, one.size) and self.colour in (None, one.colour)
        ]
        if self.place:
            stands = RELATIONS[PLACES[self.place]]
            rivals = len(left) > 1
            left = [one for one in left if rivals and all(stands(one, other) for other in left if other is not one)]
        if self.relation:
            (other,) = (other for other in scene if other.thing == self.relation[1])
            left = [one for one in left if RELATIONS[self.relation[0]](one, other)]
        return left


def visual_grounding(count: int, draw: Draw) -> list[Item]:
    """Scenes with an expression that fits one thing of them, the target, alone.

    Half of them say anything (``told_apart``), which places and relations alone mostly decide. The other half describe:
    where name, size and colour all fit the target, a model that has learned one of them learns the others from it.
    """
    described = _grounded(count // 2, draw, _DESCRIBED_THINGS, _descriptions)
    return draw.shuffled([*told_apart(count - len(described), draw), *described])


def told_apart(count: int, draw: Draw) -> list[Item]:
    """Scenes with an expression of any form that fits the target alone."""
    return _grounded(
        count, draw, _TOLD_THINGS, lambda scene: _expressions(scene, named=draw.rng.random() >= _UNNAMED_SHARE)
    )


def _grounded(
    count: int, draw: Draw, numbers: Sequence[int], say: Callable[[list[SceneThing]], Iterable[Expression]]
) -> list[Item]:
    """Scenes of some number of things, with what is said of the first of them and fits it alone."""
    items: list[Item] = []
    while len(items) < count:
        scene = draw.coloured_scene(lambda: _target_and_others(draw, numbers))
        # The forms that fit come evenly, so that the rare ones are learned too.
        forms: dict[tuple[bool, ...], list[Expression]] = {}
        for expression in say(scene):
            if expression.meant(scene) == [scene[0]]:
                forms.setdefault(expression.form, []).append(expression)
        if not forms:
            continue
        text = str(draw.one_of(draw.one_of(list(forms.values()))))
        facts = {"box": list(scene[0].box), "things": [one.describe() for one in scene]}
        items.append(Item(facts, ([one.icon for one in scene],), text=text))
    return items


def _target_and_others(draw: Draw, numbers: Sequence[int]) -> list[str]:
    """Names for a scene; the first is the target's."""
    target, number = draw.one_of(draw.names), draw.one_of(numbers)
    same = 1 + min(draw.one_of(_GROUNDING_RIVALS), number - 2)
    return [target] * same + draw.things(number - same, [target])


def _descriptions(scene: list[SceneThing]) -> Iterator[Expression]:
    """Name, size and colour of the first thing of a scene, or any of them."""
    target = scene[0]
    for thing, size, colour in product((None, target.thing), (None, target.size), (None, target.colour)):
        yield Expression(thing, size, colour)


def _expressions(scene: list[SceneThing], *, named: bool) -> Iterator[Expression]:
    """What may be said of the first thing of a scene, in at most two parts beside its name, if it is named."""
    target = scene[0]
    noun = target.thing if named else None
    names = [one.thing for one in scene]
    anchors = [name for name in names if name != target.thing and names.count(name) == 1]
    relations = [(words, name) for name in anchors for words in RELATIONS]
    for size, colour in ((None, None), (target.size, None), (None, target.colour)):
        yield Expression(noun, size, colour)
        for place in PLACES:
            yield Expression(noun, size, colour, place)
        for relation in relations:
            yield Expression(noun, size, colour, relation=relation)


def semantic_segmentation(count: int, draw: Draw) -> list[Item]:
    """Scenes of different things; each pixel's class is the thing whose ink it shows."""
    items = []
    for _ in range(count):
        scene = draw.scene(lambda: draw.things(draw.one_of(_SEGMENTATION_THINGS)))
        icons = [one.icon for one in scene]
        ink = float((draw_mask(icons, SEGMENTATION_CLASSES, draw.image_side) > 0).mean())
        items.append(Item({"things": [one.describe() for one in scene], "ink": round(ink, 4)}, (icons,)))
    return items


def object_detection(count: int, draw: Draw) -> list[Item]:
    """Scenes of different things, each an instance with the box and the mask of its ink."""
    items = []
    for _ in range(count):
        scene = draw.scene(lambda: draw.things(draw.one_of(_DETECTION_THINGS)))
        instances = []
        for one in scene:
            mask = thing_mask(one.icon, draw.image_side)
            instances.append({"label": one.thing, "box": list(one.box), "mask": encode_mask(mask)})
        facts = {"things": [one.describe() for one in scene], "instances": instances}
        items.append(Item(facts, ([one.icon for one in scene],)))
    return items
