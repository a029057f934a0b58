"""``onepeace embed``: a file of embeddings from a folder, a glob, a table or shards."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from onepeace_lightning.data.prefetch import ahead
from onepeace_lightning.inference.embedding_files import Chunk, Output
from onepeace_lightning.inference.onepeace import OnePeace
from onepeace_lightning.inference.sources import Items, Read, find_items
from onepeace_lightning.modalities.base import Modality, modality

_SHOWN = 10


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
) -> None:
    """Embed the items of one modality of a source, such as ``--image FOLDER``.

    A stopped run goes on where it stopped when the same command is given again: at most the last chunk is embedded
    anew. The file holds ids (paths relative to the source, ``shard/key``, or ``table#row`` for texts of a table),
    embeddings of unit length, texts, and what made them.

    Args:
        model: a folder, a checkpoint, or a name on the hub.
        out: the file to write, .parquet or .npz (which is put together in memory).
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

    Raises:
        ValueError: not exactly one modality, nothing to embed, bad items, or an ``out`` that was begun otherwise.
        FileNotFoundError: where something is missing.
    """
    items = items or {}
    if len(items) != 1:
        raise ValueError(f"give one modality, such as --image FOLDER, not {', '.join(items) or 'none'}")
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ValueError(
            f"{processes} processes would write one file: run onepeace embed without torchrun, or give each process a"
            " part of the source and a file of its own (onepeace search takes several)"
        )
    if batch_size < 1 or chunk_size < 1:
        raise ValueError(f"batch_size is {batch_size} and chunk_size is {chunk_size}: both must be at least 1")
    [(name, given)] = items.items()
    modality(name)
    source = find_items(name, given, column, root)
    onepeace = OnePeace.from_pretrained(model, bpe_dir=bpe_dir, device=device, dtype=dtype)
    onepeace.check_embeds(name)
    output = Output(Path(out), describe(onepeace, name), source)
    if output.finished:
        print(f"{out}: finished already, {_counts(output)}; delete it to embed everything anew")
        return
    if output.done:
        print(f"{out}: going on after {output.done} of {len(source)} items")
    work = _Work(onepeace, onepeace.modality(name), source, batch_size, skip_bad)
    try:
        _embed_all(work, output, chunk_size)
    finally:
        _name(output.skipped)
    output.finish()
    print(f"{out}: {_counts(output)}, {onepeace.config.encoder.width} numbers each")


def describe(onepeace: OnePeace, modality: str) -> dict[str, Any]:
    """All that embeddings of one modality depend on, apart from the items."""
    return {
        "model": onepeace.fingerprint(modality),
        "modality": modality,
        "dtype": str(onepeace.dtype).removeprefix("torch."),
        "preprocessing": onepeace.modality(modality).evaluation(),
        "width": onepeace.config.encoder.width,
    }


class _Work:
    """Batches of a source, read ahead, in the order of its items."""

    def __init__(self, onepeace: OnePeace, modality: Modality, source: Items, batch_size: int, skip_bad: bool) -> None:
        self.onepeace, self.modality, self.source = onepeace, modality, source
        self.batch_size, self.skip_bad = batch_size, skip_bad

    def batches(self, start: int) -> Iterator[Chunk]:
        """Embed the items from a number on, a batch at a time.

        Raises:
            ValueError: naming the items of a batch that cannot be read, unless they may be skipped.
        """
        for rows in ahead(self._batched(start), self._read):
            good = [(key, content, inputs) for key, content, inputs, _ in rows if inputs is not None]
            chunk = Chunk(skipped={key: error for key, _, inputs, error in rows if inputs is None})
            if chunk.skipped and not self.skip_bad:
                named = "".join(f"\n  {key}: {error}" for key, error in chunk.skipped.items())
                raise ValueError(
                    f"there are items that cannot be embedded:{named}\nMend them and run this again, which goes"
                    " on from here, or leave them out with --skip-bad"
                )
            if good:
                inputs = self.modality.collate([inputs for _, _, inputs in good])
                chunk.ids = [key for key, _, _ in good]
                chunk.embeddings = list(self.onepeace.embed_inputs(self.modality.name, inputs).numpy())
                chunk.texts = [content for _, content, _ in good] if self.modality.reads_text else []
            yield chunk

    def _batched(self, start: int) -> Iterator[list[tuple[str, Read]]]:
        batch = []
        for item in self.source.items(start):
            batch.append(item)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _read(self, item: tuple[str, Read]) -> tuple[str, str, Any, str]:
        """The id, the text where it is one, the model's input or None, and what was wrong."""
        key, read = item
        try:
            content = self.modality.decode(read())
            return key, content if isinstance(content, str) else "", self.modality.transform(content), ""
        except (ValueError, OSError) as error:
            return key, "", None, str(error)


def _embed_all(work: _Work, output: Output, chunk_size: int) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        total = len(work.source)
        task = progress.add_task(work.modality.name, total=total, completed=output.done, rate="")
        chunk = Chunk()
        try:
            for batch in work.batches(output.done):
                chunk.ids += batch.ids
                chunk.embeddings += batch.embeddings
                chunk.texts += batch.texts
                chunk.skipped |= batch.skipped
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
