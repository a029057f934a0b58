"""Audio: seven waveform convolutions (20 ms frames), then positions from convolutions over the frames.

B = clips, N = waveform samples, F = frames.
"""

import base64
import io
import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import soundfile
import torch
from PIL import Image as Pillow
from PIL import ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace_lightning.modalities.arrays import pad, span_mask
from onepeace_lightning.modalities.audio_files import SAMPLE_RATE, check_rate, check_samples, decode_audio, resample
from onepeace_lightning.modalities.base import Inputs, Modality, Settings, training_only
from onepeace_lightning.modalities.registry import register
from onepeace_lightning.models.adapter import Adapter
from onepeace_lightning.models.config import AdapterConfig, ModelConfig, at_least, raise_all
from onepeace_lightning.models.flops import Flops, product
from onepeace_lightning.models.inputs import TokenMask
from onepeace_lightning.models.layers import ChannelNorm, Linear, init_normal_
from onepeace_lightning.models.packing import Tokens
from onepeace_lightning.models.relative_bias import MAX_POSITIONS, sequence_buckets, sequence_rows

KERNELS_AND_STRIDES = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))
"""Of the feature convolutions: one frame every 320 samples at 16 kHz."""

_MIN_SAMPLES = 400  # what the convolutions need for one frame
_NORMALISE_EPS = 1e-5
_INTEGERS = (torch.int16, torch.int32)


def num_frames(num_samples: int) -> int:
    """Frames of a 16 kHz clip: 16 000 samples give 49."""
    for kernel, stride in KERNELS_AND_STRIDES:
        num_samples = (num_samples - kernel) // stride + 1
    return max(num_samples, 0)


@dataclass
class Audio(Inputs):
    """16 kHz mono clips (B, N), each normalised over its own samples, filled up with zeros.

    Attributes:
        waveforms_BN: the clips.
        lengths: samples of each.
    """

    waveforms_BN: Tensor
    lengths: list[int]

    def __post_init__(self) -> None:
        self.lengths = [int(length) for length in self.lengths]

    @classmethod
    def pad(cls, clips: Sequence[Tensor]) -> "Audio":
        """Join 1-D clips of any lengths."""
        return cls(*pad(clips))

    dynamic: ClassVar = {"waveforms": {0: "batch", 1: "samples"}, "lengths": {0: "batch"}}

    def exported(self) -> dict[str, Tensor]:
        """The clips and their lengths."""
        return {"waveforms": self.waveforms_BN, "lengths": torch.tensor(self.lengths)}

    @property
    def token_lengths(self) -> list[int]:
        """CLS and the frames."""
        return [1 + num_frames(samples) for samples in self.lengths]


@dataclass(frozen=True, kw_only=True)
class AudioConfig(AdapterConfig):
    """Waveform convolutions, then convolutional positions.

    Attributes:
        channels: of the feature convolutions.
        position_depth: layers of positional convolutions.
        position_kernel: their kernel in frames.
        position_groups: their groups; the encoder's width is a multiple.
        buckets: of the relative bias.
    """

    channels: int = 512
    position_depth: int = 5
    position_kernel: int = 19
    position_groups: int = 16
    buckets: int = 512

    def __post_init__(self) -> None:
        raise_all(
            "audio", at_least(self, channels=1, position_depth=1, position_kernel=1, position_groups=1, buckets=4)
        )

    def build(self, model: ModelConfig) -> "AudioAdapter":
        """The adapter of these sizes."""
        return AudioAdapter(self, model)

    def problems(self, width: int) -> list[str]:
        """The positional convolutions divide the width into groups."""
        groups = self.position_groups
        return [f"width {width} is not a multiple of position_groups {groups}"] if width % groups else []

    def decoder_rows(self) -> int:
        """Two more than there can be positions, as in the published model."""
        return MAX_POSITIONS + 2

    def embed_flops(self, inputs: Any, width: int, *, learns: bool = True) -> Flops:
        """The feature convolutions, and the projection to the encoder's width."""
        lengths = inputs.lengths
        total = Flops()
        channels = 1
        for kernel, stride in KERNELS_AND_STRIDES:
            lengths = [(length - kernel) // stride + 1 for length in lengths]
            gradients = learns * (1 if channels == 1 else 2)
            total += product(sum(lengths), channels * kernel, self.channels, gradients=gradients)
            channels = self.channels
        return total + product(sum(lengths), self.channels, width, gradients=2 * learns)

    def view_flops(self, visible: Sequence[int], width: int, *, learns: bool = True) -> Flops:
        """The positional convolutions over the visible frames."""
        frames = sum(visible) - len(visible)
        inner = width // self.position_groups * self.position_kernel
        # The input of the first layer has a gradient too: that of the frames' tokens.
        return product(self.position_depth * frames, inner, width, gradients=2 * learns)


class FeatureConv(nn.Conv1d):
    """A waveform convolution without bias, Kaiming-normal weights."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int) -> None:
        super().__init__(channels_in, channels_out, kernel, stride, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        nn.init.kaiming_normal_(self.weight)


class AudioAdapter(Adapter):
    """Waveforms to frame tokens."""

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
        lengths = [num_frames(length) for length in inputs.lengths]
        if min(lengths) < 1:
            shortest = min(inputs.lengths)
            raise ValueError(f"a clip of {shortest} samples has no frame; at least 400 samples (25 ms) are needed")
        features_BCN = self.features(inputs.waveforms_BN[:, None].to(self.project.weight.dtype))
        frames = Tokens.of_padded(features_BCN.transpose(1, 2)[:, : max(lengths)].contiguous(), lengths)
        x_TD = self.project(self.norm(frames.values_TD))
        return _with_cls(frames, x_TD, self.cls_token)

    def view(self, tokens: Tokens, mask: TokenMask | None = None) -> Tokens:
        """Hide frames, then add convolutional positions computed on the visible ones packed together."""
        tokens = super().view(tokens, mask)
        x_BLD, valid_BL = tokens.padded()
        positions = Tokens.of_padded(self.positions(x_BLD, valid_BL), tokens.lengths)
        return tokens.with_values(tokens.values_TD + positions.values_TD)

    def positions(self, x_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        """(B, L, D) the learned position of CLS and convolutional ones of the frames."""
        x_BDN, valid_B1N = x_BLD[:, 1:].transpose(1, 2), valid_BL[:, None, 1:]
        for conv in self.position_convs:
            # Zeros past a clip's end, as if it were alone in the batch; an even kernel gives one frame too many.
            y_BDN = conv(x_BDN * valid_B1N)[..., : x_BDN.shape[-1]]
            x_BDN = F.gelu(F.layer_norm(y_BDN.transpose(1, 2), (y_BDN.shape[1],))).transpose(1, 2)
        cls_B1D = self.cls_position.expand(x_BLD.shape[0], 1, -1)
        return torch.cat([cls_B1D, x_BDN.transpose(1, 2)], 1)

    def padded(self, waveforms_BN: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """[CLS; frames] + positions, and where there is a frame; ``lengths_B`` are samples."""
        frames_B = lengths_B
        for kernel, stride in KERNELS_AND_STRIDES:
            frames_B = (frames_B - kernel) // stride + 1
        x_BND = self.project(self.norm(self.features(waveforms_BN[:, None]).transpose(1, 2)))
        x_BLD = torch.cat([self.cls_token.expand(x_BND.shape[0], 1, -1), x_BND], 1)
        valid_BL = torch.arange(x_BLD.shape[1], device=x_BLD.device) <= frames_B[:, None]
        return x_BLD + self.positions(x_BLD, valid_BL), valid_BL

    def no_weight_decay(self) -> set[str]:
        """Vectors without the position of CLS, which the published model stores with more dimensions."""
        return super().no_weight_decay() - {"cls_position"}

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


@dataclass(frozen=True, kw_only=True)
class AudioSettings(Settings):
    """Settings of audio.

    Attributes:
        max_seconds: longer clips are cut to their first seconds.
        min_seconds: shorter clips are repeated up to this.
        mask_ratio: fraction of the frames, rounded down.
        fused_mask_ratio: the same beside another modality.
        mask_span: frames hidden around each centre; odd.
        mask_overdraw: added to a ratio when centres are drawn, because spans overlap.
    """

    max_seconds: float = 15.0
    min_seconds: float = 1.0
    mask_ratio: float = training_only(0.55)
    fused_mask_ratio: float = training_only(0.45)
    mask_span: int = training_only(5)
    mask_overdraw: float = training_only(0.1)

    def problems(self) -> list[str]:
        """What is wrong with the values."""
        problems = super().problems()
        for name in ("max_seconds", "min_seconds"):
            seconds = getattr(self, name)
            if not (math.isfinite(seconds) and seconds * SAMPLE_RATE >= _MIN_SAMPLES):
                problems.append(f"{name} is {seconds}; give at least {_MIN_SAMPLES / SAMPLE_RATE} (one frame)")
        if self.min_seconds > self.max_seconds:
            problems.append(f"min_seconds ({self.min_seconds}) is above max_seconds ({self.max_seconds})")
        if self.mask_span < 1 or self.mask_span % 2 == 0:
            problems.append(f"mask_span is {self.mask_span}; give an odd number of frames")
        if self.mask_overdraw < 0:
            problems.append(f"mask_overdraw is {self.mask_overdraw}; give 0 or more")
        return problems


@register
class AudioModality(Modality):
    """Recordings; decoded they are a mono waveform (N,) and its samples per second, arrays are (N,) at 16 kHz."""

    name = "audio"
    plural = "recordings"
    prompts = ("This is a sound of {label}",)
    order = 2
    extensions = ("flac", "wav", "ogg", "mp3", "oga", "opus", "aiff", "aif", "m4a", "aac")
    config_type = AudioConfig
    settings_type = AudioSettings

    def decode(self, data: bytes) -> tuple[Tensor, int]:
        """Decode an audio file to one channel, the mean of all.

        Raises:
            ValueError: as ``decode_audio``.
        """
        return decode_audio(data)

    def convert(self, item: Any) -> tuple[Tensor, int]:
        """Mono float32 from a waveform (N,) or (channels, N) with its samples per second.

        Raises:
            ValueError: where the item is no such thing.
        """
        if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], (Tensor, np.ndarray))):
            given = (
                f"({', '.join(type(part).__name__ for part in item)})"
                if isinstance(item, tuple)
                else type(item).__name__
            )
            raise ValueError(f"{given} is no audio; give a path or a tuple (waveform, sample_rate)")
        waveform, rate = torch.as_tensor(item[0]).detach().cpu(), item[1]
        if not isinstance(rate, numbers.Integral):
            raise ValueError(f"a sample rate of {rate!r}; give whole samples per second")
        check_rate(int(rate))
        shape = tuple(waveform.shape)
        if waveform.dim() not in (1, 2) or not waveform.numel():
            raise ValueError(f"a waveform of shape {shape}; give (samples,) or (channels, samples)")
        if waveform.dim() == 2 and shape[0] > shape[1]:
            raise ValueError(
                f"a waveform of {shape[0]} channels and {shape[1]} samples; channels go first: transpose it"
            )
        if waveform.dtype in _INTEGERS:
            waveform = waveform.float() / -torch.iinfo(waveform.dtype).min
        elif not waveform.is_floating_point():
            raise ValueError(f"a waveform of {waveform.dtype}; give floating-point samples in [-1, 1], int16 or int32")
        waveform = waveform.float().reshape(-1, shape[-1])
        check_samples(waveform.numpy())
        return waveform.mean(0), int(rate)

    def transform(self, item: tuple[Tensor, int]) -> Tensor:
        """(N,) at 16 kHz: normalised over the clip, the first seconds of it, repeated where it is too short.

        A silent (constant) clip becomes zeros.
        """
        waveform = resample(*item)
        seconds = self.settings.max_seconds
        clip = F.layer_norm(waveform, waveform.shape, eps=_NORMALISE_EPS)[: round(seconds * SAMPLE_RATE)]
        shortest = round(self.settings.min_seconds * SAMPLE_RATE)
        if len(clip) >= shortest:
            return clip
        return clip.repeat(math.ceil(shortest / len(clip)))[:shortest]

    def num_tokens(self, array: Tensor) -> int:
        """The frames."""
        return num_frames(len(array))

    def collate(self, arrays: Sequence[Tensor]) -> Audio:
        """Clips filled up with zeros to the longest."""
        return Audio.pad(arrays)

    def random(self, config: AdapterConfig, batch: int, rng: np.random.Generator) -> Audio:
        """Noise of about half a second."""
        clips = [rng.standard_normal(8000 - 400 * (row % 8)).astype(np.float32) for row in range(batch)]
        return Audio.pad([torch.from_numpy(clip) for clip in clips])

    def mask(self, array: Tensor, rng: np.random.Generator) -> np.ndarray:
        """(1 + F,), mostly in spans."""
        return self._spans(self.num_tokens(array), self.settings.mask_ratio, rng)

    def fused_mask(self, array: Tensor, alone: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
        """(1 + F,), mostly in spans, drawn apart from those of the clip alone."""
        return self._spans(self.num_tokens(array), self.settings.fused_mask_ratio, rng)

    def _spans(self, frames: int, ratio: float, rng: np.random.Generator) -> np.ndarray:
        return span_mask(frames, rng, ratio, self.settings.mask_span, self.settings.mask_overdraw)

    def describe(self) -> str:
        """Rate, normalisation and length."""
        longest, shortest = self.settings.max_seconds, self.settings.min_seconds
        return f"audio {SAMPLE_RATE // 1000} kHz mono, normalised, first {longest:g} s, repeated up to {shortest:g} s"

    def sample(self, inputs: Audio, row: int) -> tuple[Tensor, int]:
        """The clip of a row."""
        # A copy, or the whole batch of waveforms would stay in memory.
        return inputs.waveforms_BN[row, : inputs.lengths[row]].float().cpu().clone(), SAMPLE_RATE

    def html(self, item: tuple[Tensor, int], title: str = "") -> str:
        """A player of what the model hears, its loudest sample just below full scale; silence stays silent."""
        waveform = resample(*item)[: round(self.settings.max_seconds * SAMPLE_RATE)]
        peak = max(float(waveform.abs().max()), 1e-8)
        stream = io.BytesIO()
        soundfile.write(stream, (0.9 / peak * waveform).numpy(), SAMPLE_RATE, format="WAV", subtype="PCM_16")
        return f'<audio controls src="data:audio/wav;base64,{base64.b64encode(stream.getvalue()).decode()}"></audio>'

    def thumbnail(self, item: tuple[Tensor, int], side: int) -> Pillow.Image:
        """The waveform's envelope."""
        waveform, _ = item
        plot = Pillow.new("RGB", (side, side), "white")
        draw = ImageDraw.Draw(plot)
        peak = max(float(waveform.abs().max()), 1e-8)
        for x, part in enumerate(torch.tensor_split(waveform, side)):
            height = float(part.abs().max()) / peak * side / 3 if len(part) else 0.0
            draw.line((x, side / 2 - height, x, side / 2 + height), "#4477aa")
        return plot
