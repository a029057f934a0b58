import re

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from sklearn.metrics import average_precision_score

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.modalities.audio import Audio
from onepeace_lightning.modalities.image import Image
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.reports.classification import ClassificationReport, average_precision
from tests.reports.test_retrieval import Page, loader

CLASSES = ["bell", "drum", "<b>horn</b>"]


class Classifier(L.LightningModule):
    """Says what the targets' ``said`` are."""

    classes, preprocessing = CLASSES, Preprocessing()

    def __init__(self, several=False):
        super().__init__()
        self.multi_label = several

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        return {"logits": batch.targets["said"]}

    def probabilities(self, logits_BC):
        return logits_BC.sigmoid() if self.multi_label else logits_BC.softmax(-1)


def make_batch(labels, said, modality="image"):
    inputs = {
        "image": Image(torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8)),
        "audio": Audio.pad([torch.zeros(400)] * len(labels)),
    }
    targets = {"labels": labels, "said": torch.tensor(said)}
    return Batch([str(row) for row in range(len(labels))], {modality: inputs[modality]}, targets=targets)


def validate(folder, batches, task=None, **options):
    L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        callbacks=[ClassificationReport(str(folder), **options)],
    ).validate(task or Classifier(), loader(*batches), verbose=False)  # fmt: skip
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_counts_chance_and_the_worst_mistakes_first(tmp_path):
    batches = [
        make_batch([["bell"], ["bell"]], [[5.0, 0, 0], [0, 1, 0]]),
        make_batch([["drum"], ["<b>horn</b>"]], [[0, 0, 9.0], [0, 0, 3]]),
    ]
    page = validate(tmp_path, batches, mistakes=2)
    text = re.sub(r"\s+", " ", page.text)
    assert "2 (50.0 %)" in text  # right
    assert "33.3 %" in text  # any class
    assert "Worst mistakes" in text
    worst = text[text.index("Worst mistakes") :]
    assert worst.index("is drum") < worst.index("is bell")
    assert "<b>horn</b> 1.00" in worst
    cells = [attributes["title"] for tag, attributes in page.tags if tag == "td" and "title" in attributes]
    assert len(cells) == 9
    assert len(page.sources("img")) == 2


def test_the_worst_mistakes_name_their_files(tmp_path):
    batch = make_batch([["bell"], ["bell"], ["drum"]], [[5.0, 0, 0], [0, 9, 0], [3, 0, 0]])
    batch.origins = ["bell/1.png", "bell/<2>.png", ""]
    text = validate(tmp_path, [batch]).text
    assert "bell/<2>.png, key 1" in text
    assert "bell/1.png" not in text  # which was right
    assert re.search(r"is drum 0\.\d\d\s*key 2", text)


def test_only_so_many_mistakes_are_kept_and_recordings_are_played(tmp_path):
    wrong = [[0.0, 1 + row, 0] for row in range(6)]
    batches = [make_batch([["bell"]] * 3, wrong[:3], "audio"), make_batch([["bell"]] * 3, wrong[3:], "audio")]
    page = validate(tmp_path, batches, mistakes=2)
    assert len(page.sources("audio")) == 2
    assert re.findall(r"drum (0\.\d+|1\.00), bell", page.text) == ["1.00", "0.99"]


def test_several_classes_have_average_precision_and_their_frequency_as_chance(tmp_path):
    labels = [["bell", "drum"], ["drum"], []]
    said = [[2.0, 1, -3], [3.0, -1, -3], [-2.0, -3, -1]]
    text = validate(tmp_path, [make_batch(labels, said)], Classifier(several=True)).text
    assert re.search(r"bell\s*1\s*50\.0\s%\s*33\.3\s%", text)
    assert re.search(r"drum\s*2\s*100\.0\s%\s*66\.7\s%", text)
    assert re.search(r"horn</b>\s*0\s*–\s*0\.0\s%", text)
    assert "is no class" in text


def test_many_classes_show_the_pairs_that_are_confused(tmp_path):
    task = Classifier()
    task.classes = [f"class {number}" for number in range(40)]
    said = torch.zeros(4, 40)
    said[:3, 7], said[3, 9] = 5.0, 5.0
    batch = make_batch([["class 3"]] * 3 + [["class 9"]], said.tolist())
    text = validate(tmp_path, [batch], task).text
    assert "What is taken for what most" in text
    assert re.search(r"class 3\s*class 7\s*3\s*3", text)


def test_a_model_without_mistakes_has_a_report(tmp_path):
    page = validate(tmp_path, [make_batch([["bell"], ["drum"]], [[5.0, 0, 0], [0, 5, 0]])])
    assert "2 (100.0\u00a0%)" in page.text
    assert "Worst mistakes" not in page.text


def test_average_precision_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth, scores = rng.random(200) < 0.2, rng.integers(0, 9, 200) / 9
    assert average_precision(truth, scores) == pytest.approx(average_precision_score(truth, scores))


def test_parts_of_several_processes_become_one():
    report, task = ClassificationReport(mistakes=1), Classifier()
    parts = [
        report.collect(None, "val", batch, {"logits": batch.targets["said"]}, task)
        for batch in (make_batch([["bell"]], [[0.0, 1, 0]]), make_batch([["drum"]], [[9.0, 0, 0]]))
    ]
    joined = report.join(parts)
    assert joined.samples == 2
    assert joined.confusion_CC.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert [one.drawn.expected[:4] for one in joined.mistakes] == ["drum"]
    assert isinstance(report, Callback)


def test_a_negative_number_is_refused():
    with pytest.raises(ValueError, match="mistakes is -1"):
        ClassificationReport(mistakes=-1)
