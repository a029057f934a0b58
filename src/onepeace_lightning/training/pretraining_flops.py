"""Model FLOPs of one pretraining step, counted from the views of ``losses.plan`` as ``training.flops`` counts."""

from collections.abc import Collection, Mapping

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.losses.plan import plan_step
from onepeace_lightning.losses.pretraining import Objectives
from onepeace_lightning.models.config import ModelConfig
from onepeace_lightning.models.flops import Flops, product
from onepeace_lightning.training.flops import denoiser_flops, encoder_flops


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
        ``adapters``; ``with_grad`` and ``without_grad``, the encoder's two passes; ``heads``; ``contrast``, its
        logits; ``denoiser``; ``denoising``, its logits. ``total_flops`` adds them up.
    """
    width = config.encoder.width
    frozen = [name for name in config.adapters if not _learns(name, trainable)]
    plan = plan_step(batches, denoise=objectives.denoise, without_gradient=frozen)
    lengths = {
        stream: {name: inputs.token_lengths for name, inputs in batch.inputs.items()}
        for stream, batch in batches.items()
    }
    visible = [view.visible(lengths) for view in plan.views]
    students = [visible[student.view] for student in plan.students]
    unmasked = [plan.views[student.view].whole(lengths) for student in plan.students]
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
    for planned, view in zip(plan.views, visible, strict=True):
        for name, shown in view.items():
            learns = planned.with_grad and _learns(name, trainable)
            adapters += config.adapters[name].view_flops(shown, width, learns=learns)
    for view, whole in zip(students, unmasked, strict=True):
        for name in view:
            # CLS is no candidate
            hidden, candidates = sum(whole[name]) - sum(view[name]), sum(whole[name]) - len(whole[name])
            denoising += product(hidden, width, candidates, gradients=1)
    passes = {
        with_grad: [view for planned, view in zip(plan.views, visible, strict=True) if planned.with_grad == with_grad]
        for with_grad in (True, False)
    }
    gradient = any(_learns(name, trainable) for view in passes[True] for name in view)
    return {
        "adapters": adapters,
        "with_grad": encoder_flops(config.encoder, passes[True], gradient=gradient, trainable=trainable),
        "without_grad": encoder_flops(config.encoder, passes[False], gradient=False),
        "heads": heads,
        "contrast": contrast,
        "denoiser": denoiser_flops(config, students, unmasked, gradient=gradient),
        "denoising": denoising,
    }


def total_flops(parts: Mapping[str, Flops]) -> int:
    """All parts of a step, forward and backward."""
    return sum(part.total for part in parts.values())


def _learns(modality: str, trainable: Collection[str] | None) -> bool:
    return trainable is None or modality in trainable
