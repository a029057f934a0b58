"""Semantic segmentation: data, training, answers at any size."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image as Pillow

from onepeace_lightning import OnePeace
from onepeace_lightning.cli import main
from onepeace_lightning.data.datamodule import DataModule, StreamConfig
from onepeace_lightning.data.readers.masks import MaskAugmentation, MaskReader
from onepeace_lightning.modalities.depth import DepthConfig
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.models.vision.segmentation import class_scores
from onepeace_lightning.tasks import SemanticSegmentationTask, load_task
from onepeace_lightning.training.optimizer import Optimization
from tests.samples import COLOURS, SCENES, segmented, with_mask, write
from tests.tiny import IMAGE_SIZE, tiny_config, tiny_model

FAST = Optimization(lr=3e-3, warmup_steps=0.1)
PLAIN = MaskAugmentation((1.0, 1.0), 0.0, 0.0)
SIZES = {"queries": 6, "decoder_layers": 2, "decoder_width": 32, "decoder_heads": 4, "decoder_inner": 64}
SMALL = {"head": "light", **SIZES}
PUBLISHED = {"pixel_layers": 1, "adapter_channels": 8, **SIZES}


def module(train, val, **options) -> DataModule:
    return DataModule(
        StreamConfig(str(train), 4), {"val": StreamConfig(str(val), 3)},
        preprocessing=Preprocessing({"image": {"size": IMAGE_SIZE}}), **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    top = tmp_path_factory.mktemp("segmented")
    return segmented(top / "train"), segmented(top / "val", 6, first=100)


@pytest.fixture
def data(folders) -> DataModule:
    return module(*folders, augmentation=MaskAugmentation((0.8, 1.2), 0.5, 0.0))


def test_classes_are_learned_and_given_at_each_image_s_own_size(trainer, tmp_path, data):
    task = SemanticSegmentationTask(OnePeace(tiny_model()), FAST, **SMALL)
    run = trainer(max_steps=120)
    run.fit(task, data)
    [scores] = run.validate(task, data, verbose=False)
    assert scores["val/mIoU"] == scores["val/score"]
    assert scores["val/mIoU"] > 60
    assert 90 < scores["val/pixel_accuracy"] <= 100
    assert any("windows of 48 pixels" in line for line in task.score_context)
    run.save_checkpoint(tmp_path / "task.ckpt")

    sample = with_mask((14, 10, 36, 34), "blue", (60, 40), seed=7)
    (tmp_path / "a.png").write_bytes(sample["png"])
    images = [tmp_path / "a.png", Pillow.new("RGB", (30, 90), "grey")]
    answers = task.predict(images)
    assert [tuple(answer.shape) for answer in answers] == [(40, 60), (90, 30)]
    assert answers[0].dtype == torch.int64
    truth = np.asarray(Pillow.open(io.BytesIO(sample["mask.png"])))
    assert (answers[0].numpy() == truth)[1:].mean() > 0.9
    opened = load_task(tmp_path / "task.ckpt")
    assert opened.classes == ["ground", "red", "green", "blue"]
    for answer, again in zip(answers, opened.predict(images, batch_size=1), strict=True):
        assert torch.equal(answer, again)


def test_the_published_head_learns_and_opens_again(trainer, tmp_path, folders):
    tiny = replace(tiny_config(), encoder=replace(tiny_config().encoder, depth=4))
    data = DataModule(
        StreamConfig(str(folders[0]), 4), {"val": StreamConfig(str(folders[1]), 3)},
        preprocessing={"image": {"size": 64}}, augmentation=PLAIN,
    )  # fmt: skip
    task = SemanticSegmentationTask(tiny, FAST, preprocessing={"image": {"size": 64}}, **PUBLISHED)
    run = trainer(max_steps=60)
    run.fit(task, data)
    [scores] = run.validate(task, data, verbose=False)
    assert scores["val/mIoU"] > 35
    assert any("windows of 64 pixels, 37 apart" in line for line in task.score_context)
    run.save_checkpoint(tmp_path / "task.ckpt")
    opened = load_task(tmp_path / "task.ckpt")
    assert opened.head == "published"
    image = Pillow.new("RGB", (70, 40), "grey")
    assert torch.equal(opened.predict([image])[0], task.predict([image])[0])


def test_scores_are_of_all_pixels_together_and_at_several_scales(trainer, folders, data):
    task = SemanticSegmentationTask(OnePeace(tiny_model()), scales=(0.75, 1.0, 1.5), flip=True, windows=2, **SMALL)
    run = trainer()
    [scores] = run.validate(task, data, verbose=False)
    assert any("48 × 0.75, 1, 1.5, also mirrored" in line for line in task.score_context)
    counts = torch.zeros(4, 4)
    for batch in data.val_dataloader()["val"]:
        for pixels, truth in zip(batch.targets["pixels"], batch.targets["classes"], strict=True):
            [answer] = task.predict([torch.from_numpy(pixels)])
            known = truth != 255
            for a, b in zip(truth[known], answer.numpy()[known], strict=True):
                counts[a, b] += 1
    either = counts.sum(0) + counts.sum(1) - counts.diag()
    expected = 100 * (counts.diag() / either)[either > 0].mean()
    assert scores["val/mIoU"] == pytest.approx(float(expected), abs=1e-3)
    assert scores["val/pixel_accuracy"] == pytest.approx(float(100 * counts.diag().sum() / counts.sum()), abs=1e-3)


def test_a_head_alone_may_train(trainer, data):
    task = SemanticSegmentationTask(OnePeace(tiny_model()), FAST, trainable="head", points=200, **SMALL)
    task.classes = data.names("classes")
    task.configure_model()
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    trainer(max_steps=2).fit(task, data)
    changed = {name for name, p in task.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(name.startswith("head.") for name in changed)
    assert {"train/loss_class", "train/loss_mask", "train/loss_dice"} <= set(task.trainer.logged_metrics)


def test_image_truth_and_answer_are_drawn_side_by_side(data):
    task = SemanticSegmentationTask(OnePeace(tiny_model()), classes=data.names("classes"), **SMALL)
    data.setup("validate")
    batch = next(iter(data.val_dataloader()["val"]))
    truth = torch.from_numpy(batch.targets["classes"][0].astype(np.int64))
    right = task.draw(batch, {"classes": [truth]}, 0)
    assert right.right
    assert "mean IoU 1.00" in right.answered
    assert "red" in right.answered
    image, shown, answered = right.images
    assert image.size == shown.size == answered.size == (240, 160)
    assert np.array_equal(shown, answered)
    assert shown.getpixel((40, 60)) != shown.getpixel((200, 60))
    assert shown.getpixel((40, 0)) == (0, 0, 0)
    wrong = task.draw(batch, {"classes": [torch.full_like(truth, 3)]}, 0)
    assert not wrong.right


def as_png(array: np.ndarray, mode: str | None = None) -> bytes:
    file = io.BytesIO()
    image = Pillow.fromarray(array)
    (image if mode is None else image.convert(mode)).save(file, "PNG")
    return file.getvalue()


def test_augmentation_keeps_mask_and_image_together():
    """The image's colour is its class, so that whatever is done to one must have been done to the other."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, (6, 9)).repeat(10, 0).repeat(10, 1).astype(np.uint8)
    image = torch.from_numpy(np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)[classes]).movedim(-1, 0)
    augmentation = MaskAugmentation((0.5, 2.0), 0.5, 0.0)
    filled = 0
    for seed in range(20):
        pixels, mask = augmentation(image, classes, 48, np.random.default_rng(seed))
        assert (pixels.shape, mask.shape) == ((3, 48, 48), (48, 48))
        assert pixels.dtype == mask.dtype == torch.uint8
        assert type(pixels) is type(mask) is torch.Tensor
        known = mask != 255
        # pixels at borders of classes mix them
        assert (pixels.argmax(0) == mask)[known].float().mean() > 0.93
        filled += int((~known).sum())
        again = augmentation(image, classes, 48, np.random.default_rng(seed))
        assert torch.equal(pixels, again[0])
        assert torch.equal(mask, again[1])
    assert filled > 0


def test_augmentation_turns_scales_and_colours_about():
    ramp = np.linspace(0, 200, 96).astype(np.uint8)
    image = torch.from_numpy(np.repeat(np.repeat(ramp[None, :, None], 96, 0), 3, 2)).movedim(-1, 0)
    classes = np.zeros((96, 96), np.uint8)
    mirrored = MaskAugmentation((1.0, 1.0), 1.0, 0.0)(image, classes, 96, np.random.default_rng(0))[0]
    assert torch.equal(mirrored.flip(-1), image)
    distorted = MaskAugmentation((1.0, 1.0), 0.0, 1.0)(image, classes, 96, np.random.default_rng(0))[0]
    assert not torch.equal(distorted, mirrored.flip(-1))
    large = MaskAugmentation((3.0, 3.0), 0.0, 0.0)(image, classes, 96, np.random.default_rng(0))[0]
    assert int(large[0, 0, -1]) - int(large[0, 0, 0]) < 90  # a third of the image
    with pytest.raises(ValueError, match=r"scale is \(2.0, 1.0\)"):
        MaskAugmentation((2.0, 1.0))


GOOD = with_mask((4, 6, 26, 28), "red", (60, 40))
CLASSES = ["ground", "red", "green", "blue"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mask.png": as_png(np.zeros((40, 59), np.uint8))}, "mask has 59×40 pixels, its image 60×40"),
        ({"mask.png": as_png(np.full((40, 60), 4, np.uint8))}, "mask holds 4; there are 4 classes, 0 to 3"),
        ({"mask.png": as_png(np.zeros((40, 60), np.uint8), "P")}, "mode is 'P'; give a grey image of 8 bits"),
        ({"mask.png": as_png(np.zeros((40, 60), np.uint16))}, "mode is 'I"),
        ({"mask.png": b"no image"}, "cannot decode the mask"),
        ({"mask.png": GOOD["mask.png"][:-40]}, "cannot decode the mask"),
        ({"png": b"no image"}, "cannot decode the image"),
    ],
)
def test_samples_that_are_wrong_are_named(trainer, tmp_path, changes, said):
    folder = write(tmp_path / "odd", "image-mask", [GOOD, {**GOOD, **changes}], classes=CLASSES)
    task = SemanticSegmentationTask(OnePeace(tiny_model()), **SMALL)
    with pytest.raises(ValueError, match=rf"sample '001': .*{said}"):
        trainer().validate(task, module(folder, folder), verbose=False)


def test_an_image_without_any_labelled_pixel_is_no_trouble(trainer, tmp_path):
    blank = {**GOOD, "mask.png": as_png(np.full((40, 60), 255, np.uint8))}
    folder = write(tmp_path / "some", "image-mask", [blank, GOOD, blank], classes=CLASSES)
    only = write(tmp_path / "none", "image-mask", [blank] * 2, classes=CLASSES)
    task = SemanticSegmentationTask(OnePeace(tiny_model()), FAST, **SMALL)
    run = trainer(max_steps=2)
    run.fit(task, module(only, folder, augmentation=PLAIN))
    assert run.logged_metrics["train/loss_mask"] == run.logged_metrics["train/loss_dice"] == 0
    assert run.logged_metrics["train/loss"] > 0  # no query should see anything
    [scores] = run.validate(task, module(folder, folder), verbose=False)
    assert 0 <= scores["val/mIoU"] <= 100
    data = module(folder, folder)
    data.setup("validate")
    batch = next(iter(data.val_dataloader()["val"]))
    assert task.draw(batch, {"classes": [torch.zeros(40, 60, dtype=torch.int64)]}, 0).right is True


def test_settings_and_data_that_do_not_fit_are_refused(trainer, tmp_path, folders):
    model = OnePeace(tiny_model())
    with pytest.raises(ValueError, match=r"scales \(0.0,\)"):
        SemanticSegmentationTask(model, scales=(0.0,))
    with pytest.raises(ValueError, match="queries is 0"):
        SemanticSegmentationTask(model, queries=0)
    unnamed = write(tmp_path / "unnamed", "image-mask", [GOOD])
    with pytest.raises(ValueError, match=r"list 0 classes.*about\.classes"):
        trainer().validate(
            SemanticSegmentationTask(model, classes=CLASSES, **SMALL), module(unnamed, unnamed), verbose=False
        )
    with pytest.raises(ValueError, match="are not the task's"):
        trainer().validate(SemanticSegmentationTask(model, classes=["a"], **SMALL), module(*folders), verbose=False)
    task = SemanticSegmentationTask(model, classes=CLASSES, **SMALL)
    (tmp_path / "no.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"image 1 .*no\.png"):
        task.predict([torch.rand(3, 8, 8), tmp_path / "no.png"])


DEPTH = {"size": 64, "high": 5.0}


def measured(index: int) -> dict[str, bytes]:
    """A depth map of a wall and of one nearer box, whose distance says its class, and the mask."""
    names = list(COLOURS)
    fields = with_mask(((4, 6, 26, 28), (14, 10, 36, 34))[index % 2], names[index % 3], SCENES[index % 3])
    classes = np.asarray(Pillow.open(io.BytesIO(fields["mask.png"])))
    millimetres = np.array([4000, 1000, 2000, 3000])[np.where(classes == 255, 0, classes)]
    noise = np.random.default_rng(index).integers(-100, 100, classes.shape)
    return {"depth.png": as_png((millimetres + noise).astype(np.uint16)), "mask.png": fields["mask.png"]}


def of_depth() -> OnePeace:
    tiny = tiny_config()
    sizes = {"encoder": replace(tiny.encoder, depth=4), "adapters": {"depth": DepthConfig(image_size=DEPTH["size"])}}
    return OnePeace(tiny_model(**sizes), preprocessing=Preprocessing({"depth": DEPTH}))


@pytest.fixture(scope="module")
def measurements(tmp_path_factory):
    top = tmp_path_factory.mktemp("measured")
    for name, first, count in (("train", 0, 9), ("val", 100, 6)):
        write(top / name, "depth-mask", [measured(first + i) for i in range(count)], classes=CLASSES)
    return top


def test_depth_maps_are_segmented_on_the_command_line(tmp_path, monkeypatch, measurements):
    monkeypatch.chdir(tmp_path)
    of_depth().save_pretrained("backbone")
    streams = {name: {"path": str(measurements / name), "batch_size": 4} for name in ("train", "val")}
    Path("depth.yaml").write_text(yaml.safe_dump({
        "trainer": {
            "max_steps": 60, "val_check_interval": 60, "accelerator": "cpu", "devices": 1, "precision": "32-true",
            "logger": False, "enable_progress_bar": False,
        },
        "model": {"class_path": "SemanticSegmentationTask", "init_args": {
            "modalities": ["depth"], "backbone": "backbone", "optimization": {"lr": 3e-3, "warmup_steps": 0.1}, **SMALL,
        }},
        "data": {"class_path": "DataModule", "init_args": {
            "preprocessing": {"depth": DEPTH}, "num_workers": 0, "train": streams["train"],
            "augmentation": {"scale": [0.8, 1.2]}, "val": {"val": streams["val"]},
        }},
    }))  # fmt: skip
    main(["fit", "--config", "depth.yaml", "--run", "depth"])
    scores = json.loads(Path("runs/depth/results.json").read_text())
    assert scores["mIoU"] > 25  # the ground everywhere would give 20
    assert "depth" in Path("runs/depth/report.html").read_text()
    main(["validate", "--config", "depth.yaml", "--run", "depth", "--ckpt_path", "last"])
    assert json.loads(Path("runs/depth/results.json").read_text()) == pytest.approx(scores, abs=0.01)
    Path("maps").mkdir()
    fields = measured(100)
    Path("maps/a.png").write_bytes(fields["depth.png"])
    main(["predict", "runs/depth/checkpoints/last.ckpt", "maps", "--out", "answers.jsonl"])
    [written] = Path("answers").glob("*.png")
    answer, truth = (np.asarray(Pillow.open(file)) for file in (written, io.BytesIO(fields["mask.png"])))
    assert answer.shape == truth.shape
    assert set(np.unique(answer)) <= {0, 1, 2, 3}


def test_the_published_head_takes_depth_maps_and_its_answers_follow_them(trainer, tmp_path, measurements):
    task = SemanticSegmentationTask(of_depth(), FAST, modalities=["depth"], **PUBLISHED)
    streams = [StreamConfig(str(measurements / name), 3) for name in ("train", "val")]
    data = DataModule(streams[0], {"val": streams[1]}, preprocessing={"depth": DEPTH})
    run = trainer(max_steps=2)
    run.fit(task, data)
    run.validate(task, data, verbose=False)
    assert any(line.startswith("depth maps in their proportions") for line in task.score_context)
    assert task.model.adapter.spatial_prior.stem[0][0].weight.shape[1] == 1
    run.save_checkpoint(tmp_path / "task.ckpt")
    metres = np.full((40, 70), 2.0)
    near = np.where(np.arange(70) < 30, 1.0, metres)
    with task.answering() as model:  # scores, since after two steps one class may win everywhere
        one = task.input_modality
        scores = [class_scores(model(one.collate([one.read(item)]))[-1], 64) for item in (metres, near)]
    assert not torch.allclose(*scores, atol=1e-4)
    [answer] = load_task(tmp_path / "task.ckpt").predict([near])
    assert torch.equal(answer, task.predict(depth=[near])[0])


def test_a_raster_of_numbers_is_filled_with_its_mean_and_keeps_its_values():
    ramp = torch.linspace(-2, 2, 40).repeat(30, 1)[None]
    classes = np.ones((30, 40), np.uint8)
    pixels, mask = MaskAugmentation((0.5, 0.5), 0.0, 1.0)(ramp, classes, 48, np.random.default_rng(0))
    known = mask == 1
    assert pixels.dtype == torch.float32
    assert pixels[0][known].min() < -1.8
    assert pixels[0][known].max() > 1.8
    assert not pixels[0][~known].any()


@pytest.mark.parametrize("modalities", [["audio"], ["image", "depth"], ["video"]])
def test_what_is_no_raster_is_refused(modalities):
    with pytest.raises(ValueError, match="give one whose items are rasters"):
        SemanticSegmentationTask("tiny", modalities=modalities)


@pytest.mark.parametrize("kind", ["audio-mask", "image-depth-mask"])
def test_a_mask_of_anything_but_one_raster_is_refused(kind):
    with pytest.raises(ValueError, match=f"data type {kind}: a mask is of one raster"):
        MaskReader.of(kind, about={"classes": CLASSES})
