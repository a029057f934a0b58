"""Object detection: from a pretrained model and shards to boxes and masks of raw images, and its checkpoints."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from onepeace_lightning import OnePeace
from onepeace_lightning.data.datamodule import DataModule, StreamConfig
from onepeace_lightning.data.instances import ScaleJitter, decode_masks
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.tasks import ObjectDetectionTask, load_task
from onepeace_lightning.training.optimizer import Optimization
from onepeace_lightning.training.param_groups import parameter_groups
from tests.samples import COLOURS, detected, with_instances, write
from tests.tiny import IMAGE_SIZE, tiny_config, tiny_model

FAST = Optimization(lr=3e-3, min_lr=1e-5, warmup_steps=5, weight_decay=0.1)
SIDE = 2 * IMAGE_SIZE
PREPROCESSING = {"image": {"size": SIDE}}
SIZES = {"preprocessing": PREPROCESSING, "channels": 16, "hidden": 32, "regions": 32, "global_blocks": [2]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    top = tmp_path_factory.mktemp("detected")
    return detected(top / "train"), detected(top / "val", 6, first=100)


@pytest.fixture
def data(folders) -> DataModule:
    train, val = folders
    return DataModule(
        StreamConfig(str(train), 3), {"val": StreamConfig(str(val), 2)},
        preprocessing=Preprocessing({"image": {"size": SIDE}}), augmentation=ScaleJitter((0.9, 1.1), 0.5),
    )  # fmt: skip


@pytest.fixture
def task() -> ObjectDetectionTask:
    return ObjectDetectionTask(OnePeace(tiny_model()), FAST, **SIZES)


def test_things_are_found_and_the_checkpoint_answers_alike(trainer, tmp_path, data, task):
    run = trainer(max_steps=80)
    run.fit(task, data)
    [scores] = run.validate(task, data, verbose=False)
    assert scores["val/box_AP"] == scores["val/score"]
    assert scores["val/box_AP50"] > 10
    assert 0 <= scores["val/mask_AP"] <= 100
    assert any("longest side 96 pixels" in line for line in task.score_context)
    run.save_checkpoint(tmp_path / "task.ckpt")

    pixels = np.full((40, 60, 3), 128, np.uint8)
    pixels[4:26, 4:24] = COLOURS["red"]
    images = [pixels, Pillow.new("RGB", (30, 90), "grey")]
    answers = task.predict(images, threshold=0.0)
    for instances, (rows, columns) in zip(answers, ((40, 60), (90, 30)), strict=True):
        assert instances
        assert [one["score"] for one in instances] == sorted((one["score"] for one in instances), reverse=True)
        masks = decode_masks([one["mask"] for one in instances], (rows, columns))
        assert masks.shape[1:] == (rows, columns)
        for one in instances:
            x0, y0, x1, y1 = one["box"]
            assert 0 <= x0 < x1 <= columns
            assert 0 <= y0 < y1 <= rows
            assert one["label"] in COLOURS
            assert 0 <= one["mask_score"] <= one["score"]
    opened = load_task(tmp_path / "task.ckpt")
    assert opened.classes == list(COLOURS)
    for before, after in zip(answers, opened.predict(images, threshold=0.0, batch_size=1), strict=True):
        assert [one["label"] for one in before] == [one["label"] for one in after]
        np.testing.assert_allclose([o["box"] for o in before], [o["box"] for o in after], atol=1e-2)
    trainer(max_steps=1).fit(opened, data)


def test_the_gallery_draws_what_is_found_and_what_is_not(data, task, trainer):
    run = trainer(max_steps=6)
    run.fit(task, data)
    task.to("cpu").eval()
    for batch in data.val_dataloader()["val"]:
        with torch.no_grad():
            outputs = task(batch)
        for row in range(len(batch)):
            drawn = task.draw(batch, outputs, row)
            assert len(drawn.images) == 2
            assert drawn.answered
            assert drawn.expected == "nothing" or set(drawn.expected.split(", ")) <= set(COLOURS)
            assert isinstance(drawn.right, bool)


def test_the_trunk_starts_from_the_backbone_and_the_rest_anew(task):
    source = tiny_model()
    task.classes = list(COLOURS)
    task.configure_model()
    adapter = source.backbone.adapters["image"]
    trunk = task.model.backbone
    assert torch.equal(trunk.embedding.bias_table, adapter.bias_tables[0])
    assert trunk.embedding.positions.shape == (1 + 36, 24)
    assert torch.equal(trunk.embedding.positions[0], adapter.positions[0])
    first = source.backbone.encoder.blocks[0]
    assert torch.equal(trunk.blocks[0].attention.query.weight, first.attention.query.weight)
    assert torch.equal(trunk.blocks[0].ffns["image"].up.weight, first.ffns["image"].up.weight)
    assert [block.attention.side for block in trunk.blocks] == [3, 3, 6]
    assert not trunk.blocks[2].attention.rel_pos_h.any()


def test_layers_decay_as_published(task):
    task.classes = list(COLOURS)
    task.configure_model()
    groups = parameter_groups(task.model, lr=1.0, weight_decay=0.1, layer_decay=0.5)
    found = {id(parameter): (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    named = {name: found[id(parameter)] for name, parameter in task.model.named_parameters()}
    assert named["backbone.adapters.image.bias_table"] == (0.5**4, 0.1)
    assert named["backbone.adapters.image.positions"] == (0.5**4, 0.0)
    assert named["backbone.encoder.blocks.1.gamma_1"] == (0.5**2, 0.1)
    assert named["backbone.encoder.blocks.1.norm_ffn.weight"] == (0.5**2, 0.0)
    assert named["stages.2.classes.bias"] == (1.0, 0.1)


def test_a_detector_is_no_backbone(task):
    with pytest.raises(ValueError, match="is no backbone"):
        _ = task.backbone


def test_what_does_not_fit_is_refused(tmp_path, trainer, data):
    per_block = OnePeace(tiny_model(per_block_tables=True))
    task = ObjectDetectionTask(per_block, FAST, classes=["a"], **SIZES)
    with pytest.raises(ValueError, match="a table of relative positions for each block"):
        task.configure_model()
    task = ObjectDetectionTask(OnePeace(tiny_model()), FAST, classes=["a"], window=2, **SIZES)
    with pytest.raises(ValueError, match="window is 2; the relative positions of the given model are for 3"):
        task.configure_model()
    with pytest.raises(ValueError, match="it must be a multiple of the window of 3 patches, 48 pixels"):
        ObjectDetectionTask(
            tiny_config(), FAST, classes=["a"], **{**SIZES, "preprocessing": {"image": {"size": 64}}}, window=3
        ).build()
    with pytest.raises(ValueError, match="regions is 1"):
        ObjectDetectionTask(tiny_config(), FAST, **{**SIZES, "regions": 1})
    folder = write(tmp_path / "nameless", "image-boxes", [with_instances({}, (20, 20))])
    nameless = DataModule(StreamConfig(str(folder), 3), preprocessing=Preprocessing({"image": {"size": SIDE}}))
    with pytest.raises(ValueError, match="list no classes"):
        nameless.reader(StreamConfig(str(folder), 3), train=True)


def test_only_the_head_trains_where_that_is_asked_for(task):
    frozen = ObjectDetectionTask(OnePeace(tiny_model()), FAST, classes=["a"], trainable="head", **SIZES)
    frozen.configure_model()
    assert not any(parameter.requires_grad for parameter in frozen.model.backbone.parameters())
    assert all(parameter.requires_grad for parameter in frozen.model.pyramid.parameters())
    assert replace(frozen.head, classes=3) == replace(task.head, classes=3)
