"""What a task scores without looking: the chance level that belongs beside every result, and other blind baselines."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from data_recipes.toy.items import Item
from data_recipes.toy.world import THINGS
from onepeace_lightning.metrics.detection import CocoAP


@dataclass(frozen=True)
class Chance:
    """A score on the validation items, in percent, that needs neither image nor sound.

    Attributes:
        metric: the task's.
        percent: what it comes to.
        definition: how one scores that.
        baselines: definitions of other ways to score without looking, and what they come to.
    """

    metric: str
    percent: float
    definition: str
    baselines: dict[str, float] = field(default_factory=dict)

    def about(self) -> dict[str, Any]:
        """As the manifest has it."""
        chance = {"metric": self.metric, "percent": round(self.percent, 2), "definition": self.definition}
        return {"chance": chance, "blind_baselines": {name: round(value, 2) for name, value in self.baselines.items()}}


def classes(train: Sequence[Item], val: Sequence[Item]) -> Chance:
    """Of single labels."""
    percent = _most_frequent([_label(item) for item in train], [_label(item) for item in val])
    return Chance("accuracy", percent, "the most frequent class of the training items, always")


def tags(train: Sequence[Item], val: Sequence[Item]) -> Chance:
    """Of several labels."""
    shares = [np.mean([thing in item.facts["labels"] for item in val]) for thing in THINGS]
    return Chance("mAP", 100 * float(np.mean(shares)), "scores in random order: the mean share of items with a label")


def retrieval(train: Sequence[Item], val: Sequence[Item]) -> Chance:
    """Of finding an item by one of its captions, or one of its captions by the item."""
    return Chance("recall@1 of text to item", 100 / len(val), "an item at random")


def grounding(train: Sequence[Item], val: Sequence[Item]) -> Chance:
    """Of pointing at something."""
    things, named = [], []
    for item in val:
        names = [one["thing"] for one in item.facts["things"]]
        (target,) = (one["thing"] for one in item.facts["things"] if one["box"] == item.facts["box"])
        things.append(1 / len(names))
        named.append(1 / names.count(target))
    return Chance(
        "accuracy at IoU 0.5",
        100 * float(np.mean(things)),
        "the box of one of the picture's things at random",
        {"the box of one of the things that are called like the target, at random": 100 * float(np.mean(named))},
    )


def segmentation(train: Sequence[Item], val: Sequence[Item], *, classes: int) -> Chance:
    """Of background everywhere, which is one of so many classes."""
    background = 1 - float(np.mean([item.facts["ink"] for item in val]))
    return Chance("mIoU", 100 * background / classes, "background everywhere")


def detection(train: Sequence[Item], val: Sequence[Item]) -> Chance:
    """Of detecting without looking."""
    rng, ap = np.random.default_rng(0), CocoAP("box")
    names = sorted({one["label"] for item in (*train, *val) for one in item.facts["instances"]})

    def annotated(item: Item) -> dict[str, torch.Tensor]:
        instances = item.facts["instances"]
        return {
            "boxes": torch.tensor([one["box"] for one in instances], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([names.index(one["label"]) for one in instances], dtype=torch.int64),
        }

    for item in val:
        guess = annotated(train[int(rng.integers(len(train)))])
        ap.update([{**guess, "scores": torch.ones(len(guess["labels"]))}], [annotated(item)])
    return Chance("box_AP", 100 * float(ap.compute()["box_AP"]), "the boxes and classes of a training item at random")


def questions(train: Sequence[Item], val: Sequence[Item]) -> Chance:
    """Of answering without the image."""
    return Chance(
        "accuracy",
        _best_guess([(item.text, _answer(item)) for item in train], [(item.text, _answer(item)) for item in val]),
        "the question alone: the most frequent training answer to the same words",
        {"the most frequent training answer, always": _most_frequent(map(_answer, train), map(_answer, val))},
    )


def statements(train: Sequence[Item], val: Sequence[Item]) -> Chance:
    """Of judging without the images."""
    pairs = [[(item.text, _label(item)) for item in items] for items in (train, val)]
    guess = _best_guess(*pairs)
    chance = classes(train, val)
    return Chance(
        chance.metric,
        chance.percent,
        chance.definition,
        {"the statement alone: the most frequent training class of the same words": guess},
    )


def choices(train: Sequence[Item], val: Sequence[Item]) -> Chance:
    """Of choosing without the sound."""
    right: Counter[tuple[str | None, str]] = Counter()
    offered: Counter[tuple[str | None, str]] = Counter()
    for item in train:
        offered.update((item.text, choice) for choice in item.facts["choices"])
        right[item.text, item.facts["choices"][item.facts["answer"]]] += 1
    hits = 0
    for item in val:
        shares = [right[item.text, choice] / max(1, offered[item.text, choice]) for choice in item.facts["choices"]]
        hits += int(np.argmax(shares)) == item.facts["answer"]
    places = [item.facts["answer"] for item in train], [item.facts["answer"] for item in val]
    return Chance(
        "accuracy",
        100 * float(np.mean([1 / len(item.facts["choices"]) for item in val])),
        "one of the choices at random",
        {
            "question and choices alone: the choice that was right most often where it was offered": 100
            * hits
            / len(val),
            "the most frequent training place of the right choice, always": _most_frequent(*places),
        },
    )


def _label(item: Item) -> str:
    (label,) = item.facts["labels"]
    return label


def _answer(item: Item) -> str:
    (answer,) = item.facts["answers"]
    return answer


def _most_frequent(train: Iterable[Hashable], val: Iterable[Hashable]) -> float:
    """Percent of ``val`` that is the most frequent value of ``train``."""
    guess = Counter(train).most_common(1)[0][0]
    return 100 * float(np.mean([value == guess for value in val]))


def _best_guess(train: list[tuple[Any, str]], val: list[tuple[Any, str]]) -> float:
    """Percent of right guesses of a second value from a first; of a new first value, the most frequent second."""
    table: dict[Any, Counter[str]] = defaultdict(Counter)
    for known, wanted in train:
        table[known][wanted] += 1
    fallback = Counter(wanted for _, wanted in train).most_common(1)[0][0]
    guesses = [table[known].most_common(1)[0][0] if known in table else fallback for known, _ in val]
    return 100 * float(np.mean([guess == wanted for guess, (_, wanted) in zip(guesses, val, strict=True)]))
