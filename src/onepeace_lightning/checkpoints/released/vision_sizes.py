"""Sizes of the released vision models' image branch, from their tensors."""

from onepeace_lightning.checkpoints.released.base import ReleasedFile
from onepeace_lightning.modalities.image import ImageConfig
from onepeace_lightning.models.config import ModelConfig, TransformerConfig
from onepeace_lightning.models.patches import PATCH
from onepeace_lightning.models.vision.trunk import LAYER_SCALE


def image_branch(file: ReleasedFile, prefix: str) -> ModelConfig:
    """Sizes of the image branch whose tensors' names begin with a prefix, for the side that the file was made for.

    Raises:
        ValueError: the file lacks a tensor, or its positions are not those of a square grid.
    """
    rows, width = file.shape(f"{prefix}image_adapter.pos_embed")
    grid = round((rows - 1) ** 0.5)
    if grid**2 + 1 != rows:
        raise ValueError(
            f"{file.path}: {prefix}image_adapter.pos_embed has {rows} rows, which is no square grid and CLS"
        )
    shared = f"{prefix}image_adapter.rel_pos_table.weight"
    table = shared if shared in file.tensors else f"{prefix}encoder.layers.0.rel_pos_table.weight"
    return ModelConfig(
        encoder=TransformerConfig(
            width=width,
            depth=file.count(f"{prefix}encoder.layers."),
            heads=file.shape(table)[1],
            ffn_width=file.shape(f"{prefix}encoder.layers.0.image_ffn.0.wi_0.weight")[0],
            layer_scale=LAYER_SCALE,
            final_norm=False,
        ),
        adapters={"image": ImageConfig(image_size=PATCH * grid, position_grid=grid)},
        per_block_tables=table != shared,
    )
