"""Plans of the toy tasks on an image and a recording together, which neither answers alone."""

from typing import Any

from data_recipes.toy.items import Draw, Item, heard
from data_recipes.toy.world import Combination

QUESTIONS = (
    "what is both seen and heard?",
    "what is seen and not heard?",
    "what is heard and not seen?",
)
"""Each has an answer of its own among a sample's three things; a fourth, absent thing is a choice too."""


def audio_visual_classification(count: int, draw: Draw) -> list[Item]:
    """Images and recordings of two groups each; the class is the one thing that is both seen and heard."""
    items = []
    for thing in draw.balanced(draw.names, count):
        seen, sounding = _sharing(thing, draw)
        items.append(_item({"labels": [thing]}, seen, sounding, draw))
    return items


def audio_visual_question_answering(count: int, draw: Draw) -> list[Item]:
    """Questions about both, each with four different choices, of which each is right equally often."""
    items = []
    for index, place in draw.balanced([(i, place) for i in range(len(QUESTIONS)) for place in range(4)], count):
        both = draw.one_of(draw.names)
        seen, sounding = _sharing(both, draw)
        things = [both, _other(seen, both), _other(sounding, both)]
        right = things[index]
        choices = draw.shuffled([*(thing for thing in things if thing != right), *draw.things(1, things)])
        choices.insert(place, right)
        items.append(_item({"choices": choices, "answer": place}, seen, sounding, draw, QUESTIONS[index]))
    return items


def _sharing(thing: str, draw: Draw) -> tuple[Combination, Combination]:
    """What is seen and what is heard: two groups each, which have this thing alone in common."""
    seen = draw.combination(draw.group(thing))
    while True:
        sounding = draw.combination(draw.group(thing))
        if _other(sounding, thing) != _other(seen, thing):
            return seen, sounding


def _other(groups: Combination, thing: str) -> str:
    return next(group.thing for group in groups if group.thing != thing)


def _item(facts: dict[str, Any], seen: Combination, sounding: Combination, draw: Draw, text: str | None = None) -> Item:
    icons, groups = draw.picture(seen)
    return Item({**facts, "groups": groups, "second_groups": heard(sounding)}, (icons,), sounding, text)
