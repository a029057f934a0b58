"""The package as a wheel, in a folder that is not the repository: the commands of README and pages, in a small form."""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from tests.conftest import LOCAL, ROOT
from tests.docs.pages import PYTHON, Block, blocks, commands, is_shell
from tests.inference.conftest import save_original

OUTPUT = "text"
"""Language of a block that shows what the one before it prints."""
PAGES = ("README.md", "docs/tutorial.md", "docs/serve.md", "docs/evaluation.md", "docs/logging.md")
SMALL = [
    *LOCAL, "--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.limit_val_batches=2",
    "--model.init_args.optimization.warmup_steps=1",
]  # fmt: skip
"""What a page's ``onepeace fit`` gets besides."""
TOY = ["--pairs=48", "--singles=16", "--gallery=16", "--processes=1"]
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 220), "grey": (128, 128, 128)}


def run(words, **settings) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=280, **settings)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT])
    [made] = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """The wheel installed alone into an empty folder; what it depends on is there already."""
    folder = tmp_path_factory.mktemp("site")
    run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel])
    return folder


@pytest.fixture(scope="module")
def environment(site) -> dict[str, str]:
    path = f"{site / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PYTHONPATH": str(site), "PATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def toy(environment, tmp_path_factory) -> Path:
    """A folder with the toy world and a model that was trained on it for two steps, by the wheel's commands."""
    folder = tmp_path_factory.mktemp("toy")
    steps = [
        [PYTHON, "-m", "data_recipes.toy", "--out", "data/toy", *TOY],
        ["onepeace", "fit", "--config", "pretrain/toy", *SMALL],
        ["onepeace", "validate", "--config", "pretrain/toy", "--ckpt_path", "best", *LOCAL],
    ]
    carry_out(steps, folder, environment)
    assert set(json.loads((folder / "runs/toy/results.json").read_text())) >= {"image_to_text/R@1"}
    return folder


def carry_out(steps, folder, environment) -> str:
    (folder / "steps.json").write_text(json.dumps(steps))
    return run([sys.executable, ROOT / "tests/docs/driver.py", "steps.json"], cwd=folder, env=environment)


def write_files(folder: Path) -> None:
    """All that the pages' commands and programs read: pairs, recordings, pictures and an original's file."""
    rng = np.random.default_rng(0)
    for name in ("photos", "recordings", "flowers"):
        (folder / name).mkdir()
    rows = ["path,caption"]
    for number in range(48):
        colour = list(COLOURS)[number % len(COLOURS)]
        pixels = np.clip(COLOURS[colour] + rng.integers(-30, 30, (40, 50, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"photos/{number}.jpg")
        rows.append(f"photos/{number}.jpg,a {colour} thing number {number}")
        wave = np.sin(np.arange(12_000) * (0.1 + 0.02 * number)) / 2
        soundfile.write(folder / f"recordings/cow{number}.flac", wave, 16_000)
        (folder / f"recordings/cow{number}.txt").write_text(f"a tone of pitch {number}")
        (folder / "flowers" / colour).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"flowers/{colour}/{number}.jpg")
    (folder / "pairs.csv").write_text("\n".join(rows))
    for name in ("a.jpg", "b.jpg", "frogs.png", "drums.png", "cow.jpg", "barn.jpg"):
        Image.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(folder / name)
    for name in ("bell.wav", "siren.wav", "frogs.wav"):
        soundfile.write(folder / name, rng.standard_normal(16_000).clip(-3, 3) / 4, 16_000)
    save_original(folder)


SMALLER = {
    'device="cuda", dtype="bfloat16"': 'device="cpu"',
    'mteb.get_benchmark("MIEB(lite)")': 'mteb.get_benchmark("MIEB(lite)") and [MockRetrievalTask()]',
    'mteb.get_benchmark("MAEB(v1)")': 'mteb.get_benchmark("MAEB(v1)") and [MockRetrievalTask()]',
    'mteb.get_tasks(task_types=["Any2AnyRetrieval"])': "[MockRetrievalTask()]",
}
"""What takes the place of a part of a page's program, where that needs a GPU or a network."""


def steps_of(block: Block) -> list[list[str]]:
    """What a block says to do, in a small form."""
    if block.language == PYTHON:
        text = block.text
        for large, small_one in SMALLER.items():
            text = text.replace(large, small_one)
        return [["run", "from mteb.mocks.mock_tasks import MockRetrievalTask"]] * ("Mock" in text) + [["run", text]]
    if block.language == OUTPUT:
        return []
    if not is_shell(block):
        raise ValueError(f"no test runs this block of a page:\n{block.text}")
    return [small(words) for words in commands(block) if words[0] not in ("pip", "make")]


def without_a_service(words: list[str]) -> list[str]:
    """A logger that needs no account."""
    return ["csv" if word == "wandb" else word for word in words]


def small(words: list[str]) -> list[str]:
    if words[:2] == ["onepeace", "fit"]:
        batch = [f"--data.train.{name}.batch_size=4" for name in re.findall(r"(\w+-\w+): \{path", " ".join(words))]
        return [*without_a_service(words), *SMALL, *batch]
    if words[:2] == ["onepeace", "train"]:
        return [*words, "--steps=2", "--device=cpu"]
    if words[:3] == [PYTHON, "-m", "data_recipes.toy.tasks"]:
        return [*words, "--train=12", "--val=8", "--processes=1"]
    if words[:2] in (["onepeace", "validate"], ["onepeace", "test"]):
        return [*words, *LOCAL]
    return words


@pytest.mark.parametrize("name", PAGES)
def test_every_block_of_the_page_runs(name, toy, environment, tmp_path):
    write_files(tmp_path)
    for folder in ("data/toy", "runs/toy"):  # what is in them by links, so that what a page writes stays in its own
        (tmp_path / folder).mkdir(parents=True)
        for part in (toy / folder).iterdir():
            (tmp_path / folder / part.name).symlink_to(part)
    found = blocks((ROOT / name).read_text(encoding="utf-8"))
    steps = [step for block in found for step in steps_of(block)]
    assert len(steps) > 1
    programs = "".join(step[1] for step in steps if step[0] == "run")
    if '"onepeace-4b"' in programs:  # which another page converts
        steps.insert(0, ["onepeace", "convert", "one-peace.pt", "--bpe-dir", "bpe", "--out", "onepeace-4b"])
    site = environment["PYTHONPATH"]
    first = f"import onepeace_lightning; assert onepeace_lightning.__file__.startswith({site!r})"
    printed = without_numbers(carry_out([["run", first], *steps], tmp_path, environment))
    for block in found:
        if block.language == OUTPUT:  # the model of the page has learned more, so that its numbers are others
            assert without_numbers(block.text) in printed


def without_numbers(text: str) -> str:
    return re.sub(r"\s+", "", re.sub(r"-?\d+\.?\d*", "0", text))


def test_the_command_of_the_wheel_answers(environment, tmp_path):
    assert "usage: onepeace" in run(["onepeace", "--help"], cwd=tmp_path, env=environment)
    assert "pretrain/toy\n" in run(["onepeace", "configs"], cwd=tmp_path, env=environment)


def test_the_wheel_holds_what_is_needed_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"onepeace_lightning", "data_recipes"}
    for folder in ("src/onepeace_lightning", "configs"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in (".py", ".yaml", ".html", ".typed"):
                inside = "onepeace_lightning" / file.relative_to(
                    ROOT / "src/onepeace_lightning" if "src" in folder else ROOT
                )
                assert inside.as_posix() in names
    assert wheel.stat().st_size < 2_000_000


def test_extras_and_targets_that_pages_name_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        text = page.read_text(encoding="utf-8")
        for named in re.findall(r"onepeace-lightning\[([\w,-]+)\]", text):
            assert set(named.split(",")) <= set(extras), page
        for words in (words for block in blocks(text) if is_shell(block) for words in commands(block)):
            assert words[0] != "make" or set(words[1:]) <= set(targets), page
