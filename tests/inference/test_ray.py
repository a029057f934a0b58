"""Embedding on a Ray cluster of one machine."""

from pathlib import Path

import pytest
import torch

from onepeace_lightning import OnePeace
from onepeace_lightning.inference.embed import describe
from onepeace_lightning.inference.embedding_files import read_about
from onepeace_lightning.inference.parts import Parts
from onepeace_lightning.inference.sources import find_items
from onepeace_lightning.inference.work import Work
from tests.inference.test_embed import PHOTOS, content, embed, fails
from tests.inference.test_parts import names

ray = pytest.importorskip("ray", reason="Ray is an extra: pip install onepeace-lightning[ray]")


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20, logging_level="ERROR")
    yield
    ray.shutdown()


def test_ray_makes_the_missing_parts_and_names_what_is_bad(here, model_folder, cluster, capsys):
    ours = ["--image", "photos", "--out", "parts", "--chunk-size", 2, "--engine", "ray"]
    (here / "photos" / "5.jpg").write_bytes(b"no image")
    embed(model_folder, *ours, "--skip-bad")
    printed = capsys.readouterr().out
    assert "left out: 1 items" in printed
    assert "parts: 5 embeddings, 24 numbers each" in printed
    assert names("parts") == [f"part-{start:012d}.parquet" for start in (0, 2, 4)]
    ids, embeddings, _ = content("parts")
    assert ids == PHOTOS
    expected = OnePeace.from_pretrained(model_folder).embed(image=[here / "photos" / name for name in PHOTOS])
    torch.testing.assert_close(embeddings, expected, atol=2e-3, rtol=0)
    assert list(read_about(Path("parts"))["items"]["skipped"]) == ["5.jpg"]
    made = Path("parts/part-000000000000.parquet").stat().st_mtime_ns
    embed(model_folder, *ours, "--skip-bad")
    assert Path("parts/part-000000000000.parquet").stat().st_mtime_ns == made


def test_an_actor_says_what_ends_the_run(here, model_folder):
    """Called without Ray, whose start is most of the time of the test above."""
    from onepeace_lightning.inference.ray_engine import EmbedChunks

    (here / "photos" / "5.jpg").write_bytes(b"no image")
    onepeace = OnePeace.from_pretrained(model_folder)
    source = find_items("image", "photos")
    work = Work(onepeace.modality("image"), source, batch_size=2, skip_bad=False, workers=0, width=24)
    parts = Parts(Path("parts"), describe(onepeace, "image"), source, chunk_size=3)
    actor = EmbedChunks(lambda: onepeace, work, parts)
    assert actor({"chunks": [(0, 3)]}) == {"items": 3, "keys": [], "errors": [], "fault": ""}
    row = actor({"chunks": [(3, 6)]})
    assert row["items"] == 0
    assert "5.jpg" in row["fault"]
    assert names("parts") == ["part-000000000000.parquet"]


def test_ray_writes_folders(here, model_folder):
    fails(
        "--image", "photos", "--out", "one.parquet", "--engine", "ray", model=model_folder, says="ray writes a folder"
    )
