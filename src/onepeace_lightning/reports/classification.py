"""A page and an image about a classifier: chance, scores of each class, what is taken for what, the worst mistakes.

B = samples of a batch, C = classes.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import lightning as L
import numpy as np
import torch
from PIL import Image

from onepeace_lightning.reports.answers import render_sheet
from onepeace_lightning.reports.base import ValidationReport
from onepeace_lightning.reports.drawing import Drawn, shown_item
from onepeace_lightning.reports.pages import facts, figure, grid, in_a_row, table

MOST_CLASSES = 30
"""Up to so many classes the whole confusion matrix is shown, beyond it the pairs that are confused most."""


@dataclass(order=True)
class Mistake:
    """A sample that was taken for another class.

    Attributes:
        margin: how much surer the model is of its answer than of the right class.
        number: of the sample, so that equal margins have an order.
        drawn: how it looks.
    """

    margin: float
    number: tuple[int, int]
    drawn: Drawn = field(compare=False)


@dataclass
class ClassificationExamples:
    """What is kept of a validation stream.

    Attributes:
        classes: their names.
        several: whether a sample may be in several of them.
        confusion_CC: int64, samples by right class and answer; of several classes empty.
        truths: (B, C) bool and
        scores: (B, C) float16 of each batch, for average precision of several classes; else empty.
        samples: how many there were.
        right: how many of them the likeliest class was right of.
        mistakes: the worst, as a heap.
    """

    classes: list[str]
    several: bool
    confusion_CC: np.ndarray
    truths: list[np.ndarray] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    samples: int = 0
    right: int = 0
    mistakes: list[Mistake] = field(default_factory=list)


class ClassificationReport(ValidationReport):
    """Chance, scores of each class, the confusion matrix, and the worst mistakes as images or players.

    Reads ``{"logits": (B, C)}`` from what the task's ``validation_step`` returns, ``batch.targets["labels"]``, the
    task's ``names`` or ``classes``, its ``probabilities`` of logits and its ``draw`` where it has them. Works for any
    modality: what a sample looks like is asked of its modalities.

    Args:
        folder: see ``ValidationReport``.
        mistakes: how many of each stream to show.

    Raises:
        ValueError: for a negative number of them.
    """

    title = "Classification"
    introduction = """Held-out samples and the classes that the model puts them in. A mistake is the worse, the surer
the model is of its answer than of the right class."""

    def __init__(self, folder: str | None = None, mistakes: int = 24) -> None:
        super().__init__(folder)
        if mistakes < 0:
            raise ValueError(f"mistakes is {mistakes}; show 0 or more")
        self.mistakes = mistakes

    def collect(
        self, kept: ClassificationExamples | None, name: str, batch: Any, outputs: Any, task: L.LightningModule
    ) -> ClassificationExamples:
        """Count a batch's answers, and keep its worst mistakes."""
        if kept is None:
            classes: Any = getattr(task, "names", None) or task.classes
            count = len(classes)
            several = bool(getattr(task, "multi_label", False))
            kept = ClassificationExamples(list(classes), several, np.zeros((0 if several else count,) * 2, np.int64))
        index = {label: number for number, label in enumerate(kept.classes)}
        truth_BC = np.zeros((len(batch), len(index)), bool)
        for row, labels in enumerate(batch.targets["labels"]):
            truth_BC[row, [index[label] for label in labels]] = True
        probabilities: Any = getattr(task, "probabilities", torch.Tensor.clone)
        scores_BC = probabilities(outputs["logits"]).float().cpu().numpy()
        answer_B = scores_BC.argmax(1)
        right_B = truth_BC[np.arange(len(batch)), answer_B]
        if kept.several:
            kept.truths.append(truth_BC)
            kept.scores.append(scores_BC.astype(np.float16))
        else:
            np.add.at(kept.confusion_CC, (truth_BC.argmax(1), answer_B), 1)
        best_right_B = np.where(truth_BC, scores_BC, -np.inf).max(1)
        best_right_B[~truth_BC.any(1)] = 0.0
        for row in np.nonzero(~right_B)[0].tolist():
            margin = float(scores_BC[row, answer_B[row]] - best_right_B[row])
            full = len(kept.mistakes) >= self.mistakes
            if not self.mistakes or (full and margin <= kept.mistakes[0].margin):
                continue
            drawn = _drawn(batch, outputs, row, task, kept.classes, scores_BC[row])
            mistake = Mistake(margin, (int(task.global_rank), -kept.samples - row), drawn)
            (heapq.heappushpop if full else heapq.heappush)(kept.mistakes, mistake)
        kept.samples += len(batch)
        kept.right += int(right_B.sum())
        return kept

    def join(self, parts: list[ClassificationExamples]) -> ClassificationExamples:
        """Sums of the counts, and the worst mistakes of all."""
        first = parts[0]
        return ClassificationExamples(
            first.classes,
            first.several,
            np.sum([part.confusion_CC for part in parts], axis=0),
            [truth for part in parts for truth in part.truths],
            [scores for part in parts for scores in part.scores],
            sum(part.samples for part in parts),
            sum(part.right for part in parts),
            heapq.nlargest(self.mistakes, [mistake for part in parts for mistake in part.mistakes]),
        )

    def sections(self, streams: dict[str, ClassificationExamples]) -> str:
        """For each stream its scores, its confusions and its worst mistakes."""
        return "\n".join(_section(name, examples) for name, examples in streams.items())

    def sheet(self, streams: dict[str, ClassificationExamples]) -> Image.Image:
        """The worst mistakes."""
        return render_sheet({name: [one.drawn for one in examples.mistakes] for name, examples in streams.items()})


def _drawn(batch: Any, outputs: Any, row: int, task: Any, names: Sequence[str], scores_C: np.ndarray) -> Drawn:
    """A sample, as the task draws it where it does, with the three likeliest classes and the right ones."""
    best = np.argsort(-scores_C, kind="stable")[:3]
    answers = ", ".join(f"{names[index]} {scores_C[index]:.2f}" for index in best)
    labels = batch.targets["labels"][row]
    expected = ", ".join(f"{label} {scores_C[names.index(label)]:.2f}" for label in labels) or "no class"
    if callable(draw := getattr(task, "draw", None)):
        drawn = draw(batch, outputs, row)
        return Drawn(drawn.items, drawn.asked, answers, expected, False, name=batch.named(row))
    items = [shown_item(task.preprocessing.modality(name), part, row) for name, part in batch.inputs.items()]
    return Drawn(items, "", answers, expected, False, name=batch.named(row))


def _section(name: str, examples: ClassificationExamples) -> str:
    parts = [f"<h2>{escape(name)}</h2>", facts(_summary(examples))]
    parts += _several(examples) if examples.several else _one(examples)
    if examples.mistakes:
        figures = []
        for mistake in examples.mistakes:
            drawn = mistake.drawn
            content = in_a_row([item.html for item in drawn.shown], [item.title for item in drawn.shown])
            asked = f"{escape(drawn.asked)}<br>" if drawn.asked else ""
            words = f"{asked}<b>✗</b> {escape(drawn.answered)}<small>is {escape(drawn.expected)}</small>"
            words += f"<small>{escape(drawn.name)}</small>"
            figures.append(figure(content, words, "wrong"))
        parts.append(f"<h3>Worst mistakes</h3>{grid(figures)}")
    return f"<section>{''.join(parts)}</section>"


def _summary(examples: ClassificationExamples) -> dict[str, str]:
    count = len(examples.classes)
    summary = {"samples": str(examples.samples), "classes": str(count)}
    if examples.several:
        truth_NC = np.concatenate(examples.truths)
        summary["likeliest class is right"] = _percent(examples.right / examples.samples)
        summary["chance of that"] = _percent(truth_NC.mean())
        return summary
    summary["right"] = f"{examples.right} ({_percent(examples.right / examples.samples)})"
    summary["chance, any class"] = _percent(1 / count)
    summary["chance, always the most frequent"] = _percent(examples.confusion_CC.sum(1).max() / examples.samples)
    return summary


def _one(examples: ClassificationExamples) -> list[str]:
    """Tables of samples in one class each: scores of the classes, worst first, and confusions."""
    confusion_CC, names = examples.confusion_CC, examples.classes
    found, truth, said = np.diag(confusion_CC), confusion_CC.sum(1), confusion_CC.sum(0)
    with np.errstate(invalid="ignore"):
        recall, precision, f1 = found / truth, found / said, 2 * found / (truth + said)
    order = np.argsort(np.where(truth > 0, recall, np.inf), kind="stable")
    rows = [
        [escape(names[i]), str(truth[i]), *(_percent(value[i]) for value in (recall, precision, f1))] for i in order
    ]
    scores = table(["class", "samples", "recall", "precision", "F1"], rows)
    if len(names) <= MOST_CLASSES:
        return [
            "<h3>Classes, worst first</h3>",
            scores,
            "<h3>What is taken for what</h3>",
            _matrix(confusion_CC, names),
        ]
    wrong_CC = confusion_CC - np.diag(found)
    pairs = [divmod(int(flat), len(names)) for flat in np.argsort(-wrong_CC, axis=None, kind="stable")[:MOST_CLASSES]]
    rows = [
        [escape(names[right]), escape(names[answer]), str(wrong_CC[right, answer]), str(truth[right])]
        for right, answer in pairs
        if wrong_CC[right, answer]
    ]
    confused = table(["is", "taken for", "times", "of"], rows)
    return ["<h3>Classes, worst first</h3>", scores, "<h3>What is taken for what most</h3>", confused]


def _matrix(confusion_CC: np.ndarray, names: Sequence[str]) -> str:
    """The confusion matrix; a cell is the darker, the larger its part of its row."""
    rows = []
    for right, name in enumerate(names):
        total = max(int(confusion_CC[right].sum()), 1)
        cells = [
            f'<td class="heat{" true" if right == answer else ""}" style="--part: {count / total:.2f}"'
            f' title="{escape(name)} taken for {escape(names[answer])}">{count or ""}</td>'
            for answer, count in enumerate(confusion_CC[right].tolist())
        ]
        rows.append([escape(name), *cells])
    return table(["is \\ taken for", *map(escape, names)], rows)


def _several(examples: ClassificationExamples) -> list[str]:
    """A table of samples in several classes: average precision of each class, worst first; chance is its frequency."""
    truth_NC, scores_NC = np.concatenate(examples.truths), np.concatenate(examples.scores)
    precision = [average_precision(truth_NC[:, i], scores_NC[:, i]) for i in range(len(examples.classes))]
    order = np.argsort(np.nan_to_num(np.array(precision), nan=np.inf), kind="stable")
    rows = [
        [
            escape(examples.classes[i]),
            str(truth_NC[:, i].sum()),
            _percent(precision[i]),
            _percent(truth_NC[:, i].mean()),
        ]
        for i in order
    ]
    return ["<h3>Classes, worst first</h3>", table(["class", "samples", "average precision", "chance"], rows)]


def average_precision(truth_N: np.ndarray, scores_N: np.ndarray) -> float:
    """Mean over the samples of a class of the precision down to them, where the best score comes first.

    Samples of equal score share a rank, the last of theirs. NaN where the class has no sample.
    """
    order = np.argsort(-scores_N.astype(np.float32), kind="stable")
    truth, scores = truth_N[order], scores_N[order]
    last = np.searchsorted(-scores, -scores, side="right")
    return float((np.cumsum(truth)[last - 1] / last)[truth].mean()) if truth.any() else float("nan")


def _percent(part: float) -> str:
    return "–" if np.isnan(part) else f"{100 * part:.1f}\u00a0%"
