"""The branch of images, or of other rasters, over plain batches: every sequence has one length, nothing is packed.

Module names are those of ``Backbone``: its weights fit. B = images, L = tokens (CLS first), D = width, H = heads.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace_lightning.models.backbone import Backbone
from onepeace_lightning.models.block import Block
from onepeace_lightning.models.config import ModelConfig, TransformerConfig
from onepeace_lightning.models.layers import PerModality, layer_scale_of
from onepeace_lightning.models.patches import Pixels


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth: zero whole rows (first dimension) of a residual branch in training, scale up the others."""
    if not training or rate == 0.0:
        return x
    keep = x.new_empty(len(x), *[1] * (x.dim() - 1)).bernoulli_(1 - rate)
    return x * keep / (1 - rate)


LAYER_SCALE = 1e-2
"""Initial γ of the published vision models, where the weights that they start from have none."""


class VisionBlock(Block):
    """Pre-norm transformer block of one modality: x + γ₁ Attention(LN x), then x + γ₂ FFN(LN x)."""

    def __init__(self, config: TransformerConfig, modality: str, drop_path: float) -> None:
        super().__init__(config, (modality,), drop_path)
        self.modality = modality
        self.drop_rate = drop_path

    def forward(self, x_BLD: Tensor, bias_HLL: Tensor | None) -> Tensor:  # type: ignore[override]
        """(B, L, D) -> (B, L, D).

        Args:
            x_BLD: tokens.
            bias_HLL: added to the attention logits of every image.
        """
        x_BLD = x_BLD + self.drop(self.gamma_1 * self.attend(self.norm_attention(x_BLD), bias_HLL))
        return x_BLD + self.drop(self.gamma_2 * self.ffn(self.norm_ffn(x_BLD)))

    def attend(self, x_BLD: Tensor, bias_HLL: Tensor | None = None) -> Tensor:
        """Multi-head self-attention within each row, LayerNorm before its output projection."""

        def attend(*qkv_BLD: Tensor) -> Tensor:
            q, k, v = (part.unflatten(-1, (self.attention.heads, -1)).transpose(1, 2) for part in qkv_BLD)
            bias = None if bias_HLL is None else bias_HLL[None].to(q.dtype)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)

        return self.attention(x_BLD, attend)

    def ffn(self, x_BLD: Tensor) -> Tensor:
        """The modality's feed-forward network."""
        return self.ffns[self.modality](x_BLD)

    def drop(self, branch: Tensor) -> Tensor:
        """Stochastic depth of a residual branch."""
        return drop_path(branch, self.drop_rate, self.training)


def raster_modality(config: ModelConfig) -> str:
    """The one modality of a vision model: images, or other rasters in a grid of patches.

    Raises:
        ValueError: the sizes are of several modalities, or of one without a grid.
    """
    if len(config.adapters) != 1 or not all(hasattr(adapter, "grid") for adapter in config.adapters.values()):
        raise ValueError(
            "a vision model is of one modality whose patches form a grid, such as images; this one has"
            f" {', '.join(config.adapters)}"
        )
    [name] = config.adapters
    return name


class Trunk(nn.Module):
    """Patch embedding, blocks and their relative bias tables, without a final norm.

    Args:
        config: sizes of a model of one modality, images or other rasters.
        block: the kind of block, built with (sizes, the modality, its stochastic depth).

    Raises:
        ValueError: where the sizes are of another model, or of one without LayerScale.
    """

    def __init__(self, config: ModelConfig, block: type[VisionBlock] = VisionBlock) -> None:
        super().__init__()
        self.modality = raster_modality(config)
        if config.encoder.layer_scale is None:
            raise ValueError("layer_scale is None; the vision models' blocks have LayerScale, give its initial value")
        self.config = config
        self.adapters = PerModality({self.modality: config.adapters[self.modality].build(config)})
        rates = torch.linspace(0.0, config.encoder.drop_path, config.encoder.depth, device="cpu").tolist()
        blocks = nn.ModuleList(block(config.encoder, self.modality, rate) for rate in rates)
        self.encoder = nn.ModuleDict({"blocks": blocks})

    def lr_scale(self, name: str, layer_decay: float) -> float:
        """Layer-wise learning rates, from the last block down to the adapter."""
        return layer_scale_of(name, self.config.encoder.depth, layer_decay)

    @property
    def adapter(self) -> Any:
        """Patch embedding, positions and bias tables."""
        return cast(Any, self.adapters[self.modality])

    @property
    def blocks(self) -> Sequence[VisionBlock]:
        """The blocks in order."""
        return cast(Sequence[VisionBlock], self.encoder["blocks"])

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.adapter.config.grid

    def embed(self, image: Pixels) -> Tensor:
        """(B, L, D) [CLS; patches] with positions."""
        return self.adapter.patches(self.adapter.checked(image))

    def biases(self) -> "Biases":
        """The relative bias of each block in one pass."""
        return Biases(self.adapter)

    def as_backbone(self) -> Backbone:
        """The same weights, not copied, as a backbone without final norm."""
        config = replace(self.config, encoder=replace(self.config.encoder, final_norm=False))
        with torch.device("meta"):
            backbone = Backbone(config)
        backbone.load_state_dict(self.state_dict(), assign=True)
        return backbone.train(self.training)

    def forward(self, image: Pixels) -> Tensor:
        """(B, L, D) the last block's output, not normed."""
        x_BLD, biases = self.embed(image), self.biases()
        for index, block in enumerate(self.blocks):
            x_BLD = block(x_BLD, biases[index])
        return x_BLD


class Biases:
    """(H, L, L) relative bias of any block; one that all blocks share is written out once for a pass."""

    def __init__(self, adapter: Any) -> None:
        self.relative = adapter.relative_bias(1 + adapter.config.grid**2)
        shared = len(self.relative.tables_RH) == 1
        self.shared = self._write(self.relative.table(0)) if shared else None

    def __getitem__(self, block: int) -> Tensor:
        return self._write(self.relative.table(block)) if self.shared is None else self.shared

    def _write(self, table_RH: Tensor) -> Tensor:
        return F.embedding(self.relative.buckets_PP, table_RH).permute(2, 0, 1)
