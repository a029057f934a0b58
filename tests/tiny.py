"""A model of a few thousand parameters, and batches for it, for tests of what is computed.

Every parameter is drawn at random, bias tables and γ included, so that leaving one out changes the result. The relative
bias has so few buckets that short inputs reach its logarithmic part.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.modalities.audio import Audio, AudioConfig
from onepeace_lightning.modalities.image import Image, ImageConfig
from onepeace_lightning.modalities.text import Text, TextConfig
from onepeace_lightning.modalities.tokenizers.base import EOS
from onepeace_lightning.models import ModelConfig, PretrainModel
from onepeace_lightning.models.config import DecoderConfig, TransformerConfig
from onepeace_lightning.models.inputs import TokenMask

IMAGE_SIZE = 48
VOCABULARY = 40
FIVE_TYPES = ("image", "audio", "text", "image-text", "audio-text")
"""The kinds of training data of the paper (section 3.4)."""


def tiny_config(**changes) -> ModelConfig:
    config = ModelConfig(
        encoder=TransformerConfig(width=24, depth=3, heads=2, ffn_width=40, layer_scale=0.5),
        adapters={
            "text": TextConfig(vocab_size=VOCABULARY, positions=32, buckets=8),
            "image": ImageConfig(image_size=IMAGE_SIZE),
            "audio": AudioConfig(channels=8, position_depth=2, position_kernel=5, position_groups=4, buckets=10),
        },
        decoder=DecoderConfig(
            transformer=TransformerConfig(width=16, depth=2, heads=2, ffn_width=24, layer_scale=None),
            positions={"text": 32, "audio": 32},
        ),
    )
    return replace(config, **changes)


def tiny_model(seed: int = 0, **changes) -> PretrainModel:
    torch.manual_seed(seed)
    return randomised(PretrainModel(tiny_config(**changes)))


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        if name.endswith("logit_scale"):
            continue
        wide = "bias_tables" in name or name.endswith(("token", "position", "positions"))
        parameter.add_(torch.randn_like(parameter) * (0.5 if wide else 0.1))
    return model


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def texts(*lengths: int, seed: int = 1) -> Text:
    """Rows of ``lengths`` ids in all, eos included."""
    rng = drawn(seed)
    return Text.pad([[*torch.randint(4, VOCABULARY, (n - 1,), generator=rng).tolist(), EOS] for n in lengths])


def images(count: int, seed: int = 2, size: int = IMAGE_SIZE) -> Image:
    return Image(torch.randn(count, 3, size, size, generator=drawn(seed)))


def audios(*samples: int, seed: int = 3) -> Audio:
    """Clips of 320 k + 80 samples have k frames."""
    rng = drawn(seed)
    return Audio.pad([F.layer_norm(torch.randn(n, generator=rng), (n,)) for n in samples])


def masks(lengths: list[int], share: float, *, last: bool, seed: int) -> TokenMask:
    """Hides ``share`` of each sample's tokens: never CLS, and the last only if asked for."""
    rng = drawn(seed)
    rows = []
    for length in lengths:
        candidates = 1 + torch.randperm(length - 1 - (not last), generator=rng)
        rows.append(np.zeros(length, dtype=bool))
        rows[-1][candidates[: max(1, int(share * len(candidates)))]] = True
    return TokenMask.of(rows)


def mask_rows(mask: TokenMask) -> list[np.ndarray]:
    """Each sample's part of a mask, True where a token is hidden."""
    return [part.numpy() for part in mask.is_hidden_T.split(mask.lengths)]


def batches(model: PretrainModel, *data_types: str, count: int = 3) -> dict[str, Batch]:
    """One batch per data type, of samples of different lengths."""
    raw = {
        "text": texts(*[9, 5, 12, 7][:count]),
        "image": images(count),
        "audio": audios(*[320 * n + 80 for n in (11, 6, 14, 9)][:count]),
    }
    lengths = {name: tokens.lengths for name, tokens in model.backbone.embed(raw).items()}

    def hide(share: Mapping[str, float], seed: int) -> dict[str, TokenMask]:
        return {name: masks(lengths[name], part, last=name != "text", seed=seed) for name, part in share.items()}

    alone = hide({"text": 0.3, "image": 0.7, "audio": 0.55}, 5)
    fused = hide({"text": 0.4, "image": 0.6, "audio": 0.45}, 6)
    out = {}
    for data_type in data_types:
        names = data_type.split("-")
        keys = [f"sample {i}" for i in range(count)]
        parts = [{name: part[name] for name in names} for part in (raw, alone, fused)]
        out[data_type] = Batch(keys, parts[0], parts[1], parts[2] if len(names) > 1 else {})
    return out
