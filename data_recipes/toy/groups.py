"""Plans of the toy tasks that name groups: classification of images and sounds, tagging, retrieval."""

import hashlib

from data_recipes.toy.items import COUNTS, Draw, Item, heard
from data_recipes.toy.world import SIZES, THINGS, Combination, Group, all_combinations, caption, is_held_out

CLASSES_RULE = (
    "of each thing's groups (count and size), the one whose sha256, as text, is least is held out; colours are "
    "not part of the rule, and pretraining may have seen that group"
)


def held_out_group(thing: str) -> Group:
    """The one group of a thing that is kept for validation of a classifier, so that all classes are validated."""
    groups = [Group(count, size, thing) for count in COUNTS for size in SIZES]
    return min(groups, key=lambda group: hashlib.sha256(f"{group.count} {group.size} {group.thing}".encode()).digest())


def image_classification(count: int, draw: Draw) -> list[Item]:
    """Images of one group; the class is its thing."""
    items = []
    for group in _single_groups(count, draw):
        icons, facts = draw.picture((group,))
        items.append(Item({"labels": [group.thing], "groups": facts}, (icons,)))
    return items


def audio_classification(count: int, draw: Draw) -> list[Item]:
    """Sounds of one group; the class is its thing."""
    return [
        Item({"labels": [group.thing], "groups": heard((group,))}, sound=(group,))
        for group in _single_groups(count, draw)
    ]


def _single_groups(count: int, draw: Draw) -> list[Group]:
    groups = []
    for thing in draw.balanced(THINGS, count):
        group = held_out = held_out_group(thing)
        while not draw.held_out and group == held_out:
            group = Group(draw.one_of(COUNTS), draw.one_of(SIZES), thing)
        groups.append(group)
    return groups


def audio_tagging(count: int, draw: Draw) -> list[Item]:
    """Sounds of two groups of different things; both are labels."""
    items = []
    for _ in range(count):
        groups = draw.combination()
        labels = [thing for thing in THINGS if thing in {group.thing for group in groups}]
        items.append(Item({"labels": labels, "groups": heard(groups)}, sound=groups))
    return items


def image_text_retrieval(count: int, draw: Draw) -> list[Item]:
    """Images with captions, with and without colours; of two groups also by where they stand."""
    items = []
    for groups in _distinct(count, draw):
        icons, facts = draw.picture(groups)
        colours = [fact["colour"] for fact in facts]
        captions = [caption(groups), caption(groups, colours)]
        if len(groups) == 2:
            plain = [caption((group,)) for group in groups]
            coloured = [caption((group,), [colour]) for group, colour in zip(groups, colours, strict=True)]
            captions += [f"{plain[0]} left of {plain[1]}", f"{coloured[1]} right of {coloured[0]}"]
        items.append(Item({"captions": captions, "groups": facts}, (icons,)))
    return items


def audio_text_retrieval(count: int, draw: Draw) -> list[Item]:
    """Sounds with captions; of two groups also by what comes when."""
    items = []
    for groups in _distinct(count, draw):
        captions = [caption(groups)]
        if len(groups) == 2:
            first, second = (caption((group,)) for group in groups)
            captions += [f"{first} then {second}", f"{second} after {first}"]
        items.append(Item({"captions": captions, "groups": heard(groups)}, sound=groups))
    return items


def _distinct(count: int, draw: Draw) -> list[Combination]:
    """Combinations on this side of the split, none twice."""
    known = [groups for groups in all_combinations() if is_held_out(groups) == draw.held_out]
    return draw.shuffled(known)[:count]
