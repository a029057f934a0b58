"""Model FLOPs of one pretraining step: what ``losses.pretraining`` computes, counted as ``models.flops`` counts."""

from collections.abc import Collection, Mapping

from torch import Tensor

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.losses.pretraining import Objectives, denoised_alone
from onepeace_lightning.models.config import ModelConfig
from onepeace_lightning.models.flops import (
    Flops,
    Lengths,
    denoiser_flops,
    embed_flops,
    encoder_flops,
    product,
    token_lengths,
    view_flops,
)


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

    def learns(name: str) -> bool:
        return trainable is None or name in trainable

    parts = dict.fromkeys(("adapters", "learn", "teach", "heads", "contrast", "denoiser", "denoising"), Flops())
    passes: dict[str, list[Lengths]] = {"learn": [], "teach": []}
    students: list[Lengths] = []
    unmasked: list[Lengths] = []

    def add(run: str, view: Lengths) -> None:
        passes[run].append(view)
        for name, lengths in view.items():
            gradient = run == "learn" and learns(name)
            parts["adapters"] += view_flops(config.adapters[name], lengths, width, learns=gradient)

    def add_student(view: Lengths, masks: Mapping[str, Tensor]) -> None:
        hidden = {name: masks[name].sum(1).tolist() for name in view}
        visible = {name: [n - m for n, m in zip(view[name], hidden[name], strict=True)] for name in view}
        add("learn", visible)
        students.append(visible)
        unmasked.append(view)
        for name, counts in hidden.items():
            candidates = sum(view[name]) - len(view[name])
            parts["denoising"] += product(sum(counts), width, candidates, gradients=1)

    for batch in batches.values():
        lengths = {name: token_lengths(inputs) for name, inputs in batch.inputs.items()}
        for name, inputs in batch.inputs.items():
            parts["adapters"] += embed_flops(config.adapters[name], inputs, width, learns=learns(name))
        if pair := len(lengths) > 1:
            for name in lengths:
                add("learn" if learns(name) else "teach", {name: lengths[name]})
                parts["heads"] += product(len(batch), width, width, gradients=2 * learns(name))
                # This side's queries against all ranks' samples of the other. The temperature's gradient takes the
                # queries', even those of a frozen side.
                keys = objectives.keys == "differentiable" and any(learns(other) for other in lengths if other != name)
                parts["contrast"] += product(len(batch), width, ranks * len(batch), gradients=1 + keys)
        if not objectives.denoise:
            continue
        add("teach", lengths)
        for name in denoised_alone(lengths):
            add_student({name: lengths[name]}, batch.masks)
        if pair:
            add_student(lengths, batch.fused_masks)

    gradient = any(learns(name) for view in passes["learn"] for name in view)
    parts["learn"] = encoder_flops(config.encoder, passes["learn"], gradient=gradient, trainable=trainable)
    parts["teach"] = encoder_flops(config.encoder, passes["teach"], gradient=False)
    parts["denoiser"] = denoiser_flops(config, students, unmasked, gradient=gradient)
    return parts


def total_flops(parts: Mapping[str, Flops]) -> int:
    """All parts of a step, forward and backward."""
    return sum(part.total for part in parts.values())
