"""Zero-shot classification."""

import json

import pytest
import torch
from torch.nn import functional as F

from onepeace_lightning import OnePeace
from onepeace_lightning.data.datamodule import DataModule, StreamConfig
from onepeace_lightning.models import Backbone
from onepeace_lightning.tasks import ZeroShotClassificationTask
from tests.samples import COLOURS, PITCHES, labelled_images, labelled_sounds, png, wav

PROMPTS = ["a {label} square", "{label}"]


def test_accuracy_is_that_of_the_nearest_prompt_mean(reading, trainer, tmp_path):
    val = {"val": StreamConfig(str(labelled_images(tmp_path / "val", 9)), 4)}
    task = ZeroShotClassificationTask(reading, prompts=PROMPTS, item="image")
    data = DataModule(None, val, preprocessing=reading.preprocessing)
    [scores] = trainer().validate(task, data, verbose=False)
    vectors = torch.stack(
        [F.normalize(reading.embed(text=[f"a {name} square", name]).mean(0), dim=0) for name in COLOURS]
    )
    files = []
    for i in range(9):
        files.append(tmp_path / f"{i}.png")
        files[-1].write_bytes(png(list(COLOURS)[i % 3], seed=i))
    cosines = reading.embed(image=files) @ vectors.T
    right = cosines.argmax(1) == torch.arange(9) % 3
    assert scores["val/accuracy"] == pytest.approx(100 * right.float().mean().item())
    assert "prompts: a {label} square | {label}" in task.score_context
    answers = task.predict(files, top=3, batch_size=4)
    for answer, row in zip(answers, cosines, strict=True):
        assert [answer[name] for name in COLOURS] == pytest.approx(row.tolist(), abs=1e-5)


def test_names_may_be_said_in_several_ways(reading, trainer, tmp_path):
    names = {"low": ["low", "deep"], "middle": "middle", "high": ["high"]}
    (tmp_path / "names.json").write_text(json.dumps(names))
    task = ZeroShotClassificationTask(reading, classes=list(PITCHES), names=str(tmp_path / "names.json"), item="audio")
    task.configure_model()
    said = [f"This is a sound of {name}" for name in ("low", "deep")]
    expected = F.normalize(reading.embed(text=said).mean(0), dim=0)
    torch.testing.assert_close(task.embed_classes()[0], expected)
    val = {"val": StreamConfig(str(labelled_sounds(tmp_path / "val")), 4)}
    data = DataModule(None, val, preprocessing=reading.preprocessing)
    assert 0 <= trainer().validate(task, data, verbose=False)[0]["val/accuracy"] <= 100
    (tmp_path / "a.wav").write_bytes(wav("low"))
    assert len(task.predict([tmp_path / "a.wav"])[0]) == 3


def test_what_cannot_answer_is_refused(reading, trainer, tmp_path):
    with pytest.raises(ValueError, match="no trained contrastive heads"):
        ZeroShotClassificationTask(
            OnePeace(Backbone(reading.config), tokenizer=reading.tokenizer), classes=["a"], item="image"
        )
    with pytest.raises(ValueError, match="do not say where"):
        ZeroShotClassificationTask(reading, classes=["a"], prompts=["a photo"], item="image")
    task = ZeroShotClassificationTask(reading, classes=["red", "blue"], names={"red": ["red"]}, item="image")
    with pytest.raises(ValueError, match=r"says nothing of \['blue'\]"):
        task.predict([torch.rand(3, 20, 20)])
    train = StreamConfig(str(labelled_images(tmp_path / "train")), 4)
    data = DataModule(train, {"val": train}, preprocessing=reading.preprocessing)
    with pytest.raises(RuntimeError, match="nothing to train"):
        trainer(limit_val_batches=0, num_sanity_val_steps=0).fit(
            ZeroShotClassificationTask(reading, item="image"), data
        )
