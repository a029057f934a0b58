"""Sizes of the model: typed and validated; named ones are in ``modalities.presets``."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from onepeace_lightning.models.flops import Flops


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
        problems = at_least(self, width=1, depth=1, heads=1, ffn_width=1)
        if not problems and self.width % self.heads:
            problems.append(f"width {self.width} is not a multiple of heads {self.heads}")
        if not 0.0 <= self.drop_path < 1.0:
            problems.append(f"drop_path is {self.drop_path}, must be in [0, 1)")
        raise_all("transformer", problems)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Sizes of one modality's adapter, which ``build`` makes; a modality subclasses this.

    Attributes:
        decoder_positions_decay: the learned positions in the denoising decoder have weight decay.
    """

    decoder_positions_decay: ClassVar[bool] = False

    def build(self, model: "ModelConfig") -> nn.Module:
        """The ``adapter.Adapter`` of these sizes in a model.

        Args:
            model: the whole model's sizes.
        """
        raise NotImplementedError

    def resized(self, **sizes: Any) -> "AdapterConfig":
        """The same adapter with other sizes, for weights that are kept."""
        return replace(self, **sizes)

    def problems(self, width: int) -> list[str]:
        """What keeps the adapter from an encoder of this width; nothing unless a modality says otherwise."""
        return []

    def decoder_rows(self) -> int:
        """Rows of the learned positions in the denoising decoder, CLS included.

        Raises:
            ValueError: where the modality does not say.
        """
        raise ValueError(
            f"decoder: positions does not say how many rows {type(self).__name__} needs; name its modality there,"
            " or write its method decoder_rows"
        )

    def decoder_positions(self, table_PD: Tensor) -> Tensor:
        """The decoder's learned positions, fitted to the input where that depends on sizes, such as an image's grid."""
        return table_PD

    def embed_flops(self, inputs: Any, width: int, *, learns: bool = True) -> Flops:
        """What the adapter computes once for a batch, however many views are made of it.

        Args:
            inputs: the batch; only its sizes are read.
            width: of the encoder.
            learns: the adapter has gradients.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not say what it computes: write its method embed_flops, or leave the callback"
            " Throughput out"
        )

    def view_flops(self, visible: Sequence[int], width: int, *, learns: bool = True) -> Flops:
        """What the adapter computes for every view: nothing, unless positions are computed from what is visible.

        Args:
            visible: tokens of each sample that the view shows, CLS included.
            width: of the encoder.
            learns: the adapter has gradients in this view.
        """
        return Flops()


def at_least(config: Any, **minimum: int) -> list[str]:
    """A line for each attribute of a config that is below its minimum."""
    return [f"{k} is {getattr(config, k)}, must be at least {v}" for k, v in minimum.items() if getattr(config, k) < v]


def _decoder_default() -> TransformerConfig:
    return TransformerConfig(width=768, depth=2, heads=12, ffn_width=2048, layer_scale=None)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The denoising decoder (paper section 3.3).

    Attributes:
        transformer: its blocks, which have no γ.
        positions: modality to rows of its learned position table, CLS included; those that are not named have as many
            as their adapter's config says.
    """

    transformer: TransformerConfig = field(default_factory=_decoder_default)
    positions: dict[str, int] = field(default_factory=dict)


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
        for adapter in self.adapters.values():
            problems += adapter.problems(self.encoder.width)
        raise_all("model", problems)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for a checkpoint or JSON."""
        return asdict(self)
