"""What several test folders share."""

import importlib.util
from pathlib import Path

import pytest
import torch

from data_recipes.toy import pretraining as toy
from data_recipes.toy import tasks as toy_tasks
from data_recipes.toy import videos as toy_videos
from onepeace_lightning.cli import main

# Some tests fork processes. A fork of a process whose OpenMP threads are running waits for them for ever.
torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"

PRETRAINING = ("image-text", "audio-text", "image", "audio", "text")
LOCAL = [
    "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.precision=32-true",
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--data.init_args.num_workers=0",
]  # fmt: skip
"""Options of a small run on the processor."""


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Nothing is left in the user's cache, or taken from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory) -> Path:
    """A folder that looks like a checkout in which a very small ``data/toy`` was made."""
    root = tmp_path_factory.mktemp("checkout")
    toy.build(root / "data" / "toy", toy.ToyConfig(pairs=48, singles=16, gallery=16))
    (root / "configs").symlink_to(ROOT / "configs")
    return root


@pytest.fixture(scope="session")
def labelled(toy_root) -> Path:
    """The small labelled sets of the toy tasks, made in ``data/toy/tasks`` of that checkout."""
    folder = toy_root / "data" / "toy" / "tasks"
    toy_tasks.build(folder, toy_tasks.ToyTasksConfig(train=12, val=8))
    return folder


@pytest.fixture(scope="session")
def toy_model(toy_root, labelled, tmp_path_factory) -> Path:
    """The checkpoint of a model as `make fit` makes it, after two steps; labelled data are made beside."""
    if importlib.util.find_spec("av"):
        toy_videos.main(["--out", str(toy_root / "data" / "toy" / "videos"), "--count", "12"])
    folder = tmp_path_factory.mktemp("pretrained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "data").symlink_to(toy_root / "data")
        main([
            "fit", f"--config={ROOT}/configs/pretrain/toy.yaml", *LOCAL, "--trainer.max_steps=2",
            "--trainer.limit_val_batches=0", "--trainer.logger=false", "--trainer.callbacks=ModelCheckpoint",
            "--trainer.callbacks.dirpath=.", "--trainer.callbacks.filename=best",
            "--trainer.callbacks.every_n_train_steps=2", "--model.init_args.optimization.warmup_steps=1",
            *(f"--data.init_args.train.{kind}.batch_size=4" for kind in PRETRAINING),
        ])  # fmt: skip
    return folder / "best.ckpt"


@pytest.fixture
def trained_checkout(toy_root, toy_model, tmp_path, monkeypatch) -> Path:
    """An own working folder that looks like a checkout after a very short `make fit`."""
    for name, target in (("data", toy_root / "data"), ("configs", ROOT / "configs"), ("docs", ROOT / "docs")):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "runs/toy/checkpoints").mkdir(parents=True)
    (tmp_path / "runs/toy/checkpoints/best.ckpt").symlink_to(toy_model)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are no names: a recording's header holds the time, and processes that share the tests would disagree."""
    return argname if isinstance(val, bytes) else None
