import pytest
import torch

from onepeace_lightning.data.datamodule import DataModule, StreamConfig
from onepeace_lightning.tasks import QuestionAnsweringTask, load_task
from onepeace_lightning.training.optimizer import Optimization
from tests.samples import COLOURS, asked_about, png
from tests.tiny import images, randomised, texts

FAST = Optimization(lr=1e-2, warmup_steps=0.1)


@pytest.fixture
def data(tmp_path, words, reading) -> DataModule:
    return DataModule(
        StreamConfig(str(asked_about(tmp_path / "train")), 5),
        {"val": StreamConfig(str(asked_about(tmp_path / "val", first=100)), 4)},
        tokenizer=words,
        preprocessing=reading.preprocessing,
    )


def test_answers_are_learned_scored_and_given_from_a_checkpoint(trainer, tmp_path, reading, data):
    task = QuestionAnsweringTask(reading, FAST, answers=list(COLOURS), modalities=["image"])
    task.configure_model()
    randomised(task.model.head)
    run = trainer(max_steps=180)
    run.fit(task, data)
    [scores] = run.validate(task, data, verbose=False)
    # of nine samples two are worth 0.6, and the last has no answer that is learned
    assert scores["val/accuracy"] == scores["val/score"] == pytest.approx(100 * (6 + 2 * 0.6) / 9)
    assert scores["val/chance/accuracy"] == pytest.approx(100 * 2.6 / 9)  # the same answer always
    run.save_checkpoint(tmp_path / "task.ckpt")
    (tmp_path / "red.png").write_bytes(png("red", seed=70))
    opened = load_task(tmp_path / "task.ckpt")
    [answer] = opened.predict([tmp_path / "red.png"], ["what is it?"], top=2)
    assert len(answer) == 2
    assert next(iter(answer)) == "red"
    assert [answer] == task.predict([tmp_path / "red.png"], ["what is it?"], top=2)
    assert all(0 <= share <= 1 for share in answer.values())

    data.setup("validate")
    batch = next(iter(data.val_dataloader()["val"]))
    drawn = opened.draw(batch, {"logits": opened.model(batch.inputs)}, 0)
    assert drawn.right
    assert drawn.asked == "what is it?"
    assert drawn.expected == "red (0.6), mauve (0.3)"


def test_answers_outside_the_vocabulary_train_towards_nothing(reading, data):
    task = QuestionAnsweringTask(reading, answers=list(COLOURS), modalities=["image"])
    task.configure_model()
    data.setup("fit")
    batch = next(iter(data.val_dataloader()["val"]))
    batch.targets["answers"][0] = {"mauve": 1.0}
    assert task.scores(batch)[0].tolist() == [0, 0, 0]
    logits = task.model(batch.inputs).detach()
    expected = -(task.scores(batch) * logits.sigmoid().log() + (1 - task.scores(batch)) * (1 - logits.sigmoid()).log())
    torch.testing.assert_close(task.loss(batch), expected.sum() / len(batch))


def test_padding_and_the_rest_of_the_batch_change_nothing(reading):
    task = QuestionAnsweringTask(reading, answers=["a", "b"], modalities=["image"])
    words, pictures = texts(9, 4), images(2)
    with task.answering() as model:
        together = model({"text": words, "image": pictures})
        alone = model({"text": type(words)(words.ids_BL[1:, :4]), "image": type(pictures)(pictures.pixels[1:])})
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_answered_is_refused(trainer, tmp_path, reading, data):
    with pytest.raises(ValueError, match=r"the data's answers .*are not the task's"):
        trainer(max_steps=1).fit(QuestionAnsweringTask(reading, answers=["red", "mauve"], modalities=["image"]), data)
    task = QuestionAnsweringTask(reading, answers=list(COLOURS), modalities=["image"])
    (tmp_path / "no.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"image 0 .*no\.png"):
        task.predict([tmp_path / "no.png"], ["what is it?"])
    with pytest.raises(ValueError, match=r"'image': 1, 'question': 0"):
        task.predict([torch.rand(3, 8, 8)], [])
    with pytest.raises(ValueError, match="single str"):
        task.predict([torch.rand(3, 8, 8)], "what is it?")
    with pytest.raises(ValueError, match="answers: give at least one"):
        QuestionAnsweringTask(reading, modalities=["image"]).predict([torch.rand(3, 8, 8)], ["what is it?"])
