"""One call from files to a trained task: ``onepeace train``, and ``onepeace_lightning.train`` in Python."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from onepeace_lightning.cli import runs
from onepeace_lightning.cli.faults import plain
from onepeace_lightning.cli.trainer import USER_FAULTS, command_line, quieten
from onepeace_lightning.data.data_types import DataType, data_type
from onepeace_lightning.data.from_folder import common_type, find_samples
from onepeace_lightning.data.make_shards import Making, make_shards
from onepeace_lightning.data.manifest import MANIFEST, Manifest, read_manifest
from onepeace_lightning.data.splits import SPLITS
from onepeace_lightning.inference.onepeace import OnePeace, available_device
from onepeace_lightning.modalities.registry import text_modality
from onepeace_lightning.models.backbone import Backbone
from onepeace_lightning.tasks import FinetuneTask, load_task
from onepeace_lightning.tasks.source import BackboneSource, BackboneWeights, finetune_config, open_backbone

Trained = Literal["classification", "retrieval"]
"""What can be trained by one call."""

_ANSWERS: dict[str, tuple[str | None, ...]] = {"classification": ("label",), "retrieval": (None, "captions")}
_SPLIT = "0.9,0.1"
_SMALL = 50e6
"""Parameters up to which a backbone trains as a whole at a high rate."""
_PATIENT = 30e6
"""Parameters up to which a processor trains a whole backbone."""


@dataclass(frozen=True)
class Choice:
    """How a backbone is trained on a machine.

    Attributes:
        trainable: "all", "head" (the backbone stays as it is) or "lora".
        lr: peak learning rate.
        layer_decay: see ``Optimization``.
        batch_size: samples in a step.
        passes: over the training data, about.
        least: steps.
        most: steps.
    """

    trainable: Literal["all", "head", "lora"]
    lr: float
    layer_decay: float
    batch_size: int
    passes: int
    least: int
    most: int

    def steps(self, samples: int) -> int:
        """Optimizer steps for so many training samples."""
        return min(max(ceil(self.passes * samples / self.batch_size), self.least), self.most)


def train(
    data: str,
    *,
    task: Trained,
    run: str,
    backbone: BackboneSource = "tiny",
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    device: str | None = None,
    seed: int = 0,
) -> FinetuneTask:
    """Train a classifier or a retrieval model on files, with settings that suit the machine and the backbone.

    What is chosen is said in one line, and stands in ``config.yaml`` in the run's folder: ``onepeace fit`` trains with
    any other choice.

    Args:
        data: a folder of class folders (classification) or of files with captions beside them (retrieval), whose tenth
            is kept for validation unless it has folders train and val; or what ``onepeace shards`` has written.
        task: classification or retrieval.
        run: name of the run (runs/NAME), or its folder; all that is written lies there.
        backbone: what to start from: a folder of save_pretrained, a checkpoint (.ckpt), a released file (.pt), a name
            on the Hugging Face hub; or a preset (tiny, small, base, large), which starts from nothing.
        steps: optimizer steps; chosen by the number of samples by default.
        batch_size: samples in a step; chosen by the backbone and the device by default.
        lr: peak learning rate; chosen by what trains by default.
        device: where to train, such as cuda or cpu; by default a GPU where there is one.
        seed: of the order of the samples and of initial values.

    Returns:
        The trained task, with the weights that were best on the validation data, ready to ``predict``.

    Raises:
        ValueError: the data do not go with the task, a setting is out of its range, or the run exists.
        OSError: a file is missing or cannot be read.
    """
    if task not in get_args(Trained):
        raise ValueError(f"task is {task!r}; give one of {', '.join(get_args(Trained))}")
    folder = runs.run_folder(str(run))
    runs.refuse_used(folder)
    place = available_device(device)
    quieten()
    manifests, tokenizer = _streams(Path(data), task, folder)
    kind = data_type(manifests["train"].data_type)
    source = _source(backbone, folder)
    opened = open_backbone(source)
    if opened.tokenizer is not None:  # its ids are the weights' own
        tokenizer = folder / "tokenizer"
        opened.tokenizer.save(tokenizer)
    size = _size(opened, kind.inputs)
    chosen = choose(size, place, scratch=opened.weights is None)
    settings = _Settings(
        steps or chosen.steps(manifests["train"].samples),
        min(batch_size or chosen.batch_size, manifests["train"].samples),
        lr or chosen.lr,
    )
    print(_said(f"{opened.name} of {size / 1e6:,.1f} M parameters", place, chosen, settings, manifests), flush=True)
    words = _words(task, kind, manifests, source, opened, tokenizer, chosen, settings, place)
    try:
        command_line(["fit", f"--run={_as_folder(folder)}", f"--seed_everything={seed}", *words])
    except (MisconfigurationException, *USER_FAULTS) as error:
        if isinstance(error, (ValueError, OSError, ImportError)):
            raise
        raise ValueError(plain(str(error))) from error
    best = folder / "checkpoints" / "best.ckpt"
    written = best if best.exists() else best.with_name("last.ckpt")
    print(f"{written}: use it with `onepeace predict {written} FILES --out answers.jsonl`")
    trained: FinetuneTask = load_task(written).to(place)
    return trained


def choose(parameters: int, place: torch.device, *, scratch: bool) -> Choice:
    """What of a backbone trains on a device, how fast and for how long.

    A backbone from nothing trains as a whole. So does any other whose weights, gradients and optimizer fit (20 bytes a
    parameter) and, on a processor, that is small. A larger one gets low-rank updates on a GPU that holds its weights,
    and else stays as it is.

    Args:
        parameters: of the backbone.
        place: the device.
        scratch: whether it has random weights.
    """
    on_gpu = place.type != "cpu"
    fits = 20 * parameters < 0.7 * _memory(place) if on_gpu else parameters <= _PATIENT
    batch_size = (128 if parameters <= _SMALL else 32) if on_gpu else 32
    if scratch or fits:
        small = scratch or parameters <= _SMALL
        return Choice(
            "all", 1e-3 if small else 1e-4, 0.9, batch_size, 40 if small else 15, 200, 4000 if on_gpu else 1500
        )
    if on_gpu and 6 * parameters < _memory(place):
        return Choice("lora", 2e-4, 1.0, 16, 10, 200, 4000)
    return Choice("head", 1e-3, 1.0, min(batch_size, 32), 10, 100, 4000 if on_gpu else 400)


@dataclass(frozen=True)
class _Settings:
    """Numbers that the user may have given."""

    steps: int
    batch_size: int
    lr: float

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or not self.lr > 0:
            raise ValueError(
                f"steps is {self.steps}, batch_size {self.batch_size} and lr {self.lr}; give steps and batch_size of at"
                " least 1 and lr above 0"
            )


def _streams(data: Path, task: str, folder: Path) -> tuple[dict[str, Manifest], Path | None]:
    """Manifests of the training and validation data, made of the user's files where need be; and their tokenizer."""
    if not data.is_dir():
        hint = "make shards of a table first: onepeace shards from-csv" if data.is_file() else "there is no such folder"
        raise ValueError(f"data is {data}; give a folder of files, or what onepeace shards has written ({hint})")
    if not any(data.glob(f"train/*/{MANIFEST}")):
        data = _made(data, task, folder / "data")
    manifests = {}
    for split in SPLITS:
        found = [read_manifest(path.parent) for path in sorted(data.glob(f"{split}/*/{MANIFEST}"))]
        fitting = [one for one in found if data_type(one.data_type).answer in _ANSWERS[task] and _pairs(one, task)]
        if len(fitting) > 1 or (split == "train" and not fitting):
            held = ", ".join(one.data_type for one in found)
            wants = "labels" if task == "classification" else "pairs, such as image-text"
            raise ValueError(f"{data}/{split} holds {held}; {task} needs one stream of {wants} there")
        if fitting:
            manifests[split] = fitting[0]
    manifests.setdefault("val", manifests.get("test", manifests["train"]))
    if manifests["val"] is manifests["train"]:
        raise ValueError(f"{data} has no val/ to measure on; make the shards with --split {_SPLIT}")
    tokenizer = data / "tokenizer"
    return {split: manifests[split] for split in ("train", "val")}, tokenizer if tokenizer.is_dir() else None


def _pairs(manifest: Manifest, task: str) -> bool:
    return task != "retrieval" or len(data_type(manifest.data_type).inputs) == 2


def _made(data: Path, task: str, out: Path) -> Path:
    """Shards of a folder of files, in the run's folder."""
    if out.exists():
        raise ValueError(f"{out} exists already: train on it with data={out}, delete it, or give another run")
    samples = find_samples(data, task == "classification")
    splits = {sample.split for sample in samples} - {None, "train"}
    kind = common_type(samples)
    make_shards(samples, kind, Making(
        out, None if splits else _SPLIT, samples_per_shard=1000, vocab_size=8000, source=data.resolve().name,
        license="not stated", skip_bad=False,
    ))  # fmt: skip
    return out


def _source(backbone: BackboneSource, folder: Path) -> str:
    """A backbone as a configuration can name it."""
    if isinstance(backbone, OnePeace):
        backbone.save_pretrained(folder / "backbone")
        return str(folder / "backbone")
    if not isinstance(backbone, (str, Path)):
        raise ValueError(f"backbone is a {type(backbone).__name__}; give a path, a name, or an OnePeace")
    return str(backbone)


def _size(opened: BackboneWeights, names: Sequence[str]) -> int:
    """Parameters of the backbone that the task has: of these modalities."""
    with torch.device("meta"):
        backbone = Backbone(finetune_config(opened.config, names, name=opened.name))
    return sum(parameter.numel() for parameter in backbone.parameters())


def _memory(place: torch.device) -> int:
    """Bytes of a GPU."""
    return torch.cuda.get_device_properties(place).total_memory if place.type == "cuda" else 0


def _said(
    what: str, place: torch.device, chosen: Choice, settings: _Settings, manifests: Mapping[str, Manifest]
) -> str:
    where = (
        torch.cuda.get_device_name(place) if place.type == "cuda" else "no GPU" if place.type == "cpu" else str(place)
    )
    trains = {
        "all": "all of it trains",
        "head": "it stays as it is and a head trains",
        "lora": "low-rank updates train",
    }
    return (
        f"{what}, {where}: {trains[chosen.trainable]}, {settings.steps} steps of {settings.batch_size} samples"
        f" ({settings.steps * settings.batch_size / manifests['train'].samples:.2g} passes), learning rate"
        f" {settings.lr:g}"
    )


def _words(
    task: str,
    kind: DataType,
    manifests: Mapping[str, Manifest],
    source: str,
    opened: BackboneWeights,
    tokenizer: Path | None,
    chosen: Choice,
    settings: _Settings,
    place: torch.device,
) -> list[str]:
    """The configuration as words of ``onepeace fit``."""
    names = list(kind.inputs)
    model: dict[str, Any] = {
        "backbone": source,
        "optimization": {
            "lr": settings.lr, "min_lr": 1e-6, "warmup_steps": 0.1, "layer_decay": chosen.layer_decay,
        },
        **({"trainable": "head"} if chosen.trainable == "head" else {}),
        **({"lora": {"rank": 16, "alpha": 32}} if chosen.trainable == "lora" else {}),
    }  # fmt: skip
    data: dict[str, Any] = {
        "train": {"path": str(manifests["train"].folder), "batch_size": settings.batch_size},
        "val": {"val": {"path": str(manifests["val"].folder), "batch_size": settings.batch_size}},
        "preprocessing": opened.preprocessing.to_dict(names),
        "num_workers": min(8 if place.type == "cuda" else 1, max(0, (os.cpu_count() or 1) - 1)),
        **({"tokenizer": str(tokenizer)} if tokenizer is not None and text_modality() in names else {}),
    }
    if task == "classification":
        name = "ClassificationTask"
        model |= {"modalities": names, "multi_label": bool(manifests["train"].about.get("several_labels"))}
        data["augmentation"] = {"crop_scale": [0.6, 1.0], "flip": 0.5}
    else:
        name = "RetrievalTask"
        items = [one for one in names if one != text_modality()]
        model |= {"item": items[0], **({"query": items[1]} if len(items) > 1 else {})}
    trainer = {
        "max_steps": settings.steps,
        "val_check_interval": max(1, settings.steps // 4),
        "accelerator": "gpu" if place.type == "cuda" else place.type,
        "devices": [place.index or 0] if place.type == "cuda" else 1,
    }
    return [
        f"--model={json.dumps({'class_path': name, 'init_args': model})}",
        f"--data={json.dumps({'class_path': 'DataModule', 'init_args': data})}",
        *(f"--trainer.{key}={value}" for key, value in trainer.items()),
    ]


def _as_folder(folder: Path) -> str:
    """With a slash, so that it is no name of a run."""
    return str(folder) if "/" in str(folder) else f"./{folder}"
