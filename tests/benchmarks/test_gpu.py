from functools import partial

import pytest
import torch

from benchmarks import gpu


@pytest.fixture
def here(monkeypatch):
    """Run every case in this process: a new one would only import everything again."""
    monkeypatch.setattr(gpu, "fresh", lambda function, *arguments: function(*arguments))


def rows(table: list[str]) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_everything_runs_on_the_processor(here, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "CLIP_SECONDS", 1)
    gpu.main(
        [
            "--device=cpu", "--preset=tiny", "--sides=[32]", "--attention_pairs=2", "--training_pairs=2",
            "--embedded_items=2", "--repetitions=1", "--backend=aot_eager",
        ]
    )  # fmt: skip
    out = capsys.readouterr().out
    tables = [rows([line for line in part.splitlines() if line.startswith("|")]) for part in out.split("###")[1:]]
    attention, training, embedding = tables
    assert [row[2] for row in attention[2:]] == ["pretraining, shared tables", "fine-tuning, tables per block"]
    assert [row[1] for row in training[2:]] == [
        "packed", "packed + checkpoint", "packed + compile", "packed + compile + checkpoint",
        "view by view with padding",
    ]  # fmt: skip
    assert [row[1] for row in embedding[2:]] == ["text", "image", "audio"]
    for table in tables:
        assert len({len(row) for row in table}) == 1
    assert all(float(cell) > 0 for row in training[2:] for cell in row[2:7])
    assert "out of memory" not in out


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^benchmarks.gpu: there is no CUDA device here; --device cpu --preset tiny"):
        gpu.main([])


def test_a_batch_that_does_not_fit_is_halved(here):
    def case(limit: int, batch_size: int) -> gpu.Measured | None:
        return gpu.timed("cpu", 1, partial(fill, limit, batch_size)) and gpu.Measured(1.0, 1, batch_size)

    def fill(limit: int, batch_size: int, _: int) -> None:
        if batch_size > limit:
            raise torch.OutOfMemoryError

    assert gpu.largest_that_fits(case, 5, batch_size=32) == gpu.Measured(1.0, 1, 4)
    assert gpu.largest_that_fits(case, 0, batch_size=32) is None


def test_attentions_that_differ_are_not_timed(here, monkeypatch):
    padded = gpu.BACKENDS["padded"]
    block = padded.block
    monkeypatch.setattr(padded, "block", lambda self, index: lambda *qkv: 1.1 * block(self, index)(*qkv))
    with pytest.raises(RuntimeError, match="flex and padded differ by"):
        gpu.attention_table([gpu.AttentionCase("tiny", 32, False, 2)], "cpu", 1)
