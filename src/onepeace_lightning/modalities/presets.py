"""Named sizes of the model, from ``tiny`` to the published ``4b``."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from onepeace_lightning.modalities.audio import AudioConfig
from onepeace_lightning.modalities.image import ImageConfig
from onepeace_lightning.modalities.registry import modality
from onepeace_lightning.modalities.text import TextConfig
from onepeace_lightning.models.config import DecoderConfig, ModelConfig, TransformerConfig

Preset = Literal["tiny", "small", "base", "large", "4b"]


def preset_config(
    name: Preset,
    *,
    modalities: Sequence[str] = ("text", "image", "audio"),
    sizes: Mapping[str, Mapping[str, Any]] | None = None,
    drop_path: float | None = None,
) -> ModelConfig:
    """A named size, with the few sizes that depend on the data.

    Args:
        name: one of ``PRESETS``.
        modalities: registered ones, in the order in which tokens are joined; one that the preset does not know has the
            sizes by default of its config.
        sizes: modality to sizes of its adapter, such as ``{"image": {"image_size": 96}}``; other modalities' are
            ignored.
        drop_path: stochastic depth of the last block.

    Raises:
        ValueError: for an unknown name or modality.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
    config, given = PRESETS[name], sizes or {}
    adapters = {
        key: replace(config.adapters.get(key) or modality(key).config_type(), **given.get(key, {}))
        for key in modalities
    }
    encoder = config.encoder if drop_path is None else replace(config.encoder, drop_path=drop_path)
    return replace(config, encoder=encoder, adapters=adapters)


def _preset(
    *, encoder: tuple[int, int, int, int], decoder: tuple[int, int, int, int], layer_scale: float, init_std: float,
    image_size: int = 256, **audio: int,
) -> ModelConfig:  # fmt: skip
    width, depth, heads, ffn_width = encoder
    decoder_width, decoder_depth, decoder_heads, decoder_ffn = decoder
    return ModelConfig(
        encoder=TransformerConfig(
            width=width, depth=depth, heads=heads, ffn_width=ffn_width, layer_scale=layer_scale, init_std=init_std
        ),
        adapters={"text": TextConfig(), "image": ImageConfig(image_size=image_size), "audio": AudioConfig(**audio)},
        decoder=DecoderConfig(
            transformer=TransformerConfig(
                width=decoder_width, depth=decoder_depth, heads=decoder_heads, ffn_width=decoder_ffn,
                layer_scale=None, init_std=init_std,
            )
        ),
    )  # fmt: skip


# The published γ of 1e-6 and deviation of 0.02 suit a long run of a wide model. A narrow one would spend hundreds of
# steps at chance: its weights are drawn with about 1 / sqrt(width) after the cut.
PRESETS: dict[str, ModelConfig] = {
    "tiny": _preset(
        encoder=(128, 4, 4, 512), decoder=(64, 1, 4, 256), layer_scale=1.0, init_std=0.2,
        image_size=96, channels=32, position_depth=2,
    ),
    "small": _preset(
        encoder=(384, 8, 6, 1536), decoder=(192, 2, 6, 512), layer_scale=1.0, init_std=0.1,
        image_size=160, channels=128, position_depth=3,
    ),
    "base": _preset(encoder=(768, 12, 12, 3072), decoder=(384, 2, 6, 1024), layer_scale=1e-4, init_std=0.02),
    "large": _preset(encoder=(1024, 24, 16, 4096), decoder=(512, 2, 8, 1536), layer_scale=1e-6, init_std=0.02),
    "4b": _preset(encoder=(1536, 40, 24, 6144), decoder=(768, 2, 12, 2048), layer_scale=1e-6, init_std=0.02),
}  # fmt: skip
"""Published size: ``4b``; the smaller ones are this project's."""

if set(PRESETS) != set(get_args(Preset)):
    raise RuntimeError("the names of PRESETS and Preset differ")
