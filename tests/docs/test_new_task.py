"""The own task of docs/new_task.md is trained and answers from the command line, as the page says."""

import json
import sys

import pytest
from PIL import Image

from onepeace_lightning.cli import main
from onepeace_lightning.tasks.base import TASKS
from tests.conftest import ROOT
from tests.docs.pages import PYTHON, blocks, commands


def test_the_page_s_task_trains_and_predicts(trained_checkout, monkeypatch, capsys):
    page = blocks((ROOT / "docs/new_task.md").read_text(encoding="utf-8"))
    [code] = [block.text for block in page if block.language == PYTHON]
    [fit, predict] = [words for block in page if block.language == "bash" for words in commands(block)]
    (trained_checkout / "counting.py").write_text(code, encoding="utf-8")
    (trained_checkout / "photos").mkdir()
    for name in ("red", "blue"):
        Image.new("RGB", (40, 60), name).save(trained_checkout / "photos" / f"{name}.png")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "counting", raising=False)
    main([*fit[1:], "--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.accelerator=cpu",
          "--data.train.batch_size=4", "--trainer.limit_val_batches=1"])  # fmt: skip
    main(predict[1:])
    assert "2 predictions of CountTask" in capsys.readouterr().out
    rows = [json.loads(line) for line in (trained_checkout / "answers.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == ["blue.png", "red.png"]
    assert all(isinstance(row["prediction"], float) for row in rows)

    del TASKS["CountTask"], sys.modules["counting"]  # as in a process that does not know it
    with pytest.raises(SystemExit, match="CountTask") as stop:
        main(predict[1 : predict.index("--import")])
    assert "--import" in str(stop.value)
