"""Audio: seven waveform convolutions (20 ms frames), then positions from convolutions over the frames."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace_lightning.models.adapter import Adapter, register_adapter
from onepeace_lightning.models.config import AudioConfig, ModelConfig
from onepeace_lightning.models.inputs import Audio
from onepeace_lightning.models.layers import ChannelNorm, Linear, init_normal_
from onepeace_lightning.models.packing import Tokens
from onepeace_lightning.models.relative_bias import sequence_buckets, sequence_rows

KERNELS_AND_STRIDES = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))
"""Of the feature convolutions: one frame every 320 samples at 16 kHz."""


def num_frames(num_samples: int) -> int:
    """Frames of a 16 kHz clip: 16 000 samples give 49."""
    for kernel, stride in KERNELS_AND_STRIDES:
        num_samples = (num_samples - kernel) // stride + 1
    return max(num_samples, 0)


class FeatureConv(nn.Conv1d):
    """A waveform convolution without bias, Kaiming-normal weights."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int) -> None:
        super().__init__(channels_in, channels_out, kernel, stride, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        nn.init.kaiming_normal_(self.weight)


@register_adapter
class AudioAdapter(Adapter):
    """Waveforms to frame tokens."""

    modality = "audio"
    config_type = AudioConfig

    def __init__(self, config: AudioConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        channels, width = config.channels, model.encoder.width
        self.features = nn.Sequential(
            *(
                nn.Sequential(FeatureConv(channels if i else 1, channels, *spec), ChannelNorm(channels), nn.GELU())
                for i, spec in enumerate(KERNELS_AND_STRIDES)
            )
        )
        self.norm = nn.LayerNorm(channels)
        self.project = Linear(channels, width, self.init_std)
        kernel = config.position_kernel
        self.position_convs = nn.ModuleList(
            nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=config.position_groups)
            for _ in range(config.position_depth)
        )
        self.cls_position = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw CLS and its position."""
        super().reset_parameters()
        init_normal_(self.cls_position, self.init_std)

    def embed(self, inputs: Audio) -> Tokens:
        """[CLS; frames], still without positions, which depend on what a view hides.

        Raises:
            ValueError: for a clip too short for one frame.
        """
        lengths = [num_frames(length) for length in inputs.lengths.tolist()]
        if min(lengths) < 1:
            shortest = int(inputs.lengths.min())
            raise ValueError(f"a clip of {shortest} samples has no frame; at least 400 samples (25 ms) are needed")
        features_BCN = self.features(inputs.waveforms_BN[:, None])
        frames = Tokens.of_padded(features_BCN.transpose(1, 2)[:, : max(lengths)].contiguous(), lengths)
        x_TD = self.project(self.norm(frames.values_TD))
        return _with_cls(frames, x_TD, self.cls_token)

    def view(self, tokens: Tokens, hidden_BP: np.ndarray | None = None) -> Tokens:
        """Hide frames, then add convolutional positions computed on the visible ones packed together."""
        tokens = super().view(tokens, hidden_BP)
        x_BLD, valid_BL = tokens.padded()
        x_BDN, valid_B1N = x_BLD[:, 1:].transpose(1, 2), valid_BL[:, None, 1:]
        for conv in self.position_convs:
            # Zeros past a clip's end, as if it were alone in the batch; an even kernel gives one frame too many.
            y_BDN = conv(x_BDN * valid_B1N)[..., : x_BDN.shape[-1]]
            x_BDN = F.gelu(F.layer_norm(y_BDN.transpose(1, 2), (y_BDN.shape[1],))).transpose(1, 2)
        cls_B1D = self.cls_position.expand(len(x_BLD), 1, -1)
        positions = Tokens.of_padded(torch.cat([cls_B1D, x_BDN.transpose(1, 2)], 1), tokens.lengths)
        return tokens.with_values(tokens.values_TD + positions.values_TD)

    def bias_rows(self) -> int:
        """Rows of a relative bias table."""
        return sequence_rows(self.config.buckets)

    def buckets(self, positions: int) -> Tensor:
        """(P, P) table rows."""
        return sequence_buckets(positions, self.config.buckets, self.cls_token.device)


def _with_cls(frames: Tokens, x_TD: Tensor, cls_token: Tensor) -> Tokens:
    """Put CLS in front of every sample's frames."""
    x_BLD, _ = frames.with_values(x_TD).padded()
    x_BLD = torch.cat([cls_token.to(x_BLD.dtype).expand(len(x_BLD), 1, -1), x_BLD], 1)
    return Tokens.of_padded(x_BLD, [length + 1 for length in frames.lengths])
