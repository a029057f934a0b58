"""One packed pass over all views of a pretraining step, against the same model run view by view with padding.

A step is forward and backward of ``losses.pretraining.pretraining_loss`` on a batch of image-text pairs; the optimizer
is left out of both sides. The step needs five views that learn (text, image, masked text, masked image, masked pair)
and one without gradient (the pair, which teaches), then the decoder on the three masked views.

* Packed: the model as it is. Padding is dropped, and each block runs once over the tokens of all views.
* Baseline: six encoder passes and three decoder passes, each on one view's padded (B, L, D) tokens, with the padding
  masked as attention keys. Parameters, adapters (each input is embedded once), attention function, relative bias,
  heads, losses and number format are the same, and so must all loss terms and gradients be, within 1e-4.

Every repetition takes another batch, the same one on both sides. The captions' numbers of words are log-normal, with
median 11 and deviation 0.7 of the logarithm, clipped to 3 … 70, about as captions from the web spread; a word is one
token, or with probability 0.3 two, and at most 70 tokens are kept.
"""

import copy
import sys
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from jsonargparse import auto_cli
from torch import Tensor, nn

from benchmarks.timing import in_fresh_process, interleaved, ratio_line, table
from onepeace_lightning.cli.trainer import best_precision
from onepeace_lightning.data.batch import Batch, Collate, Example
from onepeace_lightning.data.readers.aligned import draw_masks
from onepeace_lightning.losses.pretraining import pretraining_loss
from onepeace_lightning.modalities.image import ImageConfig, ImageModality
from onepeace_lightning.modalities.presets import Preset, preset_config
from onepeace_lightning.modalities.text import TextModality
from onepeace_lightning.modalities.tokenizers import Encoding
from onepeace_lightning.modalities.tokenizers.base import EOS
from onepeace_lightning.models import PretrainModel, Tokens
from onepeace_lightning.models.attention.base import RelativeBias
from onepeace_lightning.models.attention.cpu import attend_on_cpu
from onepeace_lightning.models.attention.padded import pad_view, write_out
from onepeace_lightning.models.block import Block
from onepeace_lightning.models.encoder import Encoder
from onepeace_lightning.models.packing import View

VOCAB_SIZE = 16_384
MEDIAN_WORDS, WORDS_DEVIATION, WORDS_RANGE = 11, 0.7, (3, 70)
TWO_TOKEN_WORDS = 0.3
MAX_TOKENS = 70
TOLERANCE = 1e-4

PACKED = "packed"
PADDED = "view by view with padding"

Precision = Literal["bf16", "float32"]


class ViewByView(nn.Module):
    """An encoder's blocks run on one view after the other, each padded to its longest sequence.

    Padding goes through all layers and is only masked as a key. There is no stochastic depth: the presets have none.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, views: Sequence[View], relative: Mapping[str, RelativeBias] | None = None
    ) -> list[dict[str, Tokens]]:
        """What ``Encoder.forward`` gives."""
        return [self._encode(view, relative or {}) for view in views]

    def _encode(self, view: View, relative: Mapping[str, RelativeBias]) -> dict[str, Tokens]:
        view = {name: view[name] for name in self.encoder.modalities if name in view}
        padded = pad_view(view, dict.fromkeys(view, 0))
        x_BLD = torch.cat([tokens.padded()[0] for tokens in view.values()], 1)
        # All presets share one relative bias between the blocks.
        bias = write_out(padded, relative, 0)
        for block in self.encoder.blocks:
            x_BLD = padded_block(block, x_BLD, padded.columns, bias, padded.valid_BL)  # type: ignore[arg-type]
        features = {name: self.encoder.norms[name](x_BLD[:, span]) for name, span in padded.columns.items()}
        return {
            name: view[name].with_values(Tokens.of_padded(x_BLD, view[name].lengths).values_TD)
            for name, x_BLD in features.items()
        }


def padded_block(
    block: Block, x_BLD: Tensor, columns: Mapping[str, slice], bias: Tensor | None, valid_BL: Tensor | None
) -> Tensor:
    """A block on the padded sequences of one view, (B, L, D) -> (B, L, D); ``columns`` says where each modality is."""

    def attend(q_TD: Tensor, k_TD: Tensor, v_TD: Tensor) -> Tensor:
        heads = block.attention.heads
        q, k, v = (flat.view(*x_BLD.shape[:2], heads, -1).transpose(1, 2) for flat in (q_TD, k_TD, v_TD))
        return attend_on_cpu(q, k, v, bias, valid_BL).transpose(1, 2).flatten(2).flatten(0, 1)

    normed_TD = block.norm_attention(x_BLD).flatten(0, 1)
    x_BLD = x_BLD + block.gamma_1 * block.attention(normed_TD, attend).view_as(x_BLD)
    normed = block.norm_ffn(x_BLD)
    if len(columns) == 1:
        fed = block.ffns[next(iter(columns))](normed)
    else:
        fed = torch.cat([block.ffns[name](normed[:, span]) for name, span in columns.items()], 1)
    return x_BLD + block.gamma_2 * fed


def make_batch(batch_size: int, image_size: int, seed: int) -> Batch:
    """Random images and token ids, with the masks of training."""
    rng = np.random.default_rng(seed)
    words = np.exp(rng.normal(np.log(MEDIAN_WORDS), WORDS_DEVIATION, batch_size)).round().clip(*WORDS_RANGE)
    modalities = {"text": TextModality(), "image": ImageModality({"size": image_size})}
    examples = []
    for index, count in enumerate(words.astype(int)):
        flags = [flag for _ in range(count) for flag in ([True, False] if rng.random() < TWO_TOKEN_WORDS else [True])]
        word_starts = [*flags[:MAX_TOKENS], True]
        ids = [*rng.integers(EOS + 2, VOCAB_SIZE, len(word_starts) - 1).tolist(), EOS]
        pixels = torch.from_numpy(rng.standard_normal((3, image_size, image_size), dtype=np.float32))
        arrays = {"text": Encoding(ids, word_starts), "image": pixels}
        masks, fused = draw_masks(modalities, arrays, rng)
        examples.append(Example(str(index), arrays, masks=masks, fused_masks=fused))
    return Collate(modalities)(examples)


def make_model(preset: Preset, seed: int) -> PretrainModel:
    """A model of text and image, its relative biases not zero as they would be before training."""
    torch.manual_seed(seed)
    model = PretrainModel(
        preset_config(preset, modalities=("text", "image"), sizes={"text": {"vocab_size": VOCAB_SIZE}})
    )
    for name, parameter in model.named_parameters():
        if "bias_tables" in name:
            nn.init.normal_(parameter)
    return model


def view_by_view(model: PretrainModel) -> PretrainModel:
    """Make the model run its encoder and its decoder view by view, with the weights that it has."""
    model.backbone.encoder = ViewByView(model.backbone.encoder)  # type: ignore[assignment]
    if model.denoiser is not None:
        model.denoiser.decoder = ViewByView(model.denoiser.decoder)  # type: ignore[assignment]
    return model


def step(model: PretrainModel, batch: Batch, precision: Precision) -> dict[str, Tensor]:
    """Forward and backward; gives the loss terms and leaves the gradients."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = pretraining_loss(model, {"image-text": batch})
        total = loss.total
    total.backward()
    return loss.terms


def check_same(packed: PretrainModel, padded: PretrainModel, batch: Batch) -> float:
    """The greatest difference in float32 between both ways' loss terms and gradients.

    Raises:
        RuntimeError: where it is past 1e-4, so that timing them would compare different things.
    """
    ours, theirs = (step(model, batch, "float32") for model in (packed, padded))
    differences = {name: float((ours[name] - theirs[name]).detach().abs()) for name in ours}
    for (name, one), two in zip(packed.named_parameters(), padded.parameters(), strict=True):
        if (one.grad is None) != (two.grad is None):
            raise RuntimeError(f"{name} has a gradient in one of the two ways only")
        if one.grad is not None and two.grad is not None:
            differences[name] = float((one.grad - two.grad).abs().max())
    if past := {name: value for name, value in differences.items() if not value <= TOLERANCE}:
        raise RuntimeError(f"packed and view by view differ by more than {TOLERANCE}: {past}")
    return max(differences.values())


def _two_steps(variant: str, preset: Preset, batch_size: int, precision: Precision, seed: int) -> None:
    """What is measured for memory: the second step's peak includes what the first left behind."""
    model = make_model(preset, seed)
    if variant == PADDED:
        view_by_view(model)
    batch = make_batch(batch_size, _image_size(model), seed)
    for _ in range(2):
        step(model, batch, precision)


def _image_size(model: PretrainModel) -> int:
    config = model.config.adapters["image"]
    if not isinstance(config, ImageConfig):
        raise TypeError(f"the image adapter's config is a {type(config).__name__}; expected ImageConfig")
    return config.image_size


def run(
    preset: Preset = "small",
    batch_size: int = 32,
    precision: Precision | None = None,
    repetitions: int = 9,
    seed: int = 0,
) -> None:
    """Measure one training step both ways.

    Args:
        preset: size of the model.
        batch_size: image-text pairs.
        precision: bf16 (autocast) or float32; by default what this processor does best.
        repetitions: timed steps of each way, taking turns.
        seed: of weights, captions, images and masks.
    """
    precision = precision or ("bf16" if best_precision() == "bf16-mixed" else "float32")
    peaks = {
        variant: in_fresh_process(_two_steps, variant, preset, batch_size, precision, seed)
        for variant in (PACKED, PADDED)
    }
    packed = make_model(preset, seed)
    padded = view_by_view(copy.deepcopy(packed))
    image_size = _image_size(packed)
    batches = [make_batch(batch_size, image_size, seed + repetition) for repetition in range(repetitions)]
    difference = check_same(packed, padded, batches[0])

    steps = {
        PACKED: lambda repetition: step(packed, batches[repetition], precision),
        PADDED: lambda repetition: step(padded, batches[repetition], precision),
    }
    interleaved(steps, 1)
    seconds = interleaved(steps, repetitions)

    lengths = [torch.tensor(batch.inputs["text"].lengths, dtype=torch.float64) for batch in batches]
    longest = torch.stack([part.max() for part in lengths]).mean()
    print(
        f"training step at {preset!r} in {precision} on {torch.get_num_threads()} threads: {batch_size} image-text "
        f"pairs, {image_size}-pixel images, captions of {torch.cat(lengths).mean():.1f} tokens on average and "
        f"{longest:.1f} for the longest of a batch"
    )
    print(f"loss terms and gradients of both ways agree within {difference:.0e} (float32)")
    print(table(seconds, {name: f"peak memory {peak.process / 2**20:.0f} MiB" for name, peak in peaks.items()}))
    print(ratio_line(seconds[PACKED], seconds[PADDED], f"{PACKED} against {PADDED}"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line; ``None`` takes the process's own."""
    auto_cli(run, args=list(sys.argv[1:] if arguments is None else arguments), as_positional=False)


if __name__ == "__main__":
    main()
