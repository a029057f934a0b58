"""Folders of embeddings that several processes write."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

from onepeace_lightning import OnePeace
from onepeace_lightning.inference.embedding_files import read_about
from tests.inference.test_embed import PHOTOS, content, embed, fails


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def test_two_processes_write_parts_that_read_as_one_file(here, model_folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m",
               "onepeace_lightning.cli", "embed", f"--model={model_folder}", "--image=photos", "--out=parts",
               "--chunk-size=2", "--batch-size=3", "--device=cpu"]  # fmt: skip
    subprocess.run(command, check=True, timeout=200)
    assert names("parts") == [f"part-{start:012d}.parquet" for start in (0, 2, 4)]
    ids, embeddings, _ = content("parts")
    assert ids == PHOTOS
    expected = OnePeace.from_pretrained(model_folder).embed(image=[here / "photos" / name for name in PHOTOS])
    torch.testing.assert_close(embeddings, expected, atol=2e-3, rtol=0)
    stored = pyarrow.parquet.read_table("parts/part-000000000000.parquet")["embedding"]
    assert stored.type.value_type == "halffloat"
    about = read_about(Path("parts"))
    assert (about["items"]["start"], about["items"]["stop"]) == (0, 5)


def test_several_processes_and_one_file_are_refused(here, model_folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    fails(
        "--image",
        "photos",
        "--out",
        "one.parquet",
        model=model_folder,
        says="2 processes would write one file: give --out a folder",
    )
    assert not Path("one.parquet.partial").exists()


def test_any_number_of_processes_goes_on_and_a_part_is_made_once(here, model_folder, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    embed(model_folder, "--image", "photos", "--out", "parts", "--chunk-size", 2)
    assert names("parts") == ["part-000000000002.parquet"]
    with pytest.raises(ValueError, match="holds 2 of 5 items: give the command of `onepeace embed` again"):
        read_about(Path("parts"))
    made = os.stat("parts/part-000000000002.parquet").st_mtime_ns
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    embed(model_folder, "--image", "photos", "--out", "parts", "--chunk-size", 2)
    assert os.stat("parts/part-000000000002.parquet").st_mtime_ns == made
    assert content("parts")[0] == PHOTOS
    embed(model_folder, "--image", "photos", "--out", "parts", "--chunk-size", 2)
    assert "5 embeddings by this process" in capsys.readouterr().out


def test_parts_of_something_else_are_refused(here, model_folder, other_folder):
    embed(model_folder, "--image", "photos", "--out", "parts", "--chunk-size", 2)
    again = ["--image", "photos", "--out", "parts", "--chunk-size"]
    fails(*again, 2, model=other_folder, says="was made with another model")
    fails(*again, 3, model=model_folder, says="--chunk-size was another one")
    fails(*again, 2, "--dim", 8, model=model_folder, says="another width 24, now 8")
    (here / "photos/0.jpg").write_bytes((here / "photos/2.jpg").read_bytes())
    fails(*again, 2, model=model_folder, says="files were added, removed or changed")


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
@pytest.mark.parametrize("out", ["parts", "one.parquet"])
def test_embeddings_are_cut_and_stored_as_asked_for(here, model_folder, storage, out):
    embed(model_folder, "--image", "photos", "--out", out, "--dim", 8, "--storage", storage)
    _, embeddings, _ = content(out)
    expected = OnePeace.from_pretrained(model_folder).embed(image=[here / "photos" / name for name in PHOTOS])[:, :8]
    expected /= expected.norm(dim=1, keepdim=True)
    assert (embeddings * expected).sum(1).min() > 0.9995
    np.testing.assert_allclose(embeddings.norm(dim=1), 1, atol=1e-3)
    fails("--image", "photos", "--out", "wide", "--dim", 25, model=model_folder, says="dim is 25, from 1 to 24")


def test_decoding_in_processes_gives_the_same_and_names_what_is_bad(here, model_folder):
    (here / "photos/9.jpg").write_bytes(b"no image")
    embed(model_folder, "--image", "photos", "--out", "threads", "--chunk-size", 4, "--skip-bad")
    embed(model_folder, "--image", "photos", "--out", "processes", "--chunk-size", 4, "--skip-bad", "--workers", 1)
    assert content("processes")[0] == content("threads")[0]
    torch.testing.assert_close(content("processes")[1], content("threads")[1])
    skipped = read_about(Path("processes"))["items"]["skipped"]
    assert list(json.loads(json.dumps(skipped))) == ["9.jpg"]
