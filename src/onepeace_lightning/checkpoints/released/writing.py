"""Writing a model in the layout of the released file of its kind; ``kinds`` reads them."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onepeace_lightning.checkpoints.atomic import partial_of, publish
from onepeace_lightning.checkpoints.export import to_original
from onepeace_lightning.checkpoints.original import named
from onepeace_lightning.checkpoints.released.vision_names import released_name, to_released
from onepeace_lightning.models.backbone import Backbone
from onepeace_lightning.models.heads.classifier import ClassifyModel
from onepeace_lightning.models.pretraining import PretrainModel
from onepeace_lightning.models.relative_bias import grid_buckets
from onepeace_lightning.models.vision.classifier import MeanClassifier
from onepeace_lightning.models.vision.detector import Detector
from onepeace_lightning.models.vision.segmentation import SegmentationModel
from onepeace_lightning.models.vision.video import VideoClassifier

_VISION: dict[type[nn.Module], tuple[str, str, str]] = {
    MeanClassifier: ("imagenet", "model", ""),
    VideoClassifier: ("video", "state_dict", "backbone."),
    SegmentationModel: ("segmentation", "state_dict", "backbone."),
    Detector: ("detection", "model", "backbone.net."),
}
"""Class of a vision model to the kind of file that it is in, the entry with its tensors, and the trunk's prefix."""


def released_content(
    model: nn.Module, *, classes: Sequence[str] | None = None, audio_seconds: float = 15.0, multi_label: bool = False
) -> dict[str, Any]:
    """What the released file of a model's kind would hold; its tensors are the model's own.

    Buffers that the original makes anew where a file lacks them are left out.

    Args:
        model: a task's.
        classes: their names, for the kind of file that lists them (segmentation).
        audio_seconds: longer clips are cut to their first seconds.
        multi_label: a sample may be in several classes.

    Raises:
        ValueError: no released file is of this kind, or its format cannot say what the model has.
    """
    if isinstance(model, ClassifyModel | PretrainModel | Backbone):
        return to_original(model, audio_seconds=audio_seconds, multi_label=multi_label)
    layout = next((layout for kind, layout in _VISION.items() if isinstance(model, kind)), None)
    if layout is None:
        raise ValueError(
            f"no released file holds a {type(model).__name__}: save the task as NAME.ckpt. (Of segmentation heads the"
            " published one has a file, head: published)"
        )
    kind, entry, prefix = layout
    tensors = {name: tensor.detach() for name, tensor in to_released(kind, model.state_dict()).items()}
    if f"{prefix}image_adapter.rel_pos_table.weight" in tensors and kind != "detection":
        tensors |= _buckets(tensors, prefix)
    content: dict[str, Any] = {entry: tensors}
    if entry == "state_dict":
        content["meta"] = {} if classes is None or kind != "segmentation" else {"CLASSES": tuple(classes)}
    return content


def image_branch_content(backbone: Backbone) -> dict[str, Any]:
    """What ``one-peace-vision.pkl`` would hold of a model's image branch, where the original's vision tasks start.

    Raises:
        ValueError: the model has no images, or bias tables for each block.
    """
    config = backbone.config
    if "image" not in config.adapters or config.per_block_tables:
        what = "bias tables of its own for each block" if config.per_block_tables else f"{', '.join(config.adapters)}"
        raise ValueError(f"the file of the image branch is that of a pretrained model with images; this one has {what}")
    known = {name: released_name("vision-branch", name) for name in named(backbone).state_dict()}
    branch = {name: tensor.detach() for name, tensor in named(backbone).state_dict().items() if known[name]}
    tensors = to_released("vision-branch", branch)
    tensors |= _buckets(tensors, "")
    positions = torch.arange(len(tensors["image_adapter.pos_embed"]))
    return {
        "model": {**tensors, "image_adapter.position_idx": positions},
        "__author__": "ofa",
        "matching_heuristics": True,
    }


def save_released(content: dict[str, Any], path: Path) -> None:
    """Write a content as such files are written: ``.pkl`` is a pickle, all else what ``torch.save`` makes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path)  # the tensors may be mapped from the very file that is replaced
    if path.suffix == ".pkl":
        with partial.open("wb") as file:
            pickle.dump(content, file)
    else:
        torch.save(content, partial)
    publish(partial, path)


def _buckets(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The rows of the table of relative positions, which some of the original's readers insist on."""
    grid = round((len(tensors[f"{prefix}image_adapter.pos_embed"]) - 1) ** 0.5)
    return {f"{prefix}image_adapter.rp_bucket": grid_buckets(grid, torch.device("cpu"))}
