"""``onepeace convert``: a model from any form in which models are kept to another."""

import os
from collections import Counter
from pathlib import Path
from typing import Literal

import torch

from onepeace_lightning.checkpoints.export import to_original
from onepeace_lightning.checkpoints.loading import LoadReport
from onepeace_lightning.checkpoints.pretrained import WEIGHTS_FILE
from onepeace_lightning.inference.onepeace import OnePeace

_LISTED = 20


def convert(
    source: str,
    *,
    out: str,
    to: Literal["folder", "original"] = "folder",
    bpe_dir: str | None = None,
    dtype: str | None = None,
    image_size: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model as a folder that ``from_pretrained`` opens, or as a checkpoint of the original.

    Args:
        source: a checkpoint of the original (.pt), a training checkpoint (.ckpt), a folder, or a name on the hub.
        out: the folder to write, or the .pt file.
        to: folder (config.json, model.safetensors, the vocabulary) or original (one .pt file without a vocabulary).
        bpe_dir: folder with dict.txt, encoder.json and vocab.bpe, for the original's checkpoints.
        dtype: float32, bfloat16 or float16; as it is by default.
        image_size: side of the images in pixels, a multiple of 16, for which relative positions are resized; as it
            is by default.
        overwrite: replace what is at ``out``.

    Raises:
        ValueError: where the source is nothing known, or ``out`` is in use or of the wrong kind.
        FileNotFoundError: where a file is missing.
    """
    target = Path(out)
    _check_target(target, to, overwrite)
    onepeace = OnePeace.from_pretrained(source, bpe_dir=bpe_dir, dtype=dtype)
    if image_size is not None:
        onepeace.set_image_size(image_size)
    print(f"{source}: {describe_report(onepeace.report)}")
    print(describe_model(onepeace))
    if to == "original":
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.partial")
        torch.save(to_original(onepeace.model), partial)
        os.replace(partial, target)
        written = target
        if onepeace.tokenizer is not None:
            print(f"the original's format holds no vocabulary; that of {source} is needed wherever text is embedded")
    else:
        onepeace.save_pretrained(target)
        written = target / WEIGHTS_FILE
    print(f"{written}: {written.stat().st_size / 1e9:.2f} GB")


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


def _check_target(target: Path, to: str, overwrite: bool) -> None:
    if to == "original" and (target.is_dir() or target.suffix != ".pt"):
        raise ValueError(f"--out is {target}; the original's checkpoints are files that end in .pt")
    if to == "folder" and (target.is_file() or target.suffix in (".pt", ".ckpt", ".safetensors")):
        raise ValueError(f"--out is {target}; give a folder, or --to original for a checkpoint file")
    in_use = target.is_file() or (target.is_dir() and any(target.iterdir()))
    if in_use and not overwrite:
        raise ValueError(f"{target} is there already; choose another --out, or replace it with --overwrite")
