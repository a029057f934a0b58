"""Tasks over several modalities, and what Lightning's trainer does with any task."""

import inspect
import json

import pytest
import torch

from onepeace_lightning.data.datamodule import DataModule, StreamConfig
from onepeace_lightning.modalities import registry
from onepeace_lightning.modalities.image import ImageModality
from onepeace_lightning.modalities.presets import preset_config
from onepeace_lightning.tasks import (
    ClassificationTask,
    FinetuneTask,
    MultipleChoiceTask,
    Optimization,
    PretrainTask,
    QuestionAnsweringTask,
    RetrievalTask,
    ZeroShotClassificationTask,
)
from onepeace_lightning.tasks.base import TASKS
from tests.samples import COLOURS, PITCHES, as_json, asked_about, labelled_images, png, wav, write

FAST = Optimization(lr=3e-3, warmup_steps=0.1)


def clips(folder, answer="label", count=8):
    """Coloured images with tones; the class needs both, a question has two choices."""
    samples = []
    for i in range(count):
        colour, pitch = ("red", "blue")[i % 2], ("low", "high")[i // 2 % 2]
        same = "same" if (i % 2) == (i // 2 % 2) else "other"
        fields = {"png": png(colour, seed=i), "wav": wav(pitch, seed=i)}
        facts = (
            {"labels": [same]} if answer == "label" else {"choices": ["same", "other"], "answer": int(same != "same")}
        )
        samples.append({**fields, **({} if answer == "label" else {"txt": b"what is it?"}), "json": as_json(**facts)})
    about = {"classes": ["same", "other"]} if answer == "label" else {}
    return StreamConfig(str(write(folder, f"image-audio-{answer}", samples, **about)), 4)


def raw_clips(folder):
    (folder / "red.png").write_bytes(png("red", seed=50))
    (folder / "low.wav").write_bytes(wav("low", seed=50))
    return [folder / "red.png"], [folder / "low.wav"]


def test_images_and_sounds_are_classified_together(reading, trainer, tmp_path):
    stream = clips(tmp_path / "data")
    data = DataModule(stream, {"val": stream}, preprocessing=reading.preprocessing)
    task = ClassificationTask(reading, {"lr": 3e-3, "warmup_steps": 0.1}, modalities=["image", "audio"], num_classes=2)
    run = trainer(max_steps=180)
    run.fit(task, data)
    assert task.classes == ["same", "other"]
    assert run.validate(task, data, verbose=False)[0]["val/score"] == 100
    run.save_checkpoint(tmp_path / "task.ckpt")
    images, sounds = raw_clips(tmp_path)
    opened = ClassificationTask.load_from_checkpoint(tmp_path / "task.ckpt")
    [answer] = opened.predict(images, sounds)
    assert next(iter(answer)) == "same"
    assert opened.predict(audio=sounds, image=images) == [answer]
    with pytest.raises(ValueError, match="predicts from image, audio: give a list for each"):
        opened.predict(images)
    with pytest.raises(ValueError, match="is a checkpoint of ClassificationTask, not of RetrievalTask"):
        RetrievalTask.load_from_checkpoint(tmp_path / "task.ckpt")
    # the sound alone, from the same data, and what no longer fits
    alone = ClassificationTask(reading, FAST, modalities=["audio"])
    trainer(max_steps=1).fit(alone, data)
    assert list(alone.config.adapters) == ["audio"]
    with pytest.raises(ValueError, match=r"num_classes is 3; the data have 2: same, other"):
        trainer(max_steps=1).fit(ClassificationTask(reading, FAST, modalities=["audio"], num_classes=3), data)
    with pytest.raises(ValueError, match=r"train holds 'audio-image-label'|train holds 'image-audio-label'"):
        trainer(max_steps=1).fit(MultipleChoiceTask(reading, FAST, modalities=["audio"]), data)
    with pytest.raises(ValueError, match="there is no modality 'smell'"):
        ClassificationTask(reading, modalities=["smell"], num_classes=2)
    with pytest.raises(ValueError, match="give a list of at least one, none twice"):
        ClassificationTask(reading, modalities="audio", num_classes=2)


def test_questions_about_images_and_sounds_have_choices(reading, words, trainer, tmp_path):
    stream = clips(tmp_path / "data", "choices")
    data = DataModule(stream, {"val": stream}, tokenizer=words, preprocessing=reading.preprocessing)
    task = MultipleChoiceTask(reading, FAST, modalities=["image", "audio"])
    run = trainer(max_steps=2)
    run.fit(task, data)
    answers = [one for batch in run.predict(task, data) for one in batch]
    assert [one["key"] for one in answers] == [f"{i:03d}" for i in range(8)]
    assert set(answers[0]["prediction"]) == {"same", "other"}
    images, sounds = raw_clips(tmp_path)
    [answer] = task.predict(images, sounds, ["what is it?"], [["same", "other"]])
    assert list(answer.values()) == sorted(answer.values(), reverse=True)


def test_any_two_modalities_are_retrieved(reading, trainer, tmp_path):
    samples = [
        {"png": png(c, seed=i), "wav": wav(p, seed=i)} for i, (c, p) in enumerate(zip(COLOURS, PITCHES, strict=True))
    ]
    stream = StreamConfig(str(write(tmp_path / "pairs", "image-audio", samples)), 3)
    data = DataModule(stream, {"val": stream}, preprocessing=reading.preprocessing)
    task = RetrievalTask(reading, FAST, item="image", query="audio")
    run = trainer(max_steps=2)
    run.fit(task, data)
    [scores] = run.validate(task, data, verbose=False)
    both = [scores[f"val/{way}/R@1"] for way in ("image_to_audio", "audio_to_image")]
    assert scores["val/score"] == pytest.approx(sum(both) / 2)
    assert scores["val/chance/image_to_audio/R@1"] == pytest.approx(100 / 3)
    images, sounds = raw_clips(tmp_path)
    assert task.predict(images, sounds * 2).shape == (1, 2)
    [answers] = run.predict(task, data)
    assert answers[0]["prediction"]["image"].shape == answers[0]["prediction"]["audio"].shape == (24,)
    with pytest.raises(ValueError, match="none twice"):
        RetrievalTask(reading, item="text")


def test_every_kind_of_task_predicts_under_the_trainer(reading, words, trainer, tmp_path):
    labelled = {"val": StreamConfig(str(labelled_images(tmp_path / "labelled", 6)), 4)}
    asked = {"val": StreamConfig(str(asked_about(tmp_path / "asked", 4)), 4)}
    zero_shot = ZeroShotClassificationTask(reading, item="image")
    answers = trainer().predict(zero_shot, DataModule(None, labelled, preprocessing=reading.preprocessing))
    keys = [one["key"] for batch in answers for one in batch]
    assert sorted(keys) == [f"{i:03d}" for i in range(6)]
    assert set(answers[0][0]["prediction"]) == set(COLOURS)
    data = DataModule(None, None, asked, tokenizer=words, preprocessing=reading.preprocessing)
    task = QuestionAnsweringTask(reading, modalities=["image"], num_answers=3)
    [answers] = trainer().predict(task, data)
    assert set(answers[0]["prediction"]) == set(COLOURS)


def test_pretraining_predicts_embeddings_and_is_opened_from_its_checkpoint_alone(words, trainer, tmp_path):
    samples = [{"png": png(name, seed=i), "txt": f"a {name} square".encode()} for i, name in enumerate(COLOURS)]
    stream = StreamConfig(str(write(tmp_path / "pairs", "image-text", samples)), 3)
    sizes = {"image": {"size": 32}}
    data = DataModule({"image-text": stream}, {"image-text": stream}, tokenizer=words, preprocessing=sizes)
    task = PretrainTask(words, {"lr": 1e-3, "warmup_steps": 0}, data_types=["image-text"], preprocessing=sizes)
    run = trainer(max_steps=1)
    run.fit(task, data)
    assert "val/score" in run.callback_metrics
    [answers] = run.predict(task, data)
    assert answers[0]["prediction"]["image"].norm().item() == pytest.approx(1, abs=1e-4)
    run.save_checkpoint(tmp_path / "last.ckpt")
    opened = PretrainTask.load_from_checkpoint(tmp_path / "last.ckpt")
    [again] = trainer().predict(opened, data)
    torch.testing.assert_close(again[0]["prediction"], answers[0]["prediction"])


@pytest.mark.parametrize("kind", [*(TASKS[name] for name in sorted(TASKS) if "onepeace" in TASKS[name].__module__)])
def test_help_lists_every_argument(kind):
    parameters = inspect.signature(kind).parameters
    assert not [name for name, one in parameters.items() if one.kind is one.VAR_KEYWORD]
    assert {"backbone", "tokenizer", "preprocessing"} <= set(parameters)
    lacking = [name for name in parameters if f"\n    {name}: " not in inspect.getdoc(kind)]
    assert not lacking
    if not issubclass(kind, ZeroShotClassificationTask):
        assert set(inspect.signature(FinetuneTask).parameters) <= set(parameters)


def test_nothing_under_tasks_lists_modalities_for_a_new_one_to_be_added_to(reading, tmp_path, trainer, monkeypatch):
    """A modality that was registered a moment ago is classified."""
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))

    @registry.register
    class GlowModality(ImageModality):
        name = "glow"
        extensions = ("glow.png",)

    samples = [{"glow.png": png(name, seed=i), "json": as_json(labels=[name])} for i, name in enumerate(COLOURS)]
    stream = StreamConfig(str(write(tmp_path / "glow", "glow-label", samples, classes=list(COLOURS))), 3)
    sizes = {"glow": {"size": 32}}
    backbone = preset_config("tiny", modalities=["glow"], sizes={"glow": {"image_size": 32}})
    data = DataModule(stream, {"val": stream}, preprocessing=sizes)
    task = ClassificationTask(backbone, FAST, modalities=["glow"], preprocessing=sizes)
    trainer(max_steps=1).fit(task, data)
    (tmp_path / "a.glow.png").write_bytes(png("red"))
    assert set(task.predict([tmp_path / "a.glow.png"])[0]) == set(COLOURS)
    assert json.loads(json.dumps(task.settings()))["modalities"] == ["glow"]
