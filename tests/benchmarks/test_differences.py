"""The sizes of the differences from the original are printed, and have the sign that the page says."""

import re

from benchmarks import differences


def test_every_difference_has_a_line_and_its_sign(capsys):
    differences.main(["--items", "200", "--repeated", "0.1"])
    printed = capsys.readouterr().out
    strict, published = map(float, re.search(r"text to image ([\d.]+) strict, ([\d.]+) published", printed).groups())
    assert strict == 80
    assert 80 < published <= 100
    here, leaking = map(float, re.search(r"alone: ([\d.]+) here, ([\d.]+) where padding leaks", printed).groups())
    assert here > 0.99999
    assert leaking < here
    turned, clear = (float(number) for number in re.findall(r"as stored ([\d.-]+)", printed))
    assert turned < 0.9999
    assert clear < 0.9999
