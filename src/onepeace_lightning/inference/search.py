"""``onepeace search``: what in files of embeddings is nearest to a query in any modality, or to a sum of several.

N = items, d = embedding width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onepeace_lightning.inference.embedding_files import read_about, read_embeddings
from onepeace_lightning.inference.onepeace import OnePeace
from onepeace_lightning.inference.sources import read_item
from onepeace_lightning.reports.pages import answer_row, figure, page


@dataclass(frozen=True)
class Hit:
    """An item that was found.

    Attributes:
        cosine: between it and the query.
        modality: what it is.
        key: its id.
        text: the text itself, where it is one.
        index: number of the file of embeddings that holds it.
    """

    cosine: float
    modality: str
    key: str
    text: str
    index: int


def search(
    index: list[str],
    *,
    model: str,
    queries: dict[str, str] | None = None,
    weights: dict[str, float] | None = None,
    top: int = 10,
    out: str = "search.html",
    root: str | None = None,
    bpe_dir: str | None = None,
    device: str | None = None,
) -> None:
    """Print the items nearest to a query, and write a page that shows them.

    Queries of several modalities are summed: a recording and a text find the images that fit both.

    Args:
        index: files that ``onepeace embed`` wrote with the same model.
        model: a folder, a checkpoint, or a name on the hub.
        queries: modality to what to search with, a sentence or a file; on the command line ``--text "a cow"``,
            ``--image cow.jpg`` and so on.
        weights: of the queries, such as audio=0.7 text=0.3; 1 each by default. Negative ones lead away.
        top: items to show.
        out: the page to write, with all that was found in it.
        root: where the indexed files are now, if they were moved.
        bpe_dir: folder with the vocabulary, for the original's checkpoints.
        device: where to compute, such as cuda; by default a GPU where there is one.

    Raises:
        ValueError: no query, weights that do not fit, or an index of another model.
        FileNotFoundError: where something is missing.
    """
    queries = queries or {}
    shares = _shares(queries, weights)
    if top < 1:
        raise ValueError(f"top is {top}; show at least 1 item")
    if Path(out).suffix not in (".html", ".htm"):
        raise ValueError(f"--out is {out}; the page ends in .html")
    paths = [Path(name) for name in index]
    if not paths:
        raise ValueError("no index is given; make one with `onepeace embed`")
    abouts = [read_about(path) for path in paths]
    # The index says in which type its model computed.
    onepeace = OnePeace.from_pretrained(model, bpe_dir=bpe_dir, device=device, dtype=abouts[0]["dtype"])
    for path, about in zip(paths, abouts, strict=True):
        check_model(path, about, onepeace, model)
    query = np.zeros(onepeace.config.encoder.width, np.float32)
    for name, given in queries.items():
        item: dict[str, Any] = {name: [given]}
        query += shares[name] * onepeace.embed(**item)[0].numpy()
    length = float(np.linalg.norm(query))
    if length < 1e-6:
        raise ValueError(f"the weighted queries add up to nothing (weights {shares}); give other weights")
    hits = nearest(query / length, paths, abouts, top)
    asked = " + ".join(f"{shares[name]:g} × {name} {given!r}" for name, given in queries.items())
    console = Console()
    console.print(f"query: {asked}", highlight=False, markup=False)
    console.print(_ranked(hits))
    missing = write_page(Path(out), queries, shares, hits, abouts, onepeace, root)
    print(f"page: {out}")
    if missing:
        print(
            f"{missing} of the files are no longer where they were embedded, the page names them: say where with --root"
        )


def nearest(query_d: np.ndarray, paths: Sequence[Path], abouts: Sequence[Mapping[str, Any]], top: int) -> list[Hit]:
    """The ``top`` items of all files with the greatest cosine, best first; the files are read piece by piece.

    Args:
        query_d: (d,) of unit length.
        paths: files of embeddings.
        abouts: what ``read_about`` says of each.
        top: how many.
    """
    best: list[Hit] = []
    for number, (path, about) in enumerate(zip(paths, abouts, strict=True)):
        for ids, embeddings_Nd, texts in read_embeddings(path):
            cosines = embeddings_Nd @ query_d
            rows = np.argsort(-cosines, kind="stable")[:top]
            best += [
                Hit(float(cosines[row]), about["modality"], ids[row], texts[row] if texts else "", number)
                for row in rows.tolist()
            ]
            best = sorted(best, key=lambda hit: -hit.cosine)[:top]
    return best


def _shares(queries: Mapping[str, str], weights: Mapping[str, float] | None) -> dict[str, float]:
    if not queries:
        raise ValueError("there is nothing to search with; give a modality, such as --text 'a cow', or several")
    if weights is not None and set(weights) != set(queries):
        raise ValueError(
            f"weights of {', '.join(weights)} do not fit queries of {', '.join(queries)}; give one for each"
        )
    return {name: 1.0 if weights is None else weights[name] for name in queries}


def check_model(path: Path, about: Mapping[str, Any], onepeace: OnePeace, model: str) -> None:
    """Raise ValueError where another model made a file of embeddings."""
    modality = about["modality"]
    onepeace.backbone.adapter(modality)
    if (ours := onepeace.fingerprint(modality)) != about["model"]:
        raise ValueError(
            f"{path} was made by another model (fingerprint {about['model']} in {about['dtype']}) than {model} ({ours}"
            f" in {str(onepeace.dtype).removeprefix('torch.')}): their embeddings cannot be compared. Search with the"
            " model that made it, or embed anew"
        )


def _ranked(hits: Sequence[Hit]) -> Table:
    table = Table("rank", "cosine", "modality", "item")
    table.columns[3].overflow = "fold"
    for rank, hit in enumerate(hits, 1):
        table.add_row(str(rank), f"{hit.cosine:.3f}", hit.modality, Text(_words(hit)))
    return table


def _words(hit: Hit) -> str:
    return f"{hit.text} ({hit.key})" if hit.text else hit.key


def write_page(
    out: Path,
    queries: Mapping[str, str],
    shares: Mapping[str, float],
    hits: Sequence[Hit],
    abouts: Sequence[Mapping[str, Any]],
    onepeace: OnePeace,
    root: str | None,
) -> int:
    """Write the page; returns how many of the items' files are not there any more."""
    asked = []
    for name, given in queries.items():
        one = onepeace.modality(name)
        weight = f" × {shares[name]:g}" if len(queries) > 1 or shares[name] != 1 else ""
        shown = one.html(one.load(given), given)
        asked.append(f"<p><b>{name}</b>{weight}</p>{shown}" + ("" if one.reads_text else f"<p>{escape(given)}</p>"))
    figures, missing = [], 0
    for rank, hit in enumerate(hits, 1):
        found = abouts[hit.index]["found"]
        one = onepeace.preprocessing.modality(hit.modality)
        if one.reads_text:
            content = one.html(hit.text, hit.key)
        else:
            try:
                data = read_item(found["kind"], Path(root or found["root"]), hit.modality, hit.key)
                content = one.html(one.decode(data), hit.key)
            except (OSError, ValueError):  # gone, or damaged since
                content, missing = "<blockquote>The file is not there any more.</blockquote>", missing + 1
        words = f'<b>{rank}.</b> {escape(hit.key)} <span class="cosine">{hit.cosine:.3f}</span>'
        figures.append(figure(content, words))
    out.parent.mkdir(parents=True, exist_ok=True)
    introduction = "What was asked for is in the box; what is nearest to it follows, nearest first, with its cosine."
    out.write_text(page("Search", introduction, answer_row("".join(asked), figures)), encoding="utf-8")
    return missing
