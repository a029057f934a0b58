"""The detector's parts against plain re-computations, and what it says of whole images."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from onepeace_lightning.modalities.image import ImageConfig
from onepeace_lightning.modalities.text import TextConfig
from onepeace_lightning.models.config import ModelConfig, TransformerConfig
from onepeace_lightning.models.vision import detection_trunk
from onepeace_lightning.models.vision.boxes import decode, encode
from onepeace_lightning.models.vision.cascade import mask_scores, paste, pool
from onepeace_lightning.models.vision.detection_trunk import (
    DetectionTrunk,
    WindowAttention,
    from_windows,
    to_windows,
    toeplitz,
)
from onepeace_lightning.models.vision.detector import Detector, DetectorConfig, Instances, best
from onepeace_lightning.models.vision.proposals import flat, level_anchors, propose
from onepeace_lightning.models.vision.pyramid import STRIDES

CONFIG = ModelConfig(
    encoder=TransformerConfig(width=32, depth=4, heads=2, ffn_width=48, layer_scale=1.0, init_std=0.2),
    adapters={"image": ImageConfig(image_size=128)},
)
HEAD = DetectorConfig(classes=3, window=4, channels=16, hidden=24)


def detector(**changes) -> Detector:
    torch.manual_seed(0)
    model = Detector(CONFIG, replace(HEAD, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # the tables start at zero
    return model


def images(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


def test_toeplitz_reads_the_entry_for_each_distance():
    table = torch.randn(2, 7, 7)
    whole, last = toeplitz(table, 4, slice(0, 4)), toeplitz(table, 4, slice(2, 4))
    assert torch.equal(last, whole[:, 2:])
    for yi, xi, yj, xj in [(0, 0, 0, 0), (0, 0, 3, 3), (3, 1, 0, 2), (2, 3, 1, 0)]:
        assert torch.equal(whole[:, yi, xi, yj, xj], table[:, yi - yj + 3, xi - xj + 3])


def test_windows_come_back():
    x = torch.randn(2, 8, 12, 5)
    windows = to_windows(x, 4)
    assert torch.equal(windows[4].reshape(4, 4, 5), x[0, 4:8, 4:8])
    assert torch.equal(from_windows(windows, 4, (8, 12)), x)


@pytest.mark.parametrize("at_once", [1, 2**27])
def test_window_attention_equals_softmax_written_out(monkeypatch, at_once):
    monkeypatch.setattr(detection_trunk, "LOGITS_AT_ONCE", at_once)
    torch.manual_seed(0)
    attention = WindowAttention(width=8, heads=2, init_std=0.5, side=3)
    with torch.no_grad():
        attention.rel_pos_h.normal_()
        attention.rel_pos_w.normal_()
    table, x = torch.randn(2, 5, 5), torch.randn(1, 3, 3, 8)
    tokens = x.reshape(9, 8)
    heads = []
    for head in range(2):
        columns = slice(4 * head, 4 * head + 4)
        q, k, v = (f(tokens)[:, columns] for f in (attention.query, attention.key, attention.value))
        logits = torch.empty(9, 9)
        for i in range(9):
            for j in range(9):
                dy, dx = i // 3 - j // 3 + 2, i % 3 - j % 3 + 2
                decomposed = q[i] @ attention.rel_pos_h[dy] + q[i] @ attention.rel_pos_w[dx]
                logits[i, j] = q[i] @ k[j] / 2 + table[head, dy, dx] + decomposed
        heads.append(logits.softmax(-1) @ v)
    expected = attention.out(attention.norm(torch.cat(heads, 1)))
    torch.testing.assert_close(attention(x, table).reshape(9, 8), expected)


def test_only_global_blocks_see_other_windows():
    pixels = torch.randn(1, 3, 128, 128)
    changed = pixels.clone()
    changed[:, :, :64, :64] += 1
    windowed, whole = detector(global_blocks=()).backbone, detector(global_blocks=(3,)).backbone
    for trunk, elsewhere in ((windowed, False), (whole, True)):
        differs = (trunk(pixels) - trunk(changed)).abs().amax(1)[0] > 1e-5
        assert differs[:4, :4].all()
        assert bool(differs[4:, 4:].any()) == elsewhere


def test_windows_must_fit_the_grid_and_there_must_be_images():
    with pytest.raises(ValueError, match="image_size is 128, 8 patches; it must be a multiple of the window of 3"):
        DetectionTrunk(CONFIG, 3, ())
    with pytest.raises(ValueError, match="needs the image branch; the model has text"):
        DetectionTrunk(replace(CONFIG, adapters={"text": TextConfig(vocab_size=9)}), 4, ())


def test_decode_undoes_encode_and_bounds_growth():
    boxes, targets = torch.tensor([[10.0, 20, 40, 30]]), torch.tensor([[5.0, 22, 80, 90]])
    weights = (10.0, 10.0, 5.0, 5.0)
    torch.testing.assert_close(decode(boxes, encode(boxes, targets, weights), weights), targets)
    grown = decode(boxes, torch.tensor([[0.0, 0, 99, 0]]), weights)
    assert float(grown[0, 2] - grown[0, 0]) == pytest.approx(30 * 1000 / 16)


def test_anchors_lie_in_the_order_of_flattened_predictions():
    marked = torch.zeros(1, 12, 3, 5)
    marked[0, 4 * 2 + 1, 1, 4] = 1  # second number of the third anchor
    row = int(flat(marked, 4)[0, :, 1].argmax())
    x0, y0, x1, y1 = level_anchors((3, 5), 1)[row].tolist()
    assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((4 * STRIDES[1], STRIDES[1]))
    assert (y1 - y0) / (x1 - x0) == pytest.approx(2)
    assert (y1 - y0) * (x1 - x0) == pytest.approx(64**2)


def test_proposals_are_in_the_image_sorted_and_unlike_each_other():
    torch.manual_seed(0)
    logits = [torch.randn(2, 3, 32 // 2**level, 32 // 2**level) for level in range(5)]
    deltas = [torch.randn(2, 12, 32 // 2**level, 32 // 2**level) for level in range(5)]
    whole, small = propose(logits, deltas, [(128, 128), (50, 128)], before=40, after=30)
    assert len(whole.boxes) == 30
    assert torch.equal(whole.logits, whole.logits.sort(descending=True).values)
    assert float(small.boxes[:, [1, 3]].max()) <= 50
    assert bool((small.boxes[:, 3] > small.boxes[:, 1]).all())
    with pytest.raises(FloatingPointError, match="diverged"):
        propose([part * float("nan") for part in logits], deltas, [(128, 128)] * 2, before=40, after=30)


def test_a_region_is_pooled_from_the_level_of_its_size():
    maps = [torch.full((1, 1, 128 // 2**level, 128 // 2**level), float(level)) for level in range(5)]
    boxes = torch.tensor([[0.0, 0, 30, 30], [0, 0, 112, 112], [0, 0, 224, 224], [0, 0, 448, 448], [0, 0, 512, 512]])
    assert pool(maps, [boxes], 7)[:, 0, 3, 3].tolist() == [0, 1, 2, 3, 3]
    torch.testing.assert_close(pool(maps, [boxes[:2], boxes[2:]][:1], 2).shape, torch.Size([2, 1, 2, 2]))


def test_best_drops_duplicates_of_a_class_only():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]])
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.6, 0.0], [0.1, 0.0, 0.9]])
    kept, scores, classes = best(boxes, probabilities)
    assert [(round(float(s), 1), int(c)) for s, c in zip(scores, classes, strict=True)] == [
        (0.6, 1),
        (0.5, 0),
        (0.1, 0),
    ]
    assert torch.equal(kept[0], boxes[1])


def test_paste_fills_the_box_and_cuts_at_the_edge():
    masks = torch.ones(2, 28, 28)
    masks[1, :, :14] = 0
    pasted = paste(masks, torch.tensor([[2.0, 3, 6, 8], [8, 0, 16, 4]]), (10, 12))
    assert pasted[0].nonzero().aminmax(dim=0)[0].tolist() == [3, 2]
    assert int(pasted[0].sum()) == 4 * 5
    assert int(pasted[1].sum()) == 0  # its right half lies outside of the image


def test_mask_scores_are_the_mean_inside_and_zero_where_there_is_nothing():
    masks = torch.zeros(2, 2, 2)
    masks[0, 0] = torch.tensor([0.9, 0.7])
    assert mask_scores(torch.tensor([0.5, 0.8]), masks).tolist() == pytest.approx([0.4, 0.0])


def test_instances_at_another_size_lose_what_has_no_extent():
    found = Instances(
        torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]]), torch.ones(2), torch.arange(2), torch.ones(2, 28, 28),
        torch.ones(2),
    )  # fmt: skip
    smaller = found.at((20, 20), (40, 60))
    assert smaller.boxes.tolist() == [[0, 0, 30, 20]]
    assert smaller.classes.tolist() == [0]


def test_an_image_alone_is_answered_as_in_a_batch():
    model = detector()
    batch = images((128, 96), (64, 128))
    together = model(batch)
    for image, found in zip(batch, together, strict=True):
        alone = model([image])[0]
        torch.testing.assert_close(alone.boxes, found.boxes, atol=1e-3, rtol=0)
        torch.testing.assert_close(alone.masks, found.masks, atol=1e-4, rtol=0)
        assert float(found.boxes[:, 2].max()) <= image.shape[2]
        assert found.pasted(image.shape[1:]).shape == (len(found.boxes), *image.shape[1:])


def test_padding_is_zero_after_normalising():
    model = detector()
    image = images((100, 70))[0]
    pixels = model.pixels([image])
    assert pixels.shape == (1, 3, 128, 128)
    assert not pixels[:, :, 100:].any()
    assert not pixels[:, :, :, 70:].any()
    expected = (float(image[1, 5, 6]) - 116.7460125) / 66.6321579
    assert float(pixels[0, 1, 5, 6]) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match=r"images of \(100, 140\) pixels; the model takes at most 128 × 128"):
        model.pixels(images((100, 140)))


def test_no_weight_decay_names_layer_norms_and_positions():
    names = detector().no_weight_decay()
    assert "backbone.adapters.image.positions" in names
    assert "backbone.encoder.blocks.0.attention.norm.bias" in names
    for decaying in ("backbone.encoder.blocks.0.gamma_1", "backbone.encoder.blocks.0.attention.query.bias",
                     "pyramid.p2.1.weight", "stages.0.convs.0.norm.weight", "masks.masks.bias"):  # fmt: skip
        assert decaying not in names


def test_sizes_out_of_range_are_refused():
    with pytest.raises(ValueError, match="classes is 0, must be at least 1"):
        DetectorConfig(classes=0)


def test_table_of_another_side_is_resized_smoothly():
    trunk = detector().backbone
    table = trunk.embedding.table(4)
    assert table.shape == (2, 7, 7)
    resized = trunk.embedding.table(8)
    torch.testing.assert_close(
        resized, F.interpolate(table[None], size=(15, 15), mode="bicubic", align_corners=False)[0]
    )
