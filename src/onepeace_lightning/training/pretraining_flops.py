"""Model FLOPs of one pretraining step: what ``losses.pretraining`` computes, counted as ``models.flops`` counts."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.losses.denoising import denoised_alone
from onepeace_lightning.losses.pretraining import Objectives
from onepeace_lightning.models.config import ModelConfig
from onepeace_lightning.models.flops import Flops, product
from onepeace_lightning.training.flops import Lengths, denoiser_flops, encoder_flops


@dataclass(frozen=True)
class StepViews:
    """The views of one pretraining step by their sizes.

    Attributes:
        learn: of the pass with gradient, the masked ones among them.
        teach: of the pass without.
        students: the masked ones, once more.
        unmasked: the same as they would be without their masks, which is how the decoder sees them.
    """

    learn: list[Lengths] = field(default_factory=list)
    teach: list[Lengths] = field(default_factory=list)
    students: list[Lengths] = field(default_factory=list)
    unmasked: list[Lengths] = field(default_factory=list)


def step_views(
    batches: Mapping[str, Batch],
    objectives: Objectives = Objectives(),  # noqa: B008 (frozen)
    trainable: Collection[str] | None = None,
) -> StepViews:
    """The views that ``pretraining_loss`` encodes; arguments as for ``step_flops``."""
    views = StepViews()

    def add_student(whole: Lengths, masks: Mapping[str, np.ndarray]) -> None:
        hidden = {name: masks[name].sum(1).tolist() for name in whole}
        visible = {name: [n - m for n, m in zip(whole[name], hidden[name], strict=True)] for name in whole}
        views.learn.append(visible)
        views.students.append(visible)
        views.unmasked.append(whole)

    for batch in batches.values():
        whole = {name: inputs.token_lengths for name, inputs in batch.inputs.items()}
        if len(whole) > 1:
            for name in whole:
                (views.learn if _learns(name, trainable) else views.teach).append({name: whole[name]})
        if not objectives.denoise:
            continue
        views.teach.append(whole)
        for name in denoised_alone(whole):
            add_student({name: whole[name]}, batch.masks)
        if len(whole) > 1:
            add_student(whole, batch.fused_masks)
    return views


def step_flops(
    config: ModelConfig,
    batches: Mapping[str, Batch],
    objectives: Objectives = Objectives(),  # noqa: B008 (frozen)
    trainable: Collection[str] | None = None,
    ranks: int = 1,
) -> dict[str, Flops]:
    """Model FLOPs of ``pretraining_loss`` and its backward pass, on one rank.

    The numbers are those of the tokens that there are: what is computed is more where samples of a batch differ in
    length (attention and convolutions of the dense path are padded) or where activations are computed again.

    Args:
        config: of the model.
        batches: the streams' batches, with the masks of training where ``objectives`` ask to denoise.
        objectives: how the losses are computed.
        trainable: modalities that train while all others are frozen (stage 2); None: everything trains.
        ranks: processes whose samples are contrasted with each other; all have as many samples as this one.

    Returns:
        ``adapters``; ``learn`` and ``teach``, the encoder's passes with and without gradient; ``heads``; ``contrast``,
        its logits; ``denoiser``; ``denoising``, its logits. ``total_flops`` adds them up.
    """
    width = config.encoder.width
    views = step_views(batches, objectives, trainable)
    adapters = heads = contrast = denoising = Flops()
    for batch in batches.values():
        for name, inputs in batch.inputs.items():
            learns = _learns(name, trainable)
            adapters += config.adapters[name].embed_flops(inputs, width, learns=learns)
            others = [other for other in batch.inputs if other != name]
            if others:
                heads += product(len(batch), width, width, gradients=2 * learns)
            for other in others:
                # This side's queries against all ranks' samples of the other. The temperature's gradient takes the
                # queries', even those of a frozen side.
                keys = objectives.keys == "differentiable" and _learns(other, trainable)
                contrast += product(len(batch), width, ranks * len(batch), gradients=1 + keys)
    for group, in_gradient in ((views.learn, True), (views.teach, False)):
        for view in group:
            for name, lengths in view.items():
                learns = in_gradient and _learns(name, trainable)
                adapters += config.adapters[name].view_flops(lengths, width, learns=learns)
    for view, whole in zip(views.students, views.unmasked, strict=True):
        for name in view:
            # CLS is no candidate
            hidden, candidates = sum(whole[name]) - sum(view[name]), sum(whole[name]) - len(whole[name])
            denoising += product(hidden, width, candidates, gradients=1)
    gradient = any(_learns(name, trainable) for view in views.learn for name in view)
    return {
        "adapters": adapters,
        "learn": encoder_flops(config.encoder, views.learn, gradient=gradient, trainable=trainable),
        "teach": encoder_flops(config.encoder, views.teach, gradient=False),
        "heads": heads,
        "contrast": contrast,
        "denoiser": denoiser_flops(config, views.students, views.unmasked, gradient=gradient),
        "denoising": denoising,
    }


def total_flops(parts: Mapping[str, Flops]) -> int:
    """All parts of a step, forward and backward."""
    return sum(part.total for part in parts.values())


def _learns(modality: str, trainable: Collection[str] | None) -> bool:
    return trainable is None or modality in trainable
