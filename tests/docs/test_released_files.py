"""The table of docs/released_files.md: every command runs on tiny files of the released layouts and on raw files."""

import csv
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from onepeace_lightning.checkpoints.export import to_original
from onepeace_lightning.checkpoints.released.base import ReleasedFile
from onepeace_lightning.checkpoints.released.kinds import kind_of
from onepeace_lightning.cli import main
from onepeace_lightning.modalities.tokenizers import SentencePieceTokenizer
from onepeace_lightning.models import PretrainModel
from onepeace_lightning.models.heads.classifier import ClassifyModel, PoolingConfig
from tests.conftest import ROOT
from tests.tiny import randomised, tiny_config

GOLDENS = ROOT.parent / "shared" / "goldens" / "files"
TINY = {
    "one-peace-vision.pkl": "foreign/one-peace-vision.pkl",
    "finetune_coco.pt": "finetune_retrieval_vl.pt",
    "finetune_flickr.pt": "finetune_retrieval_vl.pt",
    "finetune_al_retrieval.pt": "finetune_retrieval_al.pt",
    "finetune_refcoco+.pt": "finetune_refcoco.pt",
    "finetune_refcocog.pt": "finetune_refcoco.pt",
    "finetune_fsd50k.pt": "finetune_audio_classification.pt",
    "finetune_vggsound.pt": "finetune_audio_classification.pt",
    "onepeace_ft_21kto1k_384.pth": "onepeace_ft_21kto1k.pth",
    "onepeace_ft_21kto1k_512.pth": "onepeace_ft_21kto1k.pth",
    "onepeace_seg_cocostuff2ade20k.pth": "onepeace_seg_ade20k.pth",
}
"""Released file to the tiny one of its layout, where their names differ."""
GENERATED = {
    "finetune_coco.pt": lambda config: PretrainModel(config, denoise=False),
    "finetune_refcocog.pt": lambda config: ClassifyModel(config, PoolingConfig(outputs=4, pooled=("text",))),
    "finetune_vqa.pt": lambda config: ClassifyModel(config, PoolingConfig(outputs=7, pooled=("text",), pooler=True)),
}
"""Released file to a small model of its kind."""
CAPTIONS = ["a red cow", "a dog barks", "a bell", "two bells ring at night"]


def rows() -> list[tuple[str, list[list[str]]]]:
    """Released file and the commands of its row."""
    found = []
    for line in (ROOT / "docs" / "released_files.md").read_text().splitlines():
        name = line.split("|")[1].strip() if line.startswith("|") else ""
        commands = [shlex.split(code) for code in re.findall(r"`(onepeace [^`]*)`", line)]
        if commands and name:
            found.append((name, commands))
    return found


ROWS = rows()


def write_raw_files() -> None:
    rng = np.random.default_rng(0)
    for folder in ("images", "sounds"):
        Path(folder).mkdir()
    for index in range(len(CAPTIONS)):
        Image.fromarray(rng.integers(0, 256, (70, 60, 3), dtype=np.uint8)).save(f"images/{index}.jpg")
        soundfile.write(f"sounds/{index}.wav", rng.standard_normal(30_000) / 8, 22_050)
    pictures = [f"images/{index}.jpg" for index in range(len(CAPTIONS))]
    sounds = [f"sounds/{index}.wav" for index in range(len(CAPTIONS))]
    tables = {
        "captions.csv": {"image": pictures, "text": CAPTIONS},
        "sounds.csv": {"audio": sounds, "text": CAPTIONS},
        "questions.csv": {"image": pictures, "question": CAPTIONS},
        "pairs.csv": {"first": pictures, "second": pictures[::-1], "text": CAPTIONS},
    }
    for name, columns in tables.items():
        with Path(name).open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
    lines = [{"audio": sound, "question": "a bell", "choices": CAPTIONS[:3]} for sound in sounds]
    Path("choices.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_vocabulary(path: Path) -> None:
    """A vocabulary for the file, whose token embedding gets as many rows, and labels as many as its outputs."""
    file = ReleasedFile.read(path)
    kind = kind_of(file)
    if kind.takes_vocabulary:
        tokenizer = SentencePieceTokenizer.train(CAPTIONS, 280)
        tokenizer.save("bpe")
        table = "encoder_wrapper.text_adapter.embed_tokens.weight"
        content = torch.load(path, weights_only=True)
        rows = content["model"][table]
        content["model"][table] = rows.repeat(-(-tokenizer.vocab_size // len(rows)), 1)[: tokenizer.vocab_size].clone()
        path.unlink()
        torch.save(content, path)
    if kind.takes_labels:
        settings = kind.open(file, None).settings
        count = len(settings.get("classes") or settings["answers"])
        names = [f"class {number}" for number in range(count)]
        Path("answers.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
        Path("vocabulary.csv").write_text("".join(f"{number},{name},/m/0\n" for number, name in enumerate(names)))
        Path("classes.txt").write_text("\n".join(names))


def run(name: str, commands: list[list[str]]) -> None:
    write_raw_files()
    write_vocabulary(Path(name))
    for program, *words in commands:
        assert program == "onepeace"
        main(words)
        out = Path(words[words.index("--out") + 1])
        assert out.exists()
        if out.suffix == ".jsonl":
            answers = [json.loads(line) for line in out.read_text().splitlines()]
            assert len(answers) == len(CAPTIONS)
            assert all(answer["prediction"] for answer in answers)


@pytest.mark.skipif(not GOLDENS.is_dir(), reason="tiny files of the released layouts lie outside the repository")
@pytest.mark.parametrize(("name", "commands"), ROWS, ids=[name for name, _ in ROWS])
def test_every_command_of_the_table_runs_on_the_tiny_files(name, commands, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(GOLDENS / TINY.get(name, name), name)
    run(name, commands)
    printed = capsys.readouterr().out
    assert f"{name}: " in printed
    assert "answers: " in printed


@pytest.mark.parametrize("name", GENERATED)
def test_commands_run_on_files_of_the_exporter(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = replace(tiny_config(), adapters={key: tiny_config().adapters[key] for key in ("text", "image")})
    torch.save(to_original(randomised(GENERATED[name](config))), name)
    run(name, dict(ROWS)[name])
