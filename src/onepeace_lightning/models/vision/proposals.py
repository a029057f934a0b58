"""The region proposal network: where there may be something (arXiv 1506.01497).

B = images, C = channels, A = anchors of all levels, P = proposals.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, clip_boxes_to_image

from onepeace_lightning.models.vision.boxes import Weights, decode, has_extent
from onepeace_lightning.models.vision.pyramid import STRIDES

ANCHOR_SIDES = (32, 64, 128, 256, 512)
"""Side of each level's square anchor in pixels."""

ASPECT_RATIOS = (0.5, 1.0, 2.0)
"""Heights of the anchors over their widths, at the same area."""

WEIGHTS: Weights = (1.0, 1.0, 1.0, 1.0)
OVERLAP = 0.7
"""Overlap with a better proposal of the same level from which one is dropped."""


@dataclass(frozen=True)
class Proposals:
    """One image's proposals, best first.

    Attributes:
        boxes: (P, 4) pixels.
        logits: (P,).
    """

    boxes: Tensor
    logits: Tensor


class ProposalHead(nn.Module):
    """Two convolutions shared by all levels, then three anchors' logit and deltas at every point.

    Args:
        channels: C of the pyramid.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.objectness = nn.Conv2d(channels, len(ASPECT_RATIOS), 1)
        self.deltas = nn.Conv2d(channels, 4 * len(ASPECT_RATIOS), 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights with a deviation of 0.01."""
        for conv in (*self.convs, self.objectness, self.deltas):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (B, 3, Y, X) and deltas (B, 12, Y, X) of each level."""
        logits, deltas = [], []
        for x in maps:
            for conv in self.convs:
                x = F.relu(conv(x))
            logits.append(self.objectness(x))
            deltas.append(self.deltas(x))
        return logits, deltas


def level_anchors(size: Sequence[int], level: int, device: torch.device | None = None) -> Tensor:
    """(Y · X · 3, 4) boxes of a level whose map has ``size`` rows and columns, in the order of ``flat``."""
    ratios = torch.tensor(ASPECT_RATIOS, device=device)
    widths = ANCHOR_SIDES[level] / ratios.sqrt()
    sides = torch.stack([widths, widths * ratios], 1)
    y, x = (torch.arange(length, device=device) * STRIDES[level] for length in size)
    centres = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], -1)[:, :, None]
    return torch.cat([centres - sides / 2, centres + sides / 2], -1).flatten(0, 2)


def flat(x: Tensor, numbers: int) -> Tensor:
    """(B, 3 · numbers, Y, X) -> (B, Y · X · 3, numbers), float32."""
    return x.unflatten(1, (-1, numbers)).permute(0, 3, 4, 1, 2).flatten(1, 3).float()


@torch.no_grad()
def propose(
    logits: Sequence[Tensor], deltas: Sequence[Tensor], sizes: Sequence[Sequence[int]], *, before: int, after: int
) -> list[Proposals]:
    """Each image's best boxes, within it and without near duplicates.

    Args:
        logits: from ``ProposalHead``.
        deltas: likewise.
        sizes: rows and columns of each image in pixels, without padding.
        before: the most boxes of a level.
        after: the most of an image.

    Raises:
        FloatingPointError: a prediction is infinite or not a number.
    """
    boxes_parts, logits_parts, levels = [], [], []
    for level, (level_logits, level_deltas) in enumerate(zip(logits, deltas, strict=True)):
        anchors = level_anchors(level_logits.shape[2:], level, level_logits.device)
        best, index = flat(level_logits, 1)[..., 0].topk(min(before, len(anchors)), 1)
        picked = flat(level_deltas, 4).gather(1, index[..., None].expand(-1, -1, 4))
        boxes_parts.append(decode(anchors[index], picked, WEIGHTS))
        logits_parts.append(best)
        levels.append(torch.full_like(index[0], level))
    boxes_BA4, logits_BA, levels_A = torch.cat(boxes_parts, 1), torch.cat(logits_parts, 1), torch.cat(levels)
    if not (boxes_BA4.isfinite().all() and logits_BA.isfinite().all()):
        raise FloatingPointError("proposals are not finite: the model has diverged; lower the learning rate")
    proposals = []
    for boxes, scores, size in zip(boxes_BA4, logits_BA, sizes, strict=True):
        boxes = clip_boxes_to_image(boxes, (size[0], size[1]))
        valid = has_extent(boxes)
        boxes, scores = boxes[valid], scores[valid]
        kept = batched_nms(boxes, scores, levels_A[valid], OVERLAP)[:after]
        proposals.append(Proposals(boxes[kept], scores[kept]))
    return proposals
