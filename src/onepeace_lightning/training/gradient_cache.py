"""One contrast over many batches with the memory of one batch (gradient caching, arXiv 2101.06983).

First the embeddings of all batches, without a graph; then the contrast over all of them and over all ranks, and its
gradients with respect to the embeddings; then each batch once more, with its graph, whose backward pass begins with the
cached gradients. The gradients are those of the large batch. The denoising contrast stays within each batch.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from onepeace_lightning.losses.plan import Sampled
from onepeace_lightning.losses.pretraining import (
    Contrast,
    Embeddings,
    Objectives,
    Record,
    contrast_terms,
    contrasted_embeddings,
    weight,
    weighted,
)
from onepeace_lightning.models.block import DropPath
from onepeace_lightning.models.pretraining import PretrainModel

Encode = Callable[[Mapping[str, Sampled]], tuple[Embeddings, Tensor, Tensor | None]]
Learn = Callable[[Mapping[str, Sampled], Contrast], dict[str, Tensor]]


def cached_loss(
    encode: Encode,
    learn: Learn,
    parts: Sequence[Mapping[str, Sampled]],
    objectives: Objectives,
    backward: Callable[[Tensor], None],
    record: Record | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """All loss terms of a step over several batches, after the backward pass of all but the last of them.

    Each batch draws the same random numbers (stochastic depth) both times that it is encoded.

    Args:
        encode: a batch to the embeddings that are contrasted, the inverse temperature and the bias (``encode``).
        learn: a batch to its loss terms by name, with what takes the place of the contrast (``pretraining_loss``).
        parts: the batches, stream to batch each; on every rank as many samples of a stream in all.
        objectives: how the losses are computed.
        backward: called with each batch's part of the loss but the last one's.
        record: is told what each term of the contrast is the mean of, over the samples of all batches in turn.

    Returns:
        The terms, without a graph, denoising averaged over batches; and a scalar whose value is the whole loss and
        whose backward pass is the last batch's.
    """
    seeds = torch.randint(2**62, (len(parts),)).tolist()
    embeddings, scale, bias = [], None, None
    with torch.no_grad():
        for seed, part in zip(seeds, parts, strict=True):
            torch.manual_seed(seed)
            found, scale, bias = encode(part)
            embeddings.append(found)
    terms, gradients, scale_gradient, bias_gradient = _cache(embeddings, scale, bias, objectives, record)

    sums: dict[str, Tensor] = {}
    last = torch.zeros(())
    for number, (seed, part, cached) in enumerate(zip(seeds, parts, gradients, strict=True)):
        # Autocast keeps converted weights, those of a pass without a graph and of a graph that is gone among them.
        torch.clear_autocast_cache()
        torch.manual_seed(seed)

        def product(
            found: Embeddings,
            scale: Tensor,
            bias: Tensor | None,
            cached: Embeddings = cached,
            first: bool = number == 0,
        ) -> dict[str, Tensor]:
            products = [(e * cached[s][name]).sum() for s, sides in found.items() for name, e in sides.items()]
            # The temperature's gradient is that of the whole contrast: it counts once, but is there in every graph.
            products.append((scale * scale_gradient).sum() * first)
            if bias is not None:
                products.append((bias * bias_gradient).sum() * first)
            return {_CACHED: torch.stack(products).sum()}

        learned = learn(part, product)
        denoising = {name: value for name, value in learned.items() if name != _CACHED}
        for name, value in denoising.items():
            sums[name] = sums.get(name, 0) + value.detach() / len(parts)
        weighted_terms = [weight(name) * value / len(parts) for name, value in denoising.items()]
        last = torch.stack([*weighted_terms, *([learned[_CACHED]] if terms else [])]).sum()
        if number < len(parts) - 1:
            backward(last)
    terms |= sums
    return terms, weighted(terms) + (last - last.detach())


def encode(
    model: PretrainModel, batches: Mapping[str, Sampled], objectives: Objectives, without_gradient: Collection[str] = ()
) -> tuple[Embeddings, Tensor, Tensor | None]:
    """What of a batch enters the contrast: its embeddings, the inverse temperature and the bias.

    Raises:
        ValueError: as ``losses.pretraining_loss``.
    """
    found = contrasted_embeddings(model, batches, objectives, without_gradient, all_views=draws(model))
    bias = model.heads.logit_bias
    return found, model.heads.scale, None if bias is None else bias.clone()


def draws(model: nn.Module) -> bool:
    """Whether a pass through a model draws random numbers."""
    return any(isinstance(part, DropPath) and part.training and part.rate > 0 for part in model.modules())


_CACHED = "cached/contrast"


def _cache(
    embeddings: Sequence[Embeddings],
    scale: Tensor | None,
    bias: Tensor | None,
    objectives: Objectives,
    record: Record | None,
) -> tuple[dict[str, Tensor], list[dict[str, dict[str, Tensor]]], Tensor, Tensor]:
    """The contrast's terms and its gradients: of each batch's embeddings, of the temperature and of the bias."""
    sides = [(stream, name) for stream, modalities in embeddings[0].items() for name in modalities]
    if scale is None or not sides:
        nothing = torch.zeros(())
        return {}, [{} for _ in embeddings], nothing, nothing
    with torch.enable_grad():
        joined = {side: torch.cat([part[side[0]][side[1]] for part in embeddings]).requires_grad_() for side in sides}
        leaves = [*joined.values(), scale.detach().requires_grad_()]
        if bias is not None:
            leaves.append(bias.detach().requires_grad_())
        whole: dict[str, dict[str, Tensor]] = {}
        for (stream, name), rows_ND in joined.items():
            whole.setdefault(stream, {})[name] = rows_ND
        terms = contrast_terms(
            whole, leaves[len(sides)], None if bias is None else leaves[-1], objectives=objectives, record=record
        )
        gradients = torch.autograd.grad(weighted(terms), leaves)
    parts: list[dict[str, dict[str, Tensor]]] = [{} for _ in embeddings]
    for (stream, name), gradient_ND in zip(sides, gradients, strict=False):
        rows = gradient_ND.split([len(part[stream][name]) for part in embeddings])
        for part, rows_BD in zip(parts, rows, strict=True):
            part.setdefault(stream, {})[name] = rows_BD
    return {name: value.detach() for name, value in terms.items()}, parts, gradients[len(sides)], gradients[-1]
