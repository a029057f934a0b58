"""``onepeace embed``: a file or a folder of embeddings from a folder, a glob, a table or shards."""

import os
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from onepeace_lightning.inference.embedding_files import EXTENSIONS, Chunk, Output
from onepeace_lightning.inference.onepeace import OnePeace
from onepeace_lightning.inference.parts import Parts
from onepeace_lightning.inference.sources import find_items
from onepeace_lightning.inference.work import Work
from onepeace_lightning.modalities.registry import modality

Storage = Literal["float32", "float16", "int8"]
Engine = Literal["local", "ray"]

_SHOWN = 10
_TORCHRUN = {"RANK": "0", "WORLD_SIZE": "1"}
"""Variables that torchrun sets, and what they mean without it."""


def embed(
    *,
    model: str,
    out: str,
    items: dict[str, str] | None = None,
    column: str | None = None,
    root: str | None = None,
    bpe_dir: str | None = None,
    batch_size: int = 32,
    chunk_size: int = 1024,
    device: str | None = None,
    dtype: str | None = None,
    skip_bad: bool = False,
    workers: int = 0,
    dim: int | None = None,
    storage: Storage | None = None,
    engine: Engine = "local",
) -> None:
    """Embed the items of one modality of a source, such as ``--image FOLDER``.

    Started by torchrun, each of its processes writes its own parts of a folder, on its own GPU. With ``--engine ray``
    the parts are given to actors on all machines of a Ray cluster, one for each GPU.

    A stopped run goes on where it stopped when the same command is given again: at most the last chunk is embedded
    anew. The file holds ids (paths relative to the source, ``shard/key``, or ``table#row`` for texts of a table),
    embeddings of unit length, texts, and what made them.

    Args:
        model: a folder, a checkpoint, or a name on the hub.
        out: the file to write, .parquet or .npz (which is put together in memory); or, without an extension, a folder
            of Parquet files with ``chunk_size`` items each, which any number of processes write and go on with.
        items: one modality to its source, on the command line ``--image SOURCE``, ``--text SOURCE`` and so on: a folder
            with its files, a glob in quotes, a table of paths (or of texts), or a folder of shards.
        column: of a table (.csv, .tsv): where the paths or texts are.
        root: folder that a table's paths are relative to; the table's own by default.
        bpe_dir: folder with the vocabulary, for the original's checkpoints.
        batch_size: items that run through the model together.
        chunk_size: items that are kept together.
        device: where to compute, such as cuda; by default a GPU where there is one.
        dtype: float32, bfloat16 or float16; the weights' own by default.
        skip_bad: leave out items that cannot be read, naming them, instead of stopping.
        workers: processes that decode; 0 decodes in two threads.
        dim: keep the first so many numbers of each embedding, made of unit length again; all by default.
        storage: float32, float16 or int8 (times 127); by default float16 in a folder and float32 in a file.
        engine: local, or ray: on the cluster of ``$RAY_ADDRESS``, or else one on this machine. All its machines must
            see the model, the source and the folder.

    Raises:
        ImportError: Ray is not installed.
        ValueError: not exactly one modality, nothing to embed, bad items, or an ``out`` that was begun otherwise.
        FileNotFoundError: where something is missing.
    """
    items = items or {}
    if len(items) != 1:
        raise ValueError(f"give one modality, such as --image FOLDER, not {', '.join(items) or 'none'}")
    path, as_file = Path(out), Path(out).suffix in EXTENSIONS
    rank, world_size = (int(os.environ.get(variable, default)) for variable, default in _TORCHRUN.items())
    if world_size > 1 and as_file:
        raise ValueError(
            f"{world_size} processes would write one file: give --out a folder (a name without an extension), in which"
            " each writes its own parts, or run onepeace embed without torchrun"
        )
    if path.suffix and not as_file:
        raise ValueError(f"--out is {out}; give a file with the extension {' or '.join(EXTENSIONS)}, or a folder")
    if batch_size < 1 or chunk_size < 1:
        raise ValueError(f"batch_size is {batch_size} and chunk_size is {chunk_size}: both must be at least 1")
    if engine == "ray" and (as_file or world_size > 1):
        raise ValueError(
            "--engine ray writes a folder (give --out a name without an extension), and is not for torchrun"
        )
    [(name, given)] = items.items()
    modality(name)
    if engine == "ray":  # its processes have working folders of their own
        given, path = os.path.abspath(given), path.absolute()
        root = None if root is None else os.path.abspath(root)
        model = os.path.abspath(model) if os.path.exists(model) else model
        bpe_dir = None if bpe_dir is None else os.path.abspath(bpe_dir)
    source = find_items(name, given, column, root)
    if device is None and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    load = partial(OnePeace.from_pretrained, model, bpe_dir=bpe_dir, dtype=dtype)
    onepeace = load(device="cpu" if engine == "ray" else device)
    onepeace.check_embeds(name)
    width = onepeace.config.encoder.width
    if workers < 0 or not 1 <= (dim or width) <= width:
        raise ValueError(f"workers is {workers}, must be 0 or more; dim is {dim}, from 1 to {width}")
    work = Work(onepeace.modality(name), source, batch_size, skip_bad, workers, dim or width)
    about = {**describe(onepeace, name), "width": dim or width}
    if (kind := storage or ("float32" if as_file else "float16")) != "float32":
        about["storage"] = kind
    if engine == "ray":
        from onepeace_lightning.inference.ray_engine import embed_parts

        parts = Parts(path, about, source, chunk_size)
        try:
            embed_parts(partial(load, device=device), work, parts)
        finally:
            _name(parts.skipped)
        print(f"{out}: {parts.done - len(parts.skipped)} embeddings, {work.width} numbers each")
        return
    if not as_file:
        _embed_parts(work, onepeace, Parts(path, about, source, chunk_size, rank, world_size))
        return
    output = Output(path, about, source)
    if output.finished:
        print(f"{out}: finished already, {_counts(output)}; delete it to embed everything anew")
        return
    if output.done:
        print(f"{out}: going on after {output.done} of {len(source)} items")
    try:
        _embed_all(work, onepeace, output, chunk_size)
    finally:
        _name(output.skipped)
    output.finish()
    print(f"{out}: {_counts(output)}, {dim or width} numbers each")


def describe(onepeace: OnePeace, modality: str) -> dict[str, Any]:
    """All that embeddings of one modality depend on, apart from the items."""
    return {
        "model": onepeace.fingerprint(modality),
        "modality": modality,
        "dtype": str(onepeace.dtype).removeprefix("torch."),
        "preprocessing": onepeace.modality(modality).evaluation(),
        "width": onepeace.config.encoder.width,
    }


def _embed_parts(work: Work, onepeace: OnePeace, parts: Parts) -> None:
    if parts.done:
        print(f"{parts.folder}: going on after {parts.done} of this process's items")
    try:
        work.write_parts(onepeace, parts, parts.missing)
    finally:
        _name(parts.skipped)
    print(f"{parts.folder}: {parts.done - len(parts.skipped)} embeddings by this process, {work.width} numbers each")


def _embed_all(work: Work, onepeace: OnePeace, output: Output, chunk_size: int) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        total = len(work.source)
        task = progress.add_task(work.modality.name, total=total, completed=output.done, rate="")
        chunk = Chunk()
        try:
            for batch in work.batches(onepeace, [range(output.done, total)]):
                chunk.extend(batch)
                speed = progress.tasks[task].speed
                progress.update(task, advance=len(batch), rate=f"{speed:.1f} items/s" if speed else "")
                if len(chunk) >= chunk_size:
                    output.add(chunk)
                    chunk = Chunk()
        finally:  # a bad item or an interruption costs no finished batch
            if len(chunk):
                output.add(chunk)


def _name(skipped: dict[str, str]) -> None:
    if not skipped:
        return
    print(f"left out: {len(skipped)} items that cannot be embedded")
    for key, error in list(skipped.items())[:_SHOWN]:
        print(f"  {key}: {error}")
    if len(skipped) > _SHOWN:
        print(f"  and {len(skipped) - _SHOWN} more; all are named in the file's metadata")


def _counts(output: Output) -> str:
    left_out = f", {len(output.skipped)} left out" if output.skipped else ""
    return f"{output.done - len(output.skipped)} embeddings{left_out}"
