import numpy as np
import pytest
import torch

from onepeace_lightning.data.bad_samples import BadSample
from onepeace_lightning.data.readers.boxes import BoxAugmentation, BoxReader, other_side
from onepeace_lightning.modalities.image import ImageModality
from tests.samples import as_json, png, scene

SIDE = 48


@pytest.fixture
def reader(words):
    from onepeace_lightning.modalities.tokenizers import load_tokenizer

    def make(train=False, augmentation=None):
        return BoxReader.of(
            "image-box", {"image": {"size": SIDE}}, load_tokenizer(words), train=train, augmentation=augmentation
        )

    return make


def raw(box, width=90, height=60, text=b"a red square"):
    drawn = tuple(round(value) for value in box)
    return {"__key__": "0", "png": scene(drawn, "red", width, height), "txt": text, "json": as_json(box=box)}


def red_part(pixels):
    """(x0, y0, x1, y1) of what is red in (3, H, W), as shares."""
    red = (pixels[0].int() - pixels[2].int()) > 100
    ys, xs = red.any(1).nonzero().flatten(), red.any(0).nonzero().flatten()
    height, width = red.shape
    corners = [int(xs[0]) / width, int(ys[0]) / height, int(xs[-1] + 1) / width, int(ys[-1] + 1) / height]
    return torch.tensor(corners)


def test_the_box_is_in_shares_of_the_picture_and_its_size_is_kept(reader):
    example = reader()(raw([30, 12, 60, 48]), np.random.default_rng(0))
    assert example.inputs["image"].shape == (3, SIDE, SIDE)
    assert example.targets["box"].tolist() == pytest.approx([30 / 90, 12 / 60, 60 / 90, 48 / 60])
    assert example.targets["size"].tolist() == [90, 60]
    torch.testing.assert_close(red_part(example.inputs["image"]), example.targets["box"], atol=0.05, rtol=0)


@pytest.mark.parametrize("seed", range(12))
def test_the_box_stays_on_its_thing_in_every_crop_and_mirror_image(reader, seed):
    augmentation = BoxAugmentation(crop_scale=(0.2, 0.9), flip=0.5)
    rng = np.random.default_rng(seed)
    x0, y0 = rng.integers(0, 60), rng.integers(0, 40)
    box = [int(x0), int(y0), int(rng.integers(x0 + 8, 91)), int(rng.integers(y0 + 8, 61))]
    example = reader(True, augmentation)(raw(box), rng)
    target = example.targets["box"]
    assert (target[:2] >= 0).all()
    assert (target[2:] <= 1).all()
    torch.testing.assert_close(red_part(example.inputs["image"]), target, atol=0.06, rtol=0)


def test_crops_keep_the_share_that_is_asked_for_and_differ():
    picture, box = ImageModality().load(torch.zeros(3, 100, 200)), (20.0, 30.0, 40.0, 50.0)
    shares, places = [], set()
    for seed in range(50):
        part, moved, _ = BoxAugmentation((0.5, 0.7))(picture, box, "", np.random.default_rng(seed))
        shares.append(part.width * part.height / (100 * 200))
        places.add(moved)
        assert moved[2] - moved[0] == 20
        assert moved[3] - moved[1] == 20
    assert 0.48 < min(shares) < 0.56
    assert 0.64 < max(shares) < 0.72
    assert len(places) > 40
    again = BoxAugmentation((0.5, 0.7))(picture, box, "", np.random.default_rng(49))
    assert again[1] == moved


def test_sides_change_places_in_mirrored_texts_only(reader):
    assert other_side("the leftmost bright Right-hand mug, right of the left one") == (
        "the rightmost bright Left-hand mug, left of the right one"
    )
    assert other_side("an upright copyright") == "an upright copyright"
    mirrored = reader(True, BoxAugmentation((1.0, 1.0), flip=1.0))
    example = mirrored(raw([30, 12, 60, 48], text=b"the left square"), np.random.default_rng(0))
    assert example.caption == "the right square"
    assert reader(True)(raw([30, 12, 60, 48], text=b"the left square"), np.random.default_rng(0)).caption == (
        "the left square"
    )


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([30, 12, 91, 48], r"in an image of 90×60 pixels"),
        ([-1, 12, 60, 48], "must lie within"),
        ([60, 12, 60, 48], "x0 < x1"),
        ([60, 12, 30, 48], "x0 < x1"),
        ([30, 12, 60], "four numbers"),
        ([30, 12, 60, "48"], "four numbers"),
        ([30, 12, 60, float("nan")], "four numbers"),
    ],
)
def test_impossible_boxes_are_refused(reader, box, message):
    sample = {"__key__": "0", "png": scene((1, 1, 9, 9), "red", 90, 60), "txt": b"a", "json": as_json(box=box)}
    with pytest.raises(BadSample, match=message):
        reader()(sample, np.random.default_rng(0))


def test_samples_that_lack_something_or_are_hostile_are_refused(reader):
    good = raw([30, 12, 60, 48])
    for change, message in (
        ({"txt": b" "}, "no words"),
        ({"json": b"{}"}, "'box' is missing"),
        ({"json": b"[" * 100_000}, "its json cannot be read"),
        ({"json": b'{"box": [0, 0, 1' + b"0" * 400 + b", 9]}"}, "a number of 401 digits"),
        ({"png": png("red")[:50]}, "cannot decode the image"),
    ):
        with pytest.raises(BadSample, match=message):
            reader()(good | change, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"crop_scale is \(0.0, 1.0\)"):
        BoxAugmentation((0.0, 1.0))
