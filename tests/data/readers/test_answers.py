"""Questions with answers, pairs of pictures, questions with choices."""

import numpy as np
import pytest
import torch

from onepeace_lightning.data.bad_samples import BadSample
from onepeace_lightning.data.prepare import collate
from onepeace_lightning.data.readers.audio_choices import (
    AudioQuestionAnsweringDataModule,
    ChoicesReader,
    collate_choices,
)
from onepeace_lightning.data.readers.question_answering import QuestionReader
from onepeace_lightning.data.readers.reasoning import PairReader
from onepeace_lightning.data.transforms import Preprocessing
from onepeace_lightning.modalities.tokenizers import load_tokenizer
from tests.samples import as_json, png, wav

SIZES = Preprocessing(image_size=48, min_audio_seconds=0.2, max_audio_seconds=1.0, crop_scale=(0.3, 0.5))
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
    example = QuestionReader(SIZES, tokenizer, False)(QUESTION, RNG(0))
    assert example.targets["answers"] == {"red": 1.0, "pink": 0.3}
    assert example.targets["size"].tolist() == [40, 40]
    assert example.caption == "what is it?"


def test_training_pictures_are_cropped_unless_told_otherwise(tokenizer):
    for make, sample in ((QuestionReader, QUESTION), (PairReader, PAIR)):
        plain = make(SIZES, tokenizer, False)(sample, RNG(0))
        cropped, again = (make(SIZES, tokenizer, True)(sample, RNG(0)) for _ in range(2))
        kept = make(SIZES, tokenizer, True, False)(sample, RNG(0))
        assert torch.equal(plain.inputs["image"], kept.inputs["image"])
        assert torch.equal(cropped.inputs["image"], again.inputs["image"])
        assert not torch.equal(plain.inputs["image"], cropped.inputs["image"])


def test_pairs_keep_their_order(tokenizer):
    example = PairReader(SIZES, tokenizer, False)(PAIR, RNG(0))
    batch = collate([example, example])
    assert batch.second.pixels.shape == batch.inputs["image"].pixels.shape == (2, 3, 48, 48)
    first, second = (pixels[0].float().mean((1, 2)) for pixels in (batch.inputs["image"].pixels, batch.second.pixels))
    assert first[0] > 200 > first[2]
    assert second[2] > 200 > second[0]
    assert batch.targets["sizes"][0].tolist() == [[40, 40], [30, 30]]


def test_every_choice_is_a_row_of_text_after_its_question(tokenizer):
    reader = ChoicesReader(SIZES, tokenizer, False, 3)
    batch = collate_choices([reader(CHOICES, RNG(0)), reader(CHOICES | {"wav": wav("high", 0.5)}, RNG(0))])
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
        QuestionReader(SIZES, tokenizer, False)(QUESTION | {"json": as_json(**json)}, RNG(0))


@pytest.mark.parametrize(
    ("json", "message"),
    [
        ({"choices": ["a", "b"], "answer": 0}, "3 texts are expected"),
        ({"choices": ["a", "b", 3], "answer": 0}, "3 texts are expected"),
        ({"choices": ["a", "b", "c"], "answer": 3}, "answer is 3"),
        ({"choices": ["a", "b", "c"], "answer": -1}, "answer is -1"),
        ({"choices": ["a", "b", "c"], "answer": "a"}, "another kind"),
        ({"choices": ["a", "b", "c"]}, "'answer' is missing"),
    ],
)
def test_choices_that_do_not_do_are_refused(tokenizer, json, message):
    with pytest.raises(BadSample, match=message):
        ChoicesReader(SIZES, tokenizer, False, 3)(CHOICES | {"json": as_json(**json)}, RNG(0))


def test_a_second_picture_that_is_missing_or_broken_is_refused(tokenizer):
    reader = PairReader(SIZES, tokenizer, False)
    with pytest.raises(BadSample, match="the second picture: cannot decode"):
        reader(PAIR | {"second.png": b"none"}, RNG(0))
    with pytest.raises(BadSample, match="expected one second picture"):
        reader({name: value for name, value in PAIR.items() if name != "second.png"}, RNG(0))


def test_a_single_choice_is_no_question():
    assert any("choices is 1" in line for line in AudioQuestionAnsweringDataModule(choices=1).problems())
