"""Several frames of a clip beside its audio, on the command line: classes and answers that need both."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("av", reason="an extra: pip install onepeace-lightning[video]")

from onepeace_lightning.cli import main
from onepeace_lightning.modalities.video_files import write_video
from tests.samples import as_json, wav, write

WAYS, PITCHES = ("left", "right"), ("low", "high")
PREPROCESSING = {
    "video": {"size": 32, "frames": 3, "step": 2}, "audio": {"min_seconds": 0.2, "max_seconds": 0.5},
    "text": {"truncate": True},
}  # fmt: skip


def clip(way: str, path: Path) -> Path:
    """A light square that moves to one side; a single frame does not show which."""
    frames = np.full((6, 40, 40, 3), 40, np.uint8)
    for number in range(6):
        left = 5 * (number if way == "right" else 5 - number)
        frames[number, 10:22, left : left + 12] = 230
    write_video(path, list(frames))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shards of eight clips for each task, and a table of two of the files."""
    top = tmp_path_factory.mktemp("clips")
    videos = {way: clip(way, top / f"{way}.mp4").read_bytes() for way in WAYS}
    samples = []
    for number in range(8):
        way, pitch = number % 2, number // 2 % 2
        (top / f"{PITCHES[pitch]}.wav").write_bytes(wav(PITCHES[pitch], seed=number))
        samples.append((
            {"mp4": videos[WAYS[way]], "wav": wav(PITCHES[pitch], seed=number)}, "same" if way == pitch else "other",
        ))  # fmt: skip
    labelled = [fields | {"json": as_json(labels=[answer])} for fields, answer in samples]
    write(top / "label", "video-audio-label", labelled, classes=["same", "other"])
    asked = [fields | {"txt": b"what is it?", "json": as_json(answers={answer: 1.0})} for fields, answer in samples]
    write(top / "question", "video-audio-question", asked, answers=["same", "other"])
    with (top / "table.csv").open("w", newline="") as file:
        rows = [
            ("video", "audio", "question"),
            *((f"{w}.mp4", f"{p}.wav", "what is it?") for w in WAYS for p in PITCHES),
        ]
        csv.writer(file).writerows(rows)
    return top


@pytest.mark.parametrize(("task", "kind"), [("ClassificationTask", "label"), ("QuestionAnsweringTask", "question")])
def test_frames_and_audio_of_a_clip_are_learned_and_answered_together(folder, words, tmp_path, monkeypatch, task, kind):
    monkeypatch.chdir(tmp_path)
    answers = {} if kind == "label" else {"answers": ["same", "other"], "tokenizer": words}
    stream = {"path": str(folder / kind), "batch_size": 8}
    Path("run.yaml").write_text(yaml.safe_dump({
        "trainer": {"max_steps": 40, "val_check_interval": 40, "accelerator": "cpu", "devices": 1,
                    "precision": "32-true", "logger": False, "enable_progress_bar": False},
        "model": {"class_path": task, "init_args": {
            "modalities": ["video", "audio"], "backbone": "tiny", "optimization": {"lr": 3e-3, "warmup_steps": 0.1},
            **answers}},
        "data": {"class_path": "DataModule", "init_args": {
            **({"tokenizer": words} if answers else {}), "num_workers": 0, "train": stream, "val": {"val": stream},
            "preprocessing": PREPROCESSING if answers else {k: v for k, v in PREPROCESSING.items() if k != "text"}}},
    }))  # fmt: skip
    main(["fit", "--config", "run.yaml", "--run", "run"])
    assert json.loads(Path("runs/run/results.json").read_text())["accuracy"] == 100
    main(["predict", "runs/run/checkpoints/last.ckpt", str(folder / "table.csv"), "--out", "answers.jsonl"])
    found = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert [(row["video"], row["audio"]) for row in found] == [(f"{w}.mp4", f"{p}.wav") for w in WAYS for p in PITCHES]
    assert [max(row["prediction"], key=row["prediction"].get) for row in found] == ["same", "other", "other", "same"]
