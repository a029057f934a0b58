import io
import pickle

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image as Picture

from onepeace_lightning.data.bad_samples import BadSample
from onepeace_lightning.data.readers.aligned import AlignedReader
from onepeace_lightning.modalities.audio import num_frames
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.modalities.tokenizers import SentencePieceTokenizer
from onepeace_lightning.modalities.tokenizers.base import EOS, PAD
from tests.tiny import mask_rows

PREPROCESSING = Preprocessing({"image": {"size": 64}, "audio": {"min_seconds": 0.25, "max_seconds": 2.0}})
CAPTIONS = ["a cow", "three small bells and a big red drum beside the old clock", "two birds in the rain"]


@pytest.fixture(scope="module")
def tokenizer():
    return SentencePieceTokenizer.train(CAPTIONS, 300)


def picture(colour=(200, 30, 60)):
    buffer = io.BytesIO()
    Picture.new("RGB", (50, 70), colour).save(buffer, "PNG")
    return buffer.getvalue()


def clip(seconds=0.5, rate=16000):
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.1 * np.sin(np.arange(round(seconds * rate)) / 9), rate, format="WAV")
    return buffer.getvalue()


def raw(key="k", caption=CAPTIONS[0], seconds=0.5):
    return {"__key__": key, "__shard__": "0.tar", "png": picture(), "wav": clip(seconds), "txt": caption.encode()}


def prepared(data_type, tokenizer, samples=None, train=True, masks=True, seed=0, preprocessing=PREPROCESSING):
    reader = AlignedReader.of(data_type, preprocessing, tokenizer, train=train, masks=masks)
    samples = samples or [raw(str(i), caption, 0.3 + 0.4 * i) for i, caption in enumerate(CAPTIONS)]
    return reader.collate([reader(sample, np.random.default_rng(seed + i)) for i, sample in enumerate(samples)])


def test_text_is_padded_with_pad_after_eos(tokenizer):
    batch = prepared("text", tokenizer)
    text = batch.inputs["text"]
    rows = [tokenizer.encode(caption).ids for caption in CAPTIONS]
    assert text.ids_BL.shape == (3, max(map(len, rows)))
    for ids, row in zip(text.ids_BL.tolist(), rows, strict=True):
        assert ids == row + [PAD] * (len(ids) - len(row))
    assert batch.captions == CAPTIONS
    assert batch.keys == ["0", "1", "2"]
    assert list(batch.inputs) == ["text"]


def test_pictures_are_joined_as_they_are(tokenizer):
    samples = [raw() | {"png": picture(colour)} for colour in [(200, 30, 60), (0, 255, 1)]]
    pixels = prepared("image-text", tokenizer, samples, train=False).inputs["image"].pixels
    assert (pixels.shape, pixels.dtype) == ((2, 3, 64, 64), torch.uint8)
    assert pixels[:, :, 5, 7].tolist() == [[200, 30, 60], [0, 255, 1]]
    for index, sample in enumerate(samples):
        assert torch.equal(pixels[index], prepared("image", None, [sample], train=False).inputs["image"].pixels[0])


def test_sound_is_padded_with_zeros_and_equals_the_clip_alone(tokenizer):
    audio = prepared("audio-text", tokenizer).inputs["audio"]
    assert audio.lengths == [4800, 11200, 17600]
    for index, length in enumerate(audio.lengths):
        alone = prepared("audio", None, [raw(seconds=0.3 + 0.4 * index)]).inputs["audio"].waveforms_BN[0]
        assert torch.equal(audio.waveforms_BN[index, :length], alone)
        assert not audio.waveforms_BN[index, length:].any()


@pytest.mark.parametrize("data_type", ["text", "image", "audio", "image-text", "audio-text"])
def test_masks_fit_the_inputs_and_never_touch_cls_eos_or_padding(tokenizer, data_type):
    all_of_it = {"mask_ratio": 1.0, "fused_mask_ratio": 1.0}
    preprocessing = PREPROCESSING.changed(text=all_of_it, image=all_of_it)
    batch = prepared(data_type, tokenizer, preprocessing=preprocessing)
    may_be_hidden = {"image": [16] * 3}
    if "text" in batch.inputs:
        may_be_hidden["text"] = [length - 1 for length in batch.inputs["text"].lengths]
    if "audio" in batch.inputs:
        may_be_hidden["audio"] = [num_frames(length) for length in batch.inputs["audio"].lengths]
    pair = "-" in data_type
    assert set(batch.fused_masks) == (set(data_type.split("-")) if pair else set())
    assert set(batch.masks) == ({"audio"} if data_type == "audio-text" else set(data_type.split("-")))
    for masks in (batch.masks, batch.fused_masks):
        for name, mask in masks.items():
            assert mask.is_hidden_T.dtype == torch.bool
            assert mask.lengths == batch.inputs[name].token_lengths
            assert len(mask.hidden_M)
            for row, count in zip(mask_rows(mask), may_be_hidden[name], strict=True):
                assert not row[0]
                assert not row[count + 1 :].any()


def test_evaluation_and_contrast_alone_have_no_masks(tokenizer):
    assert not prepared("image-text", tokenizer, train=False).masks
    batch = prepared("image-text", tokenizer, masks=False)
    assert not batch.masks
    assert not batch.fused_masks


def test_evaluation_does_not_depend_on_the_generator_and_training_does(tokenizer):
    pixels = [prepared("image-text", tokenizer, train=False, seed=seed).inputs["image"].pixels for seed in (0, 9)]
    assert torch.equal(*pixels)
    masks = [prepared("image-text", tokenizer, seed=seed).masks["image"] for seed in (0, 0, 9)]
    assert torch.equal(masks[0].is_hidden_T, masks[1].is_hidden_T)
    assert not torch.equal(masks[0].is_hidden_T, masks[2].is_hidden_T)


def test_pair_for_measuring_has_the_caption_but_no_text_input():
    batch = prepared("audio-image", None, train=False)
    assert list(batch.inputs) == ["image", "audio"]
    assert batch.captions == CAPTIONS


def test_caption_of_a_picture_alone_is_kept_if_there_is_one():
    sample = raw()
    del sample["txt"]
    assert prepared("image", None, [raw(), sample]).captions == ["a cow", ""]


@pytest.mark.parametrize(
    ("data_type", "change", "said"),
    [
        ("image-text", {"txt": None}, "expected one text field"),
        ("image-text", {"png": None}, "expected one image field"),
        ("image-text", {"jpg": picture()}, "found 2"),
        ("image-text", {"txt": b"  \n"}, "no words"),
        ("audio-text", {"txt": b"!!!"}, "no words"),
        ("text", {"txt": b"\xff\xfe"}, "utf-8"),
        ("image", {"png": picture()[:60]}, "cannot decode the image"),
        ("audio", {"wav": b"RIFF"}, "cannot decode the audio"),
        ("audio", {"wav": clip(0)}, "0 samples"),
        ("audio-image", {"txt": b" "}, "no words"),
    ],
)
def test_unusable_sample_says_why(tokenizer, data_type, change, said):
    sample = {name: value for name, value in {**raw(), **change}.items() if value is not None}
    with pytest.raises(BadSample, match=said):
        AlignedReader.of(data_type, PREPROCESSING, tokenizer)(sample, np.random.default_rng(0))


def test_silent_sound_is_accepted(tokenizer):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(8000), 16000, format="WAV")
    batch = prepared("audio-text", tokenizer, [{**raw(), "wav": buffer.getvalue()}])
    assert torch.equal(batch.inputs["audio"].waveforms_BN, torch.zeros(1, 8000))


def test_one_word_caption_and_one_frame_sound_are_accepted(tokenizer):
    preprocessing = Preprocessing({"image": {"size": 16}, "audio": {"min_seconds": 0.025}})
    for data_type in ("text", "audio-text", "image-text"):
        batch = prepared(data_type, tokenizer, [raw(caption="cow", seconds=0.001)], preprocessing=preprocessing)
        assert batch.inputs["text"].ids_BL[0, -1] == EOS


def test_it_pickles(tokenizer):
    reader = AlignedReader.of("image-text", PREPROCESSING, tokenizer, train=True, masks=True)
    again = pickle.loads(pickle.dumps(reader))
    ours, theirs = (each.collate([each(raw(), np.random.default_rng(3))]) for each in (reader, again))
    assert torch.equal(ours.inputs["text"].ids_BL, theirs.inputs["text"].ids_BL)
    assert torch.equal(ours.inputs["image"].pixels, theirs.inputs["image"].pixels)
    assert torch.equal(ours.masks["image"].is_hidden_T, theirs.masks["image"].is_hidden_T)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"'smell' is no modality; .* text, image, audio"):
        AlignedReader.of("smell")
    with pytest.raises(ValueError, match="needs a tokenizer"):
        AlignedReader.of("text")
    with pytest.raises(ValueError, match=r"augmentation of image is .*give true or false"):
        AlignedReader.of("image", augmentation={"flip": 0.5})


def test_without_captions_a_pair_is_its_own_right_answer():
    sample = {name: value for name, value in raw("7").items() if name != "txt"}
    batch = prepared("audio-image", None, [sample, raw("8")], train=False)
    assert batch.captions == ["", "a cow"]
    assert batch.targets["answer"] == ["0.tar/7", "a cow"]
