"""Plans of the toy tasks that ask or state: questions about a picture or a sound, statements about two pictures.

What is asked, and about what, is drawn before the right answer, and the answer evenly: the words alone tell nothing.
"""

from collections.abc import Callable
from itertools import product

from data_recipes.toy_scenes import RELATIONS
from data_recipes.toy_tasks_items import ASKED_THINGS, COLOUR_NAMES, COUNTS, Draw, Item, count_word, heard
from data_recipes.toy_world import SIZES, Combination, Group

ANSWERS = (*(str(count) for count in COUNTS), *COLOUR_NAMES, *ASKED_THINGS, "yes", "no")
"""Everything that a question about a picture can be answered with."""

STATEMENT_CLASSES = ("True", "False")

_CHOICES = 4
_SIDES = ("left", "right")
_GROUPS = (1, 2)
"""In pictures of which a thing is named; where there is one group, the word is learned without having to choose."""


def visual_question_answering(count: int, draw: Draw) -> list[Item]:
    """Questions about pictures of one or two groups or of three single things; one right answer each."""
    return [ask(draw) for ask in draw.balanced(_QUESTIONS, count)]


def _how_many(draw: Draw) -> Item:
    group = _any_group(draw)
    groups = draw.combination(group, numbers=_GROUPS)
    return _about_groups(f"how many {group.thing}s are there?", str(group.count), groups, draw)


def _what_colour(draw: Draw) -> Item:
    group, colour = _any_group(draw), draw.one_of(COLOUR_NAMES)
    subject = f"is the {group.thing}" if group.count == 1 else f"are the {group.thing}s"
    groups = draw.combination(group, numbers=_GROUPS)
    return _about_groups(f"what colour {subject}?", colour, groups, draw, known={group.thing: colour})


def _is_there(draw: Draw) -> Item:
    thing, answer = draw.one_of(draw.names), draw.one_of(("yes", "no"))
    if answer == "yes":
        groups = draw.combination(Group(draw.one_of(COUNTS), draw.one_of(SIZES), thing), numbers=_GROUPS)
    else:
        groups = draw.combination(without=[thing], numbers=_GROUPS)
    return _about_groups(f"is there a {thing}?", answer, groups, draw)


def _what_is_there(draw: Draw) -> Item:
    groups = draw.combination(numbers=(1,))
    return _about_groups("what is there?", groups[0].thing, groups, draw)


def _on_which_side(draw: Draw) -> Item:
    groups, side = draw.combination(), draw.one_of((0, 1))
    return _about_groups(f"what is on the {_SIDES[side]}?", groups[side].thing, groups, draw)


def _what_is_beside(draw: Draw) -> Item:
    """About a thing that has one of the two others on each side of it."""
    words = draw.one_of(list(RELATIONS))
    scene = draw.scene(lambda: draw.things(3))
    order = sorted(scene, key=lambda one: one.x if words in ("left of", "right of") else one.y)
    middle = order[1]
    (answer,) = (one.thing for one in scene if one is not middle and RELATIONS[words](one, middle))
    facts = {"answers": {answer: 1.0}, "things": [one.describe() for one in scene]}
    return Item(facts, ([one.icon for one in scene],), text=f"what is {words} the {middle.thing}?")


_QUESTIONS: tuple[Callable[[Draw], Item], ...] = (
    _how_many,
    _what_colour,
    _is_there,
    _what_is_there,
    _on_which_side,
    _what_is_beside,
)


def _any_group(draw: Draw) -> Group:
    return Group(draw.one_of(COUNTS), draw.one_of(SIZES), draw.one_of(draw.names))


def _about_groups(
    question: str, answer: str, groups: Combination, draw: Draw, known: dict[str, str] | None = None
) -> Item:
    icons, facts = draw.picture(groups, known)
    return Item({"answers": {answer: 1.0}, "groups": facts}, (icons,), text=question)


def visual_reasoning(count: int, draw: Draw) -> list[Item]:
    """Statements about two pictures of one or two groups each; half of the statements of each form are true."""
    kinds = product(_STATEMENTS, _SUBJECTS, (True, False))
    return [state(true, *about(draw), draw) for state, about, true in draw.balanced(list(kinds), count)]


Shown = tuple[Combination, dict[str, str]]
"""The groups of a picture, and the colours of those whose colour is not left to chance."""

Drawing = Callable[[bool], Shown]
"""Draws a picture that has what is spoken of, or one that lacks it."""


def _something_coloured(draw: Draw) -> tuple[str, Drawing]:
    """No thing is named: colours are learned long before nouns, and with them what is said of pictures."""
    colour, *others = draw.shuffled(COLOUR_NAMES)

    def picture(has: bool) -> Shown:
        groups = draw.combination(numbers=_GROUPS)
        colours = {group.thing: draw.one_of(others) for group in groups}
        return groups, colours | {draw.one_of(groups).thing: colour} if has else colours

    return f"something {colour}", picture


def _thing(draw: Draw) -> tuple[str, Drawing]:
    thing = draw.one_of(draw.names)

    def picture(has: bool) -> Shown:
        return _with(thing, draw.one_of(COUNTS), draw) if has else _without(thing, draw), {}

    return f"a {thing}", picture


def _so_many(draw: Draw) -> tuple[str, Drawing]:
    group = _any_group(draw)
    others = [count for count in COUNTS if count != group.count]

    def picture(has: bool) -> Shown:
        if has:
            return _with(group.thing, group.count, draw), {}
        other = draw.one_of((True, False))
        return _with(group.thing, draw.one_of(others), draw) if other else _without(group.thing, draw), {}

    return f"{count_word(group.count)} {group.thing}{'s' if group.count > 1 else ''}", picture


def _coloured_things(draw: Draw) -> tuple[str, Drawing]:
    thing, (colour, *others) = draw.one_of(draw.names), draw.shuffled(COLOUR_NAMES)

    def picture(has: bool) -> Shown:
        return _with(thing, draw.one_of(COUNTS[1:]), draw), {thing: colour if has else draw.one_of(others)}

    return f"{colour} {thing}s", picture


_SUBJECTS: tuple[Callable[[Draw], tuple[str, Drawing]], ...] = (_something_coloured, _thing, _so_many, _coloured_things)


# What one picture shows tells something of the truth by itself. Where it tells nothing without the other picture, as in
# "only one picture has a bell", small models do not begin to learn.


def _one_side_has(true: bool, words: str, picture: Drawing, draw: Draw) -> Item:
    stated, other = picture(true), picture(draw.one_of((True, False)))
    side = draw.one_of((0, 1))
    shown = [other, stated] if side else [stated, other]
    return _statement(f"the {_SIDES[side]} picture has {words}", true, shown, draw)


def _both_have(true: bool, words: str, picture: Drawing, draw: Draw) -> Item:
    have = (True, True) if true else draw.one_of(((True, False), (False, True), (False, False)))
    return _statement(f"both pictures have {words}", true, [picture(has) for has in have], draw)


def _none_has(true: bool, words: str, picture: Drawing, draw: Draw) -> Item:
    have = (False, False) if true else draw.one_of(((True, False), (False, True), (True, True)))
    return _statement(f"no picture has {words}", true, [picture(has) for has in have], draw)


_STATEMENTS: tuple[Callable[[bool, str, Drawing, Draw], Item], ...] = (_one_side_has, _both_have, _none_has)


def _with(thing: str, count: int, draw: Draw) -> Combination:
    return draw.combination(Group(count, draw.one_of(SIZES), thing), numbers=_GROUPS)


def _without(thing: str, draw: Draw) -> Combination:
    return draw.combination(without=[thing], numbers=_GROUPS)


def _statement(text: str, true: bool, pictures: list[Shown], draw: Draw) -> Item:
    (left, left_facts), (right, right_facts) = (draw.picture(*shown) for shown in pictures)
    facts = {"labels": [str(true)], "groups": left_facts, "second_groups": right_facts}
    return Item(facts, (left, right), text=text)


def audio_question_answering(count: int, draw: Draw) -> list[Item]:
    """Questions about sounds, each with four different choices, of which each is right equally often."""
    asks = draw.balanced([(ask, place) for ask in _SOUND_QUESTIONS for place in range(_CHOICES)], count)
    return [ask(place, draw) for ask, place in asks]


def _at_which_end(words: str, end: int) -> Callable[[int, Draw], Item]:
    def ask(place: int, draw: Draw) -> Item:
        groups = _sequence(draw.one_of((2, 3)), draw)
        right = groups[end].thing
        others = [group.thing for group in groups if group.thing != right]
        return _choose(f"what sounds {words}?", right, others, place, groups, draw)

    return ask


def _next_to(words: str, step: int) -> Callable[[int, Draw], Item]:
    """Of three sounds: the third is a choice too, the one that is named is not."""

    def ask(place: int, draw: Draw) -> Item:
        groups = _sequence(3, draw)
        right, named = draw.one_of([(groups[i], groups[i - step]) for i in range(3) if 0 <= i - step < 3])
        others = [group.thing for group in groups if group not in (right, named)]
        question = f"what sounds right {words} the {named.thing}?"
        return _choose(question, right.thing, others, place, groups, draw, without=[named.thing])

    return ask


def _how_many_times(place: int, draw: Draw) -> Item:
    group = _any_group(draw)
    others = [count_word(count) for count in COUNTS if count != group.count]
    question = f"how many times does the {group.thing} sound?"
    return _choose(question, count_word(group.count), others, place, draw.combination(group), draw)


_SOUND_QUESTIONS: tuple[Callable[[int, Draw], Item], ...] = (
    _at_which_end("first", 0),
    _at_which_end("last", -1),
    _next_to("after", 1),
    _next_to("before", -1),
    _how_many_times,
)


def _sequence(number: int, draw: Draw) -> Combination:
    """Groups that one clip has time for: of three, none has more than two sounds."""
    return draw.combination(numbers=(number,), counts=COUNTS if number == 2 else COUNTS[:2])


def _choose(
    question: str,
    right: str,
    wrong: list[str],
    place: int,
    groups: Combination,
    draw: Draw,
    without: tuple[str, ...] | list[str] = (),
) -> Item:
    """A question with the right choice at a place; things that are not heard fill the choices up."""
    absent = draw.things(_CHOICES, [*without, *(group.thing for group in groups)])
    choices = draw.shuffled([*wrong, *absent][: _CHOICES - 1])
    choices.insert(place, right)
    return Item({"choices": choices, "answer": place, "groups": heard(groups)}, sound=groups, text=question)
