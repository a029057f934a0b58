"""``onepeace convert``: a model or a task from any form in which they are kept to another."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch

from onepeace_lightning.checkpoints.export import to_original
from onepeace_lightning.checkpoints.loading import LoadReport
from onepeace_lightning.checkpoints.pretrained import WEIGHTS_FILE
from onepeace_lightning.checkpoints.released.base import Kind, ReleasedFile
from onepeace_lightning.checkpoints.released.kinds import released
from onepeace_lightning.checkpoints.released.protocol import PROTOCOLS
from onepeace_lightning.checkpoints.released.published import PUBLISHED
from onepeace_lightning.checkpoints.released.writing import image_branch_content, released_content, save_released
from onepeace_lightning.inference.onepeace import OnePeace, known_dtype
from onepeace_lightning.tasks.base import FinetuneTask
from onepeace_lightning.tasks.saved import is_task, load_task, save_task

Form = Literal["folder", "task", "original"]

_LISTED = 20
_SUFFIXES: dict[Form, tuple[str, ...]] = {"task": (".ckpt",), "original": (".pt", ".pth", ".pkl")}
_FORMS: dict[str, Form] = {suffix: form for form, suffixes in _SUFFIXES.items() for suffix in suffixes}


def convert(
    source: str,
    *,
    out: str,
    to: Form | None = None,
    bpe_dir: str | None = None,
    labels: str | None = None,
    dtype: str | None = None,
    image_size: int | None = None,
    pretraining: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a model as a folder for ``from_pretrained``, a task as a checkpoint, or either as a file of the original.

    A vision task is written as mmcv or detectron2 would (NAME.pth), a model's image branch alone as NAME.pkl.

    Args:
        source: a file of the original's release (.pt, .pth, .pkl), a training checkpoint (.ckpt), a folder, or a name
            on the hub.
        out: a folder for what embeds, a .ckpt file for what answers, or a .pt, .pth or .pkl file in the layout in which
            the authors released one of its kind.
        to: folder (config.json, model.safetensors, the vocabulary), task (.ckpt, for onepeace predict and load_task) or
            original (which the original's hub and evaluation read); by default as the name of ``out`` says.
        bpe_dir: folder with dict.txt, encoder.json and vocab.bpe, for the original's files.
        labels: file with the names of classes or answers, for the original's files (.txt, .json, .csv or .tsv).
        dtype: float32, bfloat16 or float16; as it is by default.
        image_size: side of the images in pixels, a multiple of 16, for which relative positions are resized; as it
            is by default. Not for tasks.
        pretraining: keep the decoder, the mask tokens and the temperature of a pretrained model in the original's
            format: for its pretraining only, everything else of it refuses them.
        overwrite: replace what is at ``out``.

    Raises:
        ValueError: where the source is nothing known, or ``out`` is in use or of the wrong kind.
        FileNotFoundError: where a file is missing.
    """
    target = Path(out)
    form = to or _FORMS.get(target.suffix, "folder")
    _check_target(target, form, overwrite)
    opened = released(source)
    if opened is not None:
        print("\n".join(describe_file(*opened, bpe_dir, labels)))
    answers = is_task(source) or (opened is not None and form == "task")
    if labels is not None and not answers:
        raise ValueError(f"labels are for what answers: give --out NAME.ckpt, or leave --labels {labels} out")
    if answers:
        if image_size is not None or form == "folder" or pretraining or target.suffix == ".pkl":
            wrong = "--image-size" if image_size is not None else "--pretraining" if pretraining else f"--out {target}"
            raise ValueError(f"{source} is a task; give --out NAME.ckpt, NAME.pt or NAME.pth, not {wrong}")
        task = load_task(source, bpe_dir=bpe_dir, labels=labels)
        task.to(known_dtype(dtype))
        _write_task(task, target, form)
    else:
        _convert_model(source, target, form, bpe_dir, dtype, image_size, pretraining)
    written = target / WEIGHTS_FILE if form == "folder" else target
    print(f"{written}: {written.stat().st_size / 1e9:.2f} GB")


def describe_file(file: ReleasedFile, kind: Kind, bpe_dir: str | None, labels: str | None) -> Iterator[str]:
    """What a released file is, what it answers, what it needs, and what was published for it, line by line."""
    yield f"{file.path}: {kind.title}"
    yield f"answers: {kind.answers}"
    needs = []
    if kind.takes_vocabulary:
        needs.append(f"the vocabulary ({f'from {bpe_dir}' if bpe_dir else '--bpe-dir FOLDER: none given'})")
    if kind.takes_labels:
        given = f"from {labels}" if labels else "--labels FILE: none given; unknown classes are called by their numbers"
        needs.append(f"names of its {kind.outputs(file)} classes, in the order of its outputs ({given})")
    yield f"needs: {'; '.join(needs) or 'nothing'}"
    yield from kind.describe(file)
    for name in kind.published(file):
        protocol = f" ({PROTOCOLS[name].describe()})" if name in PROTOCOLS else ""
        yield f"published: {name}: {PUBLISHED[name]}{protocol}"
    if file.found:
        yield f"read as plain data, without their code: {', '.join(file.found)}"


def _convert_model(
    source: str,
    target: Path,
    form: Form,
    bpe_dir: str | None,
    dtype: str | None,
    image_size: int | None,
    pretraining: bool,
) -> None:
    if form == "task":
        raise ValueError(f"{source} answers nothing by itself; give a folder, or NAME.pt for the original's format")
    onepeace = OnePeace.from_pretrained(source, bpe_dir=bpe_dir, dtype=dtype)
    if image_size is not None:
        onepeace.set_image_size(image_size)
    print(f"{source}: {describe_report(onepeace.report)}")
    print(describe_model(onepeace))
    if form == "folder":
        onepeace.save_pretrained(target)
        return
    if target.suffix == ".pkl":
        save_released(image_branch_content(onepeace.backbone), target)
        return
    seconds = onepeace.preprocessing["audio"].max_seconds
    save_released(to_original(onepeace.model, audio_seconds=seconds, training=pretraining), target)
    if onepeace.tokenizer is not None:
        print(f"the original's format holds no vocabulary; that of {source} is needed wherever text is embedded")


def _write_task(task: FinetuneTask, target: Path, form: Form) -> None:
    print(f"{type(task).__name__}: {_millions(sum(parameter.numel() for parameter in task.model.parameters()))}")
    print(f"preprocessing: {task.preprocessing.describe(list(task.config.adapters))}")
    if form == "task":
        save_task(task, target)
        return
    settings = task.settings()
    content = released_content(
        task.model,
        classes=settings.get("classes"),
        audio_seconds=task.preprocessing["audio"].max_seconds,
        multi_label=bool(settings.get("multi_label")),
    )
    save_released(content, target)
    print("the original's format holds neither vocabulary nor preprocessing, and labels of segmentation only")


def describe_report(report: LoadReport) -> str:
    """What did not fit, name by name where there are not very many."""
    parts = [
        ("missing, with their initial values", report.missing),
        ("unexpected, not used", report.unexpected),
        ("resized", report.resized),
    ]
    lines = []
    for what, names in parts:
        if names:
            rest = [f"  and {len(names) - _LISTED} more"] if len(names) > _LISTED else []
            lines += [f"{len(names)} tensors {what}:", *(f"  {name}" for name in names[:_LISTED]), *rest]
    return "\n".join(lines) or "every tensor fits"


def describe_model(onepeace: OnePeace) -> str:
    """Sizes, parts, number format, preprocessing and vocabulary, a line for each."""
    encoder = onepeace.config.encoder
    numbers = Counter[str]()
    for name, parameter in onepeace.model.named_parameters():
        numbers[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
        numbers[name.split(".")[0] if onepeace.model is not onepeace.backbone else "backbone"] += parameter.numel()
    dtypes = [name for name in numbers if hasattr(torch, name)]
    parts = ", ".join(f"{name} {_millions(count)}" for name, count in numbers.items() if name not in dtypes)
    tokenizer = onepeace.tokenizer
    vocabulary = f"{tokenizer.vocab_size} token ids ({type(tokenizer).__name__})" if tokenizer else "none"
    return "\n".join(
        [
            f"{type(onepeace.model).__name__}: width {encoder.width}, {encoder.depth} blocks, {encoder.heads} heads,"
            f" {', '.join(onepeace.config.adapters)}",
            f"parameters: {_millions(sum(numbers[name] for name in dtypes))} in {', '.join(dtypes)} ({parts})",
            f"preprocessing: {onepeace.preprocessing.describe(list(onepeace.config.adapters))}",
            f"vocabulary: {vocabulary}",
        ]
    )


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M"


def _check_target(target: Path, form: Form, overwrite: bool) -> None:
    if form in _SUFFIXES and (target.is_dir() or target.suffix not in _SUFFIXES[form]):
        raise ValueError(
            f"--out is {target}; --to {form} writes files with the extension {' or '.join(_SUFFIXES[form])}"
        )
    if form == "folder" and (target.is_file() or target.suffix in (*_FORMS, ".safetensors")):
        raise ValueError(f"--out is {target}; a folder has no such name: choose another, or leave --to out")
    in_use = target.is_file() or (target.is_dir() and any(target.iterdir()))
    if in_use and not overwrite:
        raise ValueError(f"{target} is there already; choose another --out, or replace it with --overwrite")
