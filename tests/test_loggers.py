"""Loggers by one word and online probes, in runs of the toy configuration with the real packages."""

import csv
import json
import re
import time

import pytest
import torch

from onepeace_lightning.cli import main
from tests.conftest import ROOT
from tests.test_cli import TOY


@pytest.fixture
def checkout(toy_root, labelled, tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(toy_root / "data")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


SHORT = [
    *TOY, "--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1",
    "--trainer.limit_val_batches=1", "--run=one",
]  # fmt: skip


def test_csv_keeps_every_metric_in_the_run_s_folder(checkout):
    main(["fit", *SHORT, "--trainer.logger", "csv"])
    [file] = (checkout / "runs/one/logs").rglob("metrics.csv")
    rows = list(csv.DictReader(file.open()))
    assert [float(row["train/loss"]) > 0 for row in rows if row["train/loss"]] == [True, True]
    assert any(row["val/score"] for row in rows)
    main(["fit", *SHORT, "--trainer.logger=csv", "--ckpt_path=last", "--trainer.max_steps=3"])
    assert len(list((checkout / "runs/one/logs").rglob("metrics.csv"))) == 2  # the first part's are still there


def test_wandb_offline_writes_into_the_run_s_folder_and_goes_on_as_one_run(checkout, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="an extra: pip install onepeace-lightning[loggers]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (checkout / "logger.yaml").write_text("trainer: {logger: wandb}\n")  # the word works in a configuration too
    main(["fit", *SHORT, "--config=logger.yaml"])
    wandb.finish()  # as the end of the process does
    run = (checkout / "runs/one/wandb_run").read_text().strip()
    [folder] = (checkout / "runs/one/wandb").glob("offline-run-*")
    assert folder.name.endswith(f"-{run}")
    [log] = folder.glob("*.wandb")
    names = (b"train/loss", b"val/score", b"max_steps")
    patience = time.monotonic() + 30  # a process of wandb's writes, and may still be at it
    while time.monotonic() < patience and not all(name in log.read_bytes() for name in names):
        time.sleep(0.2)
    content = log.read_bytes()
    for name in names:
        assert name in content, name
    assert not (checkout / "wandb").exists()
    main(["fit", *SHORT, "--config=logger.yaml", "--ckpt_path=last", "--trainer.max_steps=3"])
    wandb.finish()
    assert {f.name.rpartition("-")[2] for f in (checkout / "runs/one/wandb").glob("offline-run-*")} == {run}


def test_mlflow_writes_into_the_run_s_folder(checkout, monkeypatch):
    tracking = pytest.importorskip("mlflow.tracking", reason="an extra: pip install onepeace-lightning[loggers]")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    main(["fit", *SHORT, "--trainer.logger=mlflow"])
    client = tracking.MlflowClient(f"sqlite:///{checkout / 'runs/one/mlflow.db'}")
    experiment = client.get_experiment_by_name("onepeace_lightning")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "one"
    assert run.data.metrics["train/loss"] > 0
    assert run.data.params["trainer/max_steps"] == "2"
    assert not (checkout / "mlruns").exists()


def test_an_unknown_word_is_refused(checkout, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fit", *SHORT, "--trainer.logger=comet_or_so"])
    assert "trainer.logger" in str(ended.value)
    assert not (checkout / "runs/one").exists()


def test_probes_are_measured_at_validation_and_stand_in_the_results(checkout, capsys):
    labelled = "data/toy/tasks/image_classification/{}/image-label"
    main([
        "fit", *SHORT, "--trainer.logger=false", "--trainer.callbacks=OnlineProbe",
        f"--trainer.callbacks.train={labelled.format('train')}", f"--trainer.callbacks.val={labelled.format('val')}",
        "--trainer.callbacks+=OnlineProbe", "--trainer.callbacks.name=sounds",
        *(f"--trainer.callbacks.{split}=data/toy/tasks/audio_classification/{split}/audio-label"
          for split in ("train", "val")),
    ])  # fmt: skip
    results = json.loads((checkout / "runs/one/results.json").read_text())
    for name in ("image-label", "sounds"):
        for score in ("knn", "linear", "chance"):
            assert 0 <= results[f"{name}/{score}"] <= 100
    assert re.search(r"image-label/knn +│ +\d+\.\d\d", capsys.readouterr().out)
    record = torch.load("runs/one/checkpoints/last.ckpt", weights_only=True)["run"]
    assert record["scores"] == results
    assert record["measured_at"] == 2


def test_a_probe_without_labels_is_refused(checkout):
    with pytest.raises(SystemExit) as ended:
        main([
            "fit", *SHORT, "--trainer.callbacks=OnlineProbe", "--trainer.callbacks.train=data/toy/train/image",
            "--trainer.callbacks.val=data/toy/val/image-text",
        ])  # fmt: skip
    assert "holds 'image'; give two folders of one type with labels" in str(ended.value)
