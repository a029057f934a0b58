import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image as PILImage
from PIL import ImageColor

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.modalities.audio import Audio, AudioModality
from onepeace_lightning.modalities.image import Image, ImageModality
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.modalities.text import Text
from onepeace_lightning.models.patches import MEAN, STD
from onepeace_lightning.reports import retrieval
from onepeace_lightning.reports.retrieval import (
    RetrievalExamples,
    RetrievalReport,
    render_sheet,
    searched_by,
)

NAMES = ["a bell", "a drum", "<b>one</b> siren & more"]


def make_batch(modality, captions=NAMES, side=8):
    """Picture i is a flat grey, darker with i; sound i is a sine of 800·(i + 1) samples."""
    greys = torch.stack([torch.full((3, side, side), row / 5) for row in range(len(captions))])
    mean, std = ((torch.tensor(v)[:, None, None]) for v in (MEAN, STD))
    query = {
        "text": Text(torch.full((len(captions), 3), 2)),
        "audio": Audio.pad([3 * torch.sin(torch.arange(800.0 * (row + 1))) for row in range(len(captions))]),
    }[modality]
    inputs = {"image": Image((greys - mean) / std), modality: query}
    rows = range(len(captions))
    origins = [f"birds/{row}.png" for row in rows]
    return Batch([str(row) for row in rows], inputs, captions=list(captions), origins=origins)


def make_embeddings(modality, rows=3):
    return {"image": torch.eye(rows, 4), modality: 5 * torch.eye(rows, 4)}


def make_examples(modality="audio", captions=NAMES):
    examples = RetrievalExamples("birds", modality, "image")
    examples.add(make_batch(modality, captions), make_embeddings(modality, len(captions)), queries=8)
    return examples


class Page(HTMLParser):
    """The page's text, tags and attributes; it must need nothing from outside."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def sources(self, tag):
        return [attributes["src"] for name, attributes in self.tags if name == tag]


def test_images_of_a_batch_lose_their_normalisation_again():
    image, batch = ImageModality(), make_batch("text")
    first, second, _ = (np.asarray(image.sample(batch.inputs["image"], row)) for row in range(3))
    assert (first.shape, first.dtype) == ((8, 8, 3), np.uint8)
    assert (first == 0).all()
    assert (second == 51).all()  # 0.2 × 255
    pixels = torch.arange(3 * 16 * 16).view(1, 3, 16, 16).to(torch.uint8)
    assert np.array_equal(np.asarray(image.sample(Image(pixels), 0)), pixels[0].permute(1, 2, 0).numpy())


def test_pictures_are_bounded_in_size():
    examples = RetrievalExamples("pairs", "text", "image")
    examples.add(make_batch("text", side=224), make_embeddings("text"), queries=8)
    assert {candidate.thumbnail.size for candidate in examples.candidates} == {(retrieval.THUMBNAIL,) * 2}


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (["text", "image"], ("image", "text")),
        (["audio", "image"], ("image", "audio")),
        (["text", "audio"], ("audio", "text")),
        (["audio"], None),
    ],
)
def test_what_is_searched_and_what_with(names, pair):
    assert searched_by(names) == pair


def test_nearest_pictures_come_first_whatever_their_length():
    examples = make_examples()
    vectors = ([9.0, 9, 0, 0], [0.0, 1, 0, 0], [1.0, 0, 0, 0])
    candidates = [replace(one, embedding=torch.tensor(v)) for one, v in zip(examples.candidates, vectors, strict=True)]
    examples.candidates = candidates
    first = examples.retrieve(top=2)[0]
    assert [candidate is candidates[index] for (candidate, _), index in zip(first, (2, 0), strict=True)] == [True, True]
    assert [cosine for _, cosine in first] == pytest.approx([1.0, 0.5**0.5])
    assert len(examples.retrieve(top=50)[0]) == 3


def test_queries_have_distinct_captions_and_a_limit():
    examples = RetrievalExamples("pairs", "text", "image")
    batch = make_batch("text", ["a bell", "a bell", "a drum", "a horn"])
    embeddings = make_embeddings("text", 4)
    examples.add(batch, embeddings, queries=2)
    examples.add(batch, embeddings, queries=2)
    assert [query.caption for query in examples.queries] == ["a bell", "a drum"]
    assert torch.equal(torch.stack([query.embedding for query in examples.queries]), embeddings["text"][[0, 2]])
    assert len(examples.candidates) == 8


def test_the_first_of_several_captions_is_asked():
    batch = make_batch("text", ["a bell", "a drum"])
    batch.targets["captions"] = [["a bell", "ding", "dong"], ["a drum", "boom"]]
    examples = RetrievalExamples("pairs", "text", "image")
    examples.add(batch, {"image": torch.eye(2, 5), "text": torch.eye(5)}, queries=2)
    assert [int(query.embedding.argmax()) for query in examples.queries] == [0, 3]


def test_samples_are_shown_with_the_settings_they_were_made_with():
    settings = Preprocessing({"series": {"channels": 2, "patch": 4, "rate": 8.0}})
    series = settings.modality("series")
    readings = [torch.randn(12 + 4 * row, 2) for row in range(3)]
    batch = make_batch("text")
    batch.inputs["series"] = series.collate([series.transform((one, 8.0)) for one in readings])
    del batch.inputs["text"]
    task = SimpleNamespace(preprocessing=settings)
    embeddings = {"image": torch.eye(3, 4), "series": torch.eye(3, 4)}
    kept = RetrievalReport().collect(None, "motion", batch, {"embeddings": embeddings}, task)
    assert [query.thumbnail.size for query in kept.queries] == [(retrieval.SMALL, retrieval.SMALL)] * 3


def test_parts_of_several_processes_become_one():
    first, second = make_examples("text", ["a bell", "a drum"]), make_examples("text", ["a horn", "a bell"])
    joined = RetrievalReport(queries=3).join([first, second])
    assert [query.caption for query in joined.queries] == ["a bell", "a horn", "a drum"]
    assert [one.caption for one in joined.candidates] == ["a bell", "a horn", "a drum", "a bell"]
    assert len(RetrievalReport(queries=2).join([first, second]).queries) == 2


def test_pictures_are_bounded(monkeypatch):
    monkeypatch.setattr(retrieval, "MAX_CANDIDATES", 4)
    examples = RetrievalExamples("pairs", "text", "image")
    for _ in range(3):
        examples.add(make_batch("text"), make_embeddings("text"), queries=8)
    assert len(examples.candidates) == 4
    monkeypatch.setattr(retrieval, "MAX_BYTES", 1)
    examples = RetrievalExamples("pairs", "text", "image")
    examples.add(make_batch("text"), make_embeddings("text"), queries=8)
    assert len(examples.candidates) == 1


def test_page_marks_right_answers_and_escapes_captions():
    html = RetrievalReport(top=2).sections({"birds": make_examples("text")})
    page = Page(html)
    assert sum(page.text.count(f"birds/{row}.png, key {row}") for row in range(3)) == 3 + 6  # each asked, two found
    kinds = [attributes["class"] for tag, attributes in page.tags if tag == "figure"]
    assert kinds == ["right", "wrong"] * 3
    assert "<b>one</b> siren & more" in page.text
    assert "Captions to images · birds, 3 images" in page.text
    assert page.sources("audio") == []
    assert not re.search(r"https?://|<link|<script", html)


def test_page_holds_the_pictures_and_sounds():
    page = Page(RetrievalReport(top=1).sections({"birds": make_examples("audio")}))
    pictures = [base64.b64decode(url.removeprefix("data:image/webp;base64,")) for url in page.sources("img")]
    greys = [np.asarray(PILImage.open(io.BytesIO(picture))) for picture in pictures]
    assert [grey.shape for grey in greys] == [(8, 8, 3)] * 3
    assert [grey.mean() for grey in greys] == [0, 51, 102]
    sounds = [base64.b64decode(url.removeprefix("data:audio/wav;base64,")) for url in page.sources("audio")]
    decoded = [soundfile.read(io.BytesIO(sound)) for sound in sounds]
    assert [(len(wave), rate) for wave, rate in decoded] == [(800, 16_000), (1600, 16_000), (2400, 16_000)]  # unpadded
    assert np.abs(decoded[0][0]).max() == pytest.approx(0.9, abs=1e-3)  # not clipped


def test_a_silent_sound_stays_silent():
    silence = AudioModality().html((torch.zeros(100), 16_000))
    [sound] = Page(silence).sources("audio")
    decoded, _ = soundfile.read(io.BytesIO(base64.b64decode(sound.removeprefix("data:audio/wav;base64,"))))
    assert not decoded.any()


def test_what_is_searched_among_recordings_is_played():
    batch = make_batch("audio")
    batch.inputs["text"] = Text(torch.full((3, 3), 2))
    del batch.inputs["image"]
    examples = RetrievalExamples("sounds", "text", "audio")
    examples.add(batch, {"text": torch.eye(3, 4), "audio": torch.eye(3, 4)}, queries=8)
    assert len(Page(RetrievalReport(top=2).sections({"sounds": examples})).sources("audio")) == 6


def pixels_of(sheet, colour):
    return (np.asarray(sheet) == np.array(ImageColor.getrgb(colour))).all(-1)


def test_sheet_frames_answers_by_colour():
    sheet = render_sheet([make_examples("text")], top=2)
    right, wrong = pixels_of(sheet, retrieval.RIGHT), pixels_of(sheet, retrieval.WRONG)
    assert right.sum() == wrong.sum() > 0
    assert np.nonzero(right)[1].max() < np.nonzero(wrong)[1].min()  # the nearest is the right one, in the first column


def test_sheet_stacks_sections_and_marks_sounds():
    captions, sounds = (render_sheet([make_examples(modality)], top=2) for modality in ("text", "audio"))
    both = render_sheet([make_examples("text"), make_examples("audio")], top=2)
    assert both.height == captions.height + sounds.height - retrieval.GAP
    drawn = [pixels_of(sheet, "#4477aa")[:, : retrieval.SMALL + retrieval.GAP].sum() for sheet in (sounds, captions)]
    assert drawn[0] > 0 == drawn[1]


def test_a_long_caption_stays_in_its_column_and_row():
    words = " ".join(["extraordinarily"] * 60)
    sheet = render_sheet([make_examples("text", [words])], top=1)
    ink = pixels_of(sheet, retrieval.INK)
    rows = np.nonzero(ink[retrieval.HEADING :])[0]
    assert rows.max() < retrieval.CELL
    assert not ink[retrieval.HEADING :, retrieval.GAP + retrieval.LABEL - 2 :].any()


class Task(L.LightningModule):
    """Returns unit embeddings of what the batch holds; later validations are told apart by their number of pictures."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return self.weight.sum()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        return {"embeddings": {modality: torch.eye(len(batch), 4) for modality in batch.inputs}}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(*batches):
    return torch.utils.data.DataLoader(list(batches), batch_size=None)


def make_trainer(folder, **settings):
    settings = {"logger": False, "max_epochs": 2} | settings
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[RetrievalReport(str(folder), queries=2, top=3)],
        **settings,
    )


def audio_only():
    batch = make_batch("audio")
    del batch.inputs["image"]
    return batch


def test_validate_writes_a_section_per_stream_with_pictures(tmp_path):
    loaders = {
        "image-text": loader(make_batch("text"), make_batch("text")),
        "audio-text": loader(audio_only()),
        "audio-image": loader(make_batch("audio")),
    }
    make_trainer(tmp_path / "new").validate(Task(), loaders, verbose=False)
    page = Page((tmp_path / "new" / "report.html").read_text(encoding="utf-8"))
    assert "Captions to images · image-text, 6 images" in page.text
    assert "Recordings to images · audio-image, 3 images" in page.text
    assert "audio-text" not in page.text
    assert len(page.sources("audio")) == 2
    with PILImage.open(tmp_path / "new" / "report.png") as sheet:
        assert sheet.mode == "RGB"


def test_fit_shows_only_its_last_validation(tmp_path):
    logger = L.pytorch.loggers.TensorBoardLogger(tmp_path / "logs")
    task, trainer = Task(), make_trainer(tmp_path, logger=logger)
    trainer.fit(task, loader(make_batch("text")), loader(make_batch("text")))
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "validation 0, 3 images" in text  # 9, were the sanity check and both epochs added up

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(logger.log_dir).Reload()
    (logged,) = events.Images("report")
    with PILImage.open(tmp_path / "report.png") as sheet:
        assert (logged.step, logged.width, logged.height) == (2, *sheet.size)


def test_a_sanity_check_gathers_nothing(tmp_path):
    make_trainer(tmp_path, limit_train_batches=0).fit(Task(), loader(audio_only()), loader(make_batch("text")))
    assert list(tmp_path.iterdir()) == []


def test_validation_without_images_writes_no_gallery(tmp_path):
    make_trainer(tmp_path).validate(Task(), loader(audio_only()), verbose=False)
    assert not list(tmp_path.glob("gallery*"))


def test_an_empty_gallery_is_refused():
    with pytest.raises(ValueError, match="queries is 0 and top is 5"):
        RetrievalReport("folder", queries=0)
