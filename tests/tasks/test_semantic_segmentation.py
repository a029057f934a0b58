"""Semantic segmentation: data, training, answers at any size."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from onepeace_lightning import OnePeace
from onepeace_lightning.data.datamodule import DataModule, StreamConfig
from onepeace_lightning.data.readers.masks import MaskAugmentation
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.tasks import SemanticSegmentationTask, load_task
from onepeace_lightning.training.optimizer import Optimization
from tests.samples import segmented, with_mask, write
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


def test_classes_are_learned_and_given_at_each_picture_s_own_size(trainer, tmp_path, data):
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
    pictures = [tmp_path / "a.png", Pillow.new("RGB", (30, 90), "grey")]
    answers = task.predict(pictures)
    assert [tuple(answer.shape) for answer in answers] == [(40, 60), (90, 30)]
    assert answers[0].dtype == torch.int64
    truth = np.asarray(Pillow.open(io.BytesIO(sample["mask.png"])))
    assert (answers[0].numpy() == truth)[1:].mean() > 0.9
    opened = load_task(tmp_path / "task.ckpt")
    assert opened.classes == ["ground", "red", "green", "blue"]
    for answer, again in zip(answers, opened.predict(pictures, batch_size=1), strict=True):
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
    picture = Pillow.new("RGB", (70, 40), "grey")
    assert torch.equal(opened.predict([picture])[0], task.predict([picture])[0])


def test_scores_are_of_all_pixels_together_and_at_several_scales(trainer, folders, data):
    task = SemanticSegmentationTask(OnePeace(tiny_model()), scales=(0.75, 1.0, 1.5), flip=True, windows=2, **SMALL)
    run = trainer()
    [scores] = run.validate(task, data, verbose=False)
    assert any("48 × 0.75, 1, 1.5, also mirrored" in line for line in task.score_context)
    counts = torch.zeros(4, 4)
    for batch in data.val_dataloader()["val"]:
        for pixels, truth in zip(batch.targets["pixels"], batch.targets["classes"], strict=True):
            [answer] = task.predict([pixels])
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


def test_picture_truth_and_answer_are_drawn_side_by_side(data):
    task = SemanticSegmentationTask(OnePeace(tiny_model()), classes=data.names("classes"), **SMALL)
    data.setup("validate")
    batch = next(iter(data.val_dataloader()["val"]))
    truth = torch.from_numpy(batch.targets["classes"][0].astype(np.int64))
    right = task.draw(batch, {"classes": [truth]}, 0)
    assert right.right
    assert "mean IoU 1.00" in right.answered
    assert "red" in right.answered
    picture, shown, answered = right.pictures
    assert picture.size == shown.size == answered.size == (240, 160)
    assert np.array_equal(shown, answered)
    assert shown.getpixel((40, 60)) != shown.getpixel((200, 60))
    assert shown.getpixel((40, 0)) == (0, 0, 0)
    wrong = task.draw(batch, {"classes": [torch.full_like(truth, 3)]}, 0)
    assert not wrong.right


def as_png(array: np.ndarray, mode: str | None = None) -> bytes:
    file = io.BytesIO()
    picture = Pillow.fromarray(array)
    (picture if mode is None else picture.convert(mode)).save(file, "PNG")
    return file.getvalue()


def test_augmentation_keeps_mask_and_picture_together():
    """The picture's colour is its class, so that whatever is done to one must have been done to the other."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, (6, 9)).repeat(10, 0).repeat(10, 1).astype(np.uint8)
    picture = Pillow.fromarray(np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)[classes])
    augmentation = MaskAugmentation((0.5, 2.0), 0.5, 0.0)
    filled = 0
    for seed in range(20):
        pixels, mask = augmentation(picture, classes, 48, np.random.default_rng(seed))
        assert (pixels.shape, mask.shape) == ((3, 48, 48), (48, 48))
        assert pixels.dtype == mask.dtype == torch.uint8
        assert type(pixels) is type(mask) is torch.Tensor
        known = mask != 255
        # pixels at borders of classes mix them
        assert (pixels.argmax(0) == mask)[known].float().mean() > 0.93
        filled += int((~known).sum())
        again = augmentation(picture, classes, 48, np.random.default_rng(seed))
        assert torch.equal(pixels, again[0])
        assert torch.equal(mask, again[1])
    assert filled > 0


def test_augmentation_turns_scales_and_colours_about():
    ramp = np.linspace(0, 200, 96).astype(np.uint8)
    picture = Pillow.fromarray(np.repeat(np.repeat(ramp[None, :, None], 96, 0), 3, 2))
    classes = np.zeros((96, 96), np.uint8)
    mirrored = MaskAugmentation((1.0, 1.0), 1.0, 0.0)(picture, classes, 96, np.random.default_rng(0))[0]
    assert torch.equal(mirrored.flip(-1), torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1))
    distorted = MaskAugmentation((1.0, 1.0), 0.0, 1.0)(picture, classes, 96, np.random.default_rng(0))[0]
    assert not torch.equal(distorted, mirrored.flip(-1))
    large = MaskAugmentation((3.0, 3.0), 0.0, 0.0)(picture, classes, 96, np.random.default_rng(0))[0]
    assert int(large[0, 0, -1]) - int(large[0, 0, 0]) < 90  # a third of the picture
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
        ({"mask.png": b"no picture"}, "cannot decode the mask"),
        ({"mask.png": GOOD["mask.png"][:-40]}, "cannot decode the mask"),
        ({"png": b"no picture"}, "cannot decode the image"),
    ],
)
def test_samples_that_are_wrong_are_named(trainer, tmp_path, changes, said):
    folder = write(tmp_path / "odd", "image-mask", [GOOD, {**GOOD, **changes}], classes=CLASSES)
    task = SemanticSegmentationTask(OnePeace(tiny_model()), **SMALL)
    with pytest.raises(ValueError, match=rf"sample '001': .*{said}"):
        trainer().validate(task, module(folder, folder), verbose=False)


def test_a_picture_without_any_labelled_pixel_is_no_trouble(trainer, tmp_path):
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
    (tmp_path / "no.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"image 1 .*no\.png"):
        task.predict([torch.rand(3, 8, 8), tmp_path / "no.png"])
