"""Frames of video files."""

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="an extra: pip install onepeace-lightning[video]")

from onepeace_lightning.modalities.video_files import VideoFile, write_video


@pytest.fixture
def video(tmp_path):
    frames = [np.full((32, 48, 3), 10 * index, np.uint8) for index in range(20)]
    write_video(tmp_path / "a.mp4", frames, rate=10)
    return tmp_path / "a.mp4"


def test_frames_are_those_that_were_asked_for(video):
    for source in (video, video.read_bytes()):
        file = VideoFile(source)
        assert file.total == 20
        assert file.seconds == pytest.approx(2.0)
        frames = file.read([7, 0, 7, 19])
        assert frames.shape == (4, 3, 32, 48)
        assert frames.dtype == torch.uint8
        assert (frames.float().mean((1, 2, 3)) - torch.tensor([70.0, 0, 70, 190])).abs().max() < 4


def test_what_is_no_video_is_refused(video, tmp_path):
    with pytest.raises(ValueError, match="cannot decode the video"):
        VideoFile(b"no video at all")
    with pytest.raises(ValueError, match="cannot decode the video"):
        VideoFile(video.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"frames \[20\] of a video with 20"):
        VideoFile(video).read([20])


def test_a_video_that_ends_early_is_refused_and_a_few_frames_are_made_up_for(video):
    file = VideoFile(video)
    file.__dict__["total"] = 40  # what its container announces
    with pytest.raises(ValueError, match="ends before frame 39 of 40"):
        file.read([3, 39])
    file.__dict__["total"] = 21
    assert torch.equal(*file.read([19, 20]).split(1))
    assert torch.equal(*file.read([0, 20, 19])[1:].split(1))  # what is in between need not be asked for
    assert torch.equal(file.read([0, 20])[1], file.read([19])[0])
