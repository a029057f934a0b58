"""Which checkpoints stay, what ``last`` means, and the background; whole runs are in ``tests/distributed``."""

import fsspec
import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from onepeace_lightning.checkpoints.atomic import Background, link
from onepeace_lightning.cli.runs import last_checkpoint
from onepeace_lightning.training.checkpoints import RecentCheckpoints, recent
from tests.training.test_averaging import Falling


def fit(folder, steps, checkpoints, **more):
    task = Falling()
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, logger=False, enable_progress_bar=False, default_root_dir=folder,
        enable_model_summary=False, limit_val_batches=0, callbacks=[checkpoints],
    )  # fmt: skip
    trainer.fit(task, DataLoader(torch.zeros(steps), batch_size=1), **more)
    return task


def names(folder):
    return [path.rpartition("/")[2] for path in recent(str(folder))]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_newest_few_stay_and_last_is_a_link_to_the_newest(tmp_path, asynchronous):
    fit(tmp_path, 9, RecentCheckpoints(str(tmp_path / "kept"), 2, keep=3, asynchronous=asynchronous))
    assert names(tmp_path / "kept") == ["step=9.ckpt", "step=8.ckpt", "step=6.ckpt"]
    last = tmp_path / "kept/last.ckpt"
    assert last.is_symlink()
    assert last.readlink().name == "step=9.ckpt"
    assert sorted(path.name for path in last.parent.iterdir()) == ["last.ckpt", *sorted(names(last.parent))]
    for step in (6, 8, 9):  # each is of its own step, though weights went on while it was written
        content = torch.load(tmp_path / f"kept/step={step}.ckpt", weights_only=True)
        assert content["global_step"] == step
        assert content["state_dict"]["weight"].tolist() == [-step, -step]
    again = fit(tmp_path, 10, RecentCheckpoints(str(tmp_path / "kept"), 2), ckpt_path="last")
    assert again.weight.tolist() == [-10, -10]
    assert last_checkpoint(again.trainer) == str(tmp_path / "kept/step=10.ckpt")  # not the link
    assert names(tmp_path / "kept") == ["step=10.ckpt", "step=9.ckpt", "step=8.ckpt"]


def test_a_url_keeps_as_many_and_last_is_the_newest_there():
    fit("memory://run", 5, RecentCheckpoints("memory://run/kept", 2, keep=2))
    assert names("memory://run/kept") == ["step=5.ckpt", "step=4.ckpt"]
    again = fit("memory://run", 6, RecentCheckpoints("memory://run/kept", 2), ckpt_path="last")
    assert again.weight.tolist() == [-6, -6]
    assert last_checkpoint(again.trainer) == "memory://run/kept/step=6.ckpt"
    fsspec.filesystem("memory").rm("/run", recursive=True)


def test_a_time_interval_writes_too(tmp_path):
    fit(tmp_path, 4, RecentCheckpoints(str(tmp_path / "kept"), every_minutes=1e-9, keep=2))
    assert names(tmp_path / "kept") == ["step=4.ckpt", "step=3.ckpt"]
    fit(tmp_path, 4, RecentCheckpoints(str(tmp_path / "later"), every_minutes=60))
    assert names(tmp_path / "later") == ["step=4.ckpt"]  # at the end


@pytest.mark.parametrize(
    "settings",
    [{}, {"every_n_train_steps": 3, "every_minutes": 1.0}, {"every_n_train_steps": 0}, {"every_minutes": 1, "keep": 0}],
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(ValueError, match="give one of the intervals"):
        RecentCheckpoints("x", **settings)


def test_a_link_takes_the_name_of_a_file_a_folder_or_another_link(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    last = tmp_path / "last"
    last.mkdir()
    (last / "content").touch()
    for target in ("first", "second"):
        link(tmp_path / target, last)
        assert last.readlink().name == target
    last.unlink()
    last.touch()
    link(tmp_path / "first", last)
    assert last.resolve() == tmp_path / "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "last", "second"]


def test_a_failure_in_the_background_is_raised_once_and_nothing_follows_it():
    done = []
    background = Background()
    background.submit(lambda: done.append(1))
    background.submit(lambda: 1 / 0)
    background.submit(lambda: done.append(2))
    with pytest.raises(ZeroDivisionError):
        background.wait()
    background.wait()
    assert done == [1]


def test_a_checkpoint_that_cannot_be_written_in_the_background_ends_the_run(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"step=2.ckpt could not be written \(No space left"):
        fit(tmp_path, 4, RecentCheckpoints(str(tmp_path / "kept"), 2, asynchronous=True))
    assert not list((tmp_path / "kept").iterdir())
