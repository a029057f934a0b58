"""Video classification: the toy videos in Kinetics' layout, training, saving, answers."""

import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="an extra: pip install onepeace-lightning[video]")

from data_recipes import kinetics
from data_recipes.toy import videos
from onepeace_lightning.data.datamodule import DataModule, StreamConfig
from onepeace_lightning.data.manifest import read_manifest
from onepeace_lightning.tasks import VideoClassificationTask, load_task
from onepeace_lightning.training.optimizer import Optimization

VIEW = {"size": 32, "frames": 4, "step": 2, "crop_scale": (0.9, 1.0), "clips": 3, "crops": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    top = tmp_path_factory.mktemp("videos")
    videos.main(["--out", str(top), "--count", "48"])
    return top


def module(folder, **view) -> DataModule:
    return DataModule(
        StreamConfig(str(folder / "train/video-label"), 8),
        {"val": StreamConfig(str(folder / "val/video-label"), 4)},
        preprocessing={"video": {**VIEW, **view}},
        augmentation=True,
    )


def task(**options) -> VideoClassificationTask:
    return VideoClassificationTask(
        "tiny", Optimization(lr=1e-2, warmup_steps=0.1), frames=4, dropout=0.0,
        preprocessing={"video": VIEW}, **options,
    )  # fmt: skip


def test_toy_videos_are_learned_and_answered_again(trainer, tmp_path, folder):
    run, one, data = trainer(max_steps=60), task(), module(folder)
    run.fit(one, data)
    [scores] = run.validate(one, data, verbose=False)
    assert scores["val/accuracy"] > 40  # chance is 25
    assert any("3 clips of 4 frames, every 2th, × 3 crops" in line for line in one.score_context)
    run.save_checkpoint(tmp_path / "task.ckpt")
    again = load_task(tmp_path / "task.ckpt")
    assert again.classes == sorted(videos.LABELS)
    some = sorted((folder / "source/val").glob("*.mp4"))[:3]
    answers = one.predict(some, top=2)
    assert all(len(answer) == 2 for answer in answers)
    for answer, other in zip(answers, again.predict(some, top=2, batch_size=2), strict=True):
        assert list(answer) == list(other)
        assert list(answer.values()) == pytest.approx(list(other.values()), abs=1e-5)
    assert again.backbone.config.encoder.final_norm is False


def test_the_image_branch_stays_as_it_is_unless_asked(trainer, folder):
    one, data = task(), module(folder)
    one.classes = data.names("classes")
    one.configure_model()
    before = {name: parameter.detach().clone() for name, parameter in one.model.named_parameters()}
    trainer(max_steps=2).fit(one, data)
    changed = {name for name, parameter in one.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert {name.split(".")[0] for name in changed} == {"adapters", "frame_positions", "norm", "head"}
    [optimizer] = [one.optimizers(use_pl_optimizer=False)]
    rates = {round(group["initial_lr"] / 1e-2, 3) for group in optimizer.param_groups}
    assert rates == {0.1, 1.0}


def test_data_of_other_frames_are_refused(trainer, folder):
    with pytest.raises(ValueError, match="frames of video is 2, the model takes 4"):
        trainer(max_steps=1).fit(task(), module(folder, frames=2))
    with pytest.raises(ValueError, match="size of video is 64, the model takes 32"):
        trainer(max_steps=1).fit(task(), module(folder, size=64))
    one = task(classes=["a", "b"])
    (folder / "no.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"video 1 .*no\.mp4"):
        one.predict([np.zeros((4, 32, 32, 3), np.uint8), folder / "no.mp4"])


def test_kinetics_layouts(tmp_path, folder):
    source = tmp_path / "source"
    shutil.copytree(folder / "source", source)
    (source / "annotations").mkdir()
    (source / "val.csv").rename(source / "annotations/validate.csv")
    for file in list((source / "train").glob("*.mp4"))[::2]:  # in folders of labels, some by their bare name
        (source / "train/some label").mkdir(exist_ok=True)
        file.rename(source / "train/some label" / f"{file.stem.removesuffix('_000000_000001')}.mp4")
    next((source / "val").glob("*.mp4")).unlink()
    kinetics.main(["--root", str(source), "--out", str(tmp_path / "out")])
    train, val = (read_manifest(tmp_path / "out" / split / "video-label") for split in ("train", "val"))
    assert (train.samples, val.samples) == (48, 11)
    assert train.about["classes"] == sorted(videos.LABELS)
    assert val.about["missing"] == 1
    (source / "train.csv").write_text("label,youtube_id,time_start,time_end\nrun,abc,zero,1\n")
    with pytest.raises(SystemExit, match=r"train.csv, line 2: times are 'zero'"):
        kinetics.main(["--root", str(source), "--out", str(tmp_path / "other")])
