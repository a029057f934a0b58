"""The mask head, and reading pictures of any size with it."""

from itertools import pairwise

import pytest
import torch

from onepeace_lightning.modalities.image import Image
from onepeace_lightning.models.heads.mask_decoder import MaskHeadConfig, MaskPrediction, sine_positions, within
from onepeace_lightning.models.heads.segmentation import SegmentModel, class_scores, stem_maps
from onepeace_lightning.models.heads.windows import fill_up, resize, scaled_size, sliding_scores, starts
from onepeace_lightning.training.parallelize import materialise
from tests.tiny import IMAGE_SIZE, drawn, images, randomised, tiny_config

HEAD = MaskHeadConfig(classes=4, queries=6, layers=4, width=16, heads=2)


@pytest.fixture
def model() -> SegmentModel:
    torch.manual_seed(0)
    return randomised(SegmentModel(tiny_config(), HEAD)).eval()


@torch.no_grad()
def test_every_layer_gives_classes_and_masks_at_stride_4(model):
    said = model(images(2))
    assert len(said) == HEAD.layers + 1
    for part in said:
        assert part.classes_BQK.shape == (2, 6, 5)
        assert part.masks_BQYX.shape == (2, 6, IMAGE_SIZE // 4, IMAGE_SIZE // 4)
    assert class_scores(said[-1], IMAGE_SIZE).shape == (2, 4, IMAGE_SIZE, IMAGE_SIZE)


@torch.no_grad()
def test_the_stem_s_maps_are_those_that_the_patches_are_made_of(model):
    adapter = model.backbone.adapter("image")
    pictures = images(2)
    quarter, eighth = stem_maps(adapter, pictures)
    assert quarter.shape[2:] == (IMAGE_SIZE // 4,) * 2
    torch.testing.assert_close(adapter.stem[-1](eighth), adapter.stem(pictures.pixels))


@torch.no_grad()
def test_the_order_of_queries_changes_nothing(model):
    pictures = images(2)
    before = class_scores(model(pictures)[-1], IMAGE_SIZE)
    order = torch.randperm(HEAD.queries, generator=drawn(1))
    for parameter in (model.head.queries, model.head.query_positions):
        parameter.copy_(parameter[order])
    torch.testing.assert_close(class_scores(model(pictures)[-1], IMAGE_SIZE), before, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_pictures_of_a_batch_do_not_see_one_another(model):
    pictures = images(3)
    together = class_scores(model(pictures)[-1], IMAGE_SIZE)
    alone = class_scores(model(Image(pictures.pixels[1:2]))[-1], IMAGE_SIZE)
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_parameter_that_an_answer_depends_on(model):
    said = model.train()(images(2))
    sum((part.classes_BQK**2).sum() + (part.masks_BQYX**2).mean() for part in said).backward()
    without = [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
        if not name.startswith(("backbone.adapters.text", "backbone.adapters.audio"))
        if not any(f".{other}." in name for other in ("text", "audio"))
    ]  # fmt: skip
    # a key's bias adds the same to all logits of a softmax
    assert [name for name in without if not name.endswith("key.bias")] == []


def test_queries_look_within_their_masks_or_everywhere():
    masks = torch.full((1, 2, 4, 4), -5.0)
    masks[0, 0, :2, :2] = 5
    allowed = within(masks, (2, 2))
    assert allowed.tolist() == [[[True, False, False, False], [True] * 4]]


def test_a_masked_query_does_not_see_the_rest(model):
    layer = model.head.layers[0]
    queries, position = torch.randn(1, 6, 16, generator=drawn(1)), torch.zeros(6, 16)
    memory, place = torch.randn(1, 4, 16, generator=drawn(2)), sine_positions((2, 2), 16, torch.device("cpu"))
    allowed = torch.ones(1, 6, 4, dtype=torch.bool)
    allowed[..., 3] = False
    changed = memory.clone()
    changed[:, 3] += 1
    with torch.no_grad():
        first, second = (layer(queries, position, part, place, allowed) for part in (memory, changed))
        seen = layer(queries, position, changed, place, torch.ones_like(allowed))
    torch.testing.assert_close(first, second)
    assert not torch.allclose(first, seen)


def test_positions_are_distinct_for_any_size():
    places = sine_positions((5, 7), 16, torch.device("cpu"))
    assert places.shape == (35, 16)
    assert (torch.cdist(places, places) + torch.eye(35)).min() > 0.1


def test_the_head_is_drawn_from_the_meta_device():
    with torch.device("meta"):
        model = SegmentModel(tiny_config(), HEAD)
    materialise(model, torch.device("cpu"))
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model.head.queries.std().item() == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [({"queries": 0}, "queries is 0"), ({"width": 30}, "width 30"), ({"width": 18, "heads": 2}, "multiple")],
)
def test_impossible_heads_are_refused(sizes, said):
    with pytest.raises(ValueError, match=said):
        MaskHeadConfig(classes=2, **sizes)


def test_scores_add_up_queries_by_class_and_mask():
    classes = torch.tensor([[[20.0, 0, 0], [0, 20.0, 0], [0, 0, 20.0]]])
    masks = torch.tensor([20.0, -20.0, 20.0])[None, :, None, None].expand(1, 3, 2, 2)
    scores = class_scores(MaskPrediction(classes, masks), 4)
    torch.testing.assert_close(scores[0, :, 0, 0], torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)


# Windows

SIDE = 24


def colours(pixels: torch.Tensor) -> torch.Tensor:
    """Scores that are a window's own pixels: what is put together must be the picture."""
    return pixels.float()


def picture(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, rows, columns), dtype=torch.uint8, generator=drawn(seed))


@pytest.mark.parametrize(("size", "side"), [(24, 24), (10, 24), (25, 24), (40, 24), (41, 24), (1000, 24), (7, 1)])
def test_windows_cover_every_pixel_with_small_enough_steps(size, side):
    firsts = starts(size, side)
    assert firsts[0] == 0
    assert firsts[-1] == max(size - side, 0)
    gaps = [b - a for a, b in pairwise(firsts)]
    assert all(0 < gap <= max(round(side * 2 / 3), 1) for gap in gaps)


@pytest.mark.parametrize("size", [(24, 24), (24, 60), (50, 24), (24, 25)])
@pytest.mark.parametrize("flip", [False, True])
def test_what_windows_say_comes_back_to_its_place(size, flip):
    pixels = picture(*size)
    [scores] = sliding_scores(colours, [pixels], SIDE, flip=flip, batch_size=2)
    torch.testing.assert_close(scores, pixels.float())


def test_the_shorter_side_is_brought_to_the_window_and_answers_back_to_the_picture():
    smooth = torch.linspace(0, 255, 96)[None, None, :].expand(3, 48, 96).to(torch.uint8)
    seen = []
    [scores] = sliding_scores(lambda x: seen.append(x) or colours(x), [smooth], SIDE, scales=(0.5, 1.0, 1.5))
    assert {tuple(part.shape[1:]) for part in seen} == {(3, SIDE, SIDE)}
    assert scores.shape == (3, 48, 96)
    assert (scores - smooth.float())[:, :, 6:-6].abs().max() < 4
    assert scaled_size((48, 96), 24.0) == (24, 48)


def test_a_strip_does_not_grow_beyond_measure():
    assert scaled_size((2, 500), 24.0) == (1, 96)
    strip = torch.full((3, 2, 500), 90, dtype=torch.uint8)
    [scores] = sliding_scores(colours, [strip], SIDE)
    torch.testing.assert_close(scores, strip.float())


def test_pictures_of_many_sizes_share_batches_and_stay_in_order():
    pictures = [picture(24, 24 + 9 * seed, seed) for seed in range(5)]
    counts = []

    def score(pixels):
        counts.append(len(pixels))
        return colours(pixels)

    answers = list(sliding_scores(score, iter(pictures), SIDE, batch_size=4))
    assert len(answers) == 5
    for pixels, scores in zip(pictures, answers, strict=True):
        torch.testing.assert_close(scores, pixels.float())
    assert counts[:-1] == [4] * (len(counts) - 1)


def test_a_small_picture_is_filled_up_and_the_filling_left_out():
    pixels = picture(10, 30)
    filled = fill_up(pixels, SIDE)
    assert filled.shape == (3, SIDE, 30)
    assert torch.equal(filled[:, :10], pixels)
    assert Image(filled[None, :, 10:]).normalised().abs().max() < 0.01
    # at half the window's side, one window that is mostly filling
    flat = torch.full((3, 24, 24), 200, dtype=torch.uint8)
    [scores] = sliding_scores(colours, [flat], SIDE, scales=(0.5,))
    torch.testing.assert_close(scores, flat.float())
    assert torch.equal(resize(flat, (12, 12)), flat[:, :12, :12])


@torch.no_grad()
def test_one_window_over_the_whole_picture_is_one_pass(model):
    pixels = picture(IMAGE_SIZE, IMAGE_SIZE)

    def score(windows):
        return class_scores(model(Image(windows))[-1], IMAGE_SIZE)

    [scores] = sliding_scores(score, [pixels], IMAGE_SIZE)
    torch.testing.assert_close(scores, score(pixels[None])[0])
    # mirrored and straight together answer a mirrored picture in the mirror
    [both] = sliding_scores(score, [pixels], IMAGE_SIZE, flip=True)
    [mirrored] = sliding_scores(score, [pixels.flip(-1)], IMAGE_SIZE, flip=True)
    torch.testing.assert_close(mirrored.flip(-1), both, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(both, scores, atol=1e-3)
