"""Text: learned token embedding and absolute positions."""

import torch
from torch import Tensor, nn

from onepeace_lightning.models.adapter import Adapter, register_adapter
from onepeace_lightning.models.config import ModelConfig, TextConfig
from onepeace_lightning.models.inputs import PAD, Text
from onepeace_lightning.models.layers import Embedding, init_normal_
from onepeace_lightning.models.packing import Tokens
from onepeace_lightning.models.relative_bias import sequence_buckets, sequence_rows


@register_adapter
class TextAdapter(Adapter):
    """Token ids to tokens."""

    modality = "text"
    config_type = TextConfig

    def __init__(self, config: TextConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.embedding = Embedding(config.vocab_size, model.encoder.width, PAD, self.init_std)
        self.positions = nn.Parameter(torch.empty(config.positions, model.encoder.width))
        if config.type_embedding:
            self.type_embedding = nn.Parameter(torch.empty(1, model.encoder.width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw CLS and positions; the type embedding starts at zero."""
        super().reset_parameters()
        init_normal_(self.positions, self.init_std)
        if self.config.type_embedding:
            nn.init.zeros_(self.type_embedding)

    def embed(self, inputs: Text) -> Tokens:
        """[CLS; embedding] + positions.

        Raises:
            ValueError: for more tokens than there are positions.
        """
        batch, length = inputs.ids_BL.shape
        if length + 1 > len(self.positions):
            raise ValueError(
                f"text of {length} tokens; at most {len(self.positions) - 1} fit: lower the tokenizer's max_length"
            )
        cls_B1D = self.cls_token.expand(batch, 1, -1)
        x_BLD = torch.cat([cls_B1D, self.embedding(inputs.ids_BL)], 1) + self.positions[: length + 1]
        if self.config.type_embedding:
            x_BLD = x_BLD + self.type_embedding
        return Tokens.of_padded(x_BLD, (inputs.lengths + 1).tolist())

    def no_weight_decay(self) -> set[str]:
        """Vectors and absolute positions."""
        return super().no_weight_decay() | {"positions"}

    def bias_rows(self) -> int:
        """Rows of a relative bias table."""
        return sequence_rows(self.config.buckets)

    def buckets(self, positions: int) -> Tensor:
        """(P, P) table rows."""
        return sequence_buckets(positions, self.config.buckets, self.cls_token.device)
