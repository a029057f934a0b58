import re

import pytest

from benchmarks import search

pytest.importorskip("usearch", reason="indices are an extra: pip install onepeace-lightning[index]")


def test_it_runs_and_finds_most(monkeypatch, capsys):
    monkeypatch.setattr(search, "fresh", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(search, "PART", 700)
    search.main(["--items=2000", "--width=16", "--queries=20", "--threads=1"])
    out = capsys.readouterr().out
    assert "2,000 random embeddings of 16 numbers" in out
    assert float(re.search(r"recall@10 (\S+)", out)[1]) > 0.9
    assert re.fullmatch(r"ratio: \d+\.\d \(a search by the index against comparing with all\)", out.splitlines()[-1])
