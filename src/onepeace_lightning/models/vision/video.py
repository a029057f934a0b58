"""Video classification with the image branch: adapters over time, space and features around its blocks (Kinetics).

As AIM (arXiv 2302.03024) adapts images to videos: blocks stay as they are, each gains three bottleneck adapters, and
its one attention is used twice, over the frames of every token and over the tokens of every frame.

B = clips, T = frames of a clip, N = B·T, L = tokens of a frame (CLS first), D = width, K = classes.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace_lightning.models.config import ModelConfig, at_least, raise_all
from onepeace_lightning.models.layers import Linear
from onepeace_lightning.models.patches import Pixels
from onepeace_lightning.models.vision.trunk import Trunk, VisionBlock

FFN_ADAPTER_SCALE = 0.5
"""What the output of a block's feed-forward adapter is multiplied by."""

ADAPTER_RATE = 0.1
"""Learning rate of adapters and frame positions as a fraction of the head's."""


@dataclass(frozen=True, kw_only=True)
class VideoClassifierConfig:
    """What a video classifier has besides the image branch.

    Attributes:
        classes: K.
        frames: T.
        dropout: of the features that are classified.
    """

    classes: int
    frames: int = 16
    dropout: float = 0.5

    def __post_init__(self) -> None:
        problems = at_least(self, classes=1, frames=1)
        if not 0.0 <= self.dropout < 1.0:
            problems.append(f"dropout is {self.dropout}, must be in [0, 1)")
        raise_all("video classifier", problems)


class Bottleneck(nn.Module):
    """Linear to a quarter of the width, GELU, Linear back; gives zero at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, width // 4)
        self.up = ZeroLinear(width // 4, width)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) -> (…, D)."""
        return self.up(F.gelu(self.down(x)))


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero."""

    def reset_parameters(self) -> None:
        """Zero weights and bias."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class BlockAdapters(nn.Module):
    """The three adapters of a block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.time, self.space, self.features = (Bottleneck(width) for _ in range(3))


class VideoBlock(VisionBlock):
    """A block of the image branch that adapters stand around; it owns no more parameters than without."""

    def forward(  # type: ignore[override]
        self, x_NLD: Tensor, bias_HLL: Tensor | None, frames: int, adapters: BlockAdapters
    ) -> Tensor:
        """(N, L, D) -> (N, L, D).

        The branch over space looks at frames that have seen each other, but is added to the block's own input.

        Args:
            x_NLD: tokens of all frames, those of a clip one after another.
            bias_HLL: added to the logits of attention within a frame; that over time has none.
            frames: T.
            adapters: of this block.
        """
        clips_BTLD = self.norm_attention(x_NLD).unflatten(0, (-1, frames))
        mixed = self.attend(clips_BTLD.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(clips_BTLD), -1))
        seen_NLD = x_NLD + self.drop(adapters.time(mixed.transpose(1, 2).flatten(0, 1)))
        branch_NLD = self.attend(self.norm_attention(seen_NLD), bias_HLL)
        x_NLD = x_NLD + self.drop(self.gamma_1 * (branch_NLD + adapters.space(branch_NLD)))
        z_NLD = self.norm_ffn(x_NLD)
        return x_NLD + self.gamma_2 * self.ffn(z_NLD) + self.drop(FFN_ADAPTER_SCALE * adapters.features(z_NLD))


class FramePositions(nn.Module):
    """A learned vector per frame of a clip, added to all of its tokens; zero at first."""

    def __init__(self, frames: int, width: int) -> None:
        super().__init__()
        self.table_TD = nn.Parameter(torch.empty(frames, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero the vectors."""
        nn.init.zeros_(self.table_TD)

    def forward(self, x_NLD: Tensor) -> Tensor:
        """(N, L, D) -> (N, L, D)."""
        return (x_NLD.unflatten(0, (-1, len(self.table_TD))) + self.table_TD[:, None]).flatten(0, 1)


class VideoClassifier(nn.Module):
    """The image branch with adapters over clips, a final norm, mean over frames, dropout and a linear classifier.

    Published training leaves ``backbone`` as it is; all else trains.

    Args:
        config: sizes of the image branch.
        video: classes and frames.
    """

    def __init__(self, config: ModelConfig, video: VideoClassifierConfig) -> None:
        super().__init__()
        self.config, self.video = config, video
        width = config.encoder.width
        self.backbone = Trunk(config, VideoBlock)
        self.adapters = nn.ModuleList(BlockAdapters(width) for _ in range(config.encoder.depth))
        self.frame_positions = FramePositions(video.frames, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Dropout(video.dropout), Linear(width, video.classes, config.encoder.init_std))

    def features(self, frames_BT: Tensor) -> Tensor:
        """(B, T, D) the normed CLS of every frame.

        Args:
            frames_BT: (B, T, 3, S, S) pixels, as ``Pixels`` takes them.

        Raises:
            ValueError: for another number of frames than the model's.
        """
        count = self.video.frames
        if frames_BT.shape[1] != count:
            raise ValueError(f"clips of {frames_BT.shape[1]} frames; this model takes {count}: sample as many")
        biases = self.backbone.biases()
        x_NLD = self.frame_positions(self.backbone.embed(Pixels(frames_BT.flatten(0, 1))))
        for index, (block, adapters) in enumerate(zip(self.backbone.blocks, self.adapters, strict=True)):
            x_NLD = block(x_NLD, biases[index], count, adapters)
        return self.norm(x_NLD[:, 0]).unflatten(0, (-1, count))

    def forward(self, frames_BT: Tensor) -> Tensor:
        """(B, K) logits of (B, T, 3, S, S) clips."""
        return self.head(self.features(frames_BT).mean(1))

    def probabilities(self, views_BV: Tensor) -> Tensor:
        """(B, K) mean over views of each view's softmax, from (B, V, T, 3, S, S) clips."""
        logits_NK = self(views_BV.flatten(0, 1)).float()
        return logits_NK.softmax(-1).unflatten(0, (len(views_BV), -1)).mean(1)

    def set_frames(self, frames: int) -> None:
        """Take clips of another number of frames; positions in time are then new, and zero, as published.

        Call this before an optimizer is made.
        """
        if frames != self.video.frames:
            self.video = replace(self.video, frames=frames)
            positions = FramePositions(frames, self.config.encoder.width)
            self.frame_positions = positions.to(self.norm.weight.device)

    def lr_scale(self, name: str, layer_decay: float) -> float | None:
        """A tenth for the adapters and frame positions, as published; none is by layer."""
        return ADAPTER_RATE if name.startswith(("adapters.", "frame_positions.")) else 1.0

    def no_weight_decay(self) -> set[str]:
        """The final norm, as published; biases of the adapters and the head do decay."""
        vectors = {name for name, parameter in self.backbone.named_parameters(prefix="backbone") if parameter.dim() < 2}
        return vectors | {"norm.weight", "norm.bias", "backbone.adapters.image.positions"}
