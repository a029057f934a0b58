"""Opening a downstream task from its checkpoint."""

from pathlib import Path
from typing import Any

from onepeace_lightning.checkpoints.loading import read_checkpoint
from onepeace_lightning.modalities.base import Preprocessing, config_from_dict
from onepeace_lightning.modalities.tokenizers import tokenizer_from_files
from onepeace_lightning.tasks.base import TASKS
from onepeace_lightning.tasks.lora import Lora


def load_task(path: str | Path) -> Any:
    """Open a downstream task from its checkpoint alone, ready to ``predict`` or to be trained on.

    Args:
        path: a checkpoint (``.ckpt``) that training a ``FinetuneTask`` has written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, refused, or no checkpoint of a known downstream task.
    """
    checkpoint = read_checkpoint(path)
    about = checkpoint.get("onepeace", {})
    task = about.get("task")
    if task is None or task["name"] not in TASKS:
        found = "no downstream task" if task is None else f"the task {task['name']!r}, whose module must be imported"
        raise ValueError(f"{path} is a checkpoint of {found}; known are {', '.join(sorted(TASKS))}")
    settings = dict(task["settings"])
    lora = settings.pop("lora")
    config = config_from_dict(about["config"])
    opened = TASKS[task["name"]](
        config,
        drop_path=config.encoder.drop_path,
        per_block_tables=config.per_block_tables,
        lora=None if lora is None else Lora(**{**lora, "targets": tuple(lora["targets"])}),
        **settings,
    )
    opened.config = config
    if about["tokenizer"] is not None:
        opened.tokenizer = tokenizer_from_files(about["tokenizer"], source=str(path))
    opened.preprocessing = Preprocessing(about["preprocessing"])
    opened.configure_model()
    weights = {name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items()
               if name.startswith("model.")}  # fmt: skip
    opened.model.load_state_dict(weights, assign=True)
    return opened
