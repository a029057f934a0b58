import pytest
import torch

from onepeace_lightning.data.datamodule import DataModule, StreamConfig
from onepeace_lightning.modalities.image import Image
from onepeace_lightning.modalities.text import Text
from onepeace_lightning.reports.drawing import GUESS, TRUE
from onepeace_lightning.tasks import VisualGroundingTask, load_task
from onepeace_lightning.training.optimizer import Optimization
from tests.samples import BOXES, as_json, pointed_at, scene, write
from tests.tasks.conftest import learn
from tests.tiny import IMAGE_SIZE, images, randomised, texts

FAST = Optimization(lr=1e-2, warmup_steps=0.1)


@pytest.fixture
def data(tmp_path, words, reading) -> DataModule:
    return DataModule(
        StreamConfig(str(pointed_at(tmp_path / "train")), 4),
        {"val": StreamConfig(str(pointed_at(tmp_path / "val", 6, first=100)), 4)},
        tokenizer=words,
        preprocessing=reading.preprocessing,
    )


def test_boxes_are_learned_and_given_in_each_picture_s_own_pixels(trainer, tmp_path, reading, data):
    task = VisualGroundingTask(reading, FAST)
    task.configure_model()
    randomised(task.model.head)
    run = trainer(max_steps=80)
    run.fit(task, data)
    [scores] = run.validate(task, data, verbose=False)
    assert scores["val/accuracy@0.5"] == scores["val/score"] == 100.0
    assert 50 < scores["val/mean_IoU"] < 100
    run.save_checkpoint(tmp_path / "task.ckpt")

    (tmp_path / "a.png").write_bytes(scene(BOXES[0], "red", seed=7))
    doubled = [2 * value for value in BOXES[1]]
    (tmp_path / "b.png").write_bytes(scene(doubled, "blue", 120, 80, seed=8))
    question = {"image": [tmp_path / "a.png", tmp_path / "b.png"], "text": ["a red square", "a blue square"]}
    boxes = task.predict(**question)
    for box, expected in zip(boxes, (BOXES[0], doubled), strict=True):
        assert box == pytest.approx(expected, abs=12)
    opened = load_task(tmp_path / "task.ckpt")
    assert opened.predict(**question) == boxes
    alone = opened.predict(**question, batch_size=1)
    for box, expected in zip(alone, boxes, strict=True):
        assert box == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("pooled", ["image", "text"])
def test_what_is_pooled_is_learned_from_and_kept(trainer, tmp_path, reading, data, pooled):
    data.setup("validate")
    batch = next(iter(data.val_dataloader()["val"]))
    task = VisualGroundingTask(reading, pooled=pooled)
    before, after = learn(task, batch)
    assert after < 0.6 * before
    run = trainer(max_steps=0)
    run.strategy.connect(task)
    run.save_checkpoint(tmp_path / "task.ckpt")
    opened = load_task(tmp_path / "task.ckpt")
    assert opened.model.head.config.pooled == (pooled,)
    with torch.no_grad():
        torch.testing.assert_close(opened.model.eval()(batch.inputs), task.model.eval()(batch.inputs))


def test_padding_and_the_rest_of_the_batch_change_nothing(reading):
    task = VisualGroundingTask(reading)
    with task.answering() as model:
        words, pictures = texts(9, 4), images(2)
        together = model({"text": words, "image": pictures})
        alone = model({"text": Text(words.ids_BL[1:, :4]), "image": Image(pictures.pixels[1:])})
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-5)


def test_both_boxes_are_drawn_where_they_are(reading, data):
    task = VisualGroundingTask(reading)
    data.setup("validate")
    batch = next(iter(data.val_dataloader()["val"]))
    guess = torch.tensor([32.0, 20.0, 50.0, 30.0])
    drawn = task.draw(batch, {"boxes": guess.expand(len(batch), 4)}, 0)
    [picture] = drawn.images
    assert picture.size == (240, 160)
    x0, y0, _, y1 = (4 * value for value in BOXES[0])
    assert "#{:02x}{:02x}{:02x}".format(*picture.getpixel((x0, (y0 + y1) // 2))) == TRUE
    assert "#{:02x}{:02x}{:02x}".format(*picture.getpixel((4 * 32, 4 * 25))) == GUESS
    assert not drawn.right
    assert drawn.asked == "a red square"
    assert drawn.answered == "overlap 0.00"


def test_what_cannot_be_answered_is_refused(trainer, tmp_path, words, reading):
    task = VisualGroundingTask(reading)
    (tmp_path / "no.png").write_bytes(b"RIFF no picture")
    with pytest.raises(ValueError, match=r"image 1 .*no\.png"):
        task.predict([torch.rand(3, 8, 8), tmp_path / "no.png"], ["a square"] * 2)
    with pytest.raises(ValueError, match=r"'image': 1, 'text': 2"):
        task.predict([torch.rand(3, 8, 8)], ["a square"] * 2)
    with pytest.raises(ValueError, match=r"text 0.*no words"):
        task.predict([torch.rand(3, 8, 8)], [" "])
    with pytest.raises(ValueError, match="pooled is 'audio'"):
        VisualGroundingTask(reading, pooled="audio")
    sample = {"png": scene(BOXES[0], "red"), "txt": b"a red square", "json": as_json(box=[4, 4, 61, 20])}
    stream = StreamConfig(str(write(tmp_path / "odd", "image-box", [sample])), 1)
    odd = DataModule(stream, {"val": stream}, tokenizer=words, preprocessing=reading.preprocessing)
    with pytest.raises(ValueError, match=r"box is \[4, 4, 61, 20\] in an image of 60×40"):
        trainer().validate(task, odd, verbose=False)


def test_the_published_result_is_the_corpus_s_own(trainer, tmp_path, words, reading):
    task = VisualGroundingTask(reading)
    for name, published in (("refcoco", "92.58"), ("refcoco+", "88.77"), ("refcocog", "89.22")):
        stream = StreamConfig(str(pointed_at(tmp_path / name / "val", 2)), 2)
        data = DataModule(None, {"val": stream}, tokenizer=words, preprocessing=reading.preprocessing)
        trainer().validate(task, data, verbose=False)
        [line] = [line for line in task.score_context if line.startswith("published")]
        assert published in line


def test_a_square_of_other_size_is_refused(trainer, reading, data):
    with pytest.raises(ValueError, match=f"size of image is {IMAGE_SIZE}, the model takes {2 * IMAGE_SIZE}"):
        trainer(max_steps=1).fit(VisualGroundingTask(reading, preprocessing={"image": {"size": 2 * IMAGE_SIZE}}), data)
