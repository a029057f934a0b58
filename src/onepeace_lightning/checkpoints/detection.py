"""Starting a detector from a pretrained model."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from onepeace_lightning.checkpoints.loading import LoadReport, fill
from onepeace_lightning.models.patches import grid_positions
from onepeace_lightning.models.vision.detector import Detector


def load_trunk(detector: Detector, weights: Mapping[str, Tensor] | None, name: str) -> LoadReport:
    """Fill a detector's trunk with a pretrained model's image branch, its learned positions resized.

    Args:
        detector: whose other parts keep their initial values.
        weights: the pretrained model's, by name; None: nothing is filled.
        name: of the pretrained model, for messages.

    Raises:
        ValueError: it lacks a tensor, has relative tables for each block, or they are for another window.
    """
    if weights is None:
        return LoadReport()
    prefix = "backbone.adapters.image."
    if f"{prefix}bias_tables.1" in weights:
        raise ValueError(
            f"{name} has a table of relative positions for each block; a detector starts from the pretrained model"
        )
    own, table = detector.state_dict(), f"{prefix}bias_table"
    state = {key: tensor for key, tensor in weights.items() if key in own}
    state[table] = weights[f"{prefix}bias_tables.0"]
    if state[table].shape != own[table].shape:
        side = (round((len(state[table]) - 3) ** 0.5) + 1) // 2
        raise ValueError(f"window is {detector.head_config.window}; the relative positions of {name} are for {side}")
    positions, resized = f"{prefix}positions", []
    grid = round((len(own[positions]) - 1) ** 0.5)
    if len(state[positions]) != len(own[positions]):
        resized.append(f"{positions}: {len(state[positions])} → {len(own[positions])} rows")
        state[positions] = grid_positions(state[positions], grid)
    report = fill(detector, state, name, may_miss=lambda key: not key.startswith("backbone.") or "rel_pos" in key)
    return replace(report, resized=resized)
