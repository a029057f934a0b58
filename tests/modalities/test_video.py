"""The video modality: settings, arrays, and an adapter over all frames."""

import numpy as np
import pytest
import torch

from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.modalities.video import Video, VideoConfig, VideoModality
from onepeace_lightning.models.backbone import Backbone
from tests.tiny import drawn, randomised, tiny_config

VIEW = {"size": 32, "frames": 3, "step": 2}


def clip(rows: int = 40, columns: int = 60, frames: int = 9) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, rows, columns, 3), dtype=np.uint8)


def test_views_of_evaluation_and_training():
    one = VideoModality({**VIEW, "clips": 2, "crops": 3})
    array = one.read(clip())
    assert array.shape == (6, 3, 3, 32, 32)
    assert one.augment(one.load(clip()), np.random.default_rng(1)).shape == (1, 3, 3, 32, 32)
    batch = one.collate([array, array])
    assert isinstance(batch, Video)
    assert batch.frames.shape == (2, 6, 3, 3, 32, 32)
    assert batch.token_lengths == [1 + 3 * 4] * 2
    assert one.thumbnail(one.sample(batch, 0), 20).size == (20, 20)
    assert "2 clips of 3 frames, every 2th, × 3 crops of 32×32" in one.describe()
    for wrong in (np.zeros((3, 4, 4), np.uint8), 5):
        with pytest.raises(ValueError, match="give a path or a uint8 array"):
            one.load(wrong)
    with pytest.raises(ValueError, match=r"size is 30.*crops is 2"):
        VideoModality({"size": 30, "crops": 2})


def test_a_backbone_of_videos_sees_every_frame_and_its_place():
    base = tiny_config()
    config = base.__class__(encoder=base.encoder, adapters={"video": VideoConfig(image_size=32, frames=3)})
    torch.manual_seed(0)
    model = randomised(Backbone(config)).eval()
    frames = torch.randn(2, 1, 3, 3, 32, 32, generator=drawn(1))
    with torch.no_grad():
        cls = model({"video": Video(frames)})["video"].cls
        swapped = model({"video": Video(frames.flip(2))})["video"].cls
        other = model({"video": Video(torch.cat([frames[:, :, :2], frames[:, :, 2:] + 1], 2))})["video"].cls
    padded, valid = model.adapters["video"].padded(frames)
    assert padded.shape == (2, 13, 24)
    assert valid.all()
    assert cls.shape == (2, 24)
    assert not torch.allclose(cls, swapped, atol=1e-4)
    assert not torch.allclose(cls, other, atol=1e-4)
    assert Preprocessing({"video": VIEW}).misfits(config) == []
    with pytest.raises(ValueError, match="this model takes 1 view of 3 frames of 32×32"):
        model({"video": Video(frames.expand(2, 2, 3, 3, 32, 32))})
