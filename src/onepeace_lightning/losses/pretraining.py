"""The two pretraining tasks over batches of any data types, in two passes through the encoder (paper section 3.3).

The first pass holds all views that learn: the students, which see only unmasked tokens, and the unmasked views whose
embeddings are contrasted. The second, without gradient, holds the teachers that are not among the first.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from onepeace_lightning.losses.contrastive import ContrastChoice, Keys, aligning_contrast, sigmoid_contrast
from onepeace_lightning.losses.denoising import denoised_alone, denoising_contrast, self_taught
from onepeace_lightning.modalities.base import modality
from onepeace_lightning.models.backbone import Backbone
from onepeace_lightning.models.packing import Tokens, View, to_device
from onepeace_lightning.models.pretraining import PretrainModel

WEIGHTS = {"contrast": 1.0, "fused": 0.5}
"""Of the loss terms by kind; that of a modality denoised alone is its ``denoising_weight``."""


class Sampled(Protocol):
    """What the losses need of a batch: ``data.batch.Batch``."""

    inputs: dict[str, Any]
    masks: dict[str, np.ndarray]
    fused_masks: dict[str, np.ndarray]


@dataclass(frozen=True)
class Objectives:
    """How the losses are computed.

    Attributes:
        keys: gradient of the contrast's keys, see ``losses.contrastive.gather``.
        smoothing: label smoothing of the denoising contrast.
        denoise: with False only the contrast is computed.
        contrast: "softmax", the published one, or "sigmoid" (``losses.contrastive.sigmoid_contrast``), which ignores
            ``keys``.
    """

    keys: Keys = "differentiable"
    smoothing: float = 0.1
    denoise: bool = True
    contrast: ContrastChoice = "softmax"


@dataclass
class PretrainingLoss:
    """What ``pretraining_loss`` returns.

    Attributes:
        terms: "stream/term" to its value before weighting; terms are contrast, a modality, or fused_<modality>. Of
            three modalities or more each two have a contrast, ``contrast_<modality>_<modality>``.
        students: the same denoising terms to the (M, D) features predicted for the hidden tokens.
    """

    terms: dict[str, Tensor]
    students: dict[str, Tensor]

    @property
    def total(self) -> Tensor:
        """The weighted sum."""
        return weighted(self.terms)


def weighted(terms: Mapping[str, Tensor]) -> Tensor:
    """The weighted sum of terms by name."""
    return torch.stack([weight(name) * value for name, value in terms.items()]).sum()


def weight(term: str) -> float:
    """Weight of a term named "stream/term"."""
    kind = term.rpartition("/")[2].partition("_")[0]
    return WEIGHTS[kind] if kind in WEIGHTS else modality(kind).denoising_weight


Embeddings = Mapping[str, Mapping[str, Tensor]]
"""Stream to modality to (B, D) embeddings of unit length."""

Contrast = Callable[[Embeddings, Tensor, Tensor | None], dict[str, Tensor]]
"""Makes loss terms of embeddings, the inverse temperature and the bias of the logits."""


class _Ref(NamedTuple):
    """A view by the pass that encodes it ("learn" or "teach") and its place there."""

    run: str
    view: int


class _Passes:
    """The views of the learning pass and of the teaching pass, collected before either runs."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.views: dict[str, list[View]] = {"learn": [], "teach": []}
        self.features: dict[str, dict[int, dict[str, Tokens]]] = {}

    def add(self, run: str, tokens: View, hidden: Mapping[str, np.ndarray] | None = None) -> _Ref:
        with torch.set_grad_enabled(run == "learn" and torch.is_grad_enabled()):
            self.views[run].append(self.backbone.view(tokens, hidden))
        return _Ref(run, len(self.views[run]) - 1)

    def encode(self, only: Collection[_Ref] | None = None) -> None:
        """Run both passes, or with ``only`` the parts of them that hold these views."""
        for run, views in self.views.items():
            chosen = range(len(views)) if only is None else sorted({ref.view for ref in only if ref.run == run})
            with torch.set_grad_enabled(run == "learn" and torch.is_grad_enabled()):
                features = self.backbone.encode([views[view] for view in chosen]) if chosen else []
            self.features[run] = dict(zip(chosen, features, strict=True))

    def __getitem__(self, ref: _Ref) -> dict[str, Tokens]:
        return self.features[ref.run][ref.view]


@dataclass
class _Student:
    """A masked view: the terms it gives by modality, what it hides, how long it was before, and who teaches it."""

    view: _Ref
    terms: dict[str, str]
    masks: Mapping[str, np.ndarray]
    lengths: dict[str, list[int]]
    teachers: Mapping[str, _Ref]


def pretraining_loss(
    model: PretrainModel,
    batches: Mapping[str, Sampled],
    objectives: Objectives = Objectives(),
    without_gradient: Collection[str] = (),
    contrast: Contrast | None = None,
) -> PretrainingLoss:
    """All loss terms of one step, one batch per stream.

    Args:
        model: built with a denoiser if ``objectives.denoise``.
        batches: the streams' names (usually their data types) to their batches; masks are needed only to denoise.
        objectives: how.
        without_gradient: modalities whose contrasted embeddings need none (frozen ones; text in stage 2).
        contrast: what makes terms of the embeddings; ``contrast_terms`` by ``objectives`` where None.

    Raises:
        ValueError: where there is nothing to learn, or the model cannot denoise though it should.
    """
    passes, contrasts, students = _views(model, batches, objectives, without_gradient)
    passes.encode()
    contrast = contrast or partial(contrast_terms, objectives=objectives)
    embeddings = _embeddings(model, passes, contrasts)
    result = PretrainingLoss(contrast(embeddings, model.heads.scale, model.heads.logit_bias) if contrasts else {}, {})
    if students and model.denoiser is not None:
        predicted = model.denoiser(
            [passes[student.view] for student in students],
            [student.lengths for student in students],
            [student.masks for student in students],
        )
        for student, features in zip(students, predicted, strict=True):
            for name, term in student.terms.items():
                teacher = passes[student.teachers[name]][name]
                result.terms[term] = _denoise(features[name], teacher, student.masks[name], objectives.smoothing)
                result.students[term] = features[name]
    return result


def contrasted_embeddings(
    model: PretrainModel,
    batches: Mapping[str, Sampled],
    objectives: Objectives = Objectives(),
    without_gradient: Collection[str] = (),
    *,
    all_views: bool = False,
) -> Embeddings:
    """The embeddings that ``pretraining_loss`` contrasts, without what only the denoising needs.

    Args:
        model: as there.
        batches: as there.
        objectives: as there.
        without_gradient: as there.
        all_views: encode every view that learns, so that stochastic depth draws the same numbers as there.

    Returns:
        Stream to modality to (B, D).
    """
    passes, contrasts, _ = _views(model, batches, objectives, without_gradient)
    passes.encode(None if all_views else {ref for sides in contrasts.values() for ref in sides.values()})
    return _embeddings(model, passes, contrasts)


def contrast_terms(
    embeddings: Embeddings, scale: Tensor, bias: Tensor | None, *, objectives: Objectives
) -> dict[str, Tensor]:
    """The aligning contrasts of embeddings: "stream/contrast" to its value, of each two of three modalities or more.

    Raises:
        ValueError: the sigmoid contrast without a bias.
    """
    terms = {}
    for stream, sides in embeddings.items():
        for pair in combinations(sides, 2):
            name = f"{stream}/contrast" if len(sides) == 2 else f"{stream}/contrast_{pair[0]}_{pair[1]}"
            first, second = (sides[modality] for modality in pair)
            if objectives.contrast == "softmax":
                terms[name] = aligning_contrast(first, second, scale, objectives.keys)
            elif bias is None:
                raise ValueError("the sigmoid contrast needs a bias; build the model with logit_bias=True")
            else:
                terms[name] = sigmoid_contrast(first, second, scale, bias)
    return terms


def _views(
    model: PretrainModel, batches: Mapping[str, Sampled], objectives: Objectives, without_gradient: Collection[str]
) -> tuple[_Passes, dict[str, dict[str, _Ref]], list[_Student]]:
    """Collect the views of a step: those to contrast, by stream and modality, and the students."""
    if objectives.denoise and model.denoiser is None:
        raise ValueError("objectives ask to denoise, but the model was built with denoise=False")
    passes = _Passes(model.backbone)
    contrasts: dict[str, dict[str, _Ref]] = {}
    students: list[_Student] = []
    for stream, batch in batches.items():
        tokens = model.backbone.embed(batch.inputs)
        alone: dict[str, _Ref] = {}
        if pair := len(tokens) > 1:
            for name in tokens:
                alone[name] = passes.add("teach" if name in without_gradient else "learn", {name: tokens[name]})
            contrasts[stream] = alone
        if not objectives.denoise:
            continue
        together = dict.fromkeys(tokens, passes.add("teach", tokens))
        from_itself = self_taught(list(tokens))
        for name in denoised_alone(list(tokens)):
            teachers = {name: alone[name] if pair and from_itself else together[name]}
            students.append(_student(passes, {name: tokens[name]}, batch.masks, stream + "/", teachers))
        if pair:
            students.append(_student(passes, tokens, batch.fused_masks, stream + "/fused_", together))
    if not contrasts and not students:
        raise ValueError(
            f"nothing to learn from {list(batches)}: without denoising, a pair such as image-text is needed"
        )

    return passes, contrasts, students


def _embeddings(model: PretrainModel, passes: _Passes, contrasts: Mapping[str, Mapping[str, _Ref]]) -> Embeddings:
    return {
        stream: {
            name: model.heads(name, passes[ref]).detach() if ref.run == "teach" else model.heads(name, passes[ref])
            for name, ref in sides.items()
        }
        for stream, sides in contrasts.items()
    }


def _student(
    passes: _Passes, tokens: View, masks: Mapping[str, np.ndarray], prefix: str, teachers: Mapping[str, _Ref]
) -> _Student:
    return _Student(
        view=passes.add("learn", tokens, masks),
        terms={name: prefix + name for name in tokens},
        masks=masks,
        lengths={name: part.lengths for name, part in tokens.items()},
        teachers=teachers,
    )


def _denoise(student_MD: Tensor, teacher: Tokens, mask_BP: np.ndarray, smoothing: float) -> Tensor:
    rows_M = np.flatnonzero(teacher.hidden(mask_BP))
    # CLS is no candidate: rows move up by the CLS tokens before them, their own sample's included.
    target_M = rows_M - teacher.samples_T[rows_M] - 1
    candidates_ND = teacher.rows(teacher.positions_T > 0)
    return denoising_contrast(student_MD, candidates_ND, to_device(target_M, student_MD.device), smoothing)
