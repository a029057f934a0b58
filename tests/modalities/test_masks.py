import math

import numpy as np
import pytest
import torch

from onepeace_lightning.data.readers.aligned import draw_masks
from onepeace_lightning.modalities.arrays import hide, span_mask
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.modalities.text import TextModality, word_mask
from onepeace_lightning.modalities.tokenizers import Encoding

FRAMES = (1, 2, 3, 4, 5, 7, 8, 15, 49, 100, 499, 749)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def fused_text(alone, rng):
    array = Encoding(ids=[5] * (len(alone) - 1), word_starts=[True] * (len(alone) - 1))
    return TextModality().fused_mask(array, alone, rng)


def masks_of(data_type, rng, *, word_starts=None, num_patches=None, num_frames=None, settings=None):
    """The masks of a sample of these sizes."""
    arrays = {
        "text": word_starts and Encoding(ids=[5] * len(word_starts), word_starts=word_starts),
        "image": torch.empty(3, *[16 * math.isqrt(num_patches or 0)] * 2),
        "audio": torch.empty(80 + 320 * (num_frames or 0)),
    }
    names = [name for name in arrays if name in data_type.split("-")]
    modalities = {name: Preprocessing(settings).modality(name) for name in names}
    return draw_masks(modalities, {name: arrays[name] for name in names}, rng)


def make_word_starts(lengths):
    """Flags of words with these numbers of tokens, and of eos."""
    return [flag for length in lengths for flag in (True, *[False] * (length - 1))] + [True]


def split_words(mask, word_starts):
    """The mask's values word by word, CLS and eos left out."""
    borders = np.flatnonzero(word_starts[:-1])[1:]
    return np.split(mask[1:-1], borders)


def count_runs(mask):
    return int((np.diff(mask.astype(int), prepend=0) == 1).sum())


@pytest.mark.parametrize("ratio", [0.15, 0.4])
@pytest.mark.parametrize("words", [*range(1, 24), 40, 70])
def test_text_mask_hides_the_exact_number_of_whole_words(rng, words, ratio):
    word_starts = make_word_starts(rng.integers(1, 5, words))
    mask = word_mask(word_starts, rng, ratio)
    parts = split_words(mask, word_starts)
    assert len(mask) == len(word_starts) + 1
    assert not mask[0]
    assert not mask[-1]
    assert all(part.all() or not part.any() for part in parts)
    assert sum(bool(part.all()) for part in parts) == math.ceil(ratio * words)


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 10, 33, 70])
def test_fused_text_draws_single_tokens_first_from_the_visible_ones(rng, tokens):
    text = word_mask([True] * tokens + [True], rng, 0.15)
    fused = fused_text(text, rng)
    count = int(0.4 * tokens)
    assert fused.shape == text.shape
    assert fused.sum() == count
    assert not fused[0]
    assert not fused[-1]
    assert (fused & text).sum() == max(0, count - (~text[1:-1]).sum())


def test_fused_text_falls_back_on_hidden_tokens_when_few_are_visible(rng):
    text = np.array([False, *[True] * 8, False, False, False])  # 10 tokens, 2 of them visible
    fused = fused_text(text, rng)
    assert fused.sum() == 4
    assert fused[9:11].all()


def test_fused_text_splits_words(rng):
    word_starts = make_word_starts([10, 10])
    text = word_mask(word_starts, rng, 0.15)
    parts = split_words(fused_text(text, rng), word_starts)
    assert any(part.any() and not part.all() for part in parts)


@pytest.mark.parametrize("patches", [1, 2, 3, 4, 9, 16, 49, 196, 256, 1024])
def test_image_masks_have_exact_counts_and_the_fused_one_hides_what_was_visible(rng, patches):
    image = hide(patches, 0.75, rng)
    fused = hide(patches, 0.6875, rng, first=~image[1:])
    assert image.shape == fused.shape == (patches + 1,)
    assert not image[0]
    assert not fused[0]
    assert image.sum() == int(0.75 * patches)
    assert fused.sum() == int(0.6875 * patches)
    left_visible = ~image[1:]
    assert (fused[1:] & left_visible).sum() == min(left_visible.sum(), fused.sum())


@pytest.mark.parametrize("ratio", [0.55, 0.45, 0.0, 1.0])
@pytest.mark.parametrize("frames", FRAMES)
def test_audio_mask_has_the_exact_count(rng, frames, ratio):
    for _ in range(20):
        mask = span_mask(frames, rng, ratio)
        assert mask.shape == (frames + 1,)
        assert not mask[0]
        assert mask.sum() == int(ratio * frames)


def test_audio_mask_hides_spans(rng):
    spans = [span_mask(500, rng, 0.45) for _ in range(50)]
    single = [span_mask(500, rng, 0.45, span=1) for _ in range(50)]
    # Frames drawn one by one form F * p * (1 - p) = 124 runs; spans of five with some corrections far fewer.
    assert np.mean([count_runs(mask) for mask in spans]) < 75
    assert np.mean([count_runs(mask) for mask in single]) > 110


def test_audio_mask_without_corrections_is_made_of_the_span():
    # One centre and five frames to hide: the whole span stands wherever it is not clipped.
    masks = [span_mask(20, np.random.default_rng(seed), 0.25, overdraw=0.0)[1:] for seed in range(50)]
    whole = [mask for mask in masks if not (mask[0] or mask[-1])]
    assert len(whole) > 20
    assert all(mask.sum() == 5 and count_runs(mask) == 1 for mask in whole)


def test_every_position_is_hidden_as_often_as_the_ratio_says(rng):
    draws = 600
    text = np.mean([word_mask([True] * 21, rng, 0.15) for _ in range(draws)], axis=0)[1:-1]
    image = np.mean([hide(16, 0.75, rng) for _ in range(draws)], axis=0)[1:]
    audio = np.mean([span_mask(60, rng, 0.55) for _ in range(draws)], axis=0)[1:]
    assert np.abs(text - 0.15).max() < 0.08
    assert np.abs(image - 0.75).max() < 0.08
    assert np.abs(audio - 0.55).max() < 0.25  # spans reach the ends less often
    assert audio.min() > 0.3


@pytest.mark.parametrize(
    ("data_type", "alone", "fused"),
    [
        ("text", {"text": 3}, {}),
        ("image", {"image": 12}, {}),
        ("audio", {"audio": 55}, {}),
        ("image-text", {"text": 3, "image": 12}, {"text": 8, "image": 11}),
        ("audio-text", {"audio": 55}, {"text": 8, "audio": 45}),
    ],
)
def test_draw_masks_gives_each_data_type_its_masks(data_type, alone, fused):
    sizes = {"word_starts": [True] * 21, "num_patches": 16, "num_frames": 100}

    def draw(seed):
        return masks_of(data_type, np.random.default_rng(seed), **sizes)

    masks, fused_masks = draw(0)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == alone
    assert {name: int(mask.sum()) for name, mask in fused_masks.items()} == fused
    assert all(mask.dtype == bool for part in (masks, fused_masks) for mask in part.values())

    def flatten(pair):
        return np.concatenate([mask for part in pair for mask in part.values()])

    np.testing.assert_array_equal(flatten(draw(0)), flatten(draw(0)))
    assert (flatten(draw(0)) != flatten(draw(1))).any()


def test_draw_masks_builds_the_fused_image_mask_on_the_image_mask(rng):
    masks, fused = masks_of("image-text", rng, word_starts=[True] * 11, num_patches=256)
    assert fused["image"][1:][~masks["image"][1:]].all()
    assert not (fused["text"] & masks["text"]).any()


def test_draw_masks_draws_the_two_audio_masks_independently(rng):
    masks, fused = masks_of("audio-text", rng, word_starts=[True] * 11, num_frames=1000)
    both = (masks["audio"] & fused["audio"]).sum()
    assert 150 < both < 350  # 0.55 * 0.45 * 1000 = 248 by chance; 450 or 0 were one made from the other


def test_ratios_are_those_of_the_settings(rng):
    settings = {
        "text": {"mask_ratio": 0.5, "fused_mask_ratio": 0.1},
        "image": {"mask_ratio": 0.5, "fused_mask_ratio": 0.25},
        "audio": {"mask_ratio": 0.2, "fused_mask_ratio": 0.3},
    }
    starts = [True] * 21
    masks, fused = masks_of("image-text", rng, word_starts=starts, num_patches=16, settings=settings)
    assert [int(mask.sum()) for mask in (*masks.values(), *fused.values())] == [10, 8, 2, 4]
    masks, fused = masks_of("audio-text", rng, word_starts=starts, num_frames=100, settings=settings)
    assert [int(mask.sum()) for mask in (*masks.values(), *fused.values())] == [20, 2, 30]


def test_a_pair_without_text_hides_each_alone_and_both_together(rng):
    masks, fused = masks_of("audio-image", rng, num_patches=16, num_frames=100)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"image": 12, "audio": 55}
    assert {name: int(mask.sum()) for name, mask in fused.items()} == {"image": 11, "audio": 45}


def test_three_together_hide_all_but_the_text_alone(rng):
    masks, fused = masks_of("image-audio-text", rng, word_starts=[True] * 21, num_patches=16, num_frames=100)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"image": 12, "audio": 55}
    assert {name: int(mask.sum()) for name, mask in fused.items()} == {"text": 8, "image": 11, "audio": 45}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rng: masks_of("image", rng, num_patches=0), "there are 0 tokens"),
        (lambda rng: span_mask(0, rng, 0.5), "there are 0 frames"),
        (lambda rng: masks_of("text", rng, word_starts=[True]), "one flag for each token and one for eos"),
        (lambda rng: masks_of("text", rng, word_starts=[False, True, True]), "the first and last True"),
        (lambda rng: masks_of("text", rng, word_starts=[True, False]), "the first and last True"),
    ],
)
def test_bad_input_is_refused(rng, call, message):
    with pytest.raises(ValueError, match=message):
        call(rng)


def test_all_problems_are_reported_at_once():
    with pytest.raises(ValueError, match=r"of image: mask_ratio is 1\.5.*mask_span is 4.*mask_overdraw is -1"):
        Preprocessing({"image": {"mask_ratio": 1.5}, "audio": {"mask_span": 4, "mask_overdraw": -1}})
