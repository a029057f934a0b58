"""Filling a model with weights, and this project's training checkpoints.

What reads shards is imported where there are some: PyTorch's part for them takes long to import.
"""

import logging
import pickle
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from onepeace_lightning.checkpoints.foreign import Refused, read_foreign
from onepeace_lightning.checkpoints.shard_files import is_sharded
from onepeace_lightning.checkpoints.vocabulary import fit_vocabulary
from onepeace_lightning.modalities.tokenizers import Tokenizer, tokenizer_from_files

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadReport:
    """What a checkpoint and the model that it filled did not have in common.

    Attributes:
        missing: tensors that the checkpoint lacks, which the caller allowed to keep their initial values.
        unexpected: tensors of the checkpoint that the model has no place for.
        resized: a line for each tensor that was changed to fit.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [
            ("new, with their initial values", self.missing, 6),
            ("not used", self.unexpected, 6),
            ("changed to fit", self.resized, 6),
        ]
        lines = [f"{len(names)} tensors {what}: {_grouped(names, most)}" for what, names, most in parts if names]
        return "; ".join(lines) or "every tensor fits"


def _grouped(names: list[str], most: int) -> str:
    """Names, or where there are many the modules that they are of, such as "head (14)"."""
    if len(names) <= most:
        return ", ".join(names)
    depth = {name: 4 if name.startswith("backbone.") else 1 for name in names}
    modules = Counter(".".join(name.split(".")[: depth[name]]) for name in names)
    return listed([f"{module} ({count})" for module, count in modules.items()], ", ", most)


def never(name: str) -> bool:
    """No tensor may be missing (or left over)."""
    return False


def fill(
    model: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    may_miss: Callable[[str], bool] = never,
    may_drop: Callable[[str], bool] = never,
) -> LoadReport:
    """Put weights into a model; nothing keeps its initial value silently.

    A model on the meta device takes the tensors themselves, in their own type; any other gets copies.

    Args:
        model: what is filled.
        state: the weights by the model's names.
        source: where they come from, for messages.
        may_miss: tells by name which tensors may keep their initial values where the source lacks them (a modality that
            is added); they are logged.
        may_drop: tells by name which tensors of the source may be left out; they are logged too.

    Raises:
        ValueError: listing every other missing, every other unexpected and every misshapen tensor.
    """
    own = model.state_dict()
    report = _compare(own, {name: tensor.shape for name, tensor in state.items()}, source, may_miss, may_drop)
    on_meta = any(tensor.is_meta for tensor in own.values())
    if on_meta:
        _initialise(model, set(report.missing))
    known = {name: tensor for name, tensor in state.items() if name in own}
    if dist.is_initialized():
        from onepeace_lightning.checkpoints.sharded import shard_like

        known = {name: shard_like(tensor, own[name]) for name, tensor in known.items()}
    model.load_state_dict(known, strict=False, assign=on_meta)  # compared above
    return report


def _compare(
    own: Mapping[str, Tensor],
    shapes: Mapping[str, torch.Size],
    source: str,
    may_miss: Callable[[str], bool],
    may_drop: Callable[[str], bool],
) -> LoadReport:
    """What a model and a checkpoint have not in common; raises as ``fill`` says."""
    missing = [name for name in own if name not in shapes]
    unexpected = [name for name in shapes if name not in own]
    misshapen = [
        f"{name} is {tuple(shapes[name])}, the model has {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in shapes and shapes[name] != tensor.shape
    ]
    forbidden = [f"missing {name}" for name in missing if not may_miss(name)]
    if forbidden or misshapen or any(not may_drop(name) for name in unexpected):
        problems = forbidden + [f"unexpected {name}" for name in unexpected] + misshapen
        raise ValueError(f"{source} does not fit the model: {listed(problems, '; ')}")
    report = LoadReport(missing, unexpected)
    if missing or unexpected:
        _log.warning("%s: %s", source, report)
    return report


def load_pretrained(
    model: nn.Module,
    path: str | Path,
    may_miss: Callable[[str], bool] = never,
    may_drop: Callable[[str], bool] = never,
    tokenizer: Tokenizer | None = None,
) -> LoadReport:
    """Fill a model from a training checkpoint, ``{"state_dict": {"model.…": tensor}}``; see ``fill``.

    A sharded model reads from a sharded checkpoint no more than its own shards, unless the vocabulary is another.

    Args:
        model: what is filled.
        path: of the checkpoint.
        may_miss: see ``fill``.
        may_drop: see ``fill``.
        tokenizer: what the model reads text with; embeddings of a checkpoint with another vocabulary are put in its
            order (``vocabulary.fit_vocabulary``).
    """
    if is_sharded(path):
        from torch.distributed.tensor import DTensor

        from onepeace_lightning.checkpoints.sharded import read_rest

        in_shards = any(isinstance(parameter, DTensor) for parameter in model.parameters())
        if in_shards and (tokenizer is None or _tokenizer_of(read_rest(path), tokenizer) is None):
            return _fill_shards(model, path, may_miss, may_drop)
    checkpoint = read_checkpoint(path)
    before = None if tokenizer is None else _tokenizer_of(checkpoint, tokenizer)
    if before is None or tokenizer is None or "state_dict" not in checkpoint:
        return fill_from(model, checkpoint, str(path), may_miss, may_drop)
    state, said = fit_vocabulary(checkpoint["state_dict"], before, tokenizer)
    _log.warning("%s: %s", path, said)
    return replace(fill_from(model, {"state_dict": state}, str(path), may_miss, may_drop), resized=[said])


def _tokenizer_of(checkpoint: Mapping[str, Any], ours: Tokenizer) -> Tokenizer | None:
    """A checkpoint's tokenizer where it is another one than ours."""
    files = (checkpoint.get("onepeace") or {}).get("tokenizer")
    theirs = None if files is None else tokenizer_from_files(files)
    return None if theirs is None or theirs.fingerprint() == ours.fingerprint() else theirs


def _fill_shards(
    model: nn.Module, folder: str | Path, may_miss: Callable[[str], bool], may_drop: Callable[[str], bool]
) -> LoadReport:
    from onepeace_lightning.checkpoints.sharded import load_into, read_metadata, saved_shapes

    prefix = "model."
    saved = saved_shapes(read_metadata(folder), "state_dict")
    shapes = {name.removeprefix(prefix): entry.size for name, entry in saved.items() if name.startswith(prefix)}
    own = model.state_dict()
    report = _compare(own, shapes, str(folder), may_miss, may_drop)
    load_into({"state_dict": {prefix + name: own[name] for name in own if name in shapes}}, folder)
    return report


def fill_from(
    model: nn.Module,
    checkpoint: Mapping[str, Any],
    source: str,
    may_miss: Callable[[str], bool] = never,
    may_drop: Callable[[str], bool] = never,
) -> LoadReport:
    """Fill a model from what ``read_checkpoint`` gave of a training checkpoint; see ``fill``."""
    if "state_dict" not in checkpoint:
        raise ValueError(f"{source} is no training checkpoint: it has no 'state_dict', but {sorted(checkpoint)}")
    prefix = "model."
    weights = {name.removeprefix(prefix): t for name, t in checkpoint["state_dict"].items() if name.startswith(prefix)}
    return fill(model, weights, source, may_miss, may_drop)


def read_checkpoint(path: str | Path) -> dict:
    """The content of a checkpoint, nothing in it executed.

    Args:
        path: a file, whose tensors are mapped from disk; or the folder of a sharded checkpoint, whose tensors are put
            together in memory, without the optimizer's.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is cut short, no checkpoint, or holds anything but tensors and plain containers.
    """
    if is_sharded(path):
        from onepeace_lightning.checkpoints.sharded import read_sharded

        return read_sharded(path)
    content, found = read_file(path)
    if found:
        _log.warning("%s: read as plain data, without their code: %s", path, ", ".join(found))
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; a checkpoint is a dictionary")
    return content


def read_file(path: str | Path) -> tuple[Any, list[str]]:
    """The content of a file that ``torch.save`` or ``pickle`` wrote, nothing in it executed; see ``foreign``.

    Returns:
        The content in plain containers, and the names of the foreign classes that are only data here.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is refused, naming what could act, cut short or nothing that can be read.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint file {path}")
    try:
        return read_foreign(path)
    except Refused as error:
        raise ValueError(
            f"{path} is refused: it holds {error}, which is code that might be run. Ask its author for a file that"
            " torch.load(…, weights_only=True) reads"
        ) from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is refused: it is damaged or holds more than data, and code in it might be run. Fetch it again, or"
            f" ask its author for a file that torch.load(…, weights_only=True) reads. ({_first_line(error)})"
        ) from error
    except (RuntimeError, EOFError, OSError, UnicodeDecodeError, TypeError, AttributeError, LookupError) as error:
        raise ValueError(
            f"{path} cannot be read: it is cut short or was written neither by torch.save nor by pickle; fetch it again"
            f" or save it anew. ({_first_line(error)})"
        ) from error


def _initialise(model: nn.Module, missing: set[str]) -> None:
    """Give the modules on the meta device that own missing tensors their initial values."""
    for prefix, module in model.named_modules():
        own = [name for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))]
        if missing & {f"{prefix}.{name}" if prefix else name for name in own}:
            module.to_empty(device="cpu", recurse=False)
            module.reset_parameters()


def listed(items: list[str], separator: str, most: int = 30) -> str:
    """The first items of a list that may be long, and how many more there are."""
    rest = len(items) - most
    return separator.join(items[:most]) + (f"{separator}and {rest} more" if rest > 0 else "")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
