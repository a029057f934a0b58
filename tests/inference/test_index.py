"""Indices over embeddings, and searching by them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from onepeace_lightning.cli import main
from onepeace_lightning.inference.embedding_files import Chunk, Rows, read_about, to_table
from onepeace_lightning.inference.index import nearest
from tests.inference.test_search import ranked, search

pytest.importorskip("usearch", reason="indices are an extra: pip install onepeace-lightning[index]")

from pyarrow import parquet

from onepeace_lightning.inference.index import Index, index_path

WIDTH = 16


def unit(array: np.ndarray) -> np.ndarray:
    return (array / np.linalg.norm(array, axis=1, keepdims=True)).astype(np.float32)


def write_parts(folder: Path, embeddings: np.ndarray, storage: str = "float16", part: int = 300) -> Path:
    """A folder as ``onepeace embed`` leaves it."""
    folder.mkdir()
    for start in range(0, len(embeddings), part):
        rows = embeddings[start : start + part]
        items = {
            "start": start,
            "stop": start + len(rows),
            "total": len(embeddings),
            "source": f"{start}",
            "skipped": {},
        }
        about = {
            "format_version": 1, "model": "m", "modality": "image", "dtype": "float32", "width": rows.shape[1],
            "storage": storage, "items": items, "found": {"kind": "files", "root": "/"},
        }  # fmt: skip
        chunk = Chunk([f"{start + number}.jpg" for number in range(len(rows))], list(rows))
        parquet.write_table(to_table(chunk, about), folder / f"part-{start:012d}.parquet")
    return folder


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    """2 000 in 50 groups, as those of real things are."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((50, WIDTH))
    return unit(centres[rng.integers(0, 50, 2000)] + 0.5 * rng.standard_normal((2000, WIDTH)))


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
def test_candidates_are_ranked_by_the_stored_embeddings(tmp_path, embeddings, storage):
    folder = write_parts(tmp_path / "photos", embeddings, storage)
    index = Index.build(folder, threads=1)
    assert len(index) == 2000
    rows = Rows(folder)
    stored = np.stack([rows.embedding(row) for row in range(2000)])
    assert np.abs(stored - embeddings).max() < 0.02
    queries = unit(embeddings[:50] + 0.1 * np.random.default_rng(1).standard_normal((50, WIDTH)))
    wanted_rows, wanted = nearest([stored], queries, 10)
    found = [index.search(query, 10) for query in queries]
    for (rows_k, cosines_k), query in zip(found, queries, strict=True):
        np.testing.assert_allclose(cosines_k, stored[rows_k] @ query, atol=1e-6)
        assert (np.diff(cosines_k) <= 0).all()
    recall = np.mean([len(set(a) & set(b)) / 10 for (a, _), b in zip(found, wanted_rows, strict=True)])
    assert recall > 0.95
    assert np.mean([cosines[0] for _, cosines in found]) == pytest.approx(wanted[:, 0].mean(), abs=1e-3)
    assert index.recall(None, 100)[0] > 0.95


def test_comparing_with_all_is_a_sort_of_all(embeddings):
    rng = np.random.default_rng(2)
    queries = unit(rng.standard_normal((3, WIDTH)))
    pieces = [embeddings[:1], embeddings[1:700], embeddings[700:]]
    rows, cosines = nearest(pieces, queries, 7)
    everything = queries @ embeddings.T
    np.testing.assert_array_equal(rows, np.argsort(-everything, axis=1, kind="stable")[:, :7])
    np.testing.assert_allclose(cosines, -np.sort(-everything, axis=1)[:, :7], atol=1e-6)
    few, _ = nearest([embeddings[:4]], queries, 7)
    assert few.shape == (3, 4)


def test_single_rows_of_files_and_folders(tmp_path, embeddings):
    rows = Rows(write_parts(tmp_path / "photos", embeddings[:700], "float32"))
    assert len(rows) == 700
    for row in (0, 299, 300, 699):
        assert rows.item(row) == (f"{row}.jpg", "")
        np.testing.assert_array_equal(rows.embedding(row), embeddings[row])
    with pytest.raises(IndexError, match="there is no row 700; there are 700"):
        rows.item(700)


def test_an_index_of_other_embeddings_or_a_damaged_one_is_refused(tmp_path, embeddings):
    folder = write_parts(tmp_path / "photos", embeddings[:300])
    Index.build(folder, threads=1)
    shutil.rmtree(folder)
    write_parts(folder, embeddings[:200])
    with pytest.raises(ValueError, match=r"built over other embeddings than .*photos holds now: .*`onepeace index"):
        Index(folder, read_about(folder))
    Index.build(folder, threads=1)
    assert len(Index(folder, read_about(folder))) == 200
    (index_path(folder) / "embeddings.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"photos\.index is damaged"):
        Index(folder, read_about(folder))


def test_search_and_recall_on_the_command_line(here, model_folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    model = ["--model", str(model_folder)]
    main(["embed", *model, "--image", "photos", "--out", "parts", "--chunk-size", "2"])
    main(["embed", *model, "--text", "pairs.csv", "--column", "caption", "--out", "texts.parquet"])
    capsys.readouterr()
    main(["index", "parts", "texts.parquet", "--queries", "texts.parquet", "--threads", "1"])
    said = capsys.readouterr().out
    assert "parts.index: 5 embeddings, built in" in said
    assert "recall@10 1.000 against all embeddings" in said
    assert "(queries: texts.parquet)" in said
    about = json.loads(Path("parts.index/about.json").read_text())
    assert about["recall"] == {"at_10": 1.0, "queries": "texts.parquet"}

    search(model_folder, "parts", "texts.parquet", "--text", "a red cow", "--top", 4)
    by_index = ranked(capsys.readouterr().out)
    search(model_folder, "parts", "texts.parquet", "--text", "a red cow", "--top", 4, "--exact")
    assert ranked(capsys.readouterr().out) == by_index
    assert by_index[0][1:] == ("text", "a red cow (pairs.csv#0)")

    (Path("parts.index") / "graph.usearch").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"parts\.index is damaged"):
        search(model_folder, "parts", "--text", "dog")
    search(model_folder, "parts", "--text", "dog", "--exact")


def test_embeddings_of_two_widths_are_not_searched_together(here, model_folder):
    for dim in (8, 16):
        main(["embed", "--model", str(model_folder), "--image", "photos", "--out", f"{dim}.parquet", "--dim", str(dim)])
    search(model_folder, "8.parquet", "--image", "photos/0.jpg")
    with pytest.raises(SystemExit, match="embeddings of 8, 16 numbers cannot be searched together"):
        search(model_folder, "8.parquet", "16.parquet", "--text", "dog")


@pytest.mark.parametrize(("words", "says"), [
    (["nowhere"], "there is no file of embeddings nowhere"),
    (["8.parquet", "--connectivity", "1"], "connectivity is 1, must be at least 2"),
])  # fmt: skip
def test_wrong_commands_end_with_what_is_right(tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=says):
        main(["index", *words])
