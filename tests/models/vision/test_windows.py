"""Images of any size read in windows, at several scales and mirrored."""

from itertools import pairwise

import pytest
import torch

from onepeace_lightning.models.vision.windows import (
    SCALES,
    View,
    image_views,
    published_step,
    read_views,
    resize,
    scaled_size,
    sliding_probabilities,
    starts,
)
from tests.tiny import drawn

SIDE, STEP = 32, 18


def colours(pixels: torch.Tensor) -> torch.Tensor:
    """Scores that are a window's own pixels: what is put together must be the image."""
    return pixels


def image(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, rows, columns), dtype=torch.uint8, generator=drawn(seed))


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    [view] = image_views(pixels, 1, min(pixels.shape[1:]), flip=False)
    return view.pixels


@pytest.mark.parametrize(("size", "side", "step"), [(24, 24, 9), (10, 24, 9), (25, 24, 9), (40, 24, 8), (1000, 24, 16)])
def test_windows_cover_every_pixel_and_the_last_ends_with_the_image(size, side, step):
    firsts = starts(size, side, step)
    assert firsts[0] == 0
    assert firsts[-1] == max(size - side, 0)
    assert all(0 < after - before <= step for before, after in pairwise(firsts))
    assert all(after - before == step for before, after in pairwise(firsts[:-1]))


def test_the_published_windows():
    assert published_step(896) == 512
    assert starts(1344, 896, 512) == [0, 448]
    assert [round(896 * scale) for scale in SCALES] == [384, 512, 640, 768, 896, 1024, 1152]


@pytest.mark.parametrize("size", [(32, 32), (32, 64), (64, 32)])
@pytest.mark.parametrize("flip", [False, True])
def test_what_windows_say_comes_back_to_its_place(size, flip):
    pixels = image(*size)
    [found] = sliding_probabilities(colours, [pixels], SIDE, step=STEP, flip=flip, batch_size=2)
    torch.testing.assert_close(found, normalised(pixels).softmax(0))


def test_both_sides_become_multiples_of_32_and_answers_have_the_image_s_size():
    smooth = torch.linspace(0, 255, 97)[None, None, :].expand(3, 50, 97).to(torch.uint8)
    seen = []
    [found] = sliding_probabilities(lambda x: seen.append(x) or x, [smooth], SIDE, scales=(0.5, 1.0, 1.5), flip=True)
    assert {tuple(part.shape[1:]) for part in seen} == {(3, SIDE, SIDE)}
    assert found.shape == (3, 50, 97)
    torch.testing.assert_close(found.sum(0), torch.ones(50, 97))
    [view] = image_views(smooth, SIDE, 1.0, flip=False)
    assert view.pixels.shape == (3, 32, 64)


def test_a_strip_does_not_grow_beyond_measure():
    assert scaled_size((48, 96), 24.0) == (24, 48)
    assert scaled_size((2, 500), 24.0) == (1, 96)
    [found] = sliding_probabilities(colours, [torch.full((3, 2, 500), 90, dtype=torch.uint8)], SIDE)
    assert found.shape == (3, 2, 500)


def test_images_of_any_number_share_batches_of_windows():
    images = [image(32, 64, seed) for seed in range(5)]
    counts = []

    def score(pixels):
        counts.append(len(pixels))
        return colours(pixels)

    answers = list(sliding_probabilities(score, iter(images), SIDE, step=STEP, batch_size=4))
    assert len(answers) == 5
    for pixels, found in zip(images, answers, strict=True):
        torch.testing.assert_close(found, normalised(pixels).softmax(0))
    assert counts[:-1] == [4] * (len(counts) - 1)


def test_a_small_reading_is_filled_up_with_the_mean_colour_which_is_left_out_again():
    views = list(image_views(image(64, 64), 64, 0.5, flip=True))
    for view in views:
        assert view.pixels.shape == (3, 64, 64)
        assert view.content == (32, 32)
        assert not view.pixels[:, 32:].any()
        assert not view.pixels[:, :, 32:].any()
    torch.testing.assert_close(views[1].pixels[:, :32, :32], views[0].pixels[:, :32, :32].flip(-1))
    flat = torch.full((3, 32, 32), 200, dtype=torch.uint8)
    [found] = sliding_probabilities(colours, [flat], SIDE, scales=(0.5,))
    torch.testing.assert_close(found, normalised(flat).softmax(0))
    assert torch.equal(resize(flat, (12, 12)), flat[:, :12, :12])


def test_a_view_alone():
    pixels = torch.randn(3, 32, 50, generator=drawn(1))
    [found] = read_views(colours, [View(pixels, (32, 50), (16, 25))], 32, 16)
    wanted = torch.nn.functional.interpolate(pixels[None], size=(16, 25), mode="bilinear")[0].softmax(0)
    torch.testing.assert_close(found, wanted)
