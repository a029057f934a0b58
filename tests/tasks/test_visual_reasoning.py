import pytest
import torch

from onepeace_lightning.data.datamodule import DataModule, StreamConfig
from onepeace_lightning.tasks import VisualReasoningTask, load_task
from onepeace_lightning.training.optimizer import Optimization
from tests.samples import pairs, png
from tests.tiny import images, texts

FAST = Optimization(lr=3e-3, warmup_steps=0.1)


@pytest.fixture
def data(tmp_path, words, reading) -> DataModule:
    return DataModule(
        StreamConfig(str(pairs(tmp_path / "train")), 6),
        {"val": StreamConfig(str(pairs(tmp_path / "val", 8, first=100)), 5)},
        tokenizer=words,
        preprocessing=reading.preprocessing,
    )


def test_statements_about_the_left_picture_are_learned(trainer, tmp_path, reading, data):
    """Only the order of the pictures tells true from false: the other colour is always in the other picture."""
    task = VisualReasoningTask(reading, FAST)
    run = trainer(max_steps=60)
    run.fit(task, data)
    [scores] = run.validate(task, data, verbose=False)
    assert scores["val/accuracy"] == scores["val/score"] == 100.0
    run.save_checkpoint(tmp_path / "task.ckpt")
    for name in ("red", "blue"):
        (tmp_path / f"{name}.png").write_bytes(png(name, seed=70))
    files = [tmp_path / "red.png", tmp_path / "blue.png"]
    opened = load_task(tmp_path / "task.ckpt")
    answers = opened.predict(files, files[::-1], ["a red square"] * 2)
    assert [next(iter(answer)) for answer in answers] == ["True", "False"]
    assert sum(answers[0].values()) == pytest.approx(1)
    assert answers == task.predict(files, files[::-1], ["a red square"] * 2)

    data.setup("validate")
    batch = next(iter(data.val_dataloader()["val"]))
    drawn = opened.draw(batch, opened(batch), 0)
    assert [picture.size for picture in drawn.images] == [(240, 240)] * 2
    red, blue = (picture.resize((1, 1)).getpixel((0, 0)) for picture in drawn.images)
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert drawn.right
    assert drawn.expected == "True"


def test_type_embeddings_start_at_zero_and_tell_the_pictures_apart(reading):
    task = VisualReasoningTask(reading, classes=["True", "False"])
    task.configure_model()
    adapter = task.model.backbone.adapter("image")
    assert not adapter.type_embedding_second.any()
    words, first, second = texts(5), images(1, seed=4), images(1, seed=5)
    torch.nn.init.normal_(adapter.type_embedding_second)
    with task.answering() as model:
        logits = model({"text": words, "image": first, "second_image": second})
        swapped = model({"text": words, "image": second, "second_image": first})
    assert not torch.allclose(logits, swapped, atol=1e-3)


def test_padding_and_the_rest_of_the_batch_change_nothing(reading):
    task = VisualReasoningTask(reading, classes=["True", "False"])
    words, first, second = texts(9, 4), images(2, seed=4), images(2, seed=5)
    with task.answering() as model:
        together = model({"text": words, "image": first, "second_image": second})
        one = {"text": type(words)(words.ids_BL[1:, :4]), "image": type(first)(first.pixels[1:])}
        alone = model({**one, "second_image": type(second)(second.pixels[1:])})
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_answered_is_refused(trainer, tmp_path, reading, data):
    with pytest.raises(ValueError, match=r"the data's classes .*are not the task's"):
        trainer(max_steps=1).fit(VisualReasoningTask(reading, classes=["yes", "no"]), data)
    task = VisualReasoningTask(reading, classes=["True", "False"])
    picture = torch.rand(3, 8, 8)
    (tmp_path / "no.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"image 0 .*no\.png"):
        task.predict([picture], [tmp_path / "no.png"], ["a square"])
    with pytest.raises(ValueError, match=r"'first': 1, 'second': 2, 'text': 1"):
        task.predict([picture], [picture] * 2, ["a square"])
