"""``onepeace search``: what in files of embeddings is nearest to a query in any modality, or to a sum of several.

N = items, d = embedding width.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onepeace_lightning.files import printable
from onepeace_lightning.inference.embedding_files import read_about
from onepeace_lightning.inference.gallery import Gallery, Hit
from onepeace_lightning.inference.onepeace import OnePeace
from onepeace_lightning.modalities.registry import modality
from onepeace_lightning.modalities.tokenizers.base import whole_characters
from onepeace_lightning.reports.pages import answer_row, figure, page


def search(
    embeddings: list[str],
    *,
    model: str,
    queries: dict[str, str] | None = None,
    weights: dict[str, float] | None = None,
    top: int = 10,
    out: str = "search.html",
    root: str | None = None,
    exact: bool = False,
    bpe_dir: str | None = None,
    device: str | None = None,
) -> None:
    """Print the items nearest to a query, and write a page that shows them.

    Queries of several modalities are summed: a recording and a text find the images that fit both.

    Args:
        embeddings: files and folders that ``onepeace embed`` wrote with the same model. Those that have an index
            (``onepeace index``) are searched by it.
        model: a folder, a checkpoint, or a name on the hub.
        queries: modality to what to search with, a sentence or a file; on the command line ``--text "a cow"``,
            ``--image cow.jpg`` and so on.
        weights: of the queries, such as audio=0.7 text=0.3; 1 each by default. Negative ones lead away.
        top: items to show.
        out: the page to write, with all that was found in it.
        root: where the embedded files are now, if they were moved.
        exact: compare with all embeddings, even where there is an index.
        bpe_dir: folder with the vocabulary, for the original's checkpoints.
        device: where to compute, such as cuda; by default a GPU where there is one.

    Raises:
        ValueError: no query, weights that do not fit, or embeddings of another model.
        FileNotFoundError: where something is missing.
    """
    queries = {
        name: whole_characters(given) if modality(name).reads_text else given for name, given in (queries or {}).items()
    }
    weights = _weights(queries, weights)
    if top < 1:
        raise ValueError(f"top is {top}; show at least 1 item")
    if Path(out).suffix not in (".html", ".htm"):
        raise ValueError(f"--out is {out}; the page ends in .html")
    if not embeddings:
        raise ValueError("no embeddings are given; make some with `onepeace embed`")
    # They say in which type their model computed.
    dtype = read_about(Path(embeddings[0]))["dtype"]
    onepeace = OnePeace.from_pretrained(model, bpe_dir=bpe_dir, device=device, dtype=dtype)
    gallery = Gallery(embeddings, onepeace, root, name=model, exact=exact)
    asked_d = np.zeros(onepeace.config.encoder.width, np.float32)
    for name, given in queries.items():
        item: dict[str, Any] = {name: [given]}
        asked_d += weights[name] * onepeace.embed(**item)[0].numpy()
    hits = gallery.search(gallery.query(asked_d), top)
    asked = " + ".join(f"{weights[name]:g} × {name} {given!r}" for name, given in queries.items())
    console = Console()
    console.print(f"query: {asked}", highlight=False, markup=False)
    console.print(_ranked(hits))
    missing = _write_page(Path(out), queries, weights, hits, gallery)
    print(f"page: {out}")
    if missing:
        print(
            f"{missing} of the files are no longer where they were embedded, the page names them: say where with --root"
        )


def _weights(queries: Mapping[str, str], weights: Mapping[str, float] | None) -> dict[str, float]:
    if not queries:
        raise ValueError("there is nothing to search with; give a modality, such as --text 'a cow', or several")
    if weights is not None and set(weights) != set(queries):
        raise ValueError(
            f"weights of {', '.join(weights)} do not fit queries of {', '.join(queries)}; give one for each"
        )
    return {name: 1.0 if weights is None else weights[name] for name in queries}


def _ranked(hits: Sequence[Hit]) -> Table:
    table = Table("rank", "cosine", "modality", "item")
    table.columns[3].overflow = "fold"
    for rank, hit in enumerate(hits, 1):
        table.add_row(str(rank), f"{hit.cosine:.3f}", hit.modality, Text(_words(hit)))
    return table


def _words(hit: Hit) -> str:
    return f"{hit.text} ({hit.id})" if hit.text else hit.id


def _write_page(
    out: Path, queries: Mapping[str, str], weights: Mapping[str, float], hits: Sequence[Hit], gallery: Gallery
) -> int:
    """Write the page; returns how many of the items' files are not there any more."""
    asked = []
    for name, given in queries.items():
        one = gallery.model.modality(name)
        weight = f" × {weights[name]:g}" if len(queries) > 1 or weights[name] != 1 else ""
        said = printable(given)
        shown = one.html(one.load(given), said)
        asked.append(f"<p><b>{name}</b>{weight}</p>{shown}" + ("" if one.reads_text else f"<p>{escape(said)}</p>"))
    figures, missing = [], 0
    for rank, hit in enumerate(hits, 1):
        try:
            content = gallery.html(hit)
        except (OSError, ValueError):  # gone, or damaged since
            content, missing = "<blockquote>The file is not there any more.</blockquote>", missing + 1
        words = f'<b>{rank}.</b> {escape(hit.id)} <span class="cosine">{hit.cosine:.3f}</span>'
        figures.append(figure(content, words))
    out.parent.mkdir(parents=True, exist_ok=True)
    introduction = "What was asked for is in the box; what is nearest to it follows, nearest first, with its cosine."
    out.write_text(page("Search", introduction, answer_row("".join(asked), figures)), encoding="utf-8")
    return missing
