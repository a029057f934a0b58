"""Image and audio classification, and what all downstream tasks share."""

from pathlib import Path

import pytest
import torch
from torch import nn

from onepeace_lightning import OnePeace
from onepeace_lightning.cli import main
from onepeace_lightning.data.datamodule import DataModule, StreamConfig
from onepeace_lightning.data.readers.labels import LabelAugmentation
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.models.encoder import Encoder
from onepeace_lightning.tasks import ClassificationTask, Lora, load_task
from onepeace_lightning.training.optimizer import Optimization
from tests.samples import COLOURS, as_json, labelled_images, labelled_sounds, png, wav, write
from tests.tiny import IMAGE_SIZE, randomised, tiny_config, tiny_model

SIZES = Preprocessing(
    {"image": {"size": IMAGE_SIZE, "crop_scale": (1.0, 1.0)}, "audio": {"min_seconds": 0.2, "max_seconds": 1.0}}
)


IMAGES = {"modalities": ["image"], "pooling": "mean", "per_block_tables": False}
"""The published classifier of images."""


def image_data(folder: Path, **options) -> DataModule:
    return DataModule(
        StreamConfig(str(labelled_images(folder / "train")), 6),
        {"val": StreamConfig(str(labelled_images(folder / "val", 6, first=100)), 4)},
        preprocessing=SIZES,
        **options,
    )


FAST = Optimization(lr=3e-3, warmup_steps=0.1)


def test_a_head_learns_and_is_opened_from_its_checkpoint_alone(trainer, tmp_path):
    data = image_data(tmp_path)
    task = ClassificationTask(OnePeace(tiny_model()), FAST, **IMAGES)
    run = trainer()
    run.fit(task, data)
    [scores] = run.validate(task, data, verbose=False)
    assert scores["val/accuracy"] == scores["val/score"] == 100.0
    run.save_checkpoint(tmp_path / "task.ckpt")

    files = []
    for name in COLOURS:
        (tmp_path / f"{name}.png").write_bytes(png(name, seed=7))
        files.append(tmp_path / f"{name}.png")
    opened = load_task(tmp_path / "task.ckpt")
    answers = opened.predict(files)
    assert [next(iter(answer)) for answer in answers] == list(COLOURS)
    assert sum(answers[0].values()) == pytest.approx(1)
    assert [list(answer) for answer in task.predict(files, batch_size=2)] == [list(answer) for answer in answers]
    # the backbone is also a model of its own
    encoded = OnePeace.from_pretrained(tmp_path / "task.ckpt").encode(image=files)["image"][0]
    torch.testing.assert_close(encoded, task.backbone.encode(image=files)["image"][0])


def test_only_the_needed_modality_is_kept_with_its_weights_and_a_table_for_each_block():
    model = tiny_model()
    task = ClassificationTask(OnePeace(model), num_classes=3, modalities=["audio"])
    task.configure_model()
    names = [name for name, _ in task.model.named_parameters()]
    assert not any("text" in name or "image" in name for name in names)
    ours, theirs = task.model.backbone.state_dict(), model.backbone.state_dict()
    for block in range(model.config.encoder.depth):
        key = f"adapters.audio.bias_tables.{block}"
        assert torch.equal(ours[key], theirs["adapters.audio.bias_tables.0"])
    assert torch.equal(
        ours["encoder.blocks.1.attention.query.weight"], theirs["encoder.blocks.1.attention.query.weight"]
    )


def test_the_attention_is_the_chosen_one():
    task = ClassificationTask(
        "tiny",
        classes=["a", "b"],
        preprocessing={"image": {"size": 32}},
        attention="flex",
        modalities=["image"],
        pooling="mean",
        per_block_tables=False,
    )
    task.configure_model()
    assert {module.attention for module in task.model.modules() if isinstance(module, Encoder)} == {"flex"}


def test_pictures_of_another_side_are_taken_after_resizing():
    task = ClassificationTask(
        OnePeace(tiny_model()),
        num_classes=3,
        preprocessing={"image": {"size": 2 * IMAGE_SIZE}},
        modalities=["image"],
        pooling="mean",
        per_block_tables=False,
    )
    [answer] = task.predict([torch.rand(3, 50, 60)], top=2)
    assert len(answer) == 2
    assert task.backbone.config.adapters["image"].image_size == 2 * IMAGE_SIZE


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"trainable": "head"}, ()),
        ({"trainable": ["image"]}, ("adapters.image.", "ffns.image.", "norms.image.")),
        ({"lora": Lora(rank=2, targets=("query", "gate"))}, ("query.lora_", "gate.lora_")),
    ],
)
def test_what_is_frozen_stays_bit_for_bit(trainer, tmp_path, options, expected):
    data = image_data(tmp_path)
    task = ClassificationTask(OnePeace(tiny_model()), FAST, **options, **IMAGES)
    task.classes = list(COLOURS)
    task.configure_model()
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    trainer(max_steps=3).fit(task, data)
    changed = {name for name, p in task.model.named_parameters() if not torch.equal(p, before[name])}
    in_backbone = {name for name in changed if name.startswith("backbone.")}
    assert all(any(part in name for part in expected) for name in in_backbone)
    assert bool(in_backbone) == bool(expected)
    assert any(name.startswith("head.") for name in changed)


def test_low_rank_updates_are_merged_where_the_backbone_is_handed_on(trainer, tmp_path):
    task = ClassificationTask(
        OnePeace(tiny_model()),
        lora=Lora(rank=2, targets=("query", "value", "down")),
        num_classes=3,
        modalities=["image"],
        pooling="mean",
        per_block_tables=False,
    )
    task.configure_model()
    for name, parameter in task.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    picture = [torch.rand(3, 50, 60)]
    with task.answering() as model:
        inputs = {"image": task.read("image", picture, 0)}
        expected = model.backbone(inputs)["image"].values_TD
    merged = task.backbone
    assert not any("lora" in name for name in merged.model.state_dict())
    torch.testing.assert_close(merged.encode(image=picture)["image"][0][0], expected, atol=1e-5, rtol=1e-5)
    again = ClassificationTask(merged, num_classes=2, **IMAGES)
    assert len(again.predict(picture)[0]) == 2

    run = trainer(max_steps=0)
    run.strategy.connect(task)
    run.save_checkpoint(tmp_path / "lora.ckpt")
    assert load_task(tmp_path / "lora.ckpt").predict(picture) == task.predict(picture)
    with pytest.raises(ValueError, match=r"low-rank updates.*load_task"):
        OnePeace.from_pretrained(tmp_path / "lora.ckpt")


def test_sounds_with_several_labels(trainer, tmp_path):
    pairs = [["low", "high"], ["middle"], ["low"], ["high", "middle"]] * 2
    samples = [{"wav": wav(p[0], seed=i), "json": as_json(labels=p)} for i, p in enumerate(pairs)]
    folder = write(tmp_path / "train", "audio-label", samples, classes=["low", "middle", "high"])
    stream = StreamConfig(str(folder), 4)
    data = DataModule(stream, {"val": stream}, preprocessing=SIZES)
    task = ClassificationTask(OnePeace(tiny_model()), FAST, multi_label=True, modalities=["audio"])
    run = trainer(max_steps=120)
    run.fit(task, data)
    [scores] = run.validate(task, data, verbose=False)
    assert scores["val/mAP"] > 90
    (tmp_path / "a.wav").write_bytes(wav("low", seed=0))
    answer = task.predict([tmp_path / "a.wav"])[0]
    assert set(answer) == {"low", "middle", "high"}
    single = ClassificationTask(OnePeace(tiny_model()), FAST, modalities=["audio"])
    with pytest.raises(ValueError, match=r"labels \['low', 'high'\].*multi_label"):
        trainer(max_steps=1).fit(single, data)


def test_augmented_and_mixed_training_pictures(trainer, tmp_path):
    # RandAugment is left out: it turns colours, which are the classes here, into one another
    augmentation = LabelAugmentation(crop_scale=(0.5, 1.0), erase=0.5)
    data = image_data(tmp_path, augmentation=augmentation)
    task = ClassificationTask(
        OnePeace(tiny_model()),
        FAST,
        mixup=0.8,
        cutmix=1.0,
        label_smoothing=0.1,
        modalities=["image"],
        pooling="mean",
        per_block_tables=False,
    )
    run = trainer(max_steps=150)
    run.fit(task, data)
    assert run.validate(task, data, verbose=False)[0]["val/accuracy"] == 100.0


def test_augmentation_is_a_function_of_its_generator_and_leaves_the_global_ones_alone():
    import random

    import numpy as np
    from PIL import Image

    augmentation = LabelAugmentation(rand_augment="rand-m9-n3-mstd0.5", erase=1.0)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 50, 3), dtype=np.uint8))
    states = (random.getstate(), torch.random.get_rng_state())
    first, again, other = (np.asarray(augmentation(picture, 48, np.random.default_rng(seed))) for seed in (1, 1, 2))
    assert first.shape == (48, 48, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert states[0] == random.getstate()
    assert torch.equal(states[1], torch.random.get_rng_state())


def test_epochs_say_how_long_the_schedule_is(trainer, tmp_path):
    data = image_data(tmp_path)
    task = ClassificationTask(
        OnePeace(tiny_model()),
        Optimization(lr=1e-3, warmup_steps=0.5, min_lr=1e-6),
        modalities=["image"],
        pooling="mean",
        per_block_tables=False,
    )
    run = trainer(max_steps=-1, max_epochs=2)
    run.fit(task, data)
    assert run.global_step == 4
    assert max(group["lr"] for group in run.optimizers[0].param_groups) == pytest.approx(1e-6)


def test_what_does_not_fit_is_refused(trainer, tmp_path):
    model = OnePeace(tiny_model())
    with pytest.raises(ValueError, match="has no audio; it has text, image"):
        ClassificationTask(
            OnePeace(
                randomised(
                    type(model.model)(
                        tiny_config(adapters={k: v for k, v in tiny_config().adapters.items() if k != "audio"})
                    )
                )
            ),
            num_classes=2,
            modalities=["audio"],
        )
    with pytest.raises(ValueError, match="trainable is"):
        ClassificationTask(model, num_classes=2, trainable=["audio"], **IMAGES)
    with pytest.raises(ValueError, match="classes"):
        ClassificationTask(model, classes=["a", "a"], **IMAGES)
    data = image_data(tmp_path)
    with pytest.raises(ValueError, match=r"classes .*are not the task's"):
        trainer(max_steps=1).fit(
            ClassificationTask(model, classes=["cat"], **IMAGES),
            data,
        )
    other = ClassificationTask(
        model,
        num_classes=3,
        preprocessing={"image": {"size": 2 * IMAGE_SIZE}},
        modalities=["image"],
        pooling="mean",
        per_block_tables=False,
    )
    with pytest.raises(ValueError, match=f"size of image is {IMAGE_SIZE}, the model takes {2 * IMAGE_SIZE}"):
        trainer(max_steps=1).fit(other, data)
    (tmp_path / "no.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"image 1 .*no\.png"):
        ClassificationTask(model, num_classes=3, **IMAGES).predict([torch.rand(3, 8, 8), tmp_path / "no.png"])
    samples = [{"png": png("red"), "json": as_json(labels=["mauve"])}] * 1
    folder = write(tmp_path / "odd", "image-label", samples, classes=list(COLOURS))
    stream = StreamConfig(str(folder), 1)
    odd = DataModule(stream, {"val": stream}, preprocessing=SIZES)
    with pytest.raises(ValueError, match="class 'mauve' is none of the 3"):
        trainer(max_steps=1).fit(ClassificationTask(model, **IMAGES), odd)


def test_a_checkpoint_of_another_task_is_refused(trainer, tmp_path):
    task = ClassificationTask(OnePeace(tiny_model()), FAST, **IMAGES)
    run = trainer(max_steps=1)
    run.fit(task, image_data(tmp_path))
    run.save_checkpoint(tmp_path / "image.ckpt")
    sounds = StreamConfig(str(labelled_sounds(tmp_path / "sounds")), 4)
    data = DataModule(sounds, {"val": sounds}, preprocessing=SIZES)
    with pytest.raises(ValueError, match=r"modalities is \['image'\], configured \['audio'\]"):
        trainer().fit(
            ClassificationTask(OnePeace(tiny_model()), modalities=["audio"]), data, ckpt_path=tmp_path / "image.ckpt"
        )


def test_from_the_command_line_with_epochs_and_from_scratch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labelled_sounds(tmp_path / "train")
    main([
        "fit", "--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.max_epochs=1",
        "--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
        "--model=ClassificationTask", "--model.modalities=[audio]", "--model.backbone=tiny", "--model.drop_path=0.1",
        "--model.optimization.lr=1e-3",
        "--data=DataModule",
        "--data.train={path: train, batch_size: 6}", "--data.val={val: {path: train, batch_size: 4}}",
        "--data.preprocessing={audio: {min_seconds: 0.2, max_seconds: 1.0}}",
    ])  # fmt: skip
    checkpoint = tmp_path / "runs/run/checkpoints/last.ckpt"
    assert load_task(checkpoint).classes == ["low", "middle", "high"]
