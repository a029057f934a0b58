"""Opening a downstream task from its checkpoint or from a released file, and saving one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch

from onepeace_lightning.checkpoints.loading import read_checkpoint, read_file
from onepeace_lightning.checkpoints.released.base import ReleasedFile
from onepeace_lightning.checkpoints.released.kinds import kind_of
from onepeace_lightning.checkpoints.released.labels import read_labels
from onepeace_lightning.checkpoints.shard_files import is_sharded
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.modalities.registry import text_modality
from onepeace_lightning.modalities.text import TextConfig
from onepeace_lightning.modalities.tokenizers import load_tokenizer
from onepeace_lightning.tasks.base import TASKS, FinetuneTask
from onepeace_lightning.tasks.opening import made, of_checkpoint


def load_task(
    path: str | Path, *, bpe_dir: str | Path | None = None, labels: str | Path | None = None, **options: Any
) -> Any:
    """Open a downstream task, ready to ``predict``, to be measured or to be trained on.

    Args:
        path: a checkpoint (``.ckpt``) that training a ``FinetuneTask`` has written, or a file that the authors of
            ONE-PEACE released (``.pt``, ``.pth``), whose tensors are mapped from disk.
        bpe_dir: for released files that read text: a folder with ``dict.txt``, ``encoder.json`` and ``vocab.bpe``.
            Without it only what needs no text works.
        labels: for released files that classify or answer: a file with the names of classes or answers in the order of
            the model's outputs (``checkpoints.released.labels``); without it they are called "0", "1", ….
        **options: of the task, such as ``optimization`` or ``trainable``; they come before those of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, refused or no downstream task, the labels are more or fewer than its outputs, or the
            vocabulary is another.
    """
    content, found = (read_checkpoint(path), []) if is_sharded(path) else read_file(path)
    if not isinstance(content, dict) or "onepeace" in content:
        if bpe_dir is not None or labels is not None:
            given = "bpe_dir" if bpe_dir is not None else "labels"
            raise ValueError(f"{path} has its vocabulary and its labels in it; leave {given} out")
        return of_checkpoint(path, content, options, TASKS)
    return _of_released(ReleasedFile.of(path, content, found), bpe_dir, labels, options)


def is_task(source: str | Path) -> bool:
    """Whether a source is a checkpoint of a downstream task of this project."""
    path = Path(source)
    if not path.is_file() or is_sharded(path):
        return False
    content, _ = read_file(path)
    return isinstance(content, dict) and "onepeace" in content and content["onepeace"].get("task") is not None


def save_task(task: FinetuneTask, path: str | Path) -> None:
    """Write a task as a checkpoint (``.ckpt``), which ``load_task`` and ``onepeace predict`` open.

    Args:
        task: trained, or opened from a released file.
        path: the file to write; its folder is made if need be.
    """
    task.configure_model()
    checkpoint: dict[str, Any] = {
        "state_dict": task.state_dict(),
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": L.__version__,
    }
    task.on_save_checkpoint(checkpoint)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")  # the tensors may be mapped from the very file that is replaced
    torch.save(checkpoint, partial)
    partial.replace(path)


def _of_released(
    file: ReleasedFile, bpe_dir: str | Path | None, labels: str | Path | None, options: Mapping[str, Any]
) -> FinetuneTask:
    kind = kind_of(file)
    if kind.task is None:
        raise ValueError(
            f"{file.path} is {kind.title}, which answers nothing by itself: open it with OnePeace.from_pretrained, or"
            " train a task with it as backbone"
        )
    if labels is not None and not kind.takes_labels:
        raise ValueError(f"{file.path} is {kind.title}, which has no labels; leave labels={str(labels)!r} out")
    if bpe_dir is not None and not kind.takes_vocabulary:
        raise ValueError(f"{file.path} is {kind.title}, which reads no text; leave bpe_dir={str(bpe_dir)!r} out")
    opened = kind.open(file, None if labels is None else read_labels(labels))
    tokenizer = None if bpe_dir is None else load_tokenizer(bpe_dir)
    text = opened.config.adapters.get(text_modality())
    if tokenizer is not None and isinstance(text, TextConfig) and tokenizer.vocab_size != text.vocab_size:
        raise ValueError(
            f"the tokenizer in {bpe_dir} has {tokenizer.vocab_size} ids, {file.path} {text.vocab_size}; they do not"
            " belong together"
        )
    settings = {**opened.settings, **options}
    preprocessing = Preprocessing(opened.preprocessing).fitting(opened.config)
    return made(TASKS[kind.task], opened.config, opened.weights, settings, tokenizer, preprocessing, file.path)
