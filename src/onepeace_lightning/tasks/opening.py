"""Building a downstream task again from what its checkpoint holds."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from onepeace_lightning.checkpoints.card import RECORD
from onepeace_lightning.modalities.preprocessing import Preprocessing, config_from_dict
from onepeace_lightning.modalities.tokenizers import Tokenizer, tokenizer_from_files
from onepeace_lightning.models.config import ModelConfig


def of_checkpoint(path: str | Path, checkpoint: Any, options: Mapping[str, Any], tasks: Mapping[str, type[Any]]) -> Any:
    """The task that a checkpoint holds, with its weights.

    Args:
        path: where it was, for messages.
        checkpoint: its content.
        options: of the task; they come before those of the checkpoint.
        tasks: the known ones by the name of their class.

    Raises:
        ValueError: it is a checkpoint of no task, or of an unknown one.
    """
    about = checkpoint.get("onepeace", {}) if isinstance(checkpoint, dict) else {}
    task = about.get("task")
    if task is None or task["name"] not in tasks:
        found = "no downstream task" if task is None else f"the task {task['name']!r}"
        way = "" if task is None else "; import its module first: --import my_package.my_task on the command line"
        raise ValueError(f"{path} is a checkpoint of {found}; known are {', '.join(sorted(tasks))}{way}")
    settings = {**task["settings"], **options}
    tokenizer = None if about["tokenizer"] is None else tokenizer_from_files(about["tokenizer"], source=str(path))
    weights = {name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items()
               if name.startswith("model.")}  # fmt: skip
    config = config_from_dict(about["config"])
    preprocessing = Preprocessing(about["preprocessing"])
    opened = made(tasks[task["name"]], config, weights, settings, tokenizer, preprocessing, path)
    opened.source = replace(opened.source, record=checkpoint.get(RECORD))
    return opened


def made(
    kind: type[Any],
    config: ModelConfig,
    weights: Mapping[str, Tensor] | None,
    settings: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    preprocessing: Preprocessing,
    path: str | Path,
) -> Any:
    """A built task.

    Args:
        kind: its class.
        config: sizes of the model.
        weights: by name; None: to be filled by the caller.
        settings: arguments besides the backbone.
        tokenizer: None where it reads no text.
        preprocessing: settings of the modalities.
        path: where it comes from, for messages.
    """
    fixed = {"drop_path": config.encoder.drop_path, "per_block_tables": config.per_block_tables}
    task = kind(config, **{**fixed, **settings})
    task.config = replace(config, encoder=replace(config.encoder, drop_path=task.config.encoder.drop_path))
    task.tokenizer, task.preprocessing = tokenizer, preprocessing
    if weights is not None:
        task.source = replace(task.source, weights=weights, name=str(path), whole=True)
    task.configure_model()
    return task
