"""The segmentation model (onepeace_seg_cocostuff2ade20k.pth)."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from onepeace_lightning.checkpoints.released.base import Kind, Opened, ReleasedFile, class_names
from onepeace_lightning.checkpoints.released.vision_names import to_ours
from onepeace_lightning.checkpoints.released.vision_sizes import image_branch
from onepeace_lightning.modalities.image import ImageConfig
from onepeace_lightning.models.config import ModelConfig
from onepeace_lightning.models.vision.dense_adapter import LEVELS

POINTS = 4
"""That deformable attention reads from each map; the tensors tell only its product with the heads."""

_DECODER, _PIXELS = "decode_head.transformer_decoder.layers.", "decode_head.pixel_decoder.encoder.layers."


class Segmentation(Kind):
    """Adapter trunk, deformable pixel decoder, masked-attention decoder."""

    name = "segmentation"
    title = "a semantic segmentation model (onepeace_seg_cocostuff2ade20k.pth)"
    answers = "the class of every pixel"
    task = "SemanticSegmentationTask"
    takes_labels = True

    def recognise(self, file: ReleasedFile) -> bool:
        """The spatial prior and the decoders."""
        return all(file.has(prefix) for prefix in ("backbone.spm.", _DECODER, _PIXELS))

    def open(self, file: ReleasedFile, labels: Sequence[str] | None) -> Opened:
        """Classes have the names that the file lists, unless the user gives others."""
        config = image_branch(file, "backbone.")
        queries, width = file.shape("decode_head.query_feat.weight")
        settings = {
            "classes": class_names(self.classes(file) if labels is None else labels, self.outputs(file), file.path),
            "head": "published",
            "queries": queries,
            "decoder_layers": file.count(_DECODER),
            "decoder_width": width,
            "decoder_heads": _heads(file, f"{_PIXELS}0.attentions.0."),
            "decoder_inner": file.shape(f"{_DECODER}0.ffns.0.layers.0.0.weight")[0],
            "pixel_layers": file.count(_PIXELS),
            "adapter_channels": file.shape("backbone.spm.stem.0.weight")[0],
            "adapter_heads": _heads(file, "backbone.interactions.0.injector.attn."),
        }
        weights = to_ours("segmentation", file.tensors)
        # Batch norms count their steps; the count is not used and was left out when the file was read.
        counted = [name for name in weights if name.endswith(".running_mean")]
        weights |= {name.replace("running_mean", "num_batches_tracked"): torch.tensor(0) for name in counted}
        return Opened(config, weights, settings, self.preprocessing(file, config))

    def outputs(self, file: ReleasedFile) -> int:
        """Classes, without that for none."""
        return file.shape("decode_head.cls_embed.weight")[0] - 1

    def classes(self, file: ReleasedFile) -> list[str] | None:
        """The names that the file lists, if it does."""
        meta = file.content.get("meta")
        names = meta.get("CLASSES") if isinstance(meta, Mapping) else None
        return None if names is None else [str(name) for name in names]

    def preprocessing(self, file: ReleasedFile, config: ModelConfig) -> Mapping[str, Mapping[str, Any]]:
        """The side of the windows."""
        return {"image": {"size": cast(ImageConfig, config.adapters["image"]).image_size}}

    def published(self, file: ReleasedFile) -> Sequence[str]:
        """In windows, at one scale and at several with mirroring."""
        return ["ADE20K"]

    def describe(self, file: ReleasedFile) -> Sequence[str]:
        """Windows and classes."""
        side = cast(ImageConfig, image_branch(file, "backbone.").adapters["image"]).image_size
        return [f"windows of {side} pixels, {self.outputs(file)} classes"]


def _heads(file: ReleasedFile, attention: str) -> int:
    """Heads of a deformable attention over three maps."""
    return file.shape(f"{attention}attention_weights.weight")[0] // (LEVELS * POINTS)
