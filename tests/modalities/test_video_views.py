"""Which frames and crops of a video are seen."""

import numpy as np
import pytest
import torch

from onepeace_lightning.modalities.video_views import (
    clip_indices,
    crop_corners,
    evaluation_views,
    random_crop,
    random_indices,
    training_clip,
)


def test_three_clips_are_spread_over_the_video():
    # room for 300 - 128 + 1 = 173 starts, a third of it for each clip, begun in its middle
    assert [clip[0] for clip in clip_indices(300, 16, 8)] == [28, 86, 144]
    assert clip_indices(300, 16, 8)[0][1] - clip_indices(300, 16, 8)[0][0] == 8
    assert [clip[-1] for clip in clip_indices(128, 16, 8)] == [120, 120, 120]


def test_a_short_video_begins_again():
    assert clip_indices(5, 4, 2) == [[0, 2, 4, 1]] * 3
    assert clip_indices(1, 4, 8) == [[0, 0, 0, 0]] * 3
    assert random_indices(5, 4, 2, np.random.default_rng(0)) == [0, 2, 4, 1]


def test_training_clips_begin_anywhere_that_they_fit():
    rng = np.random.default_rng(0)
    clips = [random_indices(20, 4, 4, rng) for _ in range(200)]
    assert {clip[0] for clip in clips} == set(range(5))
    assert all(np.diff(clip).tolist() == [4, 4, 4] for clip in clips)


def numbered(rows: int, columns: int):
    """Frames whose red is their index, green the column, blue the row."""

    def read(indices):
        frames = torch.zeros(len(indices), 3, rows, columns, dtype=torch.uint8)
        frames[:, 0] = torch.tensor(indices)[:, None, None]
        frames[:, 1] = torch.arange(columns)
        frames[:, 2] = torch.arange(rows)[:, None]
        return frames

    return read


def test_nine_views_are_three_crops_of_three_clips():
    views = evaluation_views(numbered(8, 20), 100, frames=4, step=8, side=8)
    assert views.shape == (9, 4, 3, 8, 8)
    assert [int(view[0, 0, 0, 0]) for view in views] == [11, 11, 11, 34, 34, 34, 57, 57, 57]
    assert [int(view[0, 1, 0, 0]) for view in views[:3]] == [0, 6, 12]
    high = evaluation_views(numbered(21, 8), 100, frames=4, step=8, side=8, clips=1)
    assert [int(view[0, 2, 0, 0]) for view in high] == [0, 6, 12]
    assert len(evaluation_views(numbered(8, 20), 100, frames=4, step=8, side=8, crops=1)) == 3
    with pytest.raises(ValueError, match="crops is 2"):
        crop_corners(views, 8, 2)


def test_frames_are_resized_to_their_shorter_side():
    views = evaluation_views(numbered(16, 40), 10, frames=2, step=1, side=8, clips=1)
    assert views.shape == (3, 2, 3, 8, 8)
    assert views[0, 0, 1, 0, 0] in (0, 1)


def test_all_frames_of_a_training_clip_are_changed_alike():
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(20):
        clip = training_clip(numbered(16, 24), 50, rng, frames=4, step=2, side=8, colour_noise=0.0)
        assert clip.shape == (4, 3, 8, 8)
        assert (clip[:, 1:] == clip[:1, 1:]).all()
        assert clip[:, 0, 0, 0].int().diff().tolist() == [2, 2, 2]
        seen.add(int(clip[0, 1, 0, 0]) < int(clip[0, 1, 0, -1]))
    assert seen == {True, False}
    grey = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    noisy = training_clip(lambda indices: grey, 2, rng, frames=2, step=1, side=8)
    assert 0 < (noisy.float() - 100).abs().max() < 40
    assert (noisy[0] == noisy[1]).all()


def test_crops_are_within_their_limits():
    rng = np.random.default_rng(2)
    for _ in range(100):
        top, left, rows, columns = random_crop(30, 50, (0.08, 1.0), rng)
        assert 0 <= top <= 30 - rows
        assert 0 <= left <= 50 - columns
        assert 0.07 * 1500 < rows * columns <= 1500
        assert 0.7 < columns / rows < 1.4
    assert random_crop(10, 100, (1.0, 1.0), rng) == (0, 45, 10, 10)
