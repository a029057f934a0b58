"""What a released file is, and what opening one of a kind gives."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from onepeace_lightning.checkpoints.loading import LoadReport, listed, read_file
from onepeace_lightning.models.config import ModelConfig

_BUFFERS = re.compile(r"(^|\.)(rp_bucket\w*|position_idx|fusion_model\.version|num_batches_tracked)$")
"""Of the original's modules: large, and made anew here where they are needed."""


@dataclass(frozen=True)
class ReleasedFile:
    """A file's content before it is known what it is.

    Attributes:
        path: where it is.
        content: all that is in it, in plain containers.
        tensors: its weights by the names in the file, mapped from disk where the format allows; without buffers.
        cfg: the configuration of a fairseq file in plain dictionaries; empty for others.
        found: foreign classes that were read as plain data.
    """

    path: Path
    content: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    cfg: Mapping[str, Any]
    found: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: str | Path) -> "ReleasedFile":
        """Read a file, nothing in it executed.

        Raises:
            FileNotFoundError: where there is no such file.
            ValueError: where it is refused, damaged, or holds no weights.
        """
        content, found = read_file(path)
        if not isinstance(content, dict):
            raise ValueError(f"{path} holds a {type(content).__name__}; a checkpoint is a dictionary")
        return cls.of(path, content, found)

    @classmethod
    def of(cls, path: str | Path, content: Mapping[str, Any], found: Sequence[str] = ()) -> "ReleasedFile":
        """A content that was read already.

        Raises:
            ValueError: where it holds no weights.
        """
        weights = content.get("model", content.get("state_dict"))
        if not isinstance(weights, Mapping) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
            raise ValueError(
                f"{path} holds {listed(sorted(map(str, content)), ', ')}, and neither 'model' nor 'state_dict' is a"
                " dictionary of tensors: it is no model"
            )
        tensors = {name: tensor for name, tensor in weights.items() if not _BUFFERS.search(name)}
        return cls(Path(path), content, tensors, _configuration(content), tuple(found))

    def has(self, prefix: str) -> bool:
        """Whether a tensor's name begins so."""
        return any(name.startswith(prefix) for name in self.tensors)

    def shape(self, name: str) -> torch.Size:
        """The shape of a tensor.

        Raises:
            ValueError: where the file lacks it.
        """
        if name not in self.tensors:
            raise ValueError(f"{self.path} lacks the tensor {name}: it is incomplete or of another model")
        return self.tensors[name].shape

    def count(self, prefix: str) -> int:
        """Members of a list of modules or parameters, such as ``encoder.layers.``."""
        return len({name.removeprefix(prefix).split(".")[0] for name in self.tensors if name.startswith(prefix)})


@dataclass(frozen=True)
class Opened:
    """What a file of a known kind is made of.

    Attributes:
        config: sizes of the model.
        weights: by the names of this project's model.
        settings: arguments that the task is made with besides the backbone; plain containers.
        preprocessing: modality to settings that differ from the defaults, such as ``{"image": {"size": 384}}``.
        report: what did not fit.
    """

    config: ModelConfig
    weights: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    preprocessing: Mapping[str, Mapping[str, Any]]
    report: LoadReport = field(default_factory=LoadReport)


class Kind(ABC):
    """A kind of released file: how it is recognised, and what it is opened as."""

    name: ClassVar[str]
    """Short, such as "vqa"."""
    title: ClassVar[str]
    """What it is."""
    answers: ClassVar[str]
    """What can be had from it."""
    task: ClassVar[str | None] = None
    """The class of the task that answers with it, by name; None: it embeds or encodes only."""
    encodes: ClassVar[bool] = False
    """Whether features of tokens are all that can be had from it."""
    takes_labels: ClassVar[bool] = False
    """Whether the names of its classes or answers come from a file that the user gives."""
    takes_vocabulary: ClassVar[bool] = False
    """Whether it reads text."""

    @abstractmethod
    def recognise(self, file: ReleasedFile) -> bool:
        """Whether a file is of this kind, by the names and shapes of its tensors."""

    @abstractmethod
    def open(self, file: ReleasedFile, labels: Sequence[str] | None) -> Opened:
        """Sizes, weights and settings.

        Args:
            file: of this kind.
            labels: names of its classes or answers, in order; None: they are called "0", "1", ….

        Raises:
            ValueError: where the file is incomplete or the number of labels is another.
        """

    def model(self, file: ReleasedFile) -> tuple[Any, LoadReport]:
        """A model that encodes and perhaps embeds, its tensors mapped from the file, and what did not fit.

        Raises:
            ValueError: where a file of this kind only answers.
        """
        raise ValueError(
            f"{file.path} is {self.title}, which embeds nothing: open it with onepeace_lightning.tasks.load_task"
        )

    def preprocessing(self, file: ReleasedFile, config: ModelConfig) -> Mapping[str, Mapping[str, Any]]:
        """Modality to settings that differ from the defaults, for a model of these sizes."""
        return {}

    def published(self, file: ReleasedFile) -> Sequence[str]:
        """Names (``PUBLISHED``) of the scores that the authors have published for it."""
        return ()

    def outputs(self, file: ReleasedFile) -> int | None:
        """How many classes or answers it has; None where it has none."""
        return None

    def describe(self, file: ReleasedFile) -> Sequence[str]:
        """What else is to be said about a file, a line each."""
        return ()


def class_names(labels: Sequence[str] | None, count: int, path: Path) -> list[str]:
    """Names of a file's classes: the user's, else their numbers.

    Raises:
        ValueError: where their number is another.
    """
    if labels is None:
        return [str(number) for number in range(count)]
    if len(labels) != count:
        raise ValueError(f"{path} has {count} classes, the labels are {len(labels)}; give one name for each, in order")
    return list(labels)


def _configuration(content: Mapping[str, Any]) -> dict[str, Any]:
    """Fairseq's configuration; flat arguments of older files, which fairseq prefers, overrule its groups."""
    cfg = content.get("cfg")
    groups = {name: dict(group) for name, group in cfg.items() if isinstance(group, Mapping)} if cfg else {}
    flat = content.get("args")
    if "model" not in content or not isinstance(flat, Mapping) or not (groups or "task" in flat):
        return groups
    groups = groups or {"task": {}, "model": {}, "criterion": {}}
    for name, key in (("task", "task"), ("model", "arch"), ("criterion", "criterion")):
        if isinstance(flat.get(key), str):
            groups.setdefault(name, {})["_name"] = flat[key]
    for name in ("task", "model", "criterion"):
        known = _FLAT[name] | set(groups.get(name, {}))
        groups.setdefault(name, {}).update(
            {key: value for key, value in flat.items() if key in known and not isinstance(value, Mapping)}
        )
    return groups


_FLAT = {
    "task": {"data", "valid_data", "max_duration", "max_src_length", "patch_image_size", "head_type", "num_classes"},
    "model": {"use_image_features", "use_pooler", "head_scale_ratio"},
    "criterion": {"use_multi_label", "label_smoothing"},
}
"""What is read from arguments where the groups do not say it."""
