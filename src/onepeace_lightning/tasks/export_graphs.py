"""Models as functions of tensors alone, which can be traced: what ``export`` writes.

B = samples, L = tokens, D = width, H = heads, K = classes, S = side of an image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace_lightning.modalities.image import Image
from onepeace_lightning.models.adapter import SECOND
from onepeace_lightning.models.attention.padded import attend
from onepeace_lightning.models.backbone import Backbone
from onepeace_lightning.models.heads.classifier import ClassifyModel
from onepeace_lightning.models.pretraining import PretrainModel
from onepeace_lightning.models.relative_bias import MAX_POSITIONS
from onepeace_lightning.models.vision.light_segmentation import LightSegmentationModel
from onepeace_lightning.models.vision.segmentation import SegmentationModel, class_scores
from onepeace_lightning.models.vision.trunk import raster_modality


@dataclass(frozen=True)
class Padded:
    """One modality's features with padding, as ``PoolingHead`` and ``ContrastiveHeads`` read them."""

    x_BLD: Tensor
    valid_BL: Tensor

    def padded(self) -> tuple[Tensor, Tensor]:
        """Features (B, L, D), and (B, L) True where there is a token."""
        return self.x_BLD, self.valid_BL

    @property
    def cls(self) -> Tensor:
        """(B, D) features of CLS."""
        return self.x_BLD[:, 0]


class PlainEncoder(nn.Module):
    """Adapters and fusion encoder as a function of tensors alone: one padded view, its relative bias written out."""

    def __init__(self, backbone: Backbone, modalities: Sequence[str]) -> None:
        super().__init__()
        self.backbone, self.modalities = backbone, tuple(modalities)
        for name in modalities:
            buckets = backbone.adapter(name).buckets(MAX_POSITIONS)
            self.register_buffer(f"buckets_{name}", buckets.to(torch.int32), persistent=False)

    def forward(self, tensors: Sequence[Sequence[Tensor]], second: str = "") -> dict[str, Padded]:
        """Features by modality, of the tensors of each modality's ``Inputs.exported``.

        Args:
            tensors: of each modality.
            second: the modality whose item is a sample's second one.
        """
        parts = [self._part(name, given, name == second) for name, given in zip(self.modalities, tensors, strict=True)]
        lengths = [part.shape[1] for part, _ in parts]
        x_BLD, valid_BL = (torch.cat(side, 1) for side in zip(*parts, strict=True))
        encoder = self.backbone.encoder
        blocks: Any = encoder.blocks
        for index, block in enumerate(blocks):
            bias = self._bias(index, lengths)

            def mix(q: Tensor, k: Tensor, v: Tensor, bias: Tensor = bias) -> Tensor:
                q, k, v = (part.unflatten(-1, (encoder.heads, -1)).transpose(1, 2) for part in (q, k, v))
                return attend(q, k, v, bias, valid_BL).transpose(1, 2).flatten(2)

            x_BLD = x_BLD + block.gamma_1 * block.attention(block.norm_attention(x_BLD), mix)
            split = block.norm_ffn(x_BLD).split(lengths, 1)
            fed = [block.ffns[name](part) for name, part in zip(self.modalities, split, strict=True)]
            x_BLD = x_BLD + block.gamma_2 * torch.cat(fed, 1)
        ends = zip(self.modalities, x_BLD.split(lengths, 1), valid_BL.split(lengths, 1), strict=True)
        return {name: Padded(encoder.norms[name](x), valid) for name, x, valid in ends}

    def _part(self, name: str, given: Sequence[Tensor], second: bool) -> tuple[Tensor, Tensor]:
        adapter: Any = self.backbone.adapter(name)
        x_BLD, valid_BL = adapter.padded(*given)
        return (adapter.marked_second(x_BLD) if second else x_BLD), valid_BL

    def _bias(self, block: int, lengths: list[int]) -> Tensor:
        """(1, H, L, L) zero between modalities."""
        total, start, rows = sum(lengths), 0, []
        for name, length in zip(self.modalities, lengths, strict=True):
            tables = self.backbone.adapter(name).bias_tables
            index = torch.arange(length, device=tables[0].device)
            buckets = getattr(self, f"buckets_{name}")[index[:, None], index]
            part = F.embedding(buckets, tables[block if len(tables) > 1 else 0]).permute(2, 0, 1)
            rows.append(F.pad(part, (start, total - start - length)))
            start += length
        return torch.cat(rows, 1)[None]


class EmbeddingGraph(nn.Module):
    """One modality's embedding."""

    def __init__(self, model: PretrainModel, modality: str) -> None:
        super().__init__()
        self.encoder, self.heads, self.modality = PlainEncoder(model.backbone, [modality]), model.heads, modality

    def forward(self, *tensors: Tensor) -> Tensor:
        """(B, D) of unit length."""
        return self.heads(self.modality, self.encoder([tensors]))


class AnswerGraph(nn.Module):
    """What a pooling head gives for modalities that are seen together: logits, or a box.

    Args:
        model: backbone and head.
        counts: tensors of each input, by name; an input of the model is a modality, or a second item of one.
        box: corners as fractions of the image's sides, instead of their logits.
    """

    def __init__(self, model: ClassifyModel, counts: Mapping[str, int], *, box: bool = False) -> None:
        super().__init__()
        self.box = box
        self.seconds = [name.removeprefix(SECOND) for name in counts if name.startswith(SECOND)]
        modalities = [name for name in counts if not name.startswith(SECOND)]
        self.encoder, self.head = PlainEncoder(model.backbone, modalities), model.head
        self.counts = dict(counts)

    def forward(self, *tensors: Tensor) -> Tensor:
        """(B, outputs)."""
        given = iter(tensors)
        parts = {name: [next(given) for _ in range(count)] for name, count in self.counts.items()}
        first = [parts[name] for name in self.encoder.modalities]
        passes = [self.encoder(first)]
        for second in self.seconds:
            swapped = [parts[SECOND + name] if name == second else parts[name] for name in self.encoder.modalities]
            passes.append(self.encoder(swapped, second))
        logits = self.head(*passes)
        return logits.sigmoid() if self.box else logits


class MaskGraph(nn.Module):
    """Class scores of every pixel of one window: a square of the side that the model takes.

    What is of another size is read as ``models.vision.windows`` does it: windows, one beside the other, overlap, and
    their scores are averaged.
    """

    def __init__(self, model: SegmentationModel | LightSegmentationModel) -> None:
        super().__init__()
        self.model = model
        self.modality = raster_modality(model.config)
        self.side = model.config.adapters[self.modality].image_size  # type: ignore[attr-defined]
        # The published model packs nothing: it can be traced as it is.
        self.encoder: PlainEncoder | None = None
        if isinstance(model, LightSegmentationModel):
            self.encoder = PlainEncoder(model.backbone, [self.modality])

    def forward(self, *tensors: Tensor) -> Tensor:
        """(B, K, S, S) float32 of (B, C, S, S) pixels, the only tensor."""
        model: Any = self.model
        [pixels] = tensors
        if self.encoder is None:
            said = model(Image(pixels))
        else:
            said = model.say(self.encoder([[pixels]])[self.modality].x_BLD, Image(pixels))
        return class_scores(said[-1], self.side)
