import time
from functools import partial

import pytest
import torch

from benchmarks import gpu, gpu_attention, timing


@pytest.fixture
def here(monkeypatch):
    """Run every case in this process: a new one would only import everything again."""
    monkeypatch.setattr(gpu, "fresh", lambda function, *arguments, seconds: function(*arguments))


def rows(table: list[str]) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_everything_runs_on_the_processor(here, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "CLIP_SECONDS", 1)
    monkeypatch.setattr(gpu, "WAYS", gpu.WAYS[:3])
    gpu.main(
        [
            "--device=cpu", "--preset=tiny", "--sides=[32]", "--attention_pairs=2", "--training_pairs=2",
            "--embedded_items=2", "--repetitions=1", "--backend=aot_eager",
        ]
    )  # fmt: skip
    out = capsys.readouterr().out
    tables = [rows([line for line in part.splitlines() if line.startswith("|")]) for part in out.split("###")[1:]]
    step, attention, training, embedding, per_block = tables
    assert [row[1] for row in step[2:]] == ["packed + checkpoint", "view by view with padding + checkpoint"]
    assert [row[1] for row in training[2:]] == [
        "packed", "view by view with padding", "packed + compile + checkpoint",
    ]  # fmt: skip
    assert [row[1] for row in embedding[2:]] == ["text", "image", "audio"]
    assert len(attention) == len(per_block) == 3
    assert attention[0][4:7] == ["flex s", "flex GiB", "flex, fixed tables s"]
    assert all(float(cell) > 0 for cell in attention[2][4:])
    for table in tables:
        assert len({len(row) for row in table}) == 1
    assert all(float(cell) > 0 for row in [*step[2:], *training[2:]] for cell in row[2:7])
    assert "out of memory" not in out


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^benchmarks.gpu: there is no CUDA device here; --device cpu --preset tiny"):
        gpu.main([])


def test_a_batch_that_does_not_fit_is_halved():
    def fill(limit: int, batch_size: int, _: int) -> None:
        if batch_size > limit:
            raise torch.OutOfMemoryError

    found = timing.largest_that_fits(lambda size: timing.timed("cpu", 1, partial(fill, 5, size)), 32)
    assert found is not None
    assert found.batch_size == 4
    assert timing.largest_that_fits(lambda size: timing.timed("cpu", 1, partial(fill, 0, size)), 32) is None


def test_what_time_did_not_suffice_for_is_counted(monkeypatch, capsys):
    def run(function, *arguments, seconds):
        if function is late:
            raise TimeoutError
        return function(*arguments)

    def quick(cell: str) -> str:
        return cell

    def late(cell: str) -> str:
        return cell

    monkeypatch.setattr(gpu, "fresh", run)
    rows = [lambda call, function=function: f"row {call(function, 'x')}" for function in (quick, late, quick)]
    gpu.print_tables([gpu.Section("First", ["a"], rows), gpu.Section("Second", ["a"], rows[:1])], 1)
    out = capsys.readouterr().out
    assert out.count("row x") == 1
    assert "Second" not in out
    assert out.rstrip().endswith("3 rows were not measured: the 1 minutes were over (--minutes)")


def test_a_process_that_takes_too_long_is_stopped():
    with pytest.raises(TimeoutError, match="sleep took more than 1 s"):
        timing.fresh(time.sleep, 60, seconds=1)


def test_attentions_that_differ_are_not_timed(here, monkeypatch):
    padded = gpu_attention.BACKENDS["padded"]
    block = padded.block
    monkeypatch.setattr(padded, "block", lambda self, index: lambda *qkv: 1.1 * block(self, index)(*qkv))
    with pytest.raises(RuntimeError, match="flex and padded differ by"):
        gpu.attention_row(
            gpu.AttentionCase("tiny", 32, False, 2), "cpu", 1, lambda function, *arguments: function(*arguments)
        )
