"""The shipped configurations of downstream tasks, in a tiny form."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from data_recipes.toy_tasks import ToyTasksConfig, build
from onepeace_lightning.cli import command_line, main
from onepeace_lightning.tasks import load_task

ROOT = Path(__file__).parents[2]
FINETUNE = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs/finetune").rglob("*.yaml"))
TOY = [path for path in FINETUNE if Path(path).name.startswith("toy")]
ZERO_SHOT = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs/zero_shot").glob("*.yaml"))
PRETRAINING = ("image-text", "audio-text", "image", "audio", "text")
LOCAL = [
    "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.precision=32-true",
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--data.init_args.num_workers=0",
]  # fmt: skip


@pytest.fixture(scope="session")
def world(toy_root) -> Path:
    """The toy world's tasks, very small, and a model that was pretrained for one step."""
    build(toy_root / "data/toy/tasks", ToyTasksConfig(train=12, val=8))
    return toy_root


@pytest.fixture
def checkout(world, tmp_path, monkeypatch, pretrained):
    (tmp_path / "data").symlink_to(world / "data")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "runs/toy/checkpoints").mkdir(parents=True)
    (tmp_path / "runs/toy/checkpoints/best.ckpt").symlink_to(pretrained)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def pretrained(world, tmp_path_factory) -> Path:
    """The checkpoint of a model as `make fit` makes it."""
    folder = tmp_path_factory.mktemp("pretrained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "data").symlink_to(world / "data")
        main([
            "fit", f"--config={ROOT}/configs/pretrain/toy.yaml", *LOCAL, "--trainer.max_steps=2",
            "--trainer.limit_val_batches=0", "--trainer.logger=false", "--trainer.callbacks=ModelCheckpoint",
            "--trainer.callbacks.dirpath=.", "--trainer.callbacks.filename=best", "--trainer.callbacks.every_n_train_steps=2",
            "--model.init_args.optimization.warmup_steps=1",
            *(f"--data.init_args.train.{kind}.batch_size=4" for kind in PRETRAINING),
        ])  # fmt: skip
    return folder / "best.ckpt"


def arguments(path: str, steps: int) -> list[str]:
    short = ["--trainer.max_epochs=-1", f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}"]
    batches = ["--data.init_args.train.batch_size=4", *(
        f"--data.init_args.val.{name}.batch_size=4" for name in settings(path)["data"]["init_args"]["val"]
    )]  # fmt: skip
    return [f"--config={path}", *LOCAL, *short, *batches]


def settings(path: str) -> dict:
    return yaml.safe_load((ROOT / path).read_text())


@pytest.mark.parametrize("path", TOY)
def test_toy_configurations_fit_validate_and_resume(checkout, path):
    main(["fit", *arguments(path, 2)])
    folder = checkout / settings(path)["trainer"]["default_root_dir"]
    results = json.loads((folder / "results.json").read_text())
    assert results
    assert all(0 <= score <= 100 for score in results.values())
    last = folder / "checkpoints/last.ckpt"
    main(["validate", *arguments(path, 2), f"--ckpt_path={last}"])
    assert json.loads((folder / "results.json").read_text()) == pytest.approx(results, abs=0.01)
    main(["fit", *arguments(path, 4), f"--ckpt_path={last}"])
    assert torch.load(last, weights_only=True)["global_step"] == 4
    assert type(load_task(last)).__name__ == settings(path)["model"]["class_path"].rpartition(".")[2]


@pytest.mark.parametrize("path", [path for path in ZERO_SHOT if "toy" in path])
def test_toy_zero_shot_prints_its_prompt_and_chance(checkout, path, capsys):
    main(["validate", f"--config={path}", *LOCAL])
    printed = capsys.readouterr().out
    assert "prompts: a small {label} | a big {label}" in printed
    assert "fingerprint" in printed
    assert "chance is" in printed
    assert "accuracy" in json.loads(
        (checkout / settings(path)["trainer"]["default_root_dir"] / "results.json").read_text()
    )


@pytest.mark.parametrize("path", [path for path in FINETUNE + ZERO_SHOT if "toy" not in path])
def test_published_configurations_parse_and_everything_arrives(checkout, path):
    """The 4B backbone is not here: the toy one stands in its place."""
    local = [*LOCAL, "--model.init_args.backbone=runs/toy/checkpoints/best.ckpt"]
    written = settings(path)
    if "tokenizer" in written["data"]["init_args"]:
        local.append("--data.init_args.tokenizer=data/toy/tokenizer")
    cli = command_line([f"--config={path}", *local], run=False)
    task, data = cli.model, cli.datamodule
    model = written["model"]["init_args"]
    assert type(task).__name__ == written["model"]["class_path"].rpartition(".")[2]
    for key, value in model.get("optimization", {}).items():
        assert getattr(task.optimization, key) == value, key
    assert task.config.encoder.drop_path == model.get("drop_path", 0.0)
    if "image" in task.config.adapters:
        assert task.config.adapters["image"].image_size == data.preprocessing.image_size
    if "max_epochs" in written["trainer"]:
        assert cli.trainer.max_epochs == written["trainer"]["max_epochs"]
        devices = written["trainer"]["devices"] * written["trainer"]["num_nodes"]
        first_lines = (ROOT / path).read_text().partition("seed_everything")[0].replace("\n#", "")
        assert f"({devices} devices x {data.train['train'].batch_size})" in first_lines
    assert set(data.val) == set(written["data"]["init_args"]["val"])
