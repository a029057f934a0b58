import re

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageColor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from onepeace_lightning.reports.answers import COLUMNS, AnswersReport, render_sheet
from onepeace_lightning.reports.drawing import Drawn
from onepeace_lightning.reports.pages import RIGHT, WRONG
from onepeace_lightning.reports.sheets import wrapped
from tests.reports.test_retrieval import Page


def drawn(number, pictures=1, height=160, right=None):
    made = [Image.new("RGB", (240, height), (10 * number, 0, 0)) for _ in range(pictures)]
    right = number % 2 == 0 if right is None else right
    return Drawn(made, f"<b>question</b> {number}?", f"answer {number}", f"truth {number}", right)


def test_the_page_holds_every_picture_and_answer_and_nothing_from_outside():
    page = Page(AnswersReport().sections({"first": [drawn(0), drawn(1, pictures=2)], "second": [drawn(2)]}))
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 4
    assert all(source.startswith("data:image/webp;base64,") for source in images)
    figures = [attributes["class"] for tag, attributes in page.tags if tag == "figure"]
    assert figures == ["right", "wrong", "right"]
    for text in (
        "first: 1 of these 2 right",
        "second: 1 of these 1 right",
        "<b>question</b> 1?",
        "answer 1",
        "truth 1",
    ):
        assert text in page.text


def test_the_sheet_frames_right_and_wrong_answers():
    sheet = render_sheet({"val": [drawn(number, height=100 + 20 * number) for number in range(COLUMNS + 1)]})
    frames = [sheet.getpixel((12 + column * (248 + 12), 40)) for column in range(COLUMNS)]
    expected = [ImageColor.getrgb(colour) for colour in (RIGHT, WRONG)]
    assert frames == [expected[column % 2] for column in range(COLUMNS)]
    assert sheet.width == 12 + COLUMNS * (248 + 12)
    # the second row begins under the tallest of the first
    assert sheet.height > 40 + 100 + 20 * (COLUMNS - 1) + 100 + 20 * COLUMNS
    assert render_sheet({"val": [drawn(0, pictures=2)]}).width == 12 + COLUMNS * (2 * 240 + 12 + 12)


def test_long_texts_break_and_end_in_dots():
    from PIL import ImageFont

    font = ImageFont.load_default(14)
    lines = wrapped("word " * 200, font, 100)
    assert len(lines) == 5
    assert lines[-1].endswith("...")
    assert all(font.getlength(line) <= 100 for line in lines[:-1])
    assert wrapped("", font, 100) == []
    assert wrapped("incomprehensibilities", font, 10) == ["incomprehensibilities"]


class Silent(L.LightningModule):
    def validation_step(self, batch, batch_idx):
        return {}


class Answering(L.LightningModule):
    """Three batches of two numbers; odd ones are answered wrong."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        return {"doubled": 2 * batch}

    def training_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)

    def draw(self, batch, outputs, row):
        assert outputs["doubled"][row] == 2 * batch[row]
        return drawn(int(batch[row]))


def make_trainer(folder, callback, **options):
    return L.Trainer(
        accelerator="cpu", callbacks=[callback], logger=TensorBoardLogger(folder), enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip


def test_validate_writes_the_first_samples_of_every_stream_and_logs_them(tmp_path):
    callback = AnswersReport(str(tmp_path / "shown"), samples=3)
    trainer = make_trainer(tmp_path, callback)
    loaders = {name: DataLoader(torch.arange(6) + first, 2) for name, first in (("low", 0), ("high", 6))}
    trainer.validate(Answering(), loaders, verbose=False)
    text = Page((tmp_path / "shown/report.html").read_text()).text
    assert re.findall(r"answer (\d+)", text) == ["0", "1", "2", "6", "7", "8"]
    assert "low: 2 of these 3 right" in text
    assert "high: 2 of these 3 right" in text
    sheet = Image.open(tmp_path / "shown/report.png")
    events = EventAccumulator(str(next(tmp_path.rglob("events*")).parent))
    events.Reload()
    [image] = events.Images("report")
    assert (image.width, image.height) == sheet.size


def test_fit_writes_its_last_validation(tmp_path):
    callback = AnswersReport(str(tmp_path / "shown"), samples=1)
    trainer = make_trainer(tmp_path, callback, max_epochs=2, num_sanity_val_steps=2)
    loader = DataLoader(torch.arange(2), 2)
    trainer.fit(Answering(), loader, loader)
    assert "validation 0: 1 of these 1 right" in Page((tmp_path / "shown/report.html").read_text()).text


def test_what_cannot_be_shown_is_refused(tmp_path):
    with pytest.raises(ValueError, match="samples is 0"):
        AnswersReport(str(tmp_path), samples=0)
    with pytest.raises(TypeError, match="Silent draws no answers"):
        make_trainer(tmp_path, AnswersReport(str(tmp_path))).validate(
            Silent(), DataLoader(torch.arange(2)), verbose=False
        )
