import json

import lightning as L
import pytest
import torch
from rich.console import Console

from onepeace_lightning.training.results import ResultsTable, results_tables, scores_of

PAIR = {"image_to_text/R@1": 41.236, "chance/image_to_text/R@1": 0.391, "text_to_image/R@10": 80.0}


class Task(L.LightningModule):
    """Logs the given scores, plus the number of validations so far, so that a stale table would be seen."""

    def __init__(self, scores):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.scores = scores
        self.validations = 0
        self.score_context = ["prompt: [a sound of] {}", "split: 1234"]

    def training_step(self, batch, batch_idx):
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_epoch_end(self):
        self.validations += 1
        self.log_dict({f"val/{name}": torch.tensor(value + self.validations) for name, value in self.scores.items()})
        self.log("val/loss", torch.tensor(1.0))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(folder, scores, mode="fit", **settings):
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ResultsTable(str(folder))],
        **settings,
    )
    loader = torch.utils.data.DataLoader(torch.zeros(1, 1))
    if mode == "fit":
        trainer.fit(Task(scores), loader, loader)
    else:
        trainer.validate(Task(scores), loader, verbose=False)
    path = folder / "results.json"
    return json.loads(path.read_text()) if path.exists() else None


def test_fit_reports_its_last_validation_once(tmp_path, capsys):
    # Validations: the sanity check, then one per epoch.
    scores = run(tmp_path / "new" / "folder", PAIR)
    assert scores == {"image_to_text/R@1": 44.24, "chance/image_to_text/R@1": 3.39, "text_to_image/R@10": 83.0}
    printed = capsys.readouterr().out
    assert printed.count("image → text") == 1
    assert "44.24" in printed
    assert "prompt: [a sound of] {}\nsplit: 1234\n" in printed
    assert printed.index("text → image") < printed.index("prompt:") < printed.index("results.json")


def test_validate_reports(tmp_path, capsys):
    assert run(tmp_path, PAIR, "validate")["image_to_text/R@1"] == 42.24
    assert capsys.readouterr().out.count("image → text") == 1


def test_a_sanity_check_reports_nothing(tmp_path, capsys):
    assert run(tmp_path, PAIR, limit_train_batches=0) is None
    assert "image" not in capsys.readouterr().out


def test_validation_without_scores_says_so(tmp_path):
    with pytest.warns(UserWarning, match="no results to show"):
        assert run(tmp_path, {}, "validate") is None


def test_only_scores_of_evaluation_are_kept():
    metrics = {
        "val/image_to_text/R@1": torch.tensor(12.345),
        "val/birds/chance/image_to_text/R@5": 1.0,
        "val/loss": 3.0,
        "val/score": 3.0,
        "test/accuracy": 50.0,
        "train/image_to_text/R@1": 99.0,
    }
    assert scores_of(metrics) == {"image_to_text/R@1": 12.35, "birds/chance/image_to_text/R@5": 1.0, "accuracy": 50.0}


def test_scores_that_are_no_percentages_are_not_called_so(tmp_path, capsys):
    assert scores_of({"val/error": torch.tensor(0.01234)}, percent=False) == {"error": 0.0123}
    console = Console(width=100)
    with console.capture() as capture:
        console.print(*results_tables({"error": 0.0123}, percent=False))
        console.print(*results_tables({"accuracy": 12.0}))
    assert "percent" not in capture.get().partition("accuracy")[0].partition("0.0123")[0]
    assert "Scores, percent" in capture.get()


def test_table_has_one_row_per_gallery_and_direction():
    console = Console(width=100)
    with console.capture() as capture:
        console.print(
            *results_tables(
                {
                    "image_to_text/R@1": 1.0,
                    "image_to_text/R@5": 2.0,
                    "image_to_text/R@10": 3.0,
                    "chance/image_to_text/R@1": 0.25,
                    "birds/image_to_text/R@1": 5.0,
                    "birds/chance/image_to_text/R@1": 0.5,
                    "accuracy": 61.25,
                }
            )
        )
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capture.get().splitlines() if "→" in line]
    assert rows == [
        ["image → text", "1.00", "2.00", "3.00", "0.25"],
        ["image → text (birds)", "5.00", "", "", "0.50"],
    ]
    assert "│ accuracy │ 61.25 │" in capture.get()
