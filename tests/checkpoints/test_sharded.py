"""Folders of shards that come from elsewhere."""

import os
import pickle
import shutil

import pytest
import torch
from torch.distributed import checkpoint as dcp

from onepeace_lightning import OnePeace
from onepeace_lightning.checkpoints.loading import read_checkpoint
from onepeace_lightning.checkpoints.shard_files import is_sharded
from onepeace_lightning.checkpoints.sharded import read_metadata, read_sharded


@pytest.fixture
def folder(tmp_path):
    """What one process writes."""
    path = tmp_path / "last.ckpt"
    state = {"model.a": torch.arange(6.0).view(2, 3), "model.b": torch.ones(1, dtype=torch.bfloat16)}
    dcp.save({"state_dict": state, "optimizer_0": {"state": {"exp_avg": torch.ones(2)}, "lr": 0.1}}, checkpoint_id=path)
    torch.save({"global_step": 3, "onepeace": {"files": {"x": b"y"}}}, path / "meta.pt")
    return path


def test_a_folder_is_read_as_a_file_would_be_without_the_optimizer(folder):
    assert is_sharded(folder)
    content = read_checkpoint(folder)
    assert content["global_step"] == 3
    assert set(content) == {"state_dict", "global_step", "onepeace"}
    assert torch.equal(content["state_dict"]["model.a"], torch.arange(6.0).view(2, 3))
    assert content["state_dict"]["model.b"].dtype == torch.bfloat16


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


@pytest.mark.parametrize("file", [".metadata", "meta.pt"])
def test_code_in_a_folder_is_refused_and_not_run(folder, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / file).write_bytes(pickle.dumps(Attack()))
    with pytest.raises(ValueError, match="is refused"):
        read_sharded(folder)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("file", [".metadata", "meta.pt", "__0_0.distcp"])
def test_a_folder_with_a_file_missing_says_so(folder, file):
    (folder / file).unlink()
    if file == "__0_0.distcp":
        with pytest.raises(ValueError, match="missing or damaged"):
            read_sharded(folder)
    else:
        with pytest.raises(ValueError, match=f"has no {file}: this sharded checkpoint is incomplete"):
            OnePeace.from_pretrained(folder)


def test_a_cut_file_and_other_content_say_so(folder):
    shard = folder / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:40])
    with pytest.raises(ValueError, match="missing or damaged"):
        read_sharded(folder)
    (folder / ".metadata").write_bytes(pickle.dumps({"plain": "dictionary"}))
    with pytest.raises(ValueError, match="holds a dict"):
        read_metadata(folder)


def test_other_folders_are_no_sharded_checkpoint(folder, tmp_path):
    assert not is_sharded(tmp_path)
    assert not is_sharded(folder / "meta.pt")
    shutil.rmtree(folder)
    assert not is_sharded(folder)
