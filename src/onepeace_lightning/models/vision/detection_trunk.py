"""The detector's trunk: the image branch without CLS, most of its blocks attending within windows (arXiv 2203.16527).

Parameters have the names that they have in a ``Backbone``, so that its weights fit and layer decay and LoRA apply.

B = images, Y and X = rows and columns of patches, n = side of an attention window in patches, N = n², D = width,
H = heads, C = width of a head, R = 2 n - 1 offsets along a side.
"""

from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from onepeace_lightning.models.block import GeGLU
from onepeace_lightning.models.config import ModelConfig, TransformerConfig
from onepeace_lightning.models.layers import Linear, PerModality, init_normal_, layer_scale_of
from onepeace_lightning.models.patches import PATCH, patch_stem

LOGITS_AT_ONCE = 2**27
"""Attention logits that are held at once; more are computed a few rows of queries after the other."""


class WindowAttention(nn.Module):
    """Self-attention within square windows, LayerNorm before its last projection, two relative biases on its logits.

    One is read from the table that all blocks share. The other is decomposed: the unscaled query times a learned vector
    for the distance in rows, and times one for the distance in columns.

    Args:
        width: D.
        heads: H.
        init_std: of the projections.
        side: n, the grid's own side for a block that sees the whole image.
    """

    def __init__(self, width: int, heads: int, init_std: float, side: int) -> None:
        super().__init__()
        self.heads, self.side = heads, side
        self.query = Linear(width, width, init_std)
        self.key = Linear(width, width, init_std, bias=False)
        self.value = Linear(width, width, init_std)
        self.norm = nn.LayerNorm(width)
        self.out = Linear(width, width, init_std)
        self.rel_pos_h = nn.Parameter(torch.empty(2 * side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.empty(2 * side - 1, width // heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero the decomposed bias."""
        nn.init.zeros_(self.rel_pos_h)
        nn.init.zeros_(self.rel_pos_w)

    def forward(self, x_BYXD: Tensor, table_HRR: Tensor) -> Tensor:
        """(B, Y, X, D) -> (B, Y, X, D), Y and X multiples of n."""
        size = x_BYXD.shape[1:3]
        x_WND = to_windows(x_BYXD, self.side)
        q, k, v = (
            projection(x_WND).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        rows = max(1, LOGITS_AT_ONCE // (q.shape[0] * self.heads * self.side**3))
        parts = []
        for first in range(0, self.side, rows):
            part = slice(first, min(first + rows, self.side))
            q_WHyXC = q.unflatten(2, (self.side, self.side))[:, :, part]
            bias = self._bias(q_WHyXC, toeplitz(table_HRR, self.side, part), part)
            parts.append(F.scaled_dot_product_attention(q_WHyXC.flatten(2, 3), k, v, attn_mask=bias))
        attended_WND = torch.cat(parts, 2).transpose(1, 2).flatten(2)
        return from_windows(self.out(self.norm(attended_WND)), self.side, size)

    def _bias(self, q_WHyXC: Tensor, table_HyXYX: Tensor, rows: slice) -> Tensor:
        """(W, H, y X, N) what is added to the logits of some rows of queries."""
        index = torch.arange(self.side, device=q_WHyXC.device)
        offsets = index[:, None] - index[None, :] + self.side - 1
        rows_WHyXY = torch.einsum("whyxc,yjc->whyxj", q_WHyXC, self.rel_pos_h[offsets[rows]].to(q_WHyXC.dtype))
        columns_WHyXX = torch.einsum("whyxc,xjc->whyxj", q_WHyXC, self.rel_pos_w[offsets].to(q_WHyXC.dtype))
        bias = table_HyXYX.to(q_WHyXC.dtype) + rows_WHyXY[..., :, None] + columns_WHyXX[..., None, :]
        return bias.flatten(4, 5).flatten(2, 3)


class WindowBlock(nn.Module):
    """A ``Block`` of images alone: x + γ₁ Attention(LN x), then x + γ₂ FFN(LN x)."""

    def __init__(self, config: TransformerConfig, drop_path: float, side: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(config.width)
        self.attention = WindowAttention(config.width, config.heads, config.init_std, side)
        self.norm_ffn = nn.LayerNorm(config.width)
        self.ffns = PerModality({"image": GeGLU(config.width, config.ffn_width, config.init_std)})
        self.drop_path = StochasticDepth(drop_path, "row")
        self.layer_scale = 1.0 if config.layer_scale is None else config.layer_scale
        self.gamma_1 = nn.Parameter(torch.empty(config.width))
        self.gamma_2 = nn.Parameter(torch.empty(config.width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set γ to its initial value."""
        nn.init.constant_(self.gamma_1, self.layer_scale)
        nn.init.constant_(self.gamma_2, self.layer_scale)

    def forward(self, x_BYXD: Tensor, table_HRR: Tensor) -> Tensor:
        """(B, Y, X, D) -> (B, Y, X, D)."""
        x_BYXD = x_BYXD + self.drop_path(self.gamma_1 * self.attention(self.norm_attention(x_BYXD), table_HRR))
        return x_BYXD + self.drop_path(self.gamma_2 * self.ffns["image"](self.norm_ffn(x_BYXD)))


class PatchEmbedding(nn.Module):
    """Pixels to patches with learned positions; the table of relative biases, which all blocks read.

    The first row of the positions is CLS's in a ``Backbone`` and unused here; so are the last three rows of the table.
    """

    def __init__(self, width: int, heads: int, grid: int, table_grid: int, init_std: float) -> None:
        super().__init__()
        self.init_std, self.table_grid = init_std, table_grid
        self.stem = patch_stem(3, width)
        self.positions = nn.Parameter(torch.empty(1 + grid**2, width))
        self.bias_table = nn.Parameter(torch.empty((2 * table_grid - 1) ** 2 + 3, heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the positions; zero the table."""
        init_normal_(self.positions, self.init_std)
        nn.init.zeros_(self.bias_table)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, 16 Y, 16 X) -> (B, Y, X, D)."""
        patches_BYXD = self.stem(pixels).permute(0, 2, 3, 1)
        return patches_BYXD + self.positions[1:].unflatten(0, patches_BYXD.shape[1:3])

    def table(self, side: int) -> Tensor:
        """(H, R, R) relative biases of a window of ``side``, resized bicubically where the table is for another."""
        span = 2 * self.table_grid - 1
        table_HRR = self.bias_table[: span**2].T.unflatten(1, (span, span))
        if side == self.table_grid:
            return table_HRR
        size = (2 * side - 1, 2 * side - 1)
        with torch.autocast(table_HRR.device.type, enabled=False):
            return F.interpolate(table_HRR[None].float(), size=size, mode="bicubic", align_corners=False)[0]


class DetectionTrunk(nn.Module):
    """Square images to one map of features, without a final norm.

    Args:
        config: sizes of the image branch; learned positions are of the image's own grid.
        window: side of a window, and of the grid that the table of relative biases is made for, in patches.
        global_blocks: indices of the blocks that attend to the whole image.

    Raises:
        ValueError: there is no image branch, or its grid is no multiple of the window.
    """

    def __init__(self, config: ModelConfig, window: int, global_blocks: Collection[int]) -> None:
        super().__init__()
        image: Any = config.adapters.get("image")
        if image is None:
            raise ValueError(f"a detector needs the image branch; the model has {', '.join(config.adapters)}")
        if image.grid % window:
            raise ValueError(
                f"image_size is {image.image_size}, {image.grid} patches; it must be a multiple of the window of"
                f" {window} patches, {PATCH * window} pixels"
            )
        sizes, self.image_size = config.encoder, image.image_size
        rates = torch.linspace(0.0, sizes.drop_path, sizes.depth, device="cpu").tolist()
        embedding = PatchEmbedding(sizes.width, sizes.heads, image.grid, window, sizes.init_std)
        self.adapters = PerModality({"image": embedding})
        blocks = (
            WindowBlock(sizes, rate, image.grid if index in global_blocks else window)
            for index, rate in enumerate(rates)
        )
        self.encoder = nn.ModuleDict({"blocks": nn.ModuleList(blocks)})

    def lr_scale(self, name: str, layer_decay: float) -> float:
        """Layer-wise learning rates, from the last block down to the patches."""
        return layer_scale_of(name, len(self.blocks), layer_decay)

    @property
    def embedding(self) -> PatchEmbedding:
        """Patches, positions and the table of relative biases."""
        return cast(PatchEmbedding, self.adapters["image"])

    @property
    def blocks(self) -> Sequence[WindowBlock]:
        """The blocks in order."""
        return cast(Sequence[WindowBlock], self.encoder["blocks"])

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) normalised pixels -> (B, D, S / 16, S / 16)."""
        x_BYXD = self.embedding(pixels)
        tables = {side: self.embedding.table(side) for side in {block.attention.side for block in self.blocks}}
        for block in self.blocks:
            x_BYXD = block(x_BYXD, tables[block.attention.side])
        return x_BYXD.permute(0, 3, 1, 2)


def toeplitz(table_HRR: Tensor, side: int, rows: slice) -> Tensor:
    """(H, y, n, n, n) the entry for the distances in rows and columns of any two patches, the query's first.

    Args:
        table_HRR: an entry for each distance.
        side: n.
        rows: of the queries; y of them.
    """
    # Mirrored, the entries that one query reads are neighbours: windows of the table, which need no gathering.
    windows = table_HRR.flip(1, 2).unfold(1, side, 1).unfold(2, side, 1)
    return windows[:, side - rows.stop : side - rows.start].flip(1, 2)


def to_windows(x_BYXD: Tensor, side: int) -> Tensor:
    """(B, Y, X, D) -> (W, N, D): the windows of all images, row by row."""
    windows = x_BYXD.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3)
    return windows.flatten(3, 4).flatten(0, 2)


def from_windows(x_WND: Tensor, side: int, size: Sequence[int]) -> Tensor:
    """The inverse of ``to_windows``, given Y and X."""
    rows, columns = size
    windows = x_WND.unflatten(1, (side, side)).unflatten(0, (-1, rows // side, columns // side))
    return windows.transpose(2, 3).flatten(3, 4).flatten(1, 2)
