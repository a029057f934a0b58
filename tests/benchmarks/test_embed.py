import re

import numpy as np
import pytest
import torch

from benchmarks import checkpoint_memory, embed, timing
from onepeace_lightning.inference.onepeace import OnePeace


@pytest.fixture
def here(monkeypatch):
    """Measure memory in this process: a new one would only import everything again."""
    for module in (checkpoint_memory, embed):
        monkeypatch.setattr(module, "in_fresh_process", lambda function, *options: timing._peak_of(function, options))


def test_embed_runs(here, capsys):
    sizes = {"preset": "tiny", "images": 4, "sounds": 2, "batch_size": 2, "image_side": 40, "seconds": 0.3}
    embed.main([f"--{name}={value}" for name, value in {**sizes, "repetitions": 1}.items()])
    lines = capsys.readouterr().out.strip().splitlines()
    for line, modality in zip(lines[-2:], ("image", "audio"), strict=True):
        what = f"onepeace embed against a bare loop over preprocessed tensors, {modality}"
        assert re.fullmatch(rf"ratio: \d+\.\d\d \({what}\)", line)


def test_both_ways_of_embedding_give_the_same(tmp_path):
    embed.make_data(tmp_path, 3, 2, 40, 0.3, "tiny")
    onepeace = OnePeace.from_pretrained(tmp_path / "model")
    for modality in ("image", "audio"):
        embed.run_command(tmp_path, modality, 2)
        bare = [onepeace.embed_inputs(modality, batch) for batch in embed.preprocessed(onepeace, tmp_path, modality, 2)]
        with np.load(tmp_path / f"{modality}.npz") as arrays:
            torch.testing.assert_close(torch.from_numpy(arrays["embeddings"]), torch.cat(bare), atol=1e-5, rtol=0)


def test_checkpoint_memory_runs(here, capsys, tmp_path):
    checkpoint_memory.main(["--preset=tiny", "--depth=2", "--repetitions=1", f"--folder={tmp_path}"])
    printed = capsys.readouterr().out
    assert "every tensor fits" in printed
    assert re.search(r"convert and embed: peak memory .* × the file, of which anonymous", printed)
    what = "from_pretrained and first embeddings against reading the file and the forward passes"
    assert re.fullmatch(rf"ratio: \d+\.\d\d \({what}\)", printed.strip().splitlines()[-1])
    assert list(tmp_path.iterdir()) == []


def test_random_checkpoints_embed_to_something(tmp_path):
    checkpoint_memory.write_checkpoint(tmp_path, "tiny", 2)
    checkpoint_memory.convert_and_embed(tmp_path)
    text, image, audio = checkpoint_memory.embed_all(OnePeace.from_pretrained(tmp_path / "converted"))
    for embedding in (text, image, audio):
        assert embedding.isfinite().all()
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(1))
    assert (text - image).abs().max() > 1e-3


def test_anonymous_memory_is_counted_apart():
    size = 1 << 28
    peak = timing.in_fresh_process(bytearray.count, bytearray(), b"x")
    grown = timing.in_fresh_process(checkpoint_memory.np.ones, size // 8)
    assert grown.anonymous - peak.anonymous > 0.9 * size
