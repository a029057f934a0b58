import re

import pytest

from benchmarks import contrast_memory


def test_it_runs_and_gradients_agree(monkeypatch, capsys):
    monkeypatch.setattr(contrast_memory, "fresh", lambda function, *arguments: function(*arguments))
    peaks = iter([2**30 + 2**20 * pairs for pairs in (2, 4)] + [2**30 + 2**18 * pairs for pairs in (2, 4)])
    monkeypatch.setattr(contrast_memory, "own_peak", lambda: next(peaks))
    contrast_memory.main(["--preset=tiny", "--batch_size=1", "--plain=[2, 4]", "--batches=[2, 4]"])
    out = capsys.readouterr().out
    difference = re.search(r"gradients differ by (\S+) of", out)
    assert float(difference[1]) < 1e-4
    assert re.search(r"one batch: 1.00 GiB and 1.00 MiB for each pair", out)
    assert re.search(r"cached, batches of 1: 1.00 GiB and 0.25 MiB for each pair", out)
    assert re.fullmatch(r"ratio: \d\.\d \(pairs with gradient caching against one batch\)", out.splitlines()[-1])


def test_the_line_and_the_logits_are_added_up():
    mebi = 2**20
    pairs, slope, start = contrast_memory.largest([(10, 30 * mebi), (20, 50 * mebi)], 200 * mebi)
    assert (slope, start) == pytest.approx((2 * mebi, 10 * mebi))
    assert start + slope * pairs + 16 * pairs**2 <= 200 * mebi
    assert start + slope * (pairs + 1) + 16 * (pairs + 1) ** 2 > 200 * mebi
    beyond, *_ = contrast_memory.largest([(1, 1), (2, 2)], 2**40)  # logits are bounded
    assert beyond == 2**40 - 16 * 2**28
