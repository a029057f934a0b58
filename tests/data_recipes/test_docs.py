"""The commands of docs/data.md, run as they stand there on miniatures."""

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

import data_recipes
from data_recipes import corpora, merge
from onepeace_lightning.cli import main as onepeace
from onepeace_lightning.data.data_types import data_type
from onepeace_lightning.data.from_tsv import Task
from onepeace_lightning.data.manifest import read_manifest
from tests.data_recipes import miniatures
from tests.data_recipes.test_corpora import CASES, run

PAGE = (Path(data_recipes.__file__).parents[1] / "docs/data.md").read_text(encoding="utf-8")
COMMANDS = [line.strip(" `") for line in re.findall(r"python -m data_recipes\.[^`\n]+|onepeace shards [^`\n]+", PAGE)]
RECIPES = [c for c in COMMANDS if c.startswith("python") and ".merge" not in c]
TABLES = [c for c in COMMANDS if " --" in c and c.startswith("onepeace shards from-tsv")]

AUDIO, IMAGE = "uniq_id\taudio\ttext\tduration", "image_id\timage\tcaption"
CONTENT = {
    "image-text": (IMAGE, "1\ta.jpg\ta cow"),
    "audio-text": (AUDIO, "1\ta.wav\ta cow\t400"),
    "image-captions": (IMAGE, "1\ta.jpg\ta cow"),
    "audio-captions": (AUDIO, "1\ta.wav\ta cow\t400"),
    "esc50": (AUDIO, "1\ta.wav\t0\t400"),
    "fsd50k": (AUDIO, "1\ta.wav\t0,1\t400"),
    "vggsound": (AUDIO, "1\ta.wav\t17\t400"),
    "avqa": (AUDIO, "1\ta.wav\tWhat?&&&a&&&b&&&c&&&d&&&0\t400"),
    "refcoco": ("image\ttext\tregion_coord", "a.jpg\tthe cow\t1,1,4,4"),
    "vqa": ("uniq_id\timage\tquestion\trefs", "1\ta.jpg\tWhat?\tcow|!+0|!+1.0"),
    "nlvr2": ("uniq_id\ttext\timage1\timage2\tlabel", "1\ttwo cows\ta.jpg\ta.jpg\tTrue"),
    "imagenet": ("image\tlabel", "a.jpg\t1000"),
}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    corpora._files.cache_clear()


def parse(command):
    """A recipe's name, its options, and the words of its command line."""
    words = shlex.split(command)[2:]
    return words[0].removeprefix("data_recipes."), dict(zip(words[1::2], words[2::2], strict=True)), words[1:]


@pytest.mark.parametrize("command", RECIPES)
def test_a_recipes_command_does_what_its_row_says(command):
    recipe, options, words = parse(command)
    write = next(case[2] for case in CASES.values() if case[:2] == (recipe, options.get("--variant")))
    root = Path(options["--root"])
    write(root)
    if "--media" in options:
        Path(options["--media"]).mkdir(parents=True)
        for folder in (root / "audio", root / "train2014", root / "val2014"):
            if folder.is_dir():
                folder.rename(Path(options["--media"]) / folder.name)
    importlib.import_module(f"data_recipes.{recipe}").main(words)
    row = next(line for line in PAGE.splitlines() if f"`{command}`" in line).split("|")
    splits, data_type = re.sub(r"\(.*?\)", "", row[3]).replace(" ", "").split(","), row[4].strip(" `")
    assert {path.name for path in Path(options["--out"]).iterdir()} == set(splits)
    for split in splits:
        assert read_manifest(Path(options["--out"]) / split / data_type).samples


def test_streams_are_joined_by_the_merge_command():
    (command,) = [c for c in COMMANDS if ".merge" in c]
    words = shlex.split(command)
    for name in ("audiocaps", "clotho", "macs"):
        CASES[name][2](Path("raw") / name)
        run(name, f"raw/{name}", f"data/{name}")
    merge.main(words[3:])
    merged = read_manifest("data/sounds/train/audio-captions")
    assert merged.samples == 9
    assert len(merged.about["merged"]) == 3
    assert merged.source.count("https://") == 4
    with pytest.raises(SystemExit, match="is not empty"):
        merge.main(words[3:])


def test_streams_of_other_types_or_classes_are_not_joined():
    miniatures.esc50(Path("raw"))
    run("esc50", "raw", "data")
    run("esc50-fold", "raw", "fold")
    miniatures.macs(Path("macs"))
    run("macs", "macs", "data")
    esc50 = "data/test/audio-label"
    with pytest.raises(SystemExit, match="holds audio-captions, data/test/audio-label audio-label"):
        merge.main([esc50, "data/train/audio-captions", "--out", "x"])
    manifest = Path("fold/train/audio-label/manifest.json")
    content = json.loads(manifest.read_text())
    content["about"]["classes"].reverse()
    manifest.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="has other classes than"):
        merge.main([esc50, "fold/train/audio-label", "--out", "x"])


def test_the_commands_for_tables_write_their_streams():
    miniatures.picture(Path("raw/a.jpg"))
    miniatures.sound(Path("raw/a.wav"))
    miniatures.write_json(Path("tables/esc50_label.json"), {"0": ["dog"]})
    miniatures.write(Path("tables/vocabulary.csv"), "0,Bark,/m/1\n1,Purr,/m/2\n")
    tasks = set()
    for command in TABLES:
        words = shlex.split(command)
        options = dict(zip(words[4::2], words[5::2], strict=True))
        tasks.add(options["--task"])
        miniatures.write(Path(words[3]), "\n".join(CONTENT[options["--task"]]) + "\n")
        if "--texts" in options:
            miniatures.write_json(Path(options["--texts"]), {"1": ["a cow", "a brown cow"]})
        onepeace(words[1:])
        (stream,) = (Path(options["--out"]) / options.get("--split", "train")).iterdir()
        assert read_manifest(stream).samples == 1
    assert tasks == set(Task.__args__)


def test_the_page_names_every_corpus_and_data_type_that_exists():
    assert {parse(command)[0] for command in RECIPES} == {case[0] for case in CASES.values()}
    named = set(re.findall(r"`((?:image|audio)-[a-z]+)`", PAGE))
    for name in named:
        data_type(name)


def test_a_fault_in_a_table_ends_the_command_with_one_line():
    miniatures.write(Path("t.tsv"), "a\tb\n1\t2\n")
    with pytest.raises(SystemExit, match=r"^onepeace shards from-tsv: t.tsv has no column image_id"):
        onepeace(["shards", "from-tsv", "t.tsv", "--task", "image-text", "--root", ".", "--out", "data"])
