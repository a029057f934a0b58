"""Augmentations of pairs, boxes and masks: what they change, how often, and what stays."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from onepeace_lightning.data.readers import augmentation as shared
from onepeace_lightning.data.readers.augmentation import PairAugmentation, blurred, squared
from onepeace_lightning.data.readers.boxes import BoxAugmentation, BoxReader
from onepeace_lightning.data.readers.masks import MaskAugmentation
from onepeace_lightning.data.readers.questions import PairReader
from onepeace_lightning.modalities.image import ImageModality
from onepeace_lightning.modalities.tokenizers import load_tokenizer
from tests.samples import as_json, png

SIDE = 32


@pytest.fixture
def tokenizer(words):
    return load_tokenizer(words)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_each_part_of_the_augmentation_of_pairs_happens_as_often_as_it_says():
    image, nothing = noise(40, 30), {"colour": 0.0, "blur": 0.0, "flip": 0.0, "operations": 0}
    plain = np.array(squared(image, SIDE))
    assert plain.shape == (SIDE, SIDE, 3)
    rng = np.random.default_rng(0)
    assert np.array_equal(np.array(PairAugmentation(**nothing)(image, SIDE, rng)), plain)
    for name in ("colour", "blur", "flip"):
        some = PairAugmentation(**nothing | {name: 0.5})
        changed = sum(not np.array_equal(np.array(some(image, SIDE, rng)), plain) for _ in range(200))
        assert 70 < changed < 130, name
    mirrored = PairAugmentation(**nothing | {"flip": 1.0})(image, SIDE, rng)
    assert np.array_equal(np.array(mirrored), plain[:, ::-1])
    # an operation is none of nine, else applied to half: 1 - (1/9 + 8/9 * 1/2)^2 of images change
    two = PairAugmentation(**nothing | {"operations": 2})
    changed = sum(not np.array_equal(np.array(two(image, SIDE, rng)), plain) for _ in range(300))
    assert changed / 300 == pytest.approx(1 - (1 / 9 + 4 / 9) ** 2, abs=0.08)
    with pytest.raises(ValueError, match="colour is 2"):
        PairAugmentation(colour=2)


@pytest.mark.parametrize(
    ("name", "argument"),
    [("Brightness", 1.36), ("Sharpness", 1.36), ("ShearX", 0.21), ("TranslateY", 7.0), ("Rotate", 21.0)],
)
def test_operations_have_the_published_strength(name, argument):
    operation = shared.AugmentOp(name, prob=1.0, magnitude=shared.LEVEL, hparams=shared._SETTINGS)
    [value] = operation.level_fn(operation.magnitude, operation.hparams)
    assert abs(value) == pytest.approx(argument)
    assert operation.kwargs["fillcolor"] == (128, 128, 128)


def test_both_images_of_a_pair_are_augmented_apart_and_evaluation_is_not(tokenizer):
    raw = {"__key__": "a", "__shard__": "s", "png": png("red"), "second.png": png("red"), "txt": b"two red squares",
           "json": as_json(labels=["True"])}  # fmt: skip
    settings = {"colour": 1.0, "operations": 0}
    reader = PairReader.of("image-pair", {"image": {"size": SIDE}}, tokenizer, train=True, augmentation=settings)
    first, again, other = (reader(raw, np.random.default_rng(seed)).inputs for seed in (0, 0, 1))
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["image"], first["second_image"])
    assert not torch.equal(first["image"], other["image"])
    reader = PairReader.of("image-pair", {"image": {"size": SIDE}}, tokenizer, augmentation=settings)
    plain = reader(raw, np.random.default_rng(0)).inputs
    assert torch.equal(plain["image"], plain["second_image"])


def test_grounding_as_published_blurs_the_square_and_leaves_the_box(tokenizer):
    raw = {"__key__": "a", "__shard__": "s", "png": png("red"), "txt": b"the red square"}
    size = Image.open(io.BytesIO(raw["png"])).size
    raw["json"] = as_json(box=[1, 2, size[0] - 3, size[1] - 1])
    options = {"train": True, "augmentation": {"crop_scale": None, "blur": 0.5}}
    reader = BoxReader.of("image-box", {"image": {"size": SIDE}}, tokenizer, **options)
    plain = BoxReader.of("image-box", {"image": {"size": SIDE}}, tokenizer)(raw, np.random.default_rng(0))
    sharp = 0
    for seed in range(60):
        example = reader(raw, np.random.default_rng(seed))
        assert torch.equal(example.targets["box"], plain.targets["box"])
        assert example.caption == plain.caption
        sharp += torch.equal(example.inputs["image"], plain.inputs["image"])
    assert 15 < sharp < 45
    image = squared(noise(40, 30), SIDE)
    soft = blurred(image, 1.0, np.random.default_rng(0))
    assert np.array(soft).astype(float).std() < np.array(image).astype(float).std()
    with pytest.raises(ValueError, match="blur -1"):
        BoxAugmentation(blur=-1)


def test_no_class_fills_more_of_a_square_than_it_may():
    classes = np.zeros((40, 160), np.uint8)
    classes[:, 40:60] = 1
    image = ImageModality().raster(noise(160, 40))
    shares = {}
    for largest in (1.0, 0.75):
        augmentation = MaskAugmentation((1.0, 1.0), 0.0, 0.0, largest)
        found = [augmentation(image, classes, 40, np.random.default_rng(seed))[1] for seed in range(40)]
        shares[largest] = [float(torch.bincount(mask.flatten().long()).max()) / 1600 for mask in found]
    assert sum(share < 0.75 for share in shares[1.0]) < 20
    assert sum(share < 0.75 for share in shares[0.75]) > 35
    # smaller than the square: it is filled up right and below
    halved, ones = MaskAugmentation((0.5, 0.5), 0.0, 0.0), np.ones((40, 40), np.uint8)
    small = halved(ImageModality().raster(noise(40, 40)), ones, 40, np.random.default_rng(0))
    assert (small[1][:20, :20] == 1).all()
    assert (small[1][20:] == 255).all()
    assert (small[1][:, 20:] == 255).all()
    assert small[0].shape == (3, 40, 40)
