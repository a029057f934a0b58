"""Floating point operations that the model's arithmetic asks for, counted from sizes and lengths.

What is counted is what MFU is defined by: matrix products and convolutions, two operations for each multiplication with
its addition, over the tokens that there are. Padding, recomputation under activation checkpointing, and everything that
works element by element (norms, activations, softmax, bias look-ups, the optimizer) are left out. With D = width,
F = inner width of a feed-forward network, L = tokens of a sequence, one block's forward pass costs

    each token      4 · 2 D²   (query, key, value, output)   +   3 · 2 D F   (its modality's gate, up, down)
    each sequence   2 · 2 L² D   (logits, weighted sum of values)

and a backward pass the same once more for the gradient of each product's weights and once for that of its input
(attention: of either factor), where those are needed: frozen weights have no gradient, and raw input has none.

A whole pretraining step is in ``losses.flops``.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

from onepeace_lightning.modalities.audio import KERNELS_AND_STRIDES, num_frames
from onepeace_lightning.models.config import (
    PATCH,
    AdapterConfig,
    AudioConfig,
    ImageConfig,
    ModelConfig,
    TextConfig,
    TransformerConfig,
)
from onepeace_lightning.models.inputs import Audio, Image, Text

Lengths = Mapping[str, Sequence[int]]
"""A view by its sizes: modality to the number of tokens of each sample, CLS included."""


@dataclass(frozen=True)
class Flops:
    """Operations of one part of a step.

    Attributes:
        forward: of the forward pass.
        backward: of the backward pass, gradients of inputs and of weights.
    """

    forward: int = 0
    backward: int = 0

    @property
    def total(self) -> int:
        """Both passes."""
        return self.forward + self.backward

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.forward + other.forward, self.backward + other.backward)


def product(rows: int, inner: int, columns: int, *, gradients: int) -> Flops:
    """A (rows × inner) by (inner × columns) product, and its backward pass for 0, 1 or both factors."""
    forward = 2 * rows * inner * columns
    return Flops(forward, gradients * forward)


@singledispatch
def token_lengths(inputs: Any) -> list[int]:
    """Tokens that an adapter makes of each sample, CLS included, without running it.

    Known for ``Text``, ``Image`` and ``Audio``; a new modality registers its own type: ``@token_lengths.register``.

    Raises:
        TypeError: for a type that nobody registered.
    """
    raise TypeError(f"nobody said how many tokens {type(inputs).__name__} has: write a function of it that returns the "
                    "tokens of each sample, decorated with @token_lengths.register")  # fmt: skip


@token_lengths.register
def _(inputs: Text) -> list[int]:
    return (inputs.lengths + 1).tolist()


@token_lengths.register
def _(inputs: Image) -> list[int]:
    batch, _, height, width = inputs.pixels.shape
    return [1 + (height // PATCH) * (width // PATCH)] * batch


@token_lengths.register
def _(inputs: Audio) -> list[int]:
    return [1 + num_frames(samples) for samples in inputs.lengths.tolist()]


@singledispatch
def embed_flops(adapter: AdapterConfig, inputs: Any, width: int, *, learns: bool = True) -> Flops:
    """What an adapter computes once for a batch, however many views are made of it.

    A new modality registers its own configuration: ``@embed_flops.register``.

    Args:
        adapter: sizes.
        inputs: the batch; only its sizes are read.
        width: of the encoder.
        learns: the adapter has gradients.

    Raises:
        TypeError: for a configuration that nobody registered.
    """
    raise TypeError(f"nobody said what {type(adapter).__name__} costs: write a function with the arguments of "
                    "embed_flops for it, decorated with @embed_flops.register")  # fmt: skip


@embed_flops.register
def _(adapter: TextConfig, inputs: Text, width: int, *, learns: bool = True) -> Flops:
    return Flops()  # embeddings are looked up


@embed_flops.register
def _(adapter: ImageConfig, inputs: Image, width: int, *, learns: bool = True) -> Flops:
    batch, channels, height, wide = inputs.pixels.shape
    pixels = batch * height * wide
    quarter = width // 4
    return (
        product(pixels // 16, channels * 4 * 4, quarter, gradients=int(learns))
        + product(pixels // 64, quarter * 2 * 2, quarter, gradients=2 * learns)
        + product(pixels // 256, quarter * 2 * 2, width, gradients=2 * learns)
    )


@embed_flops.register
def _(adapter: AudioConfig, inputs: Audio, width: int, *, learns: bool = True) -> Flops:
    lengths = inputs.lengths.tolist()
    total = Flops()
    channels = 1
    for kernel, stride in KERNELS_AND_STRIDES:
        lengths = [(length - kernel) // stride + 1 for length in lengths]
        gradients = learns * (1 if channels == 1 else 2)
        total += product(sum(lengths), channels * kernel, adapter.channels, gradients=gradients)
        channels = adapter.channels
    return total + product(sum(lengths), adapter.channels, width, gradients=2 * learns)


@singledispatch
def view_flops(adapter: AdapterConfig, visible: Sequence[int], width: int, *, learns: bool = True) -> Flops:
    """What an adapter computes for every view: nothing, other than audio's convolutional positions.

    Args:
        adapter: sizes.
        visible: tokens of each sample that the view shows, CLS included.
        width: of the encoder.
        learns: the adapter has gradients in this view.
    """
    return Flops()


@view_flops.register
def _(adapter: AudioConfig, visible: Sequence[int], width: int, *, learns: bool = True) -> Flops:
    frames = sum(visible) - len(visible)
    inner = width // adapter.position_groups * adapter.position_kernel
    # The input of the first layer has a gradient too: that of the frames' tokens.
    return product(adapter.position_depth * frames, inner, width, gradients=2 * learns)


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
