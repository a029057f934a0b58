"""The two pretraining tasks over batches of any data types, in two passes through the encoder (paper section 3.3).

The first pass holds all views with gradient: the students, which see only unmasked tokens, and the unmasked views whose
embeddings are contrasted. The second, without gradient, holds the teachers that are not among the first. Which they are
says ``losses.plan``.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from onepeace_lightning.losses.contrastive import ContrastChoice, Keys, aligning_losses, sigmoid_losses
from onepeace_lightning.losses.denoising import denoising_losses
from onepeace_lightning.losses.plan import Sampled, StepPlan, plan_step
from onepeace_lightning.modalities.registry import modality
from onepeace_lightning.models.backbone import Backbone
from onepeace_lightning.models.packing import Tokens, View
from onepeace_lightning.models.pretraining import PretrainModel

WEIGHTS = {"contrast": 1.0, "fused": 0.5}
"""Of the loss terms by kind; that of a modality denoised alone is its ``denoising_weight``."""


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
        plan: the views that were encoded.
    """

    terms: dict[str, Tensor]
    students: dict[str, Tensor]
    plan: StepPlan

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

Record = Callable[[str, Tensor, np.ndarray], None]
"""Is told of each term "stream/term" the losses that it is the mean of (of samples, or of hidden tokens), without their
graph, and the number in the batch of the sample that each belongs to."""


def pretraining_loss(
    model: PretrainModel,
    batches: Mapping[str, Sampled],
    objectives: Objectives = Objectives(),
    without_gradient: Collection[str] = (),
    contrast: Contrast | None = None,
    record: Record | None = None,
) -> PretrainingLoss:
    """All loss terms of one step, one batch per stream.

    Args:
        model: built with a denoiser if ``objectives.denoise``.
        batches: the streams' names (usually their data types) to their batches; masks are needed only to denoise.
        objectives: how.
        without_gradient: modalities whose contrasted embeddings need none (frozen ones; text in stage 2).
        contrast: what makes terms of the embeddings; ``contrast_terms`` by ``objectives`` where None.
        record: is told what each term is the mean of; not of a ``contrast`` that is given.

    Raises:
        ValueError: where there is nothing to learn, or the model cannot denoise though it should.
    """
    if objectives.denoise and model.denoiser is None:
        raise ValueError("objectives ask to denoise, but the model was built with denoise=False")
    plan = plan_step(batches, denoise=objectives.denoise, without_gradient=without_gradient)
    features = encode_views(model.backbone, batches, plan)
    terms: dict[str, Tensor] = {}
    if plan.contrasts:
        contrast = contrast or partial(contrast_terms, objectives=objectives, record=record)
        terms |= contrast(_embeddings(model, features, plan), model.heads.scale, model.heads.logit_bias)
    predicted = _predict(model, features, plan)
    for student in plan.students:
        masks = plan.views[student.view].masks
        for name, term in student.terms.items():
            candidates_ND = features[student.teachers[name]][name].without_cls()
            losses_M = denoising_losses(predicted[term], candidates_ND, masks[name].targets_M, objectives.smoothing)
            terms[term] = losses_M.sum() / max(len(losses_M), 1)
            if record is not None:
                record(term, losses_M.detach(), masks[name].samples_M)
    return PretrainingLoss(terms, predicted, plan)


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
    plan = plan_step(batches, denoise=objectives.denoise, without_gradient=without_gradient)
    contrasted = {view for sides in plan.contrasts.values() for view in sides.values()}
    features = encode_views(model.backbone, batches, plan, None if all_views else contrasted)
    return _embeddings(model, features, plan)


def contrast_terms(
    embeddings: Embeddings,
    scale: Tensor,
    bias: Tensor | None,
    *,
    objectives: Objectives,
    record: Record | None = None,
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
                losses_B = aligning_losses(first, second, scale, objectives.keys)
            elif bias is None:
                raise ValueError("the sigmoid contrast needs a bias; build the model with logit_bias=True")
            else:
                losses_B = sigmoid_losses(first, second, scale, bias)
            terms[name] = losses_B.mean()
            if record is not None:
                record(name, losses_B.detach(), np.arange(len(losses_B)))
    return terms


def encode_views(
    backbone: Backbone, batches: Mapping[str, Sampled], plan: StepPlan, only: Collection[int] | None = None
) -> dict[int, dict[str, Tokens]]:
    """Features of a plan's views by their index: those with gradient in one pass, the others in a second without.

    Args:
        backbone: adapters and encoder.
        batches: what was planned for.
        plan: the views.
        only: indices of the views that are encoded; None: all.
    """
    tokens = {stream: backbone.embed(batch.inputs) for stream, batch in batches.items()}
    features: dict[int, dict[str, Tokens]] = {}
    for with_grad in (True, False):
        chosen = {
            index: view
            for index, view in enumerate(plan.views)
            if view.with_grad == with_grad and (only is None or index in only)
        }
        with torch.set_grad_enabled(with_grad and torch.is_grad_enabled()):
            views = [
                backbone.view({name: tokens[view.stream][name] for name in view.modalities}, view.masks)
                for view in chosen.values()
            ]
            features |= dict(zip(chosen, backbone.encode(views) if views else [], strict=True))
    return features


def _embeddings(model: PretrainModel, features: Mapping[int, View], plan: StepPlan) -> Embeddings:
    embeddings: dict[str, dict[str, Tensor]] = {}
    for stream, sides in plan.contrasts.items():
        for name, view in sides.items():
            found_BD = model.heads(name, features[view])
            embeddings.setdefault(stream, {})[name] = found_BD if plan.views[view].with_grad else found_BD.detach()
    return embeddings


def _predict(model: PretrainModel, features: Mapping[int, View], plan: StepPlan) -> dict[str, Tensor]:
    """The (M, D) features of hidden tokens, by term."""
    if not plan.students or model.denoiser is None:
        return {}
    predicted = model.denoiser(
        [features[student.view] for student in plan.students],
        [plan.views[student.view].masks for student in plan.students],
    )
    return {
        term: found[name]
        for student, found in zip(plan.students, predicted, strict=True)
        for name, term in student.terms.items()
    }
