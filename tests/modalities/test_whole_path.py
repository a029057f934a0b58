"""A new modality from raw files to answers on the command line: those of the package, and one from outside of it.

Each is learned from pairs with images alone, all else frozen, and searches an index of images that was made before.
"""

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from onepeace_lightning.cli import main
from onepeace_lightning.data.data_types import data_type
from onepeace_lightning.inference.embedding_files import read_about, read_embeddings
from onepeace_lightning.inference.onepeace import OnePeace
from onepeace_lightning.modalities import registry
from tests.conftest import ROOT
from tests.samples import COLOURS, png

COUNT, SIDE = 12, 32
PREPROCESSING = {
    "image": {"size": SIDE, "crop_scale": [1.0, 1.0]},
    "depth": {"size": SIDE, "high": 3.0},
    "thermal": {"size": SIDE},
    "series": {"channels": 2, "rate": 20.0, "max_seconds": 2.0},
}
QUERIES = {"depth": "depth/07.png", "thermal": "thermal/07.png", "series": "series/07.csv"}
TRAINER = {
    "max_steps": 2, "val_check_interval": 2, "accelerator": "cpu", "devices": 1, "precision": "32-true",
    "logger": False, "enable_progress_bar": False,
}  # fmt: skip


def level(index: int) -> int:
    return index % len(COLOURS)


def raw_files(folder: Path) -> None:
    """Images, and of each a depth map, a thermal image and a series, whose levels go with the image's colour."""
    rng = np.random.default_rng(0)
    for name in ("image", *QUERIES):
        (folder / name).mkdir()
    rows = []
    for index in range(COUNT):
        colour = list(COLOURS)[level(index)]
        (folder / f"image/{index:02}.png").write_bytes(png(colour, SIDE, seed=index))
        scene = rng.uniform(0.9, 1.1, (40, 48)) * (1 + level(index))
        Image.fromarray((scene * 800).astype(np.uint16)).save(folder / f"depth/{index:02}.png")
        Image.fromarray((scene * 1000 + 28000).astype(np.uint16)).save(folder / f"thermal/{index:02}.png")
        t = np.arange(40) / 20
        lines = [
            f"{a:.3f},{b:.3f}" for a, b in zip(np.sin(t * (1 + level(index)) * 3), rng.normal(size=40), strict=True)
        ]
        (folder / f"series/{index:02}.csv").write_text("\n".join(["x,y", *lines]))
        files = {name: f"{name}/{index:02}.{'csv' if name == 'series' else 'png'}" for name in ("image", *QUERIES)}
        rows.append({**files, "caption": f"a {colour} square", "label": colour})
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def shards(out: str, *columns: str) -> None:
    options = [word for name in columns for word in (f"--{name}-col", "caption" if name == "text" else name)]
    main(["shards", "from-csv", "table.csv", "--out", out, *options, "--split", "0.7,0.3", "--vocab-size", "300"])


def configuration(name: str, data: str, kind: str, **model: object) -> str:
    task = {
        "preset": "tiny", "optimization": {"lr": 1e-3, "warmup_steps": 1}, "modalities": ["text", "image"], **model,
    }  # fmt: skip
    streams = {split: {kind: {"path": f"{data}/{split}/{kind}", "batch_size": 3}} for split in ("train", "val")}
    content = {
        "trainer": TRAINER,
        "model": {"class_path": "PretrainTask", "init_args": task},
        "data": {
            "class_path": "DataModule",
            "init_args": {
                "tokenizer": "old/tokenizer", "num_workers": 0, **streams,
                "preprocessing": {key: PREPROCESSING[key] for key in task["modalities"] if key in PREPROCESSING},
            },
        },
    }  # fmt: skip
    Path(f"{name}.yaml").write_text(yaml.safe_dump(content))
    return f"{name}.yaml"


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A folder with raw files, a model of images and texts, and an index of the images that it made."""
    folder = tmp_path_factory.mktemp("before")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        raw_files(folder)
        shards("old", "image", "text")
        main(["fit", "--config", configuration("old", "old", "image-text"), "--run", "old"])
        main(["embed", "--model", "runs/old/checkpoints/last.ckpt", "--image", "image", "--out", "images.parquet"])
    return folder


@pytest.fixture
def here(before, tmp_path, monkeypatch):
    """An own folder with all of that; what is registered and imported in it is forgotten afterwards."""
    shutil.copytree(before, tmp_path, dirs_exist_ok=True)
    shutil.copy(ROOT / "docs/assets/thermal.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    yield tmp_path
    sys.modules.pop("thermal", None)


OLD = "runs/old/checkpoints/last.ckpt"


@pytest.mark.parametrize("name", list(QUERIES))
def test_from_raw_files_to_answers(here, capsys, name):
    imported = ["--import", "thermal"] if name == "thermal" else []
    kind = str(data_type("image-text")).replace("text", name) if imported else str(data_type(f"{name}-image"))
    kind = f"image-{name}" if name > "image" else kind

    def run(*words: str) -> str:
        main([*words, *imported])
        return capsys.readouterr().out

    main(["shards", "from-csv", "table.csv", "--out", "new", "--image-col", "image", f"--{name}-col", name,
          "--split", "0.7,0.3", *imported])  # fmt: skip
    copies = {} if name == "series" else {"init_modality": {name: "image"}}
    config = configuration(
        "new", "new", kind, modalities=["text", "image", name], trainable=[name], init_from=OLD, **copies
    )
    printed = run("fit", "--config", config, "--run", "new")
    if copies:
        assert f"{name} starts from image: " in printed
        assert f"as drawn: backbone.adapters.{name}.stem.0.weight" in printed
    new = "runs/new/checkpoints/last.ckpt"
    results = json.loads(Path("runs/new/results.json").read_text())
    assert 0 <= results[f"image_to_{name}/R@1"] <= 100
    assert "<img" in Path("runs/new/report.html").read_text()
    run("validate", "--config", config, "--run", "new", "--ckpt_path", "last")
    assert json.loads(Path("runs/new/results.json").read_text()) == pytest.approx(results, abs=0.01)

    run("embed", "--model", new, f"--{name}", name, "--out", "new.parquet")
    [(ids, rows, _)] = read_embeddings(Path("new.parquet"))
    assert len(ids) == COUNT
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    # The older index answers, and embeddings made anew are the same to the last bit.
    assert "rank" in run("search", "images.parquet", "new.parquet", "--model", new, f"--{name}", QUERIES[name])
    assert Path("search.html").read_text().count("<img") == 11
    run("embed", "--model", new, "--image", "image", "--out", "again.parquet")
    old, again = (next(iter(read_embeddings(Path(file)))) for file in ("images.parquet", "again.parquet"))
    assert np.array_equal(old[1], again[1])
    assert read_about(Path("images.parquet"))["model"] == read_about(Path("again.parquet"))["model"]

    model = OnePeace.from_pretrained(new)
    model.save_pretrained("saved")
    again = OnePeace.from_pretrained("saved")
    torch.testing.assert_close(again.embed(**{name: [QUERIES[name]]}), model.embed(**{name: [QUERIES[name]]}))
    assert torch.equal(model.embed(text=["a cow"]), OnePeace.from_pretrained(OLD).embed(text=["a cow"]))
    np.testing.assert_allclose(
        model.embed(**{name: [QUERIES[name]]})[0], rows[ids.index("07" + QUERIES[name][-4:])], atol=1e-5
    )

    main(["shards", "from-csv", "table.csv", "--out", "labelled", f"--{name}-col", name, "--label-col", "label",
          "--split", "0.7,0.3", *imported])  # fmt: skip
    streams = {split: {"path": f"labelled/{split}/{name}-label", "batch_size": 3} for split in ("train", "val")}
    Path("classify.yaml").write_text(yaml.safe_dump({
        "trainer": TRAINER,
        "model": {"class_path": "ClassificationTask", "init_args": {
            "modalities": [name], "backbone": new, "optimization": {"lr": 1e-3, "warmup_steps": 1}}},
        "data": {"class_path": "DataModule", "init_args": {
            "preprocessing": {name: PREPROCESSING[name]}, "num_workers": 0, "train": streams["train"],
            "val": {"val": streams["val"]}}},
    }))  # fmt: skip
    run("fit", "--config", "classify.yaml", "--run", "classify")
    run("predict", "runs/classify/checkpoints/last.ckpt", name, "--out", "answers.jsonl")
    answers = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert len(answers) == COUNT
    assert all(set(answer["prediction"]) == set(COLOURS) for answer in answers)


def forget() -> None:
    registry._REGISTERED.pop("thermal", None)
    sys.modules.pop("thermal", None)


def test_a_checkpoint_imports_nothing_and_what_is_missing_is_named(here, capsys):
    shutil.copy("thermal.py", "my_thermal.py")
    config = Path(configuration(
        "new", "new", "image-thermal", modalities=["text", "image", "thermal"], trainable=["thermal"], init_from=OLD
    ))  # fmt: skip
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "import": ["my_thermal"]}))
    main(["shards", "from-csv", "table.csv", "--out", "new", "--image-col", "image", "--thermal-col", "thermal",
          "--split", "0.7,0.3", "--import", "my_thermal"])  # fmt: skip
    forget()
    sys.modules.pop("my_thermal")
    main(["fit", "--config", str(config), "--run", "new"])  # imported by the configuration
    new = "runs/new/checkpoints/last.ckpt"
    OnePeace.from_pretrained(new).save_pretrained("saved")
    forget()
    sys.modules.pop("my_thermal")
    for source in (new, "saved"):
        with pytest.raises(ValueError, match=r"no modality 'thermal'.*--import my_package"):
            OnePeace.from_pretrained(source)
        with pytest.raises(SystemExit, match=r"no modality 'thermal'.*--import my_package"):
            main(["embed", "--model", source, "--image", "image", "--out", "again.parquet"])
    with pytest.raises(SystemExit, match=r"'thermal' is no modality.*--import my_package"):
        main(["validate", "--config", configuration("bare", "new", "image-thermal", modalities=["image", "thermal"]),
              "--ckpt_path", new])  # fmt: skip
    assert not {"thermal", "my_thermal"} & set(sys.modules)
    main(["embed", "--model", "saved", "--thermal", "thermal", "--out", "new.parquet", "--import", "my_thermal"])
    assert f"{COUNT} embeddings" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["depth", "series"])
def test_aligned_with_text_from_a_folder(here, name):
    Path("files").mkdir()
    kind = {"depth": "png", "series": "csv"}[name]
    for row in csv.DictReader(Path("table.csv").read_text().splitlines()):
        shutil.copy(row[name], f"files/{Path(row[name]).stem}.{name}.{kind}")
        Path(f"files/{Path(row[name]).stem}.txt").write_text(row["caption"])
    main(["shards", "from-folder", "files", "--out", "new", "--split", "0.7,0.3", "--vocab-size", "300"])
    main(["fit", "--config", configuration("new", "new", f"{name}-text", modalities=["text", name]), "--run", "new"])
    assert f"{name}_to_text/R@1" in json.loads(Path("runs/new/results.json").read_text())
    page = Path("runs/new/report.html").read_text()
    assert page.count("<img") >= 3
    assert " square" in page


def test_what_a_new_modality_cannot_start_from_is_named(here, capsys):
    shards("new", "image", "depth")
    for copies, options, says in (
        ({"depth": "smell"}, {}, "names smell, out of"),
        ({"depth": "depth"}, {}, "depth is new itself"),
        ({"depth": "image"}, {"init_from": None}, "init_modality needs init_from"),
        ({"depth": "image"}, {"trainable": ["image"]}, "depth does not train; add it to trainable"),
        ({"image": "text"}, {"trainable": ["image", "depth"]}, "init_from has image already"),
        ({"depth": "audio"}, {"modalities": ["text", "image", "audio", "depth"], "trainable": ["depth", "audio"]},
         "init_from has no audio"),
    ):  # fmt: skip
        given = {"modalities": ["text", "image", "depth"], "trainable": ["depth"], "init_from": OLD, **options}
        config = configuration("new", "new", "depth-image", init_modality=copies, **given)
        with pytest.raises(SystemExit, match=says):
            main(["fit", "--config", config, "--run", "new"])
