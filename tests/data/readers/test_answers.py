"""Questions with answers, pairs of pictures, questions with choices."""

import numpy as np
import pytest
import torch

from onepeace_lightning.data.bad_samples import BadSample
from onepeace_lightning.data.readers.questions import ChoicesReader, PairReader, QuestionReader
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.modalities.tokenizers import load_tokenizer
from tests.samples import as_json, png, wav

SIZES = Preprocessing(
    {"image": {"size": 48, "crop_scale": (0.3, 0.5)}, "audio": {"min_seconds": 0.2, "max_seconds": 1.0}}
)
RNG = np.random.default_rng


@pytest.fixture
def tokenizer(words):
    return load_tokenizer(words)


QUESTION = {
    "__key__": "0",
    "png": png("red"),
    "txt": b"what is it?",
    "json": as_json(answers={"red": 1.0, "pink": 0.3}),
}
PAIR = {
    "__key__": "0",
    "png": png("red"),
    "second.png": png("blue", side=30),
    "txt": b"a red square",
    "json": as_json(labels=["True"]),
}
CHOICES = {
    "__key__": "0",
    "wav": wav("low"),
    "txt": b"what is it?",
    "json": as_json(choices=["low", "high", "a middle tone"], answer=1),
}


def test_questions_keep_all_their_answers(tokenizer):
    example = QuestionReader.of("image-question", SIZES, tokenizer)(QUESTION, RNG(0))
    assert example.targets["answers"] == {"red": 1.0, "pink": 0.3}
    assert example.targets["size"].tolist() == [40, 40]
    assert example.caption == "what is it?"


def test_training_pictures_are_cropped_unless_told_otherwise(tokenizer):
    for make, kind, sample in ((QuestionReader, "image-question", QUESTION), (PairReader, "image-pair", PAIR)):
        plain = make.of(kind, SIZES, tokenizer)(sample, RNG(0))
        cropped, again = (make.of(kind, SIZES, tokenizer, train=True)(sample, RNG(0)) for _ in range(2))
        kept = make.of(kind, SIZES, tokenizer, train=True, augmentation=False)(sample, RNG(0))
        assert torch.equal(plain.inputs["image"], kept.inputs["image"])
        assert torch.equal(cropped.inputs["image"], again.inputs["image"])
        assert not torch.equal(plain.inputs["image"], cropped.inputs["image"])


def test_pairs_keep_their_order(tokenizer):
    reader = PairReader.of("image-pair", SIZES, tokenizer)
    batch = reader.collate([reader(PAIR, RNG(0))] * 2)
    assert list(batch.inputs) == ["text", "image", "second_image"]
    both = [batch.inputs[name].pixels for name in ("image", "second_image")]
    assert both[0].shape == both[1].shape == (2, 3, 48, 48)
    first, second = (pixels[0].float().mean((1, 2)) for pixels in both)
    assert first[0] > 200 > first[2]
    assert second[2] > 200 > second[0]
    assert batch.targets["sizes"][0].tolist() == [[40, 40], [30, 30]]


def test_every_choice_is_a_row_of_text_after_its_question(tokenizer):
    reader = ChoicesReader.of("audio-choices", SIZES, tokenizer)
    batch = reader.collate([reader(CHOICES, RNG(0)), reader(CHOICES | {"wav": wav("high", 0.5)}, RNG(0))])
    assert len(batch.inputs["audio"].lengths) == 2
    rows = [tokenizer.decode(row) for row in batch.inputs["text"].ids_BL.tolist()]
    assert [row.strip() for row in rows] == [
        f"what is it? answer: {choice}" for choice in ("low", "high", "a middle tone")
    ] * 2
    assert batch.targets["answer"].tolist() == [1, 1]
    assert batch.targets["choices"][0] == ["low", "high", "a middle tone"]


@pytest.mark.parametrize(
    ("json", "message"),
    [
        ({"answers": {}}, "give at least one"),
        ({"answers": {"red": 0}}, "above 0"),
        ({"answers": {"red": 1.5}}, "at most 1"),
        ({"answers": ["red"]}, "another kind"),
    ],
)
def test_answers_that_do_not_do_are_refused(tokenizer, json, message):
    with pytest.raises(BadSample, match=message):
        QuestionReader.of("image-question", SIZES, tokenizer)(QUESTION | {"json": as_json(**json)}, RNG(0))


@pytest.mark.parametrize(
    ("json", "message"),
    [
        ({"choices": ["a"], "answer": 0}, "at least two texts are expected"),
        ({"choices": ["a", "b", 3], "answer": 0}, "at least two texts are expected"),
        ({"choices": ["a", "b", "c"], "answer": 3}, "answer is 3"),
        ({"choices": ["a", "b", "c"], "answer": -1}, "answer is -1"),
        ({"choices": ["a", "b", "c"], "answer": "a"}, "another kind"),
        ({"choices": ["a", "b", "c"]}, "'answer' is missing"),
    ],
)
def test_choices_that_do_not_do_are_refused(tokenizer, json, message):
    with pytest.raises(BadSample, match=message):
        ChoicesReader.of("audio-choices", SIZES, tokenizer)(CHOICES | {"json": as_json(**json)}, RNG(0))


def test_a_second_picture_that_is_missing_or_broken_is_refused(tokenizer):
    reader = PairReader.of("image-pair", SIZES, tokenizer)
    with pytest.raises(BadSample, match="the second image: cannot decode"):
        reader(PAIR | {"second.png": b"none"}, RNG(0))
    with pytest.raises(BadSample, match="expected one second image"):
        reader({name: value for name, value in PAIR.items() if name != "second.png"}, RNG(0))


def test_questions_of_a_batch_have_equally_many_choices(tokenizer):
    reader = ChoicesReader.of("audio-choices", SIZES, tokenizer)
    two = CHOICES | {"__key__": "1", "json": as_json(choices=["low", "high"], answer=0)}
    with pytest.raises(ValueError, match=r"\{'0': 3, '1': 2\} choices"):
        reader.collate([reader(CHOICES, RNG(0)), reader(two, RNG(0))])
