import re

import pytest
import torch
from PIL import Image

from benchmarks import loader, packed, startup, timing
from tests.conftest import ROOT


@pytest.fixture
def here(monkeypatch):
    """Measure memory in this process: a new one would only import everything again."""
    for module in (loader, packed):
        monkeypatch.setattr(module, "in_fresh_process", lambda function, *options: timing._peak_of(function, options))


def last_line(capsys):
    return capsys.readouterr().out.strip().splitlines()[-1]


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_packed_runs(here, capsys, precision):
    packed.main(["--preset", "tiny", "--batch_size", "3", "--repetitions", "2", "--precision", precision])
    assert re.fullmatch(r"ratio: \d+\.\d\d \(packed against view by view with padding\)", last_line(capsys))


def test_packed_compares_the_same_computation_or_refuses():
    ours, theirs = (packed.make_model("tiny", seed=0) for _ in range(2))
    batch = packed.make_batch(3, 96, seed=0)
    assert packed.check_same(ours, packed.view_by_view(theirs), batch) <= packed.TOLERANCE
    with torch.no_grad():
        theirs.backbone.encoder.encoder.blocks[0].ffns["text"].norm.weight += 0.1
    with pytest.raises(RuntimeError, match="differ by more than"):
        packed.check_same(ours, theirs, batch)


def test_baseline_runs_every_view_on_padded_sequences(monkeypatch):
    model = packed.view_by_view(packed.make_model("tiny", seed=0))
    batch = packed.make_batch(3, 96, seed=0)
    seen = []
    run = packed.padded_block
    monkeypatch.setattr(
        packed, "padded_block", lambda block, x, *rest: seen.append(tuple(x.shape)) or run(block, x, *rest)
    )
    packed.step(model, batch, "float32")
    text, image = max(batch.inputs["text"].token_lengths), 37
    encoder = [shape[:2] for shape in seen if shape[2] == 128]
    blocks = model.config.encoder.depth
    assert len(encoder) == 6 * blocks
    assert {(3, text), (3, image), (3, text + image)} <= set(encoder)
    assert [shape[:2] for shape in seen if shape[2] == 64] == [(3, text), (3, image), (3, text + image)]


def test_captions_are_spread_and_in_range():
    lengths = torch.tensor(packed.make_batch(256, 32, seed=1).inputs["text"].lengths) - 1
    assert lengths.min() >= 3
    assert lengths.max() <= packed.MAX_TOKENS
    assert 11 <= lengths.median() <= 17
    assert lengths.max() > 3 * lengths.median()


def test_loader_runs(here, capsys):
    sizes = {"image_text": 8, "audio_text": 4, "batch_size": 4, "passes": 2, "image_side": 32, "seconds": 0.3}
    loader.main([f"--{name}={value}" for name, value in {**sizes, "repetitions": 1}.items()])
    assert re.fullmatch(r"ratio: \d+\.\d\d \(loader against a bare decode-and-transform loop\)", last_line(capsys))


def test_loader_refuses_an_epoch_of_part_of_the_data():
    with pytest.raises(ValueError, match=r"audio-text': 6.* not multiples of batch_size 4"):
        loader.run(image_text=8, audio_text=6, batch_size=4)


def test_bare_loop_reports_a_failed_process(tmp_path):
    loader.make_data(tmp_path, {"image-text": 2, "audio-text": 2}, 32, 0.3, 2)
    (tmp_path / "bare" / "image-text" / "00001.jpg").write_bytes(b"no picture")
    with pytest.raises(RuntimeError, match="image-text failed"):
        loader.read_bare(tmp_path, "image-text", 1)


def test_bare_files_are_the_shards_samples(tmp_path):
    loader.make_data(tmp_path, {"image-text": 4, "audio-text": 2}, 32, 0.3, 2)
    assert loader.read_manifest(tmp_path / "shards" / "image-text").samples == 4
    pictures = sorted((tmp_path / "bare" / "image-text").glob("*.jpg"))
    assert [Image.open(path).size for path in pictures] == [(32, 32)] * 4


def test_variants_take_turns_in_alternating_order():
    calls = []
    seconds = timing.interleaved({name: lambda turn, name=name: calls.append((name, turn)) for name in "ab"}, 2)
    assert calls == [("a", 0), ("b", 0), ("b", 1), ("a", 1)]
    assert all(len(times) == 2 for times in seconds.values())
    with pytest.raises(ValueError, match="repetitions is 0"):
        timing.interleaved({}, 0)


def test_ratio_is_of_medians():
    assert timing.ratio_line([1.0, 2.0, 9.0], [3.0, 3.0, 0.5], "x against y") == "ratio: 1.50 (x against y)"


def test_peak_memory_is_that_of_a_process_of_its_own():
    size = 1 << 29
    peak = timing.in_fresh_process(bytearray.count, bytearray(), b"x")
    grown = timing.in_fresh_process(bytes.ljust, b"", size, b"x")
    assert grown.process - peak.process > 0.9 * size


def test_startup_runs(capsys):
    startup.main(["--shards=60", "--samples=30", "--ranks=4", "--workers=2", "--batch_size=4"])
    said = capsys.readouterr().out
    assert "a loader over 60 shards of 30 samples, 4 ranks of 2 workers" in said
    assert "on 3 ranks of 2 workers" in said


def test_make_bench_runs_what_is_quick_and_a_page_names_the_rest():
    [quick] = re.findall(r"^BENCHMARKS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    studies = re.findall(r"^\| `python -m benchmarks\.(\w+)`", (ROOT / "docs/performance.md").read_text(), re.MULTILINE)
    shared = {"__init__", "timing", "gpu", "gpu_attention"}
    modules = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - shared
    assert sorted([*quick.split(), *studies]) == sorted(modules)
