"""Depth maps: what files of one channel mean, and what the model sees of them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from onepeace_lightning.modalities import Preprocessing
from onepeace_lightning.modalities.depth import DepthConfig, DepthModality
from onepeace_lightning.models.backbone import Backbone
from tests.tiny import randomised, tiny_config

MILLIMETRES = np.array([[0, 1000, 2000], [3000, 4000, 65000]], np.uint16)


def saved(image: Pillow.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    "item",
    [
        saved(Pillow.fromarray(MILLIMETRES)),
        saved(Pillow.fromarray(MILLIMETRES), "TIFF"),
        npy(MILLIMETRES),
        npy(np.asfortranarray(MILLIMETRES)),
        npy(MILLIMETRES.astype(">u2")),
        npy(np.where(MILLIMETRES == 0, np.inf, MILLIMETRES / 1000)),
        MILLIMETRES,
        torch.from_numpy(MILLIMETRES.astype(np.int32)),
    ],
)
def test_every_kind_of_raster_is_metres_with_nan_where_nothing_was_measured(item):
    one = DepthModality()
    metres = one.decode(item) if isinstance(item, bytes) else one.load(item)
    assert metres[0, 0].isnan()
    assert metres.flatten()[1:].tolist() == pytest.approx([1, 2, 3, 4, 65])
    torch.testing.assert_close(one.load(metres), metres, equal_nan=True)


def test_the_range_is_what_the_model_tells_apart():
    one = DepthModality({"size": 16, "low": 1.0, "high": 3.0})
    near, middle, far, missing = (one.read(np.full((20, 30), value)) for value in (0.5, 2.0, 9.0, 1.0))
    assert near.shape == (1, 16, 16)
    torch.testing.assert_close(near, torch.full_like(near, -2))
    assert middle.abs().max() < 1e-5
    torch.testing.assert_close(far, torch.full_like(far, 2))
    assert torch.equal(missing, near)
    batch = one.collate([middle, far])
    assert one.sample(batch, 0).mean() == pytest.approx(2.0, abs=1e-4)
    assert one.sample(batch, 1).mean() == pytest.approx(3.0, abs=1e-4)


def test_a_crop_of_training_is_a_part_of_the_raster_and_drawn_from_its_own_numbers():
    one = DepthModality({"size": 32, "crop_scale": [0.2, 0.3], "high": 1.0})
    ramp = np.tile(np.linspace(0.1, 1, 64, dtype=np.float32), (64, 1))
    first, again, other = (one.augment(one.load(ramp), np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    whole = one.read(ramp)
    assert first.max() - first.min() < whole.max() - whole.min()


def test_a_thumbnail_spans_black_to_white_and_keeps_proportions():
    image = DepthModality().thumbnail(DepthModality().load(MILLIMETRES), 100)
    assert image.size == (3, 2)
    grey = np.array(image)[..., 0]
    assert grey.min() == 0
    assert grey[1, 2] == 255


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", r"0 bytes"),
        (saved(Pillow.new("RGB", (4, 4))), r"mode RGB.*one channel"),
        (npy(np.zeros((4, 4, 3))), r"\(4, 4, 3\) is no depth"),
        (npy(np.zeros((4, 4), np.uint16)), r"no measurement"),
        (npy(MILLIMETRES)[:-2], r"holds 5: it is cut off"),
        (npy(MILLIMETRES).replace(b"(2, 3)", b"(9, 9)"), r"states \(9, 9\) values and holds 6"),
        (npy(np.array([{"a": 1}], dtype=object)), r"\|O|object"),
        (b"\x93NUMPY\x09\x00", r"cannot decode the depth raster"),
        (saved(Pillow.fromarray(MILLIMETRES))[:40], r"cannot decode the depth raster \(40 bytes, PNG\)"),
    ],
)
def test_what_is_no_raster_is_refused(data, says):
    with pytest.raises(ValueError, match=says):
        DepthModality().decode(data)


def test_impossible_settings_are_named():
    with pytest.raises(ValueError, match=r"size is 30.*unit is 0.*low is 3.0 and high 2.0"):
        DepthModality({"size": 30, "unit": 0.0, "low": 3.0, "high": 2.0})


def test_a_backbone_of_depth_maps_sees_them_and_exports_the_same():
    base = tiny_config()
    config = base.__class__(encoder=base.encoder, adapters={"depth": DepthConfig(image_size=32)})
    assert Preprocessing({"depth": {"size": 32}}).misfits(config) == []
    assert Preprocessing({"depth": {"size": 48}}).misfits(config)
    torch.manual_seed(0)
    model = randomised(Backbone(config)).eval()
    one = DepthModality({"size": 32})
    inputs = one.random(config.adapters["depth"], 2, np.random.default_rng(0))
    with torch.no_grad():
        features = model({"depth": inputs})["depth"]
        padded, valid = model.adapters["depth"].padded(**inputs.exported())
        embedded, _ = model.adapters["depth"].embed(inputs).padded()
    assert features.lengths == [5, 5]
    assert valid.all()
    torch.testing.assert_close(padded, embedded)
    assert not torch.allclose(features.cls[0], features.cls[1])
    assert model.adapters["depth"].stem[0].weight.shape[1] == 1
