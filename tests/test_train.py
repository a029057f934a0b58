"""From a user's files to a trained task by one call."""

import json

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import onepeace_lightning
from onepeace_lightning import OnePeace
from onepeace_lightning.cli import main
from onepeace_lightning.cli.train import choose
from onepeace_lightning.modalities.presets import preset_config
from onepeace_lightning.modalities.tokenizers import SentencePieceTokenizer
from onepeace_lightning.models.pretraining import PretrainModel

COLOURS = {"red": (200, 0, 0), "blue": (0, 0, 200)}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def class_folders(top, each=12):
    for name, colour in COLOURS.items():
        (top / name).mkdir(parents=True)
        for index in range(each):
            Image.new("RGB", (20, 20), tuple(value + index for value in colour)).save(top / name / f"{index}.png")


def run(line):
    main(line.split())


def test_three_commands_to_a_classifier(place, capsys):
    class_folders(place / "colours")
    run("shards from-folder colours --labels-from-folders --split 0.75,0.25 --out data/colours")
    run("train data/colours --task classification --run colours --steps 40 --batch-size 8 --device cpu")
    said = capsys.readouterr().out
    assert "a model from scratch of 1.1 M parameters, no GPU: all of it trains, 40 steps of 8 samples" in said
    Image.new("RGB", (30, 30), (210, 5, 5)).save("new.png")
    run("predict runs/colours/checkpoints/best.ckpt new.png --out answers.jsonl")
    answer = json.loads((place / "answers.jsonl").read_text())
    assert next(iter(answer["prediction"])) == "red"
    config = (place / "runs/colours/config.yaml").read_text()
    assert "class_path: onepeace_lightning.tasks.ClassificationTask" in config.replace(".classification.", ".")
    with pytest.raises(SystemExit, match="holds a run already"):
        run("train data/colours --task classification --run colours --steps 1")


def test_retrieval_on_pairs_from_a_model_in_memory_with_its_own_vocabulary(place):
    (place / "sounds").mkdir()
    for index in range(20):
        soundfile.write(place / "sounds" / f"{index}.wav", np.sin(np.arange(8000) * (index + 1) / 40), 16000)
        (place / "sounds" / f"{index}.txt").write_text(f"hum number {index}")
    tokenizer = SentencePieceTokenizer.train(["hum number 0123456789"] * 3, 290)
    config = preset_config("tiny", sizes={"text": {"vocab_size": 290}})
    torch.manual_seed(0)
    backbone = OnePeace(PretrainModel(config, denoise=False), tokenizer=tokenizer)
    task = onepeace_lightning.train(
        data="sounds", task="retrieval", backbone=backbone, run="runs/hums", steps=2, batch_size=4, device="cpu"
    )
    assert task.tokenizer.fingerprint() == tokenizer.fingerprint()
    assert task.predict(["sounds/1.wav"], ["hum number 1", "hum number 2"]).shape == (1, 2)
    assert (place / "runs/hums/data/val/audio-text/manifest.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "detection"}, "task is 'detection'; give one of classification, retrieval"),
        ({"data": "nowhere"}, "data is nowhere; give a folder"),
        ({"task": "retrieval"}, "retrieval needs one stream of pairs"),
        ({"steps": -1}, "steps is -1"),
        ({"backbone": "gone/model.ckpt"}, "gone/model.ckpt"),
    ],
)
def test_what_does_not_fit_is_said(place, options, said):
    class_folders(place / "colours", each=3)
    with pytest.raises((ValueError, OSError), match=said):
        onepeace_lightning.train(
            **{"data": "colours", "task": "classification", "run": "runs/x", "device": "cpu"} | options
        )


@pytest.mark.parametrize(
    ("parameters", "device", "memory", "scratch", "trainable"),
    [
        (3e6, "cpu", 0, True, "all"),
        (3e6, "cpu", 0, False, "all"),
        (4e9, "cpu", 0, False, "head"),
        (90e6, "cuda", 12e9, False, "all"),
        (4e9, "cuda", 12e9, False, "head"),
        (4e9, "cuda", 48e9, False, "lora"),
        (4e9, "cuda", 141e9, False, "all"),
    ],
)
def test_what_trains_is_chosen_by_what_is_there(parameters, device, memory, scratch, trainable, monkeypatch):
    monkeypatch.setattr("onepeace_lightning.cli.train._memory", lambda place: memory)
    chosen = choose(int(parameters), torch.device(device), scratch=scratch)
    assert chosen.trainable == trainable
    assert chosen.steps(10) == chosen.least
    assert chosen.steps(10**9) == chosen.most
