"""Instances of an image: reading them, refusing broken ones, and what scale jitter leaves of them."""

import numpy as np
import pytest
import torch
from PIL import Image

from onepeace_lightning.data.instances import (
    Annotations,
    ScaleJitter,
    decode_masks,
    encode_mask,
    fitted,
    read_annotations,
)

CLASSES = {"cow": 0, "dog": 1}


def mask(x0=2, y0=1, x1=6, y1=5, size=(8, 10)):
    filled = np.zeros(size, bool)
    filled[y0:y1, x0:x1] = True
    return filled


def instance(**changes):
    return {"label": "dog", "box": [2, 1, 6, 5], "mask": encode_mask(mask()), **changes}


def test_masks_come_back_from_run_lengths():
    masks = np.random.default_rng(0).random((3, 7, 9)) > 0.5
    encoded = [encode_mask(each) for each in masks]
    assert all(isinstance(each["counts"], str) and each["size"] == [7, 9] for each in encoded)
    assert np.array_equal(decode_masks(encoded, (7, 9)), masks)


def test_instances_are_read():
    found = read_annotations([instance(), instance(label="cow", crowd=True, area=7.5)], CLASSES, (8, 10))
    assert found.classes.tolist() == [1, 0]
    assert found.boxes.tolist() == [[2, 1, 6, 5]] * 2
    assert found.areas.tolist() == [16, 7.5]
    assert found.crowd.tolist() == [False, True]
    assert found.size == (8, 10)
    assert found.truth().classes.tolist() == [1]
    nothing = read_annotations([], CLASSES, (8, 10))
    assert nothing.boxes.shape == (0, 4)
    assert nothing.masks.shape == (0, 8, 10)


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        ("cow", "its instances are 'cow'"),
        ([3], "give a list of objects"),
        ([instance(), instance(label="cat")], r"instance 1: label 'cat' is none of the 2 classes \(cow, dog"),
        ([instance(label=["dog"])], r"label \['dog'\] is none"),
        ([instance(box=[2, 1, 6])], "four numbers"),
        ([instance(box=[2, 1, 6, float("nan")])], "four numbers"),
        ([instance(box=[2, 1, 11, 5])], r"its box is \[2, 1, 11, 5\] in an image of 10×8 pixels"),
        ([instance(box=[6, 1, 2, 5])], "must lie within"),
        ([instance(mask=None)], "compressed run-length encoding"),
        ([instance(mask={"counts": [1, 2], "size": [8, 10]})], "compressed run-length encoding"),
        ([instance(mask=encode_mask(mask(size=(10, 8))))], r"its mask is of \[10, 8\] rows and columns"),
        ([instance(mask={"counts": "zzzz", "size": [8, 10]})], "cannot be decoded"),
        ([instance(mask={"counts": "\udc80", "size": [8, 10]})], "cannot be decoded"),
        ([instance(mask={"counts": "71", "size": "810"})], "its mask is of"),
        ([instance(area="large")], "its area is 'large'"),
        ([instance(area=float("nan"))], "its area is nan"),
    ],
)
def test_broken_instances_are_refused(instances, message):
    with pytest.raises(ValueError, match=message):
        read_annotations(instances, CLASSES, (8, 10))


def scene(size=(60, 80)):
    """Left half red, right half blue; an instance on each side, and a crowd."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[:, : size[1] // 2, 0] = 255
    pixels[:, size[1] // 2 :, 2] = 255
    boxes = [[10, 20, 40, 50], [45, 5, 75, 55], [0, 0, 80, 60]]
    masks = torch.from_numpy(np.stack([mask(*box, size) for box in boxes]))
    return Image.fromarray(pixels), Annotations(
        torch.tensor(boxes).float(), torch.tensor([0, 1, 1]), masks, torch.tensor([False, False, True]),
        masks.sum((1, 2)).float(),
    )  # fmt: skip


def test_nothing_is_changed_where_the_scale_is_one():
    picture, annotations = scene()
    image = ScaleJitter((1, 1), 0)(picture, annotations, 80, np.random.default_rng(0))
    assert torch.equal(image.pixels, torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    assert torch.equal(image.annotations.masks, annotations.masks[:2])  # no crowd
    assert torch.equal(image.annotations.boxes, annotations.boxes[:2])
    mirrored = ScaleJitter((1, 1), 1)(picture, annotations, 80, np.random.default_rng(0))
    assert mirrored.annotations.boxes.tolist() == [[40, 20, 70, 50], [5, 5, 35, 55]]
    assert torch.equal(mirrored.pixels, image.pixels.flip(-1))


@pytest.mark.parametrize("seed", range(12))
def test_pixels_boxes_and_masks_stay_together(seed):
    picture, annotations = scene()
    image = ScaleJitter((0.2, 2.0), 0.5)(picture, annotations, 64, np.random.default_rng(seed))
    found = image.annotations
    assert max(image.pixels.shape[1:]) <= 64
    assert found.size == image.pixels.shape[1:]
    assert len(found.classes) == len(found.boxes) == len(found.masks)
    for label, box, filled in zip(found.classes.tolist(), found.boxes.tolist(), found.masks, strict=True):
        x0, y0, x1, y1 = map(int, box)
        assert filled[y0:y1, x0:x1].all()
        assert filled.sum() == (y1 - y0) * (x1 - x0)
        inside = image.pixels[:, y0:y1, x0:x1].float().mean((1, 2))
        assert inside[2 * label] > 200
        assert inside[2 - 2 * label] < 55


def test_instances_that_were_cut_off_are_gone():
    picture, annotations = scene()
    counts = [
        len(ScaleJitter((8, 8), 0)(picture, annotations, 10, np.random.default_rng(seed)).annotations.boxes)
        for seed in range(30)
    ]
    assert {0, 1} <= set(counts)


def test_extreme_proportions_keep_a_pixel():
    strip = Image.new("RGB", (500, 2))
    nothing = read_annotations([], CLASSES, (2, 500))
    assert ScaleJitter((0.1, 0.1), 0)(strip, nothing, 64, np.random.default_rng(0)).pixels.shape == (3, 1, 6)
    assert fitted(strip, 64).shape == (3, 1, 64)
    assert fitted(Image.new("RGB", (30, 40)), 80).shape == (3, 80, 60)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"scale is \(2, 1\)"):
        ScaleJitter((2, 1))
