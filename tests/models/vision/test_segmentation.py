"""The segmentation models, published and light, and their decoders."""

from dataclasses import replace

import pytest
import torch

from onepeace_lightning.modalities.image import Image
from onepeace_lightning.models.vision.deformable import DeformableAttention, centres
from onepeace_lightning.models.vision.dense_adapter import DenseAdapterConfig
from onepeace_lightning.models.vision.light_segmentation import LightSegmentationModel, stem_maps
from onepeace_lightning.models.vision.mask_decoder import MaskPrediction, within
from onepeace_lightning.models.vision.pixel_decoder import sine_positions
from onepeace_lightning.models.vision.segmentation import (
    MaskHeadConfig,
    SegmentationConfig,
    SegmentationModel,
    class_scores,
)
from onepeace_lightning.models.vision.windows import sliding_probabilities
from onepeace_lightning.training.parallelize import materialise
from tests.tiny import drawn, images, randomised, tiny_config

SIDE = 64
HEAD = MaskHeadConfig(classes=4, queries=6, layers=4, width=16, heads=2, inner=24, pixel_layers=1, groups=4)
ADAPTER = DenseAdapterConfig(channels=4, heads=2, points=2)


def config():
    base = tiny_config()
    image = replace(base.adapters["image"], image_size=SIDE)
    return replace(base, encoder=replace(base.encoder, depth=4), adapters={"image": image}, per_block_tables=True)


def built(kind: str):
    return (
        LightSegmentationModel(config(), HEAD)
        if kind == "light"
        else SegmentationModel(config(), SegmentationConfig(head=HEAD, adapter=ADAPTER))
    )


@pytest.fixture(params=["published", "light"])
def model(request):
    torch.manual_seed(0)
    return randomised(built(request.param)).eval()


@torch.no_grad()
def test_every_layer_gives_classes_and_masks_at_stride_4(model):
    said = model(images(2, size=SIDE))
    assert len(said) == HEAD.layers + 1
    for part in said:
        assert part.classes_BQK.shape == (2, 6, 5)
        assert part.masks_BQYX.shape == (2, 6, SIDE // 4, SIDE // 4)
    assert class_scores(said[-1], SIDE).shape == (2, 4, SIDE, SIDE)


@torch.no_grad()
def test_the_order_of_queries_changes_nothing(model):
    pictures = images(2, size=SIDE)
    before = class_scores(model(pictures)[-1], SIDE)
    order = torch.randperm(HEAD.queries, generator=drawn(1))
    for parameter in model.head.mask_decoder.queries.parameters():
        parameter.copy_(parameter[order])
    torch.testing.assert_close(class_scores(model(pictures)[-1], SIDE), before, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_images_of_a_batch_do_not_see_one_another(model):
    pictures = images(3, size=SIDE)
    together = class_scores(model(pictures)[-1], SIDE)
    alone = class_scores(model(Image(pictures.pixels[1:2]))[-1], SIDE)
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_parameter_that_an_answer_depends_on(model):
    said = model.train()(images(2, size=SIDE))
    sum((part.classes_BQK**2).sum() + (part.masks_BQYX**2).sum() for part in said).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # a key's bias adds the same to all logits of a softmax; a projection's is part of a joint one here
    assert without == []


@torch.no_grad()
def test_the_model_is_drawn_from_the_meta_device_and_starts_as_the_plain_image_branch():
    with torch.device("meta"):
        model = built("published")
    materialise(model, torch.device("cpu"))
    assert all(parameter.isfinite().all() for parameter in model.state_dict().values())
    assert model.head.mask_decoder.queries.features.std().item() == pytest.approx(1, abs=0.3)
    assert not any(step.injector.gamma.any() for step in model.adapter.interactions)
    offsets = model.adapter.interactions[0].injector.attention.offsets
    assert offsets.bias.view(offsets.shape).norm(dim=-1).min() > 0.9


@torch.no_grad()
def test_the_stem_s_maps_are_those_that_the_patches_are_made_of():
    model = randomised(built("light"))
    adapter = model.backbone.adapter("image")
    pictures = images(2, size=SIDE)
    quarter, eighth = stem_maps(adapter, pictures)
    assert quarter.shape[2:] == (SIDE // 4,) * 2
    torch.testing.assert_close(adapter.stem[-1](eighth), adapter.stem(pictures.pixels))


@torch.no_grad()
def test_deformable_attention_against_reading_points_one_by_one():
    torch.manual_seed(0)
    attention = randomised(DeformableAttention(8, heads=2, levels=2, points=3, value_width=4))
    sizes = [(4, 6), (2, 3)]
    queries, values = torch.randn(1, 5, 8), torch.randn(1, 30, 8)
    at = torch.rand(5, 2)
    found = attention(queries, at, values, sizes)
    offsets, weights, projected = attention.offsets(queries), attention.weights(queries), attention.value(values)
    maps = [part[0].unflatten(0, size) for part, size in zip(projected.split([24, 6], 1), sizes, strict=True)]
    wanted = torch.zeros(5, 4)
    for query in range(5):
        for head in range(2):
            for level, (rows, columns) in enumerate(sizes):
                for point in range(3):
                    x, y = (
                        at[query] * torch.tensor([columns, rows]) + offsets[0, query, head, level, point] - 0.5
                    ).tolist()
                    for row in (int(y // 1), int(y // 1) + 1):
                        for column in (int(x // 1), int(x // 1) + 1):
                            if 0 <= row < rows and 0 <= column < columns:
                                weight = (
                                    (1 - abs(y - row)) * (1 - abs(x - column)) * weights[0, query, head, level, point]
                                )
                                values_E = maps[level][row, column, 2 * head : 2 * head + 2]
                                wanted[query, 2 * head : 2 * head + 2] += weight * values_E
    torch.testing.assert_close(found[0], attention.out(wanted), atol=1e-5, rtol=1e-5)
    assert torch.equal(centres([(1, 2)], at.device), torch.tensor([[0.25, 0.5], [0.75, 0.5]]))


def test_queries_look_within_their_masks_or_everywhere():
    masks = torch.full((1, 2, 4, 4), -5.0)
    masks[0, 0, :2, :2] = 5
    allowed = within(masks, (2, 2))
    assert allowed.tolist() == [[[True, False, False, False], [True] * 4]]


def test_a_masked_query_does_not_see_the_rest(model):
    layer = model.head.mask_decoder.layers[0]
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


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"queries": 0}, "queries is 0"),
        ({"width": 48, "heads": 5}, "heads 5"),
        ({"width": 40, "heads": 4}, "groups 32"),
    ],
)
def test_impossible_heads_are_refused(sizes, said):
    with pytest.raises(ValueError, match=said):
        MaskHeadConfig(classes=2, **sizes)


def test_impossible_trunks_are_refused():
    base = config()
    odd = replace(base, adapters={"image": replace(base.adapters["image"], image_size=48)})
    with pytest.raises(ValueError, match="image_size is 48, must be a multiple of 32"):
        SegmentationModel(odd, SegmentationConfig(head=HEAD, adapter=ADAPTER))
    with pytest.raises(ValueError, match="depth 3 is not a multiple of the 4 groups"):
        SegmentationModel(
            replace(base, encoder=replace(base.encoder, depth=3)), SegmentationConfig(head=HEAD, adapter=ADAPTER)
        )


def test_scores_add_up_queries_by_class_and_mask():
    classes = torch.tensor([[[20.0, 0, 0], [0, 20.0, 0], [0, 0, 20.0]]])
    masks = torch.tensor([20.0, -20.0, 20.0])[None, :, None, None].expand(1, 3, 2, 2)
    scores = class_scores(MaskPrediction(classes, masks), 4)
    torch.testing.assert_close(scores[0, :, 0, 0], torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)


@torch.no_grad()
def test_one_window_over_the_whole_image_is_one_pass(model):
    pixels = torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8, generator=drawn(4))

    def score(windows):
        return class_scores(model(Image(windows))[-1], SIDE)

    [found] = sliding_probabilities(score, [pixels], SIDE)
    torch.testing.assert_close(found, score(Image(pixels[None]).normalised())[0].softmax(0))
    # mirrored and straight together answer a mirrored image in the mirror
    [both] = sliding_probabilities(score, [pixels], SIDE, flip=True)
    [mirrored] = sliding_probabilities(score, [pixels.flip(-1)], SIDE, flip=True)
    torch.testing.assert_close(mirrored.flip(-1), both, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(both, found, atol=1e-3)
