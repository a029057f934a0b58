"""Probes of two processes, replicated or sharded, score what one process scores."""

import json

import pytest

from tests.distributed.runs import RUN, checkout, run, streams

LABELLED = "data/toy/tasks/image_classification/{}/image-label"


@pytest.mark.usefixtures("labelled")
def test_two_processes_measure_what_one_does(toy_root, tmp_path):
    results = []
    for strategy in ("auto", "ddp", "fsdp"):
        ranks = 1 if strategy == "auto" else 2
        folder = checkout(tmp_path / strategy, toy_root)
        sharded = ["--config=configs/trainer/fsdp.yaml"] if strategy == "fsdp" else []
        words = [
            *RUN[:2], *sharded, *RUN[2:], "--trainer.max_steps=1", "--trainer.val_check_interval=1",
            streams("image-text", batch_size=2),
            # next to nothing is learned, so that both measure the same weights
            "--model.init_args.optimization.lr=1e-12", "--model.init_args.optimization.min_lr=0",
            "--model.init_args.optimization.warmup_steps=0",
            "--data.init_args.num_workers=0", "--trainer.callbacks=OnlineProbe", "--trainer.callbacks.batch_size=3",
            *(f"--trainer.callbacks.{split}={LABELLED.format(split)}" for split in ("train", "val")),
        ]  # fmt: skip
        words += ["--trainer.strategy=ddp"] if strategy == "ddp" else []
        assert run(folder, *words, ranks=ranks) == [0] * ranks
        results.append(json.loads((folder / "runs/toy/results.json").read_text()))
    one, *others = ({name: value for name, value in scores.items() if "image-label" in name} for scores in results)
    assert set(one) == {f"image-label/{name}" for name in ("knn", "linear", "chance")}
    for other in others:
        assert other == pytest.approx(one, abs=0.02)
