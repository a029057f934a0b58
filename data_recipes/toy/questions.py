"""Plans of the toy tasks that ask or state: questions about an image or a sound, statements about two images.

What is asked, and about what, is drawn before the right answer, and the answer evenly: the words alone tell nothing.
"""

from collections.abc import Callable, Sequence

from data_recipes.toy.items import ASKED_THINGS, COLOUR_NAMES, COUNTS, Draw, Item, count_word, heard
from data_recipes.toy.scenes import RELATIONS
from data_recipes.toy.world import Combination

ANSWERS = (*(str(count) for count in COUNTS), *COLOUR_NAMES, *ASKED_THINGS, "yes", "no")
"""Everything that a question about an image can be answered with."""

STATEMENT_CLASSES = ("True", "False")

_CHOICES = 4
_SIDES = ("left", "right")
_GROUPS = (1, 2)
"""In images of which a thing is named; where there is one group, the word is learned without having to choose."""


def visual_question_answering(count: int, draw: Draw) -> list[Item]:
    """Questions about images of one or two groups or of three single things; one right answer each."""
    return [ask(draw) for ask in draw.balanced(_QUESTIONS, count)]


def _how_many(draw: Draw) -> Item:
    group = draw.group()
    groups = draw.combination(group, numbers=_GROUPS)
    return _about_groups(f"how many {group.thing}s are there?", str(group.count), groups, draw)


def _what_colour(draw: Draw) -> Item:
    group, colour = draw.group(), draw.one_of(draw.colours)
    subject = f"is the {group.thing}" if group.count == 1 else f"are the {group.thing}s"
    groups = draw.combination(group, numbers=_GROUPS)
    return _about_groups(f"what colour {subject}?", colour, groups, draw, known={group.thing: colour})


def _is_there(draw: Draw) -> Item:
    thing, answer = draw.one_of(draw.names), draw.one_of(("yes", "no"))
    if answer == "yes":
        groups = draw.combination(draw.group(thing), numbers=_GROUPS)
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


def _about_groups(
    question: str, answer: str, groups: Combination, draw: Draw, known: dict[str, str] | None = None
) -> Item:
    icons, facts = draw.picture(groups, known)
    return Item({"answers": {answer: 1.0}, "groups": facts}, (icons,), text=question)


def visual_reasoning(count: int, draw: Draw) -> list[Item]:
    """Statements about two images of one or two groups each; half of the statements of each form are true."""
    forms = draw.balanced([(state, true) for state in _STATEMENTS for true in (True, False)], count)
    return [state(true, draw) for state, true in forms]


def _one_side_has_more_things(true: bool, draw: Draw) -> Item:
    side = draw.one_of((0, 1))
    while True:
        pictures = [draw.combination(numbers=_GROUPS) for _ in _SIDES]
        if _has_more([sum(group.count for group in groups) for groups in pictures], side) is true:
            break
    return _statement(f"{_side(side)} has more things than {_side(1 - side)}", true, pictures, draw)


def _one_side_has_more(true: bool, draw: Draw) -> Item:
    thing, side = draw.one_of(draw.names), draw.one_of((0, 1))
    few, many = sorted(draw.shuffled((0, *COUNTS))[:2])
    counts = (many, few) if true == (side == 0) else (few, many)
    pictures = [_with(thing, count, draw) for count in counts]
    return _statement(f"{_side(side)} has more {thing}s than {_side(1 - side)}", true, pictures, draw)


def _one_side_has_more_coloured(true: bool, draw: Draw) -> Item:
    colour, side = draw.one_of(draw.colours), draw.one_of((0, 1))
    others = [name for name in draw.colours if name != colour]
    while True:
        pictures = [draw.combination(numbers=_GROUPS) for _ in _SIDES]
        colours = [{group.thing: draw.one_of((colour, colour, draw.one_of(others))) for group in groups}
                   for groups in pictures]  # fmt: skip
        numbers = [sum(group.count for group in groups if known[group.thing] == colour)
                   for groups, known in zip(pictures, colours, strict=True)]  # fmt: skip
        if _has_more(numbers, side) is true:
            break
    text = f"{_side(side)} has more {colour} things than {_side(1 - side)}"
    return _statement(text, true, pictures, draw, colours)


def _one_side_has(true: bool, draw: Draw) -> Item:
    thing, side = draw.one_of(draw.names), draw.one_of((0, 1))
    pictures = [_with_or_without(thing, has, draw) for has in _who_has(true, side, draw)]
    return _statement(f"{_side(side)} has {thing}s", true, pictures, draw)


def _one_side_has_colour(true: bool, draw: Draw) -> Item:
    side, colour = draw.one_of((0, 1)), draw.one_of(draw.colours)
    pictures = [draw.combination(numbers=_GROUPS) for _ in _SIDES]
    colours = _with_or_without_colour(pictures, colour, _who_has(true, side, draw), draw)
    return _statement(f"{_side(side)} has something {colour}", true, pictures, draw, colours)


def _both_have(true: bool, draw: Draw) -> Item:
    thing = draw.one_of(draw.names)
    who = (True, True) if true else draw.one_of(((True, False), (False, True), (False, False)))
    return _statement(f"both pictures have {thing}s", true, [_with_or_without(thing, has, draw) for has in who], draw)


_STATEMENTS: tuple[Callable[[bool, Draw], Item], ...] = (
    # Half of them compare. Where one image has more of a thing or colour, it mostly has more things too: a model that
    # counts is often right and learns from where it is not. With nothing like it, the other half stays at chance.
    _one_side_has_more_things,
    _one_side_has_more,
    _one_side_has_more_coloured,
    _one_side_has,
    _one_side_has_colour,
    _both_have,
)


def _side(side: int) -> str:
    return f"the {_SIDES[side]} picture"


def _has_more(numbers: Sequence[int], side: int) -> bool | None:
    """Whether the image on a side has more than the other; None where both have as many."""
    here, there = numbers[side], numbers[1 - side]
    return None if here == there else here > there


def _who_has(true: bool, side: int, draw: Draw) -> list[bool]:
    """Whether each image has what is stated of the one on a side.

    The other has it half of the times, whatever is true. Were it to have it just where the statement is false, nothing
    short of all at once (what is meant, where it is, which side is meant) would be right more often than a coin.
    """
    who = [draw.one_of((True, False)) for _ in _SIDES]
    who[side] = true
    return who


def _with_or_without_colour(
    pictures: Sequence[Combination], colour: str, who: Sequence[bool], draw: Draw
) -> list[dict[str, str]]:
    """By image, each thing's colour; an image that has the colour has it at least once."""
    others = [name for name in draw.colours if name != colour]
    colours = [{group.thing: draw.one_of(others) for group in groups} for groups in pictures]
    for groups, known, has in zip(pictures, colours, who, strict=True):
        if has:
            known[draw.one_of(groups).thing] = colour
    return colours


def _with_or_without(thing: str, has: bool, draw: Draw) -> Combination:
    return _with(thing, draw.one_of(COUNTS) if has else 0, draw)


def _with(thing: str, count: int, draw: Draw) -> Combination:
    if count:
        return draw.combination(draw.group(thing, count), numbers=_GROUPS)
    return draw.combination(without=[thing], numbers=_GROUPS)


def _statement(
    text: str, true: bool, pictures: list[Combination], draw: Draw, known: list[dict[str, str]] | None = None
) -> Item:
    (left, left_facts), (right, right_facts) = (
        draw.picture(groups, colours) for groups, colours in zip(pictures, known or [{}, {}], strict=True)
    )
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
    group = draw.group()
    # The world counts to three: the fourth choice is never right.
    others = [*(count_word(count) for count in COUNTS if count != group.count), "four"]
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
