"""Weights for another use: relative bias tables for another image side, and one per block instead of one for all."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from onepeace_lightning.modalities.image import ImageAdapter, ImageConfig
from onepeace_lightning.models.config import ModelConfig
from onepeace_lightning.models.denoiser import DecoderInput
from onepeace_lightning.models.patches import grid_positions
from onepeace_lightning.models.relative_bias import grid_rows

_CLS_ROWS = 3
_TABLE = re.compile(r"(?P<adapter>.*adapters\.\w+)\.bias_tables\.(?P<block>\d+)")


def geometric_coordinates(source: int, target: int) -> np.ndarray:
    """(source,) where the offsets of a table lie among those of another: 0 and ± the sums 1, 1 + q, 1 + q + q².

    The ratio q in [1.01, 1.5] is found by bisection so that the outermost offset falls on the target's.

    Args:
        source: offsets along a side of the table that is resized, an odd number.
        target: offsets along a side of the new table, an odd number.
    """
    steps, reach = source // 2, target // 2
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        if (1 - q**steps) / (1 - q) > reach:
            high = q
        else:
            low = q
    sums = np.cumsum(q ** np.arange(steps))
    return np.concatenate([-sums[::-1], [0.0], sums])


def resize_grid_table(table_RH: Tensor, grid: int) -> Tensor:
    """A grid's relative bias table for another grid side, by geometric-sequence interpolation.

    Each head's offsets are put at ``geometric_coordinates`` and read at whole numbers from a bicubic spline; beyond the
    outermost offset its value is taken. The rows for CLS are kept.

    Args:
        table_RH: ((2r-1)² + 3, H) for an r × r grid.
        grid: side of the new grid in patches.

    Raises:
        ValueError: where the table is not that of a square grid of at least 3 × 3.
    """
    if len(table_RH) == grid_rows(grid):
        return table_RH
    source, target = math.isqrt(max(len(table_RH) - _CLS_ROWS, 0)), 2 * grid - 1
    if source < 5 or source % 2 == 0 or source**2 + _CLS_ROWS != len(table_RH):
        raise ValueError(
            f"a relative bias table of {len(table_RH)} rows cannot be resized; it needs (2r-1)² + 3 rows, r at least 3"
        )
    at = geometric_coordinates(source, target)
    from scipy.interpolate import RectBivariateSpline  # 35 MiB that opening a model would take without need

    wanted = np.arange(-(target // 2), target // 2 + 1).clip(at[0], at[-1])
    offsets_SSH = table_RH[:-_CLS_ROWS].detach().cpu().double().numpy().reshape(source, source, -1)
    heads = [
        RectBivariateSpline(at, at, offsets_SSH[..., head], s=0)(wanted, wanted)
        for head in range(offsets_SSH.shape[-1])
    ]
    resized = torch.from_numpy(np.stack(heads, -1)).flatten(0, 1).to(table_RH)
    return torch.cat([resized, table_RH[-_CLS_ROWS:].detach()])


def fit_tables(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Make a checkpoint's relative bias tables those that a model needs.

    A table shared by all blocks is copied to each block where the model has one per block; image tables are resized
    where the model's images have another side, and learned positions where the model stores those of its own grid.

    Args:
        model: that is to be filled.
        state: weights by the model's names.

    Returns:
        The weights, and a line for each table that was copied or resized.

    Raises:
        ValueError: where the checkpoint has tables of each block's own and the model has one for all.
    """
    fitted, changes = dict(state), []
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    adapters = dict(model.named_modules())
    for name, shape in own.items():
        adapter, _, parameter = name.rpartition(".")
        table = fitted.get(name)
        if parameter == "positions" and isinstance(adapters[adapter], ImageAdapter) and table is not None:
            grid = cast(ImageAdapter, adapters[adapter]).config.grid
            if table.shape[1:] == shape[1:] and len(table) != shape[0] == 1 + grid**2:
                fitted[name] = grid_positions(table, grid)
                changes.append(f"{name} is resized from {len(table)} to {shape[0]} rows, for a grid of {grid} × {grid}")
        if not (found := _TABLE.fullmatch(name)):
            continue
        first, second = (f"{found['adapter']}.bias_tables.{block}" for block in (0, 1))
        if second in state and second not in own:
            raise ValueError(
                f"the checkpoint has {second}: its blocks have bias tables of their own, the model has one for all;"
                " build it with per_block_tables=True"
            )
        if name not in state and first in state and second not in state:
            fitted[name] = state[first].clone()
            changes.append(f"{name} is a copy of {first}, which all blocks shared")
        table = fitted.get(name)
        is_grid = isinstance(adapters[found["adapter"]], ImageAdapter)
        if is_grid and table is not None and table.dim() == 2 and table.shape[1] == shape[1] and len(table) != shape[0]:
            grid = cast(ImageAdapter, adapters[found["adapter"]]).config.grid
            fitted[name] = resize_grid_table(table, grid)
            changes.append(f"{name} is resized from {len(table)} to {shape[0]} rows, for a grid of {grid} × {grid}")
    return fitted, changes


def for_finetuning(config: ModelConfig, image_size: int | None = None) -> ModelConfig:
    """Sizes of a model with relative bias tables of each block's own and perhaps another image side.

    Raises:
        ValueError: where an image side is given for a model without images.
    """
    return replace(config if image_size is None else _at(config, image_size), per_block_tables=True)


def set_image_size(model: nn.Module, image_size: int) -> None:
    """Make a model take images of another side: its relative bias tables are resized in place.

    Absolute positions keep their grid, which is resized whenever the model runs. The tables are new parameters: call
    this before an optimizer is made.

    Args:
        model: a backbone or anything built around one.
        image_size: side in pixels, a multiple of 16.

    Raises:
        ValueError: where the model has no images, or no such side is possible.
    """
    adapters = [
        module
        for module in model.modules()
        if isinstance(module, ImageAdapter) and type(module.config) is ImageConfig  # not videos, depth maps and others
    ]
    if not adapters:
        raise ValueError("this model has no 'image' modality, so no image size can be set")
    for adapter in adapters:
        resized = adapter.config.resized(image_size)
        tables = [resize_grid_table(table, resized.grid) for table in adapter.bias_tables]
        for index, (old, new) in enumerate(zip(adapter.bias_tables, tables, strict=True)):
            adapter.bias_tables[index] = nn.Parameter(new, requires_grad=old.requires_grad)
        adapter.config = resized
    for module in model.modules():
        if isinstance(getattr(module, "config", None), ModelConfig):
            setattr(module, "config", _at(cast(ModelConfig, module.config), image_size))  # noqa: B010 (typed as a tensor)
        elif isinstance(module, DecoderInput) and type(module.adapter) is ImageConfig:
            module.adapter = module.adapter.resized(image_size)


def _at(config: ModelConfig, image_size: int) -> ModelConfig:
    image = config.adapters.get("image")
    if not isinstance(image, ImageConfig):
        raise ValueError(f"an image size of {image_size} for a model without images; it has {list(config.adapters)}")
    return replace(config, adapters={**config.adapters, "image": image.resized(image_size)})
