"""The table of docs/released_files.md: every command runs on tiny files of the released layouts and on raw files."""

import csv
import importlib.util
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
from onepeace_lightning.checkpoints.released.writing import image_branch_content, released_content, save_released
from onepeace_lightning.cli import main
from onepeace_lightning.modalities.tokenizers import SentencePieceTokenizer
from onepeace_lightning.modalities.video_files import write_video
from onepeace_lightning.models import PretrainModel
from onepeace_lightning.models.heads.classifier import ClassifyModel, PoolingConfig
from onepeace_lightning.tasks import (
    ClassificationTask,
    ObjectDetectionTask,
    SemanticSegmentationTask,
    VideoClassificationTask,
)
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


def adapters(*names: str):
    return {name: tiny_config().adapters[name] for name in names}


def fairseq(model: torch.nn.Module) -> dict:
    return to_original(randomised(model), training=False)


def pooled(*names: str, **head):
    """A model with a pooling head over some modalities."""
    return lambda: fairseq(
        ClassifyModel(tiny_config(adapters=adapters(*names)), PoolingConfig(**{"pooled": ("text",), **head}))
    )


def aligned(*names: str):
    """A model that embeds."""
    return lambda: fairseq(PretrainModel(tiny_config(adapters=adapters(*names)), denoise=False))


def two_images() -> dict:
    both = {name: replace(adapter, type_embedding=True) for name, adapter in adapters("text", "image").items()}
    return fairseq(ClassifyModel(tiny_config(adapters=both), PoolingConfig(outputs=2, pooled=("text",), images=2)))


def branch() -> dict:
    model = PretrainModel(tiny_config(adapters=adapters("image")), denoise=False)
    return image_branch_content(randomised(model).backbone)


def vision(kind: type, **sizes):
    """A vision task from a small model; segmentation and detection read positions at their own side."""

    def content() -> dict:
        config = tiny_config(adapters=adapters("image"))
        config = replace(config, encoder=replace(config.encoder, depth=4))  # segmentation has four groups of blocks
        task = kind(config, classes=[f"class {number}" for number in range(5)], **sizes)
        task.configure_model()
        return released_content(randomised(task.model), classes=task.classes)

    return content


SMALL_HEAD = {"queries": 4, "decoder_layers": 2, "decoder_width": 32, "decoder_heads": 4, "decoder_inner": 32,
              "pixel_layers": 1, "adapter_channels": 4, "per_block_tables": True}  # fmt: skip
MODALITIES = ("text", "image", "audio")
GENERATED = {
    "one-peace.pt": aligned(*MODALITIES),
    "one-peace-vision.pkl": branch,
    **dict.fromkeys(("finetune_coco.pt", "finetune_flickr.pt"), aligned("text", "image")),
    "finetune_al_retrieval.pt": aligned("text", "audio"),
    **dict.fromkeys(
        ("finetune_refcoco.pt", "finetune_refcoco+.pt"), pooled("text", "image", outputs=4, pooled=("image",))
    ),
    "finetune_refcocog.pt": pooled("text", "image", outputs=4),
    "finetune_vqa.pt": pooled("text", "image", outputs=7, pooler=True),
    "finetune_nlvr2.pt": two_images,
    "finetune_aqa.pt": pooled("text", "audio", outputs=1),
    **dict.fromkeys(("finetune_fsd50k.pt", "finetune_vggsound.pt"), pooled("audio", outputs=6, pooled=("audio",))),
    **dict.fromkeys(
        ("onepeace_ft_21kto1k_384.pth", "onepeace_ft_21kto1k_512.pth"),
        vision(ClassificationTask, modalities=["image"], pooling="mean", per_block_tables=False),
    ),
    "onepeace_video_k400.pth": vision(VideoClassificationTask, frames=4),
    "onepeace_seg_cocostuff2ade20k.pth": vision(
        SemanticSegmentationTask, preprocessing={"image": {"size": 64}}, **SMALL_HEAD
    ),
    "onepeace_det_coco.pth": vision(
        ObjectDetectionTask, preprocessing={"image": {"size": 96}}, channels=16, hidden=32, global_blocks=[2]
    ),
}
"""Released file to what writes a small one of its layout."""
VIDEOS = 2
PYAV = importlib.util.find_spec("av") is not None
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
    Path("videos").mkdir()
    if PYAV:
        for index in range(VIDEOS):
            write_video(Path(f"videos/{index}.mp4"), rng.integers(0, 256, (8, 64, 80, 3), dtype=np.uint8))
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
        names = [f"class {number}" for number in range(kind.outputs(file))]
        Path("answers.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
        Path("vocabulary.csv").write_text("".join(f"{number},{name},/m/0\n" for number, name in enumerate(names)))
        for labels in ("classes", "imagenet", "kinetics"):
            Path(f"{labels}.txt").write_text("\n".join(names))


def run(name: str, commands: list[list[str]]) -> None:
    if not PYAV and "video" in name:
        pytest.skip("videos need PyAV (extra video)")
    write_raw_files()
    write_vocabulary(Path(name))
    for program, *words in commands:
        assert program == "onepeace"
        main(words)
        out = Path(words[words.index("--out") + 1])
        assert out.exists()
        if out.suffix == ".jsonl":
            answers = [json.loads(line) for line in out.read_text().splitlines()]
            assert len(answers) == (VIDEOS if "videos" in words else len(CAPTIONS))
            if "onepeace_det_coco.pth" not in words:  # a detector that nobody trained may find nothing
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


def test_there_is_a_row_and_a_written_file_for_each_of_the_seventeen():
    assert sorted(GENERATED) == sorted(name for name, _ in ROWS)
    assert all(len(commands) == 2 for _, commands in ROWS)


@pytest.mark.parametrize("name", GENERATED)
def test_commands_run_on_files_that_this_project_writes(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_released(GENERATED[name](), Path(name))
    run(name, dict(ROWS)[name])
