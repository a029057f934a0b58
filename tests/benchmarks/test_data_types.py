"""The study of the data types trains every way and prints what it found."""

import re

from benchmarks import data_types


def test_every_way_is_trained_and_shown(capsys):
    data_types.main([
        "--pairs", "16", "--unpaired", "12", "--steps", "1", "--batch_size", "4", "--seeds", "1", "--gallery", "16",
    ])  # fmt: skip
    printed = capsys.readouterr().out
    assert "R@1 in percent among 16" in printed
    for name in data_types.WAYS:
        assert re.search(rf"^{name} +\d+\.\d \(.*\) +\d+\.\d \(.*\) +\d+\.\d\d$", printed, re.MULTILINE), printed
