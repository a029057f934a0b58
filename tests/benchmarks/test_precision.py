import re

import pytest

from benchmarks import precision, timing


def test_precision_runs(monkeypatch, capsys):
    """Memory is measured in this process: a new one would only import everything again."""
    monkeypatch.setattr(precision, "in_fresh_process", lambda function, *options: timing._peak_of(function, options))
    precision.main(["--preset", "tiny", "--batch_size", "3", "--repetitions", "2"])
    lines = capsys.readouterr().out.strip().splitlines()
    assert re.fullmatch(r"ratio: \d+\.\d\d \(bfloat16 against float32\)", lines[-1])
    assert re.search(r"bf16 +median .* GFLOP/s, peak memory \d+ MiB", lines[-3])


def test_precision_compares_the_same_computation_or_refuses(monkeypatch):
    assert 0 < precision.check_same("tiny", 3, seed=0) <= precision.TOLERANCE
    step = precision.step
    monkeypatch.setattr(
        precision, "step", lambda model, batch, kind: {k: v * (1.1 if kind == "bf16" else 1)
                                                       for k, v in step(model, batch, kind).items()}
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="differ by more than 2%"):
        precision.check_same("tiny", 3, seed=0)
