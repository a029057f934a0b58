"""Series of readings: files, rates, patches, and the adapter of vectors."""

import io

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from onepeace_lightning.modalities import Vectors, VectorsConfig
from onepeace_lightning.modalities.series import SeriesModality
from onepeace_lightning.models.backbone import Backbone
from tests.tiny import drawn, randomised, tiny_config

READINGS = np.random.default_rng(0).standard_normal((40, 2)).astype(np.float32)
SETTINGS = {"channels": 2, "rate": 20.0, "patch": 4, "max_seconds": 4.0}


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def csv(array: np.ndarray, *names: str) -> bytes:
    rows = [",".join(names), *(",".join(map(repr, row)) for row in array.astype(float).tolist())]
    return "\n".join(rows).encode()


def parquet(array: np.ndarray, *names: str) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(dict(zip(names, array.T, strict=True))), file)
    return file.getvalue()


TIMED = np.column_stack([np.arange(40) / 10, READINGS])


@pytest.mark.parametrize(
    ("data", "rate"),
    [
        (npy(READINGS), 20.0),
        (npy(READINGS.astype(">f8")), 20.0),
        (csv(READINGS, "x", "y"), 20.0),
        (parquet(READINGS, "x", "y"), 20.0),
        (csv(TIMED, "time", "x", "y"), 10.0),
        (parquet(TIMED, "time", "x", "y"), 10.0),
    ],
)
def test_every_kind_of_file_gives_its_readings_and_their_rate(data, rate):
    readings, found = SeriesModality(SETTINGS).decode(data)
    np.testing.assert_allclose(readings, READINGS, rtol=1e-6)
    assert found == pytest.approx(rate)


def test_a_stated_rate_is_that_of_files_that_do_not_say():
    one = SeriesModality({**SETTINGS, "stored_rate": 10.0})
    assert one.decode(npy(READINGS))[1] == 10.0
    assert one.decode(csv(TIMED, "time", "x", "y"))[1] == pytest.approx(10.0)


def test_one_signal_at_any_rate_gives_nearly_the_same_patches():
    def signal(rate):
        t = np.arange(int(4 * rate)) / rate
        return np.stack([np.sin(2 * np.pi * 1.5 * t), np.cos(2 * np.pi * 0.5 * t)], 1)

    one = SeriesModality({**SETTINGS, "max_seconds": 3.0})
    wanted = one.read((signal(20.0), 20.0))
    assert wanted.shape == (15, 8)
    for rate in (50.0, 13.0):
        difference = one.read((signal(rate), rate)) - wanted
        assert difference[2:].abs().max() < 0.1, rate


def test_standardised_channels_are_cut_and_filled_to_whole_patches():
    one = SeriesModality(SETTINGS)
    patches = one.read((READINGS * 7 + 3, 20.0))
    readings = patches.unflatten(1, (4, 2)).flatten(0, 1)
    np.testing.assert_allclose(readings.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(readings.std(0, correction=0), 1, atol=1e-4)
    constant = one.read((np.ones((43, 2)), 20.0))
    assert constant.shape == (10, 8)
    assert not constant.any()
    assert one.read((READINGS[:3], 20.0)).shape == (1, 8)
    assert len(one.read((np.tile(READINGS, (9, 1)), 20.0))) == 20  # 4 seconds
    raw = SeriesModality({**SETTINGS, "standardise": False}).read((READINGS, 20.0))
    np.testing.assert_array_equal(raw.unflatten(1, (4, 2)).flatten(0, 1), READINGS)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", r"cannot decode the series \(0 bytes\)"),
        (npy(READINGS[..., None]), r"\(40, 2, 1\); give \(readings, channels\)"),
        (npy(np.full((4, 2), np.nan)), r"8 values that are not finite"),
        (csv(READINGS), r"cannot decode|first line"),
        (b"1.5,2.5\n1.0,2.0", r"first line is 1.5, 2.5; its first line must name the columns"),
        (b"x,y\n1.0,cow", r"cannot decode the series.*cow"),
        (b"x,y\n1.0,", r"not finite|cannot decode"),
        (csv(TIMED[::-1], "time", "x", "y"), r"column 'time' must rise evenly"),
        (csv(np.delete(TIMED, np.s_[5:20], 0), "time", "x", "y"), r"column 'time' must rise evenly"),
        (b"time\n0.0\n1.0", r"give \(readings, channels\)"),
        (parquet(READINGS, "x", "y")[:100], r"cannot decode the series"),
    ],
)
def test_what_is_no_series_is_refused(data, says):
    with pytest.raises(ValueError, match=says):
        SeriesModality(SETTINGS).decode(data)


def test_other_channels_and_impossible_settings_are_named():
    with pytest.raises(ValueError, match="2 channels, not 6: set channels in the preprocessing of series"):
        SeriesModality().read((READINGS, 50.0))
    with pytest.raises(ValueError, match=r"channels is 0.*stored_rate is -1.0.*max_seconds is 0.1"):
        SeriesModality({**SETTINGS, "channels": 0, "stored_rate": -1.0, "max_seconds": 0.1})
    with pytest.raises(ValueError, match="is no series; give a path or"):
        SeriesModality().load([1, 2])


def test_a_row_of_a_batch_is_shown_as_the_model_sees_it():
    one = SeriesModality(SETTINGS)
    long, short = one.read((READINGS, 20.0)), one.read((READINGS[:9], 20.0))
    batch = one.collate([short, long])
    assert batch.token_lengths == [3, 11]
    readings, rate = one.sample(batch, 0)
    assert (readings.shape, rate) == ((8, 2), 20.0)
    torch.testing.assert_close(readings.unflatten(0, (-1, 4)).flatten(1), short)
    plot = np.array(one.thumbnail((readings, rate), 60))
    assert plot.shape == (60, 60, 3)
    assert [(part < 200).any() for part in np.array_split(plot, 2)] == [True, True]  # a line in each channel's band


def test_vectors_give_the_same_features_alone_and_among_longer_ones():
    base = tiny_config()
    sizes = VectorsConfig(features=8, positions=12, buckets=8)
    torch.manual_seed(0)
    model = randomised(Backbone(base.__class__(encoder=base.encoder, adapters={"series": sizes}))).eval()
    long, short = torch.randn(11, 8, generator=drawn(0)), torch.randn(4, 8, generator=drawn(1))
    with torch.no_grad():
        alone = model({"series": Vectors.pad([short])})["series"].values_TD
        together = model({"series": Vectors.pad([long, short])})["series"].values_TD
        turned = model({"series": Vectors.pad([short.flip(0)])})["series"].cls
    torch.testing.assert_close(together[12:], alone)
    assert not torch.allclose(turned, alone[:1], atol=1e-3)
    for wrong in (torch.zeros(12, 8), torch.zeros(3, 7)):
        with pytest.raises(ValueError, match="this model takes up to 11 of 8"):
            model({"series": Vectors.pad([wrong])})
