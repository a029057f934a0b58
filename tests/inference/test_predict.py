"""Answers of trained tasks to files, from a checkpoint alone."""

import json

import lightning as L
import pytest
import torch

from onepeace_lightning import OnePeace
from onepeace_lightning.cli import main
from onepeace_lightning.tasks import ClassificationTask, RetrievalTask, load_task
from tests.samples import COLOURS, PITCHES, png, wav
from tests.tasks.conftest import reading, words  # noqa: F401 (fixtures)
from tests.tiny import tiny_model


def save(task, path):
    task.configure_model()
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(path)
    return str(path)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def sounds(tmp_path):
    torch.manual_seed(0)
    (tmp_path / "sounds").mkdir()
    for name in PITCHES:
        (tmp_path / "sounds" / f"{name}.wav").write_bytes(wav(name))
    return save(
        ClassificationTask(OnePeace(tiny_model()), classes=list(PITCHES), modalities=["audio"]), tmp_path / "task.ckpt"
    )


def test_a_folder_gives_what_the_task_gives_for_its_files(sounds, tmp_path):
    out = tmp_path / "new" / "answers.jsonl"
    main(["predict", sounds, str(tmp_path / "sounds"), "--out", str(out), "--batch-size", "2"])
    files = sorted((tmp_path / "sounds").iterdir())
    answers = load_task(sounds).predict(files)
    assert [line["audio"] for line in lines(out)] == [file.name for file in files]
    for line, answer in zip(lines(out), answers, strict=True):
        assert line["prediction"] == pytest.approx(answer, abs=1e-5)


def test_a_table_s_paths_are_relative_to_it(sounds, tmp_path):
    (tmp_path / "items.csv").write_text("audio,note\nsounds/low.wav,x\n")
    main(["predict", sounds, str(tmp_path / "items.csv"), "--out", str(tmp_path / "answers.jsonl")])
    [line] = lines(tmp_path / "answers.jsonl")
    assert line["audio"] == "sounds/low.wav"
    assert set(line["prediction"]) == set(PITCHES)


def test_retrieval_ranks_the_texts_of_the_table(reading, tmp_path):  # noqa: F811
    rows = []
    for name in COLOURS:
        (tmp_path / f"{name}.png").write_bytes(png(name))
        rows.append({"image": f"{name}.png", "text": f"a {name} square"})
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    checkpoint = save(RetrievalTask(reading, item="image"), tmp_path / "task.ckpt")
    main(["predict", checkpoint, str(tmp_path / "items.jsonl"), "--out", str(tmp_path / "answers.jsonl"),
          "--batch-size=1"])  # fmt: skip
    cosines = reading.similarity(image=[tmp_path / row["image"] for row in rows], text=[row["text"] for row in rows])
    for line, row in zip(lines(tmp_path / "answers.jsonl"), cosines.tolist(), strict=True):
        assert [line["prediction"][r["text"]] for r in rows] == pytest.approx(row, abs=1e-5)
        assert list(line["prediction"].values()) == sorted(line["prediction"].values(), reverse=True)


@pytest.mark.parametrize(
    ("items", "out", "message"),
    [
        ("items.csv", "answers.txt", "extension .jsonl"),
        ("items.csv", "answers.jsonl", "lacks audio"),
        ("nowhere", "answers.jsonl", "there is no"),
        ("bad.jsonl", "answers.jsonl", "line 1: no JSON"),
        ("noise", "answers.jsonl", r"noise\.wav.*cannot decode"),
    ],
)
def test_what_is_wrong_ends_in_one_line(sounds, tmp_path, items, out, message):
    (tmp_path / "items.csv").write_text("image\na.png\n")
    (tmp_path / "bad.jsonl").write_text("nonsense\n")
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "noise.wav").write_bytes(b"no sound")
    with pytest.raises(SystemExit, match=message):
        main(["predict", sounds, str(tmp_path / items), "--out", str(tmp_path / out)])
    assert not (tmp_path / out).exists()


def test_a_checkpoint_of_pretraining_has_no_answers(tmp_path):
    torch.save({"onepeace": {"config": {}}, "state_dict": {}}, tmp_path / "p.ckpt")
    with pytest.raises(SystemExit, match="no downstream task"):
        main(["predict", str(tmp_path / "p.ckpt"), "x", "--out", str(tmp_path / "a.jsonl")])


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_a_table(sounds, tmp_path):
    for name, text in (("t.csv", "audio;note\r\nsounds/low.wav;x\r\n"), ("t.jsonl", '{"audio": "sounds/low.wav"}\n\n')):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        main(["predict", sounds, str(tmp_path / name), "--out", str(tmp_path / "answers.jsonl")])
        assert [line["audio"] for line in lines(tmp_path / "answers.jsonl")] == ["sounds/low.wav"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.jsonl", '{"audio": 7}\n', "row 1: audio is 7; give the path of a file"),
        ("t.csv", 'audio,note\nsounds/low.wav,"x\n', "line 2: a quote"),
        ("t.csv", "audio,note\nsounds/low.wav,x,y\n", "line 2: 3 values, the header has 2"),
    ],
)
def test_a_table_that_cannot_be_read_ends_in_words(sounds, tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(SystemExit, match=says):
        main(["predict", sounds, str(tmp_path / name), "--out", str(tmp_path / "answers.jsonl")])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_told_in_words(sounds, tmp_path):
    with pytest.raises(SystemExit, match=r"device is 'cuda'.*try 'cpu'"):
        main(["predict", sounds, str(tmp_path / "sounds"), "--out", str(tmp_path / "a.jsonl"), "--device", "cuda"])
