"""Data types: which modalities a sample has, and what is to be learned of it; the one place that says which fields.

A data type is written as registered modalities, in any order, and at most one kind of answer behind them, joined by
hyphens: ``image-text``, ``depth-image``, ``image-audio-text``, ``audio-label``, ``image-audio-question``.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

from onepeace_lightning.modalities.registry import modalities, modality, text_modality


@dataclass(frozen=True)
class Answer:
    """A kind of answer.

    Attributes:
        meaning: what a sample holds, for the reader of this table.
        fields: groups of extensions; a sample has one file of each group.
        text: a sample has a text besides, which the model reads with the modalities.
        captions: the answer holds the texts that the model reads.
        second: a sample has a second item of the first modality.
        about: what the manifest's ``about`` lists: names of all classes or answers.
    """

    meaning: str
    fields: tuple[tuple[str, ...], ...] = (("json",),)
    text: bool = False
    captions: bool = False
    second: bool = False
    about: str | None = None


ANSWERS: dict[str, Answer] = {
    "label": Answer('{"labels": [class name, …]}, one or several', about="classes"),
    "target": Answer('{"targets": {name: number}}, one or several numbers to be learned', about="targets"),
    "captions": Answer('{"captions": [caption, …]}', captions=True),
    "box": Answer('what the text points at, {"box": [x0, y0, x1, y1]} in pixels of the stored image', text=True),
    "boxes": Answer('{"instances": [{"label", "box", "mask"}, …]}, see instances.read_annotations', about="classes"),
    "mask": Answer("a grey 8-bit image of class indices, 255 is no class", (("mask.png",),), about="classes"),
    "question": Answer(
        'the text asks, {"answers": {answer: score in (0, 1], …}}; about lists those that are learned', text=True,
        about="answers",
    ),
    "choices": Answer('the text asks, {"choices": [answer, …], "answer": index of the right one}', text=True),
    "pair": Answer(
        'a statement about two items, {"labels": [class name]}', text=True, second=True, about="classes"
    ),
}  # fmt: skip
"""Kinds of answers. Without one, a sample is there to be aligned (two modalities or more) and denoised."""


@dataclass(frozen=True)
class DataType:
    """What each sample of a stream is. Equal types may be written in different orders.

    Attributes:
        modalities: those that a sample has fields of, in the order of the register.
        answer: a key of ``ANSWERS``; None where there is nothing but the modalities.
        first: the modality that is written first, of which a pair has a second item.
    """

    modalities: tuple[str, ...]
    answer: str | None = None
    first: str = ""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DataType):
            return NotImplemented
        return self.fields == other.fields and self.answer == other.answer

    def __hash__(self) -> int:
        return hash((self.modalities, self.answer))

    def __str__(self) -> str:
        texts = [name for name in self.modalities if modality(name).reads_text]
        others = sorted(set(self.modalities) - {*texts, self.first})
        first = [self.first] if self.first not in texts else []
        return "-".join([*first, *others, *texts, *([self.answer] if self.answer else [])])

    @cached_property
    def fields(self) -> tuple[tuple[str, ...], ...]:
        """Groups of extensions; a sample has exactly one file of each group, and may have others."""
        groups = [modality(name).extensions for name in self.modalities]
        if self.answer is not None:
            answer = ANSWERS[self.answer]
            if answer.second:
                groups.append(second_extensions(self.first))
            if answer.text:
                groups.append(modality(text_modality()).extensions)
            groups += answer.fields
        return tuple(groups)

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """The modalities that a model takes in, in the order of the register."""
        answer = ANSWERS.get(self.answer or "")
        texts = {text_modality()} if answer is not None and (answer.text or answer.captions) else set()
        return tuple(name for name in modalities() if name in {*self.modalities, *texts})

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Every two modalities that can be aligned; none where there is an answer."""
        return () if self.answer else tuple(combinations(self.modalities, 2))


def second_extensions(name: str) -> tuple[str, ...]:
    """Of the field that holds the second item of a modality."""
    return tuple(f"second.{extension}" for extension in modality(name).extensions)


def data_type(name: str) -> DataType:
    """The data type that a name means.

    Raises:
        ValueError: a part of the name is neither a registered modality nor an answer, or they do not go together.
    """
    known = modalities()
    *front, last = str(name).split("-")
    answer = last if last in ANSWERS and last not in known else None
    parts = front if answer else [*front, last]
    accepted = (
        f"a data type is some of the modalities {', '.join(known)}, and at most one of {', '.join(ANSWERS)} behind"
        " them, joined by hyphens, such as image-text"
    )
    if unknown := [part for part in parts if part not in known]:
        raise ValueError(
            f"data type {name!r}: {', '.join(map(repr, unknown))} is no modality; {accepted}. One of your own is"
            " registered by importing its module: onepeace … --import my_package.my_modality"
        )
    if not parts or len(set(parts)) < len(parts):
        raise ValueError(f"data type {name!r} names {'no modality' if not parts else 'one twice'}; {accepted}")
    texts = [part for part in parts if known[part].reads_text]
    if texts and answer and (ANSWERS[answer].text or ANSWERS[answer].captions):
        raise ValueError(f"data type {name!r}: {answer} brings a text of its own; leave {texts[0]} out")
    return DataType(tuple(part for part in known if part in parts), answer, parts[0])


def of_modalities(present: Iterable[str]) -> DataType:
    """The data type of samples that have these modalities.

    Raises:
        ValueError: there is none, or one that nobody registered.
    """
    names = set(present)
    if not names:
        raise ValueError(f"samples of nothing make no data type; known modalities are {', '.join(modalities())}")
    for name in names:
        modality(name)
    ordered = tuple(name for name in modalities() if name in names)
    others = sorted(name for name in names if not modality(name).reads_text)
    return DataType(ordered, None, others[0] if others else ordered[0])
