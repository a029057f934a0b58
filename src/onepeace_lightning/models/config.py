"""Sizes of the model: typed, validated, with the presets from ``tiny`` to the published ``4b``."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

Preset = Literal["tiny", "small", "base", "large", "4b"]

PATCH = 16
"""Side of an image patch in pixels."""


def raise_all(what: str, problems: list[str]) -> None:
    """Raise one ``ValueError`` that lists every problem, if there is any."""
    if problems:
        raise ValueError(f"{what}: " + "; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A stack of blocks.

    Attributes:
        width: d, features of a token.
        depth: blocks.
        heads: attention heads; ``width`` is a multiple.
        ffn_width: inner width of each modality's feed-forward network.
        drop_path: stochastic depth of the last block; rises linearly from 0 at the first.
        layer_scale: initial γ of the residual branches, None for branches without γ.
        init_std: standard deviation of initial weights, which are cut off at one deviation.
        final_norm: a LayerNorm for each modality follows the last block (the published image branch has none).
    """

    width: int
    depth: int
    heads: int
    ffn_width: int
    drop_path: float = 0.0
    layer_scale: float | None = 1e-6
    init_std: float = 0.02
    final_norm: bool = True

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)}, must be at least 1"
            for name in ("width", "depth", "heads", "ffn_width")
            if getattr(self, name) < 1
        ]
        if not problems and self.width % self.heads:
            problems.append(f"width {self.width} is not a multiple of heads {self.heads}")
        if not 0.0 <= self.drop_path < 1.0:
            problems.append(f"drop_path is {self.drop_path}, must be in [0, 1)")
        raise_all("transformer", problems)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What every modality's adapter has; a new modality subclasses this and registers itself.

    Attributes:
        modality: the registered name.
    """

    modality: ClassVar[str]


@dataclass(frozen=True, kw_only=True)
class TextConfig(AdapterConfig):
    """Token embedding with learned positions.

    Attributes:
        vocab_size: token ids.
        positions: rows of the absolute position table, CLS included: the longest sequence.
        buckets: of the relative bias.
        type_embedding: a vector is added to every token, for tasks with two images.
    """

    modality: ClassVar[str] = "text"
    vocab_size: int = 50264
    positions: int = 514
    buckets: int = 256
    type_embedding: bool = False

    def __post_init__(self) -> None:
        problems = [f"vocab_size is {self.vocab_size}, must be above the 4 special ids"] if self.vocab_size < 5 else []
        raise_all("text", problems + _at_least(self, positions=2, buckets=4))


@dataclass(frozen=True, kw_only=True)
class ImageConfig(AdapterConfig):
    """Square images in 16-pixel patches.

    Attributes:
        image_size: side in pixels that the relative bias is made for, a multiple of 16.
        position_grid: side of the learned absolute position grid in patches; None: that of ``image_size``.
        type_embedding: a vector is added to every token, and a further one to those of a second image.
    """

    modality: ClassVar[str] = "image"
    image_size: int = 256
    position_grid: int | None = None
    type_embedding: bool = False

    def __post_init__(self) -> None:
        if self.image_size < PATCH or self.image_size % PATCH:
            raise ValueError(f"image: image_size is {self.image_size}, must be a multiple of {PATCH}")

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // PATCH

    def resized(self, image_size: int) -> "ImageConfig":
        """The same for images of another side; the learned position grid stays what it is."""
        return replace(self, image_size=image_size, position_grid=self.position_grid or self.grid)


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

    modality: ClassVar[str] = "audio"
    channels: int = 512
    position_depth: int = 5
    position_kernel: int = 19
    position_groups: int = 16
    buckets: int = 512

    def __post_init__(self) -> None:
        raise_all(
            "audio", _at_least(self, channels=1, position_depth=1, position_kernel=1, position_groups=1, buckets=4)
        )


def _at_least(config: Any, **minimum: int) -> list[str]:
    return [f"{k} is {getattr(config, k)}, must be at least {v}" for k, v in minimum.items() if getattr(config, k) < v]


def _decoder_default() -> TransformerConfig:
    return TransformerConfig(width=768, depth=2, heads=12, ffn_width=2048, layer_scale=None)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The denoising decoder (paper section 3.3).

    Attributes:
        transformer: its blocks, which have no γ.
        positions: modality to rows of its learned position table, CLS included. Images need not be named: theirs follow
            from their grid.
    """

    transformer: TransformerConfig = field(default_factory=_decoder_default)
    positions: dict[str, int] = field(default_factory=lambda: {"text": 514, "audio": 1026})


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The whole model.

    Attributes:
        encoder: the fusion encoder.
        adapters: modality to its adapter's sizes, in the order in which their tokens are joined.
        decoder: the denoising decoder.
        per_block_tables: every block has its own relative bias tables (fine-tuning) instead of one shared by all.
    """

    encoder: TransformerConfig
    adapters: dict[str, AdapterConfig]
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    per_block_tables: bool = False

    def __post_init__(self) -> None:
        problems = [] if self.adapters else ["no modality: adapters is empty"]
        audio = self.adapters.get("audio")
        if isinstance(audio, AudioConfig) and self.encoder.width % audio.position_groups:
            problems.append(f"width {self.encoder.width} is not a multiple of position_groups {audio.position_groups}")
        if "image" in self.adapters and self.encoder.width % 4:
            problems.append(f"width {self.encoder.width} is not a multiple of 4, which the image stem needs")
        raise_all("model", problems)

    @classmethod
    def preset(
        cls,
        name: Preset,
        *,
        modalities: tuple[str, ...] = ("text", "image", "audio"),
        vocab_size: int | None = None,
        image_size: int | None = None,
        drop_path: float | None = None,
    ) -> "ModelConfig":
        """A named size, with the few sizes that depend on the data.

        Raises:
            ValueError: for an unknown name or modality.
        """
        if name not in PRESETS:
            raise ValueError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
        config = PRESETS[name]
        if unknown := sorted(set(modalities) - set(config.adapters)):
            raise ValueError(f"preset {name!r} has no modality {unknown}; it has {list(config.adapters)}")
        adapters = {key: value for key, value in config.adapters.items() if key in modalities}
        if vocab_size is not None and "text" in adapters:
            adapters["text"] = replace(adapters["text"], vocab_size=vocab_size)  # type: ignore[call-arg]
        if image_size is not None and "image" in adapters:
            adapters["image"] = replace(adapters["image"], image_size=image_size)  # type: ignore[call-arg]
        encoder = config.encoder if drop_path is None else replace(config.encoder, drop_path=drop_path)
        return replace(config, encoder=encoder, adapters=adapters)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for a checkpoint or JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ModelConfig":
        """The inverse of ``to_dict``; modalities must be registered.

        Raises:
            ValueError: for a modality that nobody registered.
        """
        from onepeace_lightning.modalities import adapter_type  # the registry knows each modality's config class

        decoder = data["decoder"]
        return cls(
            encoder=TransformerConfig(**data["encoder"]),
            adapters={name: adapter_type(name).config_type(**sizes) for name, sizes in data["adapters"].items()},
            decoder=DecoderConfig(
                transformer=TransformerConfig(**decoder["transformer"]), positions=dict(decoder["positions"])
            ),
            per_block_tables=data["per_block_tables"],
        )


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
