"""Tokens from vectors: adapter and base class of any modality whose samples are sequences of vectors of one size.

B = samples, N = vectors of the longest one, F = numbers of a vector, D = width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onepeace_lightning.modalities.arrays import pad
from onepeace_lightning.modalities.base import Inputs, Modality
from onepeace_lightning.models.adapter import Adapter
from onepeace_lightning.models.config import AdapterConfig, ModelConfig, at_least, raise_all
from onepeace_lightning.models.flops import Flops, product
from onepeace_lightning.models.layers import Linear, init_normal_
from onepeace_lightning.models.packing import Tokens
from onepeace_lightning.models.relative_bias import sequence_buckets, sequence_rows


@dataclass
class Vectors(Inputs):
    """Vectors (B, N, F), filled up with zeros, and how many each sample has."""

    values: Tensor
    lengths: list[int]

    @classmethod
    def pad(cls, samples: Sequence[Tensor]) -> "Vectors":
        """Join samples (N, F) of any lengths."""
        return cls(*pad(samples))

    @property
    def token_lengths(self) -> list[int]:
        """CLS and the vectors."""
        return [1 + length for length in self.lengths]


@dataclass(frozen=True, kw_only=True)
class VectorsConfig(AdapterConfig):
    """A linear projection of each vector, learned positions, and a relative bias over their distance.

    Attributes:
        features: F.
        positions: the most tokens, CLS included.
        buckets: of the relative bias.
    """

    features: int = 60
    positions: int = 257
    buckets: int = 64

    def __post_init__(self) -> None:
        raise_all(type(self).__name__, at_least(self, features=1, positions=2, buckets=4))

    def build(self, model: ModelConfig) -> "VectorsAdapter":
        """The adapter of these sizes."""
        return VectorsAdapter(self, model)

    def decoder_rows(self) -> int:
        """As many as the encoder's positions."""
        return self.positions

    def embed_flops(self, inputs: Any, width: int, *, learns: bool = True) -> Flops:
        """The projection; vectors need no gradient."""
        return product(sum(inputs.lengths), self.features, width, gradients=int(learns))


class VectorsAdapter(Adapter):
    """Vectors to tokens, one each."""

    def __init__(self, config: VectorsConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.project = Linear(config.features, model.encoder.width, self.init_std)
        self.positions = nn.Parameter(torch.empty(config.positions, model.encoder.width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw CLS and positions."""
        super().reset_parameters()
        init_normal_(self.positions, self.init_std)

    def embed(self, inputs: Vectors) -> Tokens:
        """[CLS; projected vectors] + positions.

        Raises:
            ValueError: for vectors of another size than the adapter's, or more of them than it has positions.
        """
        features, longest = inputs.values.shape[2], max(inputs.token_lengths)
        if features != self.config.features or longest > self.config.positions:
            raise ValueError(
                f"{longest - 1} vectors of {features} numbers; this model takes up to {self.config.positions - 1} of"
                f" {self.config.features}: set sizes alike in the data's preprocessing and in the model"
            )
        x_BND = self.project(inputs.values.to(self.project.weight.dtype))
        x_BLD = torch.cat([self.cls_token.to(x_BND.dtype).expand(len(x_BND), 1, -1), x_BND], 1)
        return Tokens.of_padded(x_BLD + self.positions[: x_BLD.shape[1]], inputs.token_lengths)

    def no_weight_decay(self) -> set[str]:
        """Vectors and absolute positions."""
        return super().no_weight_decay() | {"positions"}

    def bias_rows(self) -> int:
        """Rows of a relative bias table."""
        return sequence_rows(self.config.buckets)

    def buckets(self, positions: int) -> Tensor:
        """(P, P) table rows."""
        return sequence_buckets(positions, self.config.buckets, self.cls_token.device)


class VectorsModality(Modality):
    """A modality of sequences of vectors; arrays are (N, F) tensors, which become a token for each vector.

    A subclass writes at least ``decode``, ``transform`` and ``sizes``.
    """

    config_type = VectorsConfig

    def num_tokens(self, array: Tensor) -> int:
        """The vectors."""
        return len(array)

    def collate(self, arrays: Sequence[Tensor]) -> Vectors:
        """Join sequences, filled up to the longest."""
        return Vectors.pad(arrays)
