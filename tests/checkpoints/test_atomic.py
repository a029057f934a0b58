"""Checkpoints take the place of older ones only when they are whole."""

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy

from onepeace_lightning.checkpoints.atomic import AtomicCheckpointIO, partial_of, publish
from onepeace_lightning.cli.trainer import command_line
from onepeace_lightning.training.failures import is_lost
from onepeace_lightning.training.seeding import seed_step
from onepeace_lightning.training.strategy import FullyShardedStrategy, placement


class Unwritable:
    """Fails when it is pickled, half way through a file."""

    def __reduce__(self):
        raise OSError(28, "No space left on device")


def test_a_failed_write_leaves_the_older_file_and_nothing_else(tmp_path):
    path = tmp_path / "last.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"step": 1}, path)
    with pytest.raises(OSError, match=r"last.ckpt could not be written .*No space left.* is unharmed"):
        io.save_checkpoint({"step": 2, "large": torch.zeros(1000), "end": Unwritable()}, path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert io.load_checkpoint(path) == {"step": 1}
    io.save_checkpoint({"step": 2}, path)
    assert io.load_checkpoint(path) == {"step": 2}


@pytest.mark.parametrize(
    ("older", "newer"), [(None, "folder"), ("folder", "folder"), ("folder", "file"), ("file", "folder")]
)
def test_files_and_folders_replace_one_another(tmp_path, older, newer):
    def write(path, kind, text):
        if kind == "folder":
            path.mkdir()
            path = path / "meta.pt"
        path.write_text(text)

    path = tmp_path / "last.ckpt"
    if older:
        write(path, older, "old")
    write(tmp_path / "last.old.ckpt", "file", "left by a process that was killed between two steps")
    write(partial_of(path), newer, "new")
    publish(partial_of(path), path)
    assert (path / "meta.pt" if newer == "folder" else path).read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_the_command_line_s_fsdp_is_this_project_s(monkeypatch):
    cli = command_line(["--model=L.pytorch.demos.boring_classes.BoringModel".replace("L.", "lightning."),
                        "--data=lightning.pytorch.demos.boring_classes.BoringDataModule",
                        "--trainer.strategy=fsdp", "--trainer.accelerator=cpu", "--trainer.devices=1",
                        "--trainer.logger=false"], run=False)  # fmt: skip
    assert type(cli.trainer.strategy) is FullyShardedStrategy
    assert type(cli.trainer.strategy.checkpoint_io) is AtomicCheckpointIO


def test_lightning_s_own_fsdp_is_refused_in_one_line():
    task = L.LightningModule()
    task._trainer = type("Trainer", (), {"strategy": FSDPStrategy(), "precision": "32-true"})()
    with pytest.raises(ValueError, match=r"FullyShardedStrategy\(\).*configs/trainer/fsdp.yaml") as error:
        placement(task)
    assert "\n" not in str(error.value)


def test_settings_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"replicas is 0, .*timeout_seconds is -1"):
        FullyShardedStrategy(replicas=0, timeout_seconds=-1)


def test_a_step_draws_by_where_it_is():
    def draw(*where: int) -> float:
        seed_step(*where)
        return torch.rand(()).item()

    assert draw(0, 1, 2, 3) == draw(0, 1, 2, 3)
    assert len({draw(*where) for where in [(0, 1, 2, 3), (1, 1, 2, 3), (0, 2, 2, 3), (0, 1, 3, 3), (0, 1, 2, 4)]}) == 5


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:38519", True),
        ("Timed out waiting 4000ms for recv operation to complete", True),
        ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", False),
    ],
)
def test_a_lost_process_is_told_from_other_errors(text, lost):
    assert is_lost(RuntimeError(text)) == lost
