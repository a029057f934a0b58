"""The shipped configurations of downstream tasks, in a tiny form."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from onepeace_lightning.cli import main
from onepeace_lightning.cli.configurations import run_name
from onepeace_lightning.cli.trainer import command_line
from onepeace_lightning.modalities.video_files import write_video
from onepeace_lightning.tasks import load_task
from tests.conftest import LOCAL
from tests.samples import png, wav

ROOT = Path(__file__).parents[2]
FINETUNE = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs/finetune").rglob("*.yaml"))
TOY = [path for path in FINETUNE if Path(path).name.startswith("toy")]
ZERO_SHOT = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs/zero_shot").glob("*.yaml"))


def arguments(path: str, steps: int) -> list[str]:
    short = ["--trainer.max_epochs=-1", f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}"]
    batches = ["--data.init_args.train.batch_size=4", *(
        f"--data.init_args.val.{name}.batch_size=4" for name in settings(path)["data"]["init_args"]["val"]
    )]  # fmt: skip
    return [f"--config={path}", *LOCAL, *short, *batches]


def table_of_raw_files(folder: Path) -> Path:
    """Two rows with whatever any task takes."""
    rows = []
    for colour, pitch in (("red", "low"), ("green", "high")):
        (folder / f"{colour}.png").write_bytes(png(colour))
        (folder / f"{pitch}.wav").write_bytes(wav(pitch))
        pictures = dict.fromkeys(("image", "first", "second"), f"{colour}.png")
        texts = {"text": "the bell", "question": "what sounds first?", "choices": ["a", "b", "c", "d"]}
        if importlib.util.find_spec("av"):
            write_video(folder / f"{colour}.mp4", [np.full((64, 64, 3), 99, np.uint8)] * 6)
        rows.append({**pictures, "audio": f"{pitch}.wav", "video": f"{colour}.mp4", **texts})
    table = folder / "items.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


def settings(path: str) -> dict:
    return yaml.safe_load((ROOT / path).read_text())


@pytest.mark.parametrize("path", TOY)
def test_toy_configurations_fit_validate_resume_and_predict(trained_checkout, path):
    if "video" in path:
        pytest.importorskip("av", reason="an extra: pip install onepeace-lightning[video]")
    main(["fit", *arguments(path, 2)])
    folder = trained_checkout / "runs" / run_name([path])
    results = json.loads((folder / "results.json").read_text())
    assert results
    assert all(0 <= score <= 100 for score in results.values())
    last = folder / "checkpoints/last.ckpt"
    main(["validate", *arguments(path, 2), f"--ckpt_path={last}"])
    assert json.loads((folder / "results.json").read_text()) == pytest.approx(results, abs=0.01)
    main(["fit", *arguments(path, 4), f"--ckpt_path={last}"])
    assert torch.load(last, weights_only=True)["global_step"] == 4
    assert type(load_task(last)).__name__ == settings(path)["model"]["class_path"]
    answers = trained_checkout / "answers.jsonl"
    main(["predict", str(last), str(table_of_raw_files(trained_checkout)), f"--out={answers}"])
    first, second = map(json.loads, answers.read_text().splitlines())
    if "object_detection" in path:  # after so few steps it may be sure of nothing
        assert isinstance(first["prediction"], list)
        return
    assert first["prediction"]
    assert second["prediction"]


@pytest.mark.parametrize("path", [path for path in ZERO_SHOT if "toy" in path])
def test_toy_zero_shot_prints_its_prompt_and_chance(trained_checkout, path, capsys):
    main(["validate", f"--config={path}", *LOCAL])
    printed = capsys.readouterr().out
    assert "prompts: a small {label} | two small {label}s" in printed
    assert "fingerprint" in printed
    assert "chance is" in printed
    assert "accuracy" in json.loads((trained_checkout / "runs" / run_name([path]) / "results.json").read_text())


@pytest.mark.parametrize("path", [path for path in FINETUNE + ZERO_SHOT if "toy" not in path])
def test_published_configurations_parse_and_everything_arrives(trained_checkout, path):
    """The 4B backbone is not here: the toy one stands in its place."""
    local = [*LOCAL, "--model.init_args.backbone=runs/toy/checkpoints/best.ckpt"]
    written = settings(path)
    if "tokenizer" in written["data"]["init_args"]:
        local.append("--data.init_args.tokenizer=data/toy/tokenizer")
    cli = command_line([f"--config={path}", *local], run=False)
    task, data = cli.model, cli.datamodule
    model = written["model"]["init_args"]
    assert type(task).__name__ == written["model"]["class_path"]
    for key, value in model.get("optimization", {}).items():
        assert getattr(task.optimization, key) == (tuple(value) if isinstance(value, list) else value), key
    assert task.config.encoder.drop_path == model.get("drop_path", 0.0)
    assert not data.preprocessing.misfits(task.config)
    if "max_epochs" in written.get("trainer", {}):
        assert cli.trainer.max_epochs == written["trainer"]["max_epochs"]
        devices = written["trainer"]["devices"] * written["trainer"]["num_nodes"]
        first_lines = (ROOT / path).read_text().partition("\ntrainer:")[0].replace("\n#", "")
        assert f"({devices} devices x {data.train['train'].batch_size})" in first_lines
    assert set(data.val) == set(written["data"]["init_args"]["val"])
