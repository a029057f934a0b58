"""Shards of a folder of images and a folder of masks."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from onepeace_lightning.cli import main
from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.datamodule import DataModule, StreamConfig
from onepeace_lightning.data.manifest import read_manifest

HEIGHT, WIDTH = 20, 32


def classes_of(index: int, last: int = 2) -> np.ndarray:
    """The upper half is class 0, the lower one another; the right border has none."""
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[HEIGHT // 2 :] = 1 + index % last
    values[:, -2:] = 255
    return values


def write(folder, index, *, mode="L", sub="", **options):
    for part in ("photos", "masks"):
        (folder / part / sub).mkdir(parents=True, exist_ok=True)
    values = classes_of(index, **options)
    Image.fromarray(np.stack([values * 40 + index] * 3, -1)).save(folder / "photos" / sub / f"{index}.jpg")
    mask = Image.fromarray(values)
    if mode == "P":
        mask.putpalette([channel for entry in range(256) for channel in (entry, 255 - entry, 7)])
    mask.save(folder / "masks" / sub / f"{index}.png")
    assert Image.open(folder / "masks" / sub / f"{index}.png").mode == mode


def make(*words):
    main(["shards", "from-folder", "photos", "--masks", "masks", "--out", "data", *words])


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("mode", ["L", "P"])
def test_masks_go_with_their_images_into_training(here, mode, capsys):
    for index in range(12):
        write(here, index, mode=mode, sub="ab"[index % 2])
    (here / "names.txt").write_text("sky\nfield\nroad\n")
    make("--classes", "names.txt", "--split", "0.7,0.3")
    assert "samples of image-mask in 3 classes (sky, field, road)" in capsys.readouterr().out
    assert read_manifest(here / "data/val/image-mask").about["classes"] == ["sky", "field", "road"]
    streams = [StreamConfig(f"data/{split}/image-mask", 4) for split in ("train", "val")]
    data = DataModule(streams[0], {"val": streams[1]}, preprocessing={"image": {"size": 16}})
    data.setup("fit")
    seen = 0
    for batch in data.val_dataloader()["val"]:
        assert isinstance(batch, Batch)
        for row in range(len(batch)):
            index = int(re.search(r"(\d+)\.jpg", batch.named(row))[1])
            assert np.array_equal(batch.targets["classes"][row], classes_of(index))
            seen += 1
    assert seen > 0


def test_classes_without_names_are_numbers(here):
    for index in range(4):
        write(here, index, last=3)
    make()
    assert read_manifest(here / "data/train/image-mask").about["classes"] == ["0", "1", "2", "3"]


def odd(values: np.ndarray, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (None, r"3: there is no mask masks/3\.png"),
        (odd(np.zeros((HEIGHT, WIDTH + 1), np.uint8)), r"masks/3\.png: its mask has 33×20 pixels, its image 32×20"),
        (odd(np.full((HEIGHT, WIDTH), 9, np.uint8)), r"masks/3\.png: its mask holds 9; there are 3 classes, 0 to 2"),
        (odd(np.zeros((HEIGHT, WIDTH), np.uint8), "RGB"), "mode is 'RGB'; give a grey image of 8 bits"),
        (b"no image", r"masks/3\.png: cannot decode the mask"),
    ],
)
def test_a_mask_that_cannot_be_used_is_named_and_can_be_left_out(here, mask, said, capsys):
    for index in range(5):
        write(here, index)
    (here / "names.txt").write_text("sky\nfield\nroad")
    file = here / "masks/3.png"
    file.unlink() if mask is None else file.write_bytes(mask)
    with pytest.raises(SystemExit, match=said):
        make("--classes", "names.txt")
    assert not (here / "data").exists()
    make("--classes", "names.txt", "--skip-bad")
    assert "data/train/image-mask: 4 samples" in capsys.readouterr().out


def test_white_that_should_be_a_class_is_not_taken_for_none(here):
    for index in range(3):
        write(here, index)
        Image.fromarray(np.where(classes_of(index) > 0, 255, 0).astype(np.uint8)).save(here / f"masks/{index}.png")
    with pytest.raises(SystemExit, match="hold 0 and 255 alone, and 255 means no class: write the classes as 0, 1"):
        make()
    for index in range(3):
        Image.fromarray(classes_of(index) > 0).save(here / f"masks/{index}.png")  # black and white, of one bit
    make()
    assert read_manifest(here / "data/train/image-mask").about["classes"] == ["0", "1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--masks", "nowhere"], "there is no folder nowhere"),
        (["--masks", "photos"], "lies in photos, so that masks are samples too"),
        (["--masks", "masks", "--classes", "twice.txt"], r"twice\.txt has 2 lines, 'sky' twice"),
        (["--masks", "masks", "--classes", "gap.txt"], r"gap\.txt has 3 lines; give 1 to 255 different"),
        (["--classes", "twice.txt"], "give --masks"),
        (["--masks", "masks", "--labels-from-folders"], "label and mask of one sample"),
    ],
)
def test_options_that_do_not_fit_are_refused(here, words, said):
    for index in range(3):
        write(here, index, sub="ab"[index % 2])
    (here / "twice.txt").write_text("sky\nsky\n")
    (here / "gap.txt").write_text("sky\n\nroad\n")
    with pytest.raises(SystemExit, match=said):
        main(["shards", "from-folder", "photos", "--out", "data", *words])
    assert not (here / "data").exists()


def test_a_sound_has_no_pixels(here):
    import soundfile

    (here / "masks").mkdir()
    (here / "photos").mkdir()
    soundfile.write(here / "photos/a.wav", np.sin(np.arange(16_000) / 9) / 2, 16_000)
    with pytest.raises(SystemExit, match="a mask is of an image or another raster, not of audio"):
        make()
