"""Floating point operations that the model's arithmetic asks for, counted from sizes and lengths.

What is counted is what MFU is defined by: matrix products and convolutions, two operations for each multiplication with
its addition, over the tokens that there are. Padding, recomputation under activation checkpointing, and everything that
works element by element (norms, activations, softmax, bias look-ups, the optimizer) are left out. With D = width,
F = inner width of a feed-forward network, L = tokens of a sequence, one block's forward pass costs

    each token      4 · 2 D²   (query, key, value, output)   +   3 · 2 D F   (its modality's gate, up, down)
    each sequence   2 · 2 L² D   (logits, weighted sum of values)

and a backward pass the same once more for the gradient of each product's weights and once for that of its input
(attention: of either factor), where those are needed: frozen weights have no gradient, and raw input has none.

A whole pretraining step is in ``training.pretraining_flops``.
"""

from collections.abc import Collection, Sequence

from onepeace_lightning.losses.plan import Lengths
from onepeace_lightning.models.config import ModelConfig, TransformerConfig
from onepeace_lightning.models.flops import Flops, product


def encoder_flops(
    config: TransformerConfig,
    views: Sequence[Lengths],
    *,
    gradient: bool = True,
    trainable: Collection[str] | None = None,
) -> Flops:
    """A stack of blocks over any number of views.

    Args:
        config: of the blocks.
        views: their tokens.
        gradient: a gradient flows back through the pass.
        trainable: modalities whose feed-forward networks are the only weights with gradients; None: all weights.
    """
    tokens = {name: 0 for view in views for name in view}
    for view in views:
        for name, lengths in view.items():
            tokens[name] += sum(lengths)
    squares = sum(sum(sample) ** 2 for view in views for sample in zip(*view.values(), strict=True))
    width, ffn = config.width, config.ffn_width

    def gradients(learns: bool) -> int:
        return gradient * (1 + learns)

    block = product(sum(tokens.values()), width, 4 * width, gradients=gradients(trainable is None))
    block += product(squares, width, 2, gradients=gradients(True))
    for name, count in tokens.items():
        learns = trainable is None or name in trainable
        block += product(count, width, 3 * ffn, gradients=gradients(learns))
    return Flops(config.depth * block.forward, config.depth * block.backward)


def denoiser_flops(
    config: ModelConfig, visible: Sequence[Lengths], lengths: Sequence[Lengths], *, gradient: bool = True
) -> Flops:
    """The denoising decoder, which always trains.

    Args:
        config: of the whole model.
        visible: for each masked view the tokens that it shows.
        lengths: the tokens that it would have without its masks.
        gradient: one flows on into the encoder.
    """
    width, decoder = config.encoder.width, config.decoder.transformer
    total = encoder_flops(decoder, lengths)
    for view, whole in zip(visible, lengths, strict=True):
        for name in view:
            shown = sum(view[name])
            total += product(shown, width, decoder.width, gradients=1 + gradient)
            total += product(sum(whole[name]) - shown, decoder.width, width, gradients=2)
    return total
