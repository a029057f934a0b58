"""Peak memory against the number of blocks, where every block has its own relative bias tables.

Fine-tuning gives each block tables of its own. What runs is the image branch in float32, without gradient or for a
whole training step:

* One at a time: dense attention. A block writes out its bias (1, H, L, L) when it attends, and drops it.
* Baseline: the same model, but the biases of all blocks are written out before the first block runs.
* In the kernel, on CUDA alone: FlexAttention, which reads the tables and writes no bias out.

Each case runs in a process of its own. What a process needs that only builds the model and the images is taken off.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import Tensor

from benchmarks.timing import Device, fresh, own_peak
from onepeace_lightning.modalities.image import Image
from onepeace_lightning.modalities.presets import Preset, preset_config
from onepeace_lightning.models.attention.base import Attend, RelativeBias
from onepeace_lightning.models.attention.padded import PaddedAttention, write_out
from onepeace_lightning.models.backbone import Backbone
from onepeace_lightning.models.encoder import set_attention
from onepeace_lightning.models.packing import Packed, View

ONE = "one at a time"
ALL = "all first"
KERNEL = "in the kernel"
NOTHING = "model and pictures"
VARIANTS: Mapping[Device, Sequence[str]] = {"cpu": (ONE, ALL), "cuda": (KERNEL, ONE, ALL)}
"""On the processor FlexAttention has no backward pass."""
MODES = {"inference": False, "training step": True}
CLAIMS: Mapping[Device, tuple[str, str, str]] = {"cpu": ("inference", ONE, ALL), "cuda": ("training step", KERNEL, ONE)}
"""By device: the mode, the way and its baseline whose ratio is printed."""
TOLERANCE: Mapping[Device, float] = {"cpu": 1e-5, "cuda": 1e-4}
"""Of the features, between ways."""


class AllFirst(PaddedAttention):
    """Padded attention that writes out the biases of all blocks when the pass begins."""

    def __init__(
        self, packed: Packed, views: Sequence[View], relative: Mapping[str, RelativeBias], *, heads: int
    ) -> None:
        super().__init__(packed, views, heads, relative)
        blocks = max(len(bias.tables_RH) for bias in relative.values())
        self.all = [[write_out(view, relative, block) for view in self.views] for block in range(blocks)]

    def block(self, index: int) -> Attend:
        """Attention with what was written out."""
        self.shared = self.all[index]
        return super().block(index)


def make_backbone(preset: Preset, image_size: int, blocks: int, variant: str) -> Backbone:
    """The image branch with per-block tables."""
    torch.manual_seed(0)
    config = preset_config(preset, modalities=("image",), sizes={"image": {"image_size": image_size}})
    config = replace(config, encoder=replace(config.encoder, depth=blocks), per_block_tables=True)
    backbone = Backbone(config)
    for name, parameter in backbone.named_parameters():
        if "bias_tables" in name:
            torch.nn.init.normal_(parameter)
    set_attention(backbone, "flex" if variant == KERNEL else "padded")
    if variant == ALL:
        backbone.encoder.backend = partial(AllFirst, heads=config.encoder.heads)  # type: ignore[method-assign]
    return backbone


def run_case(
    variant: str, preset: Preset, image_size: int, batch_size: int, device: Device, blocks: int, learn: bool
) -> Tensor:
    """One pass: (B · L, D) features, after the backward pass if ``learn``."""
    backbone = make_backbone(preset, image_size, blocks, variant).to(device)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(batch_size, 3, image_size, image_size, generator=generator).to(device)
    if variant == NOTHING:
        return pixels
    with torch.set_grad_enabled(learn):
        features = backbone({"image": Image(pixels)})["image"].values_TD
    if learn:
        features.square().mean().backward()
    return features.detach()


def peak(*case: Any) -> int:
    """Peak memory in bytes of ``run_case``, in a process of its own: of the GPU, or of the process."""
    return fresh(_peak, case)


def _peak(case: tuple[Any, ...]) -> int:
    return own_peak("cuda" if run_case(*case).is_cuda else "cpu")


def check_same(preset: Preset, image_size: int, batch_size: int, device: Device) -> float:
    """The greatest difference between features of the ways.

    Raises:
        RuntimeError: where it is past the device's ``TOLERANCE``.
    """
    ours, *others = (
        run_case(variant, preset, image_size, batch_size, device, 2, False) for variant in VARIANTS[device]
    )
    difference = max(float((ours - theirs).abs().max()) for theirs in others)
    if not difference <= TOLERANCE[device]:
        raise RuntimeError(f"features of the ways differ by {difference:.1e}; at most {TOLERANCE[device]} is expected")
    return difference


def run(
    preset: Preset = "small",
    image_size: int = 384,
    batch_size: int = 2,
    blocks: tuple[int, ...] = (4, 8, 16),
    device: Device = "cpu",
) -> None:
    """Measure peak memory every way.

    Args:
        preset: width and heads of the model.
        image_size: side of the images in pixels.
        batch_size: images.
        blocks: numbers of blocks, each measured.
        device: cuda, whose own memory is then meant, or cpu.

    Raises:
        ValueError: for a single block, whose table is shared by all blocks.
    """
    if min(blocks) < 2:
        raise ValueError(f"blocks is {blocks}; give numbers of 2 or more: a single block has nothing to keep or drop")
    case = (preset, image_size, batch_size, device)
    difference = check_same(*case)
    length = (image_size // 16) ** 2 + 1
    heads = preset_config(preset).encoder.heads
    print(
        f"image branch at {preset!r} in float32, {batch_size} pictures of {image_size} pixels ({length} tokens, bias "
        f"of {heads * length**2 * 4 / 2**20:.0f} MiB); features of all ways agree within {difference:.0e}"
    )
    found: dict[tuple[str, str], int] = {}
    for mode, learn in MODES.items():
        for count in blocks:
            floor = peak(NOTHING, *case, count, learn)
            for variant in VARIANTS[device]:
                found[mode, variant] = peak(variant, *case, count, learn) - floor
            sizes = ", ".join(f"{variant} {found[mode, variant] / 2**20:.0f} MiB" for variant in VARIANTS[device])
            print(f"{mode:13}  {count:3} blocks  {sizes}", flush=True)
    mode, ours, baseline = CLAIMS[device]
    ratio = found[mode, baseline] / max(found[mode, ours], 1)
    print(f"ratio: {ratio:.2f} (memory of {baseline} against {ours}, {mode} with {blocks[-1]} blocks)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line; ``None`` takes the process's own."""
    auto_cli(run, args=list(sys.argv[1:] if arguments is None else arguments), as_positional=False)


if __name__ == "__main__":
    main()
