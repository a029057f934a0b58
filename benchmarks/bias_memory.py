"""Peak memory against the number of blocks, where every block has its own relative bias tables.

Fine-tuning gives each block tables of its own. What runs is the image branch in float32, without gradient or for a
whole training step:

* One at a time: the model as it is. A block writes out its bias (1, H, L, L) when it attends, and drops it.
* Baseline: the same model, but the biases of all blocks are written out before the first block runs.

Each case runs in a process of its own. What a process needs that only builds the model and the pictures is taken off.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from jsonargparse import auto_cli
from torch import Tensor

from benchmarks.timing import in_fresh_process
from onepeace_lightning.models import Image, ModelConfig
from onepeace_lightning.models.attention import RelativeBias
from onepeace_lightning.models.backbone import Backbone
from onepeace_lightning.models.config import Preset
from onepeace_lightning.models.dense import Dense, dense_bias
from onepeace_lightning.models.tokens import Packed, View

ONE = "one at a time"
ALL = "all first"
NOTHING = "model and pictures"
MODES = {"inference": False, "training step": True}


class AllFirst(Dense):
    """Dense attention that writes out the biases of all blocks when the pass begins."""

    def __init__(
        self, packed: Packed, views: Sequence[View], relative: Mapping[str, RelativeBias], *, heads: int
    ) -> None:
        super().__init__(packed, views, heads, relative)
        blocks = max(len(bias.tables_RH) for bias in relative.values())
        self.all = [
            [
                dense_bias(sequences, rows, {name: bias.table(block) for name, bias in relative.items()})
                for sequences, rows in zip(self.groups, self.bias_rows, strict=True)
            ]
            for block in range(blocks)
        ]

    def bias(self, group: int, block: int) -> Tensor | None:
        """What was written out."""
        return self.all[block][group]


def make_backbone(preset: Preset, image_size: int, blocks: int, variant: str) -> Backbone:
    """The image branch with per-block tables."""
    torch.manual_seed(0)
    config = ModelConfig.preset(preset, modalities=("image",), image_size=image_size)
    config = replace(config, encoder=replace(config.encoder, depth=blocks), per_block_tables=True)
    backbone = Backbone(config)
    for name, parameter in backbone.named_parameters():
        if "bias_tables" in name:
            torch.nn.init.normal_(parameter)
    if variant == ALL:
        backbone.encoder.mixer = partial(AllFirst, heads=config.encoder.heads)  # type: ignore[method-assign]
    return backbone


def run_case(variant: str, preset: Preset, image_size: int, blocks: int, batch_size: int, learn: bool) -> Tensor:
    """One pass: (B · L, D) features, after the backward pass if ``learn``."""
    backbone = make_backbone(preset, image_size, blocks, variant)
    pixels = torch.randn(batch_size, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))
    if variant == NOTHING:
        return pixels
    with torch.set_grad_enabled(learn):
        features = backbone({"image": Image(pixels)})["image"].values_TD
    if learn:
        features.square().mean().backward()
    return features.detach()


def check_same(preset: Preset, image_size: int, batch_size: int) -> float:
    """The greatest difference between both ways' features.

    Raises:
        RuntimeError: where it is past 1e-5.
    """
    ours, theirs = (run_case(variant, preset, image_size, 2, batch_size, False) for variant in (ONE, ALL))
    difference = float((ours - theirs).abs().max())
    if not difference <= 1e-5:
        raise RuntimeError(f"features of both ways differ by {difference:.1e}; at most 1e-5 is expected")
    return difference


def run(
    preset: Preset = "small",
    image_size: int = 384,
    batch_size: int = 2,
    blocks: tuple[int, ...] = (4, 8, 16),
) -> None:
    """Measure peak memory both ways.

    Args:
        preset: width and heads of the model.
        image_size: side of the pictures in pixels.
        batch_size: pictures.
        blocks: numbers of blocks, each measured.

    Raises:
        ValueError: for a single block, whose table is shared by all blocks.
    """
    if min(blocks) < 2:
        raise ValueError(f"blocks is {blocks}; give numbers of 2 or more: a single block has nothing to keep or drop")
    difference = check_same(preset, image_size, batch_size)
    length = (image_size // 16) ** 2 + 1
    heads = ModelConfig.preset(preset).encoder.heads
    print(
        f"image branch at {preset!r} in float32, {batch_size} pictures of {image_size} pixels ({length} tokens, bias "
        f"of {heads * length**2 * 4 / 2**20:.0f} MiB); features of both ways agree within {difference:.0e}"
    )
    ratio = 0.0
    for mode, learn in MODES.items():
        for count in blocks:
            case = (preset, image_size, count, batch_size, learn)
            floor = in_fresh_process(run_case, NOTHING, *case).process
            one, every = (in_fresh_process(run_case, variant, *case).process - floor for variant in (ONE, ALL))
            print(f"{mode:13}  {count:3} blocks  {ONE} {one / 2**20:.0f} MiB, {ALL} {every / 2**20:.0f} MiB")
            if not learn:
                ratio = every / max(one, 1)
    print(f"ratio: {ratio:.2f} (memory of {ALL} against {ONE}, inference with {blocks[-1]} blocks)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line; ``None`` takes the process's own."""
    auto_cli(run, args=list(sys.argv[1:] if arguments is None else arguments), as_positional=False)


if __name__ == "__main__":
    main()
