"""What a training step keeps in each GPU's memory, and what sharding sends over the network: arithmetic, not measured.

The state of training is 16 bytes for each parameter (weights, gradients and AdamW's two moments, all float32), shared
by the GPUs under ``distributed.strategy.FullyShardedStrategy``. On top come, on every GPU,

* working copies: sharded, two blocks' gathered bfloat16 weights, one block's whole gradients (bfloat16, and float32 to
  be reduced), and the root's gathered float32 weights and gradients; on one GPU the bfloat16 weights that autocast
  makes;
* activations: what autograd keeps of the learning pass for each token and block (``block_bytes``), or with activation
  checkpointing each block's input and one whole block; the images' stem; and the logits of the denoising contrast,
  which grow with the square of the samples (every hidden token is compared with every token of the GPU's batch) until
  a term has ``losses.chunks.LOGITS`` of them: from there on they are computed again in the backward pass.

Attention is the kind that stores no logits (FlexAttention). Left out: the gradients of the largest logits while they
exist, the CUDA context, libraries' workspaces, fragmentation, and what compilation saves by fusing; leave a tenth of
the memory free for them.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jsonargparse import auto_cli

from benchmarks.packed import make_batch
from onepeace_lightning.data.batch import Batch
from onepeace_lightning.losses.chunks import LOGITS
from onepeace_lightning.losses.plan import plan_step
from onepeace_lightning.modalities.image import ImageConfig
from onepeace_lightning.modalities.presets import Preset, preset_config
from onepeace_lightning.models import ModelConfig, PretrainModel
from onepeace_lightning.models.block import Block
from onepeace_lightning.models.config import TransformerConfig

SAMPLES = 256
"""Image-text pairs of ``benchmarks.packed`` that tokens are averaged over."""
GIB = 2**30
ROWS = "{:>5} {:>8} {:>10} {:>8} {:>8} {:>11} {:>11} {:>12} {:>12}"


@dataclass(frozen=True)
class Format:
    """Bytes of the numbers that a pass works with.

    Attributes:
        product: of matrix products and what they take in.
        norm: of what a norm inside a branch takes in and gives: autocast computes norms in float32 on CUDA.
    """

    product: int
    norm: int


BF16_CUDA = Format(product=2, norm=4)
BF16_CPU = Format(product=2, norm=2)
FLOAT32 = Format(product=4, norm=4)
RESIDUAL = 4
"""Bytes of a number of the residual stream, float32 also under autocast."""


def block_bytes(config: TransformerConfig, numbers: Format = BF16_CUDA) -> int:
    """Bytes that autograd keeps of one block for each token, attention's logits aside.

    Args:
        config: of the blocks.
        numbers: of the pass.
    """
    converted = 0 if numbers.norm == numbers.product else numbers.norm
    scale = numbers.product if config.layer_scale is not None else 0
    attention = 2 * RESIDUAL if numbers == FLOAT32 else RESIDUAL + numbers.product  # the norm's input and output
    attention += 4 * numbers.product  # query, key, value, and what was attended to
    attention += converted + numbers.product + scale  # the inner norm's input (where converted) and output, times γ
    feeding = 2 * RESIDUAL if numbers == FLOAT32 else RESIDUAL + numbers.product
    inner = 3 * numbers.product + numbers.norm + numbers.product  # gate, its GELU, up, their product, the norm's output
    return (attention + feeding + scale) * config.width + inner * config.ffn_width


def checkpointed_bytes(config: TransformerConfig, numbers: Format = BF16_CUDA) -> int:
    """Bytes for each token of a stack under activation checkpointing: every block's input, and one whole block."""
    return config.depth * RESIDUAL * config.width + block_bytes(config, numbers)


def stem_bytes(image: ImageConfig, width: int, numbers: Format = BF16_CUDA) -> int:
    """Bytes that autograd keeps of the images' convolutional stem for each image.

    Each of the first two convolutions is followed by a norm, whose input and output (the GELU's input) are kept, and
    the next convolution keeps its own input.
    """
    pixels = image.image_size**2
    return (pixels // 16 + pixels // 64) * (width // 4) * (2 * numbers.norm + numbers.product)


@dataclass(frozen=True)
class Work:
    """A step's work for one sample.

    Attributes:
        with_grad: tokens of the pass with gradient.
        decode: tokens that the decoder sees.
        pairs: hidden tokens times candidates over all denoising terms; for B samples it is B² as many.
        terms: denoising terms.
        with_grad_views: views of the pass with gradient.
        without_grad_views: of the pass without.
        decode_views: of the decoder.
    """

    with_grad: float
    decode: float
    pairs: float
    terms: int
    with_grad_views: int
    without_grad_views: int
    decode_views: int


def work(batches: Mapping[str, Batch], samples: int) -> Work:
    """Averages over a batch."""
    plan = plan_step(batches)
    lengths = {
        stream: {name: inputs.token_lengths for name, inputs in batch.inputs.items()}
        for stream, batch in batches.items()
    }

    def tokens(group: list) -> float:
        return sum(sum(lengths) for view in group for lengths in view.values()) / samples

    with_grad = [view.visible(lengths) for view in plan.views if view.with_grad]
    students = [plan.views[student.view] for student in plan.students]
    unmasked = [student.whole(lengths) for student in students]
    pairs = sum(
        (sum(whole[name]) - sum(student.visible(lengths)[name])) * (sum(whole[name]) - samples)
        for student, whole in zip(students, unmasked, strict=True)
        for name in whole
    )
    terms = sum(map(len, unmasked))
    counts = (terms, len(with_grad), len(plan.views) - len(with_grad), len(students))
    return Work(tokens(with_grad), tokens(unmasked), pairs / samples**2, *counts)


@dataclass(frozen=True)
class Parameters:
    """How many there are.

    Attributes:
        encoder: of the encoder's blocks.
        decoder: of the decoder's blocks.
        rest: outside of blocks: adapters, final norms, heads, the decoder's ways in and out.
        block: of one encoder block.
    """

    encoder: int
    decoder: int
    rest: int
    block: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.encoder + self.decoder + self.rest


def parameters(config: ModelConfig) -> Parameters:
    """Count them on a model that holds no values."""
    with torch.device("meta"):
        model = PretrainModel(config)

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    blocks = {name: count(part) for name, part in model.named_modules() if isinstance(part, Block)}
    encoder = sum(size for name, size in blocks.items() if name.startswith("backbone."))
    decoder = sum(blocks.values()) - encoder
    return Parameters(encoder, decoder, count(model) - encoder - decoder, max(blocks.values()))


def state_bytes(sizes: Parameters, gpus: int) -> float:
    """Weights, gradients and AdamW's moments on each GPU."""
    return 16 * sizes.total / gpus


def working_bytes(sizes: Parameters, gpus: int) -> int:
    """Copies of weights and gradients that exist for a while on each GPU."""
    if gpus == 1:
        return 2 * sizes.total
    return 2 * 2 * sizes.block + (2 + 4) * sizes.block + (4 + 4) * sizes.rest


def activation_bytes(config: ModelConfig, step: Work, samples: float, *, checkpointing: bool) -> float:
    """What autograd keeps of encoder, decoder and stem for ``samples`` pairs, without the denoising logits."""
    total = float(stem_bytes(_image(config), config.encoder.width))
    for transformer, tokens in ((config.encoder, step.with_grad), (config.decoder.transformer, step.decode)):
        each = checkpointed_bytes(transformer) if checkpointing else transformer.depth * block_bytes(transformer)
        total += each * tokens
    return samples * total


def _image(config: ModelConfig) -> ImageConfig:
    image = config.adapters["image"]
    if not isinstance(image, ImageConfig):
        raise TypeError(f"the image adapter's config is a {type(image).__name__}; expected ImageConfig")
    return image


def logits_bytes(step: Work, samples: float) -> float:
    """What the denoising contrast keeps at most: the logarithms of all probabilities in float32."""
    return 4 * min(step.pairs * samples**2, step.terms * LOGITS)


def most_samples(config: ModelConfig, step: Work, free: float, *, checkpointing: bool) -> int:
    """The largest batch whose activations and logits fit; 0 where none does."""
    linear, square = activation_bytes(config, step, 1, checkpointing=checkpointing), 4 * step.pairs
    kept = (math.sqrt(linear**2 + 4 * square * max(free, 0.0)) - linear) / (2 * square)
    again = (free - 4 * step.terms * LOGITS) / linear
    return max(0, math.floor(max(kept, again)))


def gathered_bytes(sizes: Parameters, step: Work, *, packed: bool) -> int:
    """Bytes of all weights that a training step gathers (each GPU receives all but its own share of them).

    A block's bfloat16 weights are gathered for every forward pass through it and once more for each that has a backward
    pass; the root's float32 weights once.
    """
    learn, teach, decode = (1, 1, 1) if packed else (step.with_grad_views, step.without_grad_views, step.decode_views)
    return 2 * sizes.encoder * (2 * learn + teach) + 2 * sizes.decoder * 2 * decode + 4 * sizes.rest


def run(
    preset: Preset = "4b",
    modalities: tuple[str, ...] = ("text", "image", "audio"),
    samples: int = 64,
    gpus: tuple[int, ...] = (1, 8, 64),
    memory: tuple[int, ...] = (80, 141),
) -> None:
    """Print the arithmetic.

    Args:
        preset: size of the model.
        modalities: what it is built for; all of it trains.
        samples: image-text pairs on each GPU.
        gpus: numbers of GPUs.
        memory: of a GPU in GB, for the largest batch.
    """
    if not {"text", "image"} <= set(modalities):
        raise ValueError(f"modalities is {list(modalities)}; the arithmetic is of image-text pairs: name both")
    config = preset_config(preset, modalities=modalities)
    sizes = parameters(config)
    step = work({"image-text": make_batch(SAMPLES, _image(config).image_size, seed=0)}, SAMPLES)
    print(
        f"{preset!r} of {', '.join(modalities)}: {sizes.total / 1e9:.3f} billion parameters "
        f"({sizes.encoder / 1e9:.3f} in encoder blocks, {sizes.decoder / 1e6:.1f} million in decoder blocks, "
        f"{sizes.rest / 1e6:.1f} million outside of blocks)"
    )
    print(
        f"an image-text pair: {step.with_grad:.0f} tokens in {step.with_grad_views} views with gradient, "
        f"{step.decode:.0f} in {step.decode_views} decoder views"
    )
    for name, kept in (("no checkpointing", False), ("checkpointing", True)):
        each = activation_bytes(config, step, 1, checkpointing=kept)
        print(f"activations of a pair, {name}: {each / 2**20:.0f} MiB")
    print(f"\nGiB on each GPU with {samples} pairs on each")
    print(ROWS.format("GPUs", "weights", "gradients", "AdamW", "working", "activations", "logits", "total", "total"))
    print(ROWS.format("", "", "", "", "copies", "(ckpt)", "", "no ckpt", "ckpt"))
    logits = logits_bytes(step, samples)
    for count in gpus:
        state, working = state_bytes(sizes, count), working_bytes(sizes, count)
        plain, ckpt = (activation_bytes(config, step, samples, checkpointing=kept) for kept in (False, True))
        cells = [state / 4, state / 4, state / 2, working]
        totals = [state + working + logits + kept for kept in (plain, ckpt)]
        both = f"{plain / GIB:.0f} ({ckpt / GIB:.1f})"
        print(ROWS.format(count, *(f"{x / GIB:.1f}" for x in cells), both, f"{logits / GIB:.1f}",
                          *(f"{x / GIB:.1f}" for x in totals)))  # fmt: skip
    print("\nlargest number of pairs on each GPU, a tenth of its memory left free")
    for count in gpus:
        fixed = state_bytes(sizes, count) + working_bytes(sizes, count)
        for size in memory:
            plain, ckpt = (
                most_samples(config, step, 0.9 * size * 1e9 - fixed, checkpointing=kept) for kept in (False, True)
            )
            print(f"{count:>5} GPUs of {size} GB: {plain} without checkpointing, {ckpt} with")
    packed, separate = (gathered_bytes(sizes, step, packed=kind) for kind in (True, False))
    print(f"\nweights gathered in a step: packed {packed / 1e9:.1f} GB, view by view {separate / 1e9:.1f} GB")
    print(f"ratio: {separate / packed:.2f} (bytes gathered view by view against packed)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line; ``None`` takes the process's own."""
    auto_cli(run, args=list(sys.argv[1:] if arguments is None else arguments), as_positional=False)


if __name__ == "__main__":
    main()
