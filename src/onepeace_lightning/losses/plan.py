"""Which views a pretraining step encodes, what is contrasted and who teaches whom (paper section 3.3).

A plan holds no tensors: ``losses.pretraining`` carries it out, and FLOPs are counted from it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from onepeace_lightning.losses.denoising import denoised_alone, self_taught
from onepeace_lightning.models.inputs import TokenMask

Lengths = Mapping[str, Sequence[int]]
"""A view by its sizes: modality to the number of tokens of each sample, CLS included."""


class Sampled(Protocol):
    """What the losses need of a batch: ``data.batch.Batch``."""

    inputs: dict[str, Any]
    masks: dict[str, TokenMask]
    fused_masks: dict[str, TokenMask]


@dataclass(frozen=True)
class PlannedView:
    """Some modalities of one stream's samples, seen together.

    Attributes:
        stream: whose batch.
        modalities: which.
        with_grad: encoded in the pass with gradient, or in the one without.
        masks: modality to its hidden tokens; empty where all are visible.
    """

    stream: str
    modalities: tuple[str, ...]
    with_grad: bool
    masks: Mapping[str, TokenMask] = field(default_factory=dict)

    def whole(self, lengths: Mapping[str, Lengths]) -> dict[str, list[int]]:
        """Its tokens before any is hidden, given those of every stream."""
        return {name: list(lengths[self.stream][name]) for name in self.modalities}

    def visible(self, lengths: Mapping[str, Lengths]) -> dict[str, list[int]]:
        """The tokens that it shows, given those of every stream."""
        if not self.masks:
            return self.whole(lengths)
        return {name: self.masks[name].visible_lengths for name in self.modalities}


@dataclass(frozen=True)
class PlannedStudent:
    """A masked view whose hidden tokens are predicted.

    Attributes:
        view: its index among the views.
        terms: modality to the name of the loss term.
        teachers: modality to the index of the view that has the features to be predicted.
    """

    view: int
    terms: dict[str, str]
    teachers: dict[str, int]


@dataclass(frozen=True)
class StepPlan:
    """What one step computes.

    Attributes:
        views: all that are encoded.
        contrasts: stream to modality to the index of the view whose embeddings are contrasted.
        students: what is denoised.
    """

    views: list[PlannedView] = field(default_factory=list)
    contrasts: dict[str, dict[str, int]] = field(default_factory=dict)
    students: list[PlannedStudent] = field(default_factory=list)

    def add(self, view: PlannedView) -> int:
        """Take in a view and give its index."""
        self.views.append(view)
        return len(self.views) - 1


def plan_step(
    batches: Mapping[str, Sampled], *, denoise: bool = True, without_gradient: Collection[str] = ()
) -> StepPlan:
    """Plan a step, one batch per stream.

    Every modality of a pair or of more is embedded alone, to be contrasted. Masked views, of single modalities and of
    all together, are students; their teachers see all tokens: the embedded views themselves, or a fused view without
    gradient.

    Args:
        batches: the streams' names to their batches; masks are needed only to denoise.
        denoise: plan the denoising too.
        without_gradient: modalities whose contrasted embeddings need none (frozen ones; text in stage 2).

    Raises:
        ValueError: where there is nothing to learn.
    """
    plan = StepPlan()
    for stream, batch in batches.items():
        modalities = tuple(batch.inputs)
        together = len(modalities) > 1
        alone: dict[str, int] = {}
        if together:
            for name in modalities:
                alone[name] = plan.add(PlannedView(stream, (name,), name not in without_gradient))
            plan.contrasts[stream] = alone
        if not denoise:
            continue
        teachers = dict.fromkeys(modalities, plan.add(PlannedView(stream, modalities, False)))
        own = alone if together and self_taught(modalities) else teachers
        for name in denoised_alone(modalities):
            view = plan.add(PlannedView(stream, (name,), True, {name: batch.masks[name]}))
            plan.students.append(PlannedStudent(view, {name: f"{stream}/{name}"}, {name: own[name]}))
        if together:
            view = plan.add(PlannedView(stream, modalities, True, batch.fused_masks))
            terms = {name: f"{stream}/fused_{name}" for name in modalities}
            plan.students.append(PlannedStudent(view, terms, teachers))
    if not plan.contrasts and not plan.students:
        raise ValueError(
            f"nothing to learn from {list(batches)}: without denoising, a pair such as image-text is needed"
        )
    return plan
