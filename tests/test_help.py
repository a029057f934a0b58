"""The door of the command line: quick, complete, and silent about what it does not need."""

import os
import subprocess
import sys

import pytest

from onepeace_lightning.cli import COMMANDS, TRAINER, main
from onepeace_lightning.cli.configurations import find, merged, names, run_name


def test_help_lists_every_command_and_imports_nothing_heavy():
    script = (
        "import sys\nfrom onepeace_lightning.cli import main\nmain(['--help'])\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}"
        " & {'torch', 'lightning', 'numpy', 'jsonargparse', 'pyarrow', 'PIL', 'yaml', 'webdataset'}))\n"
        "print(sorted(name for name in sys.modules if name.startswith('onepeace_lightning')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    *usage, heavy, own = done.stdout.splitlines()
    assert heavy == "[]"
    assert own == "['onepeace_lightning', 'onepeace_lightning.cli']"
    for name, command in {**TRAINER, **COMMANDS}.items():
        assert any(
            line.split("  ")[1] == name and line.endswith(command.summary) for line in usage if line.startswith("  ")
        )


def test_usage_fits_a_terminal(capsys):
    main(["--help"])
    for name in TRAINER:
        with pytest.raises(SystemExit):
            main([name])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize("words", [["configs"], ["--help"]])
def test_a_reader_that_has_seen_enough_ends_it_in_silence(words):
    script = f"from onepeace_lightning.cli import main\nmain({words})"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 0


def test_help_of_a_command_calls_arguments_by_their_options(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["embed", "--help"])
    said = capsys.readouterr().out
    assert "Parquet files with --chunk-size items each" in " ".join(said.split())
    assert "``" not in said
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = capsys.readouterr().out
    assert "what onepeace shards has written" in " ".join(said.split())
    assert "None" not in said


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out.startswith("onepeace 0.")


@pytest.mark.parametrize("name", [*TRAINER, *(n for n in COMMANDS if n not in ("configs", "serve"))])
def test_a_command_without_arguments_prints_its_usage(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main(name.split())
    assert stop.value.code == 2
    assert f"usage: onepeace {name}" in capsys.readouterr().out


def test_groups_and_unknown_commands(capsys):
    main(["shards"])
    assert "shards from-folder" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no 'from-cvs'; it has from-coco, from-csv, from-folder"):
        main(["shards", "from-cvs"])
    with pytest.raises(SystemExit, match=r"no command 'tarin'\n\nusage: onepeace"):
        main(["tarin"])


def test_configurations_are_listed_found_and_copied(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    main(["configs"])
    lines = capsys.readouterr().out.splitlines()
    listed = [line for line in lines if not line.startswith(" ")]
    assert listed == names()
    assert max(map(len, lines)) <= 80
    assert all(lines[lines.index(name) + 1].strip() for name in listed)
    assert "pretrain/toy" in listed
    main(["configs", "copy", "pretrain/toy"])
    copied = tmp_path / "pretrain_toy.yaml"
    assert copied.read_bytes() == find("pretrain/toy").read_bytes() == find("pretrain/toy.yaml").read_bytes()
    with pytest.raises(SystemExit, match=r"pretrain_toy\.yaml exists already"):
        main(["configs", "copy", "pretrain/toy"])
    with pytest.raises(SystemExit, match="did you mean pretrain/toy"):
        main(["configs", "copy", "pretrain/tyo"])


def test_runs_are_named_after_what_they_train(tmp_path):
    (tmp_path / "mine.yaml").write_text("{}")
    assert run_name(["pretrain/toy", "trainer/cpu"]) == "toy"
    assert run_name(["finetune/image_classification/toy"]) == "image_classification_toy"
    assert run_name(["pretrain/toy", str(tmp_path / "mine.yaml")]) == "mine"
    assert len({run_name([name]) for name in names() if not name.startswith("trainer/")}) == len(
        [name for name in names() if not name.startswith("trainer/")]
    )


def test_configurations_are_laid_over_each_other(tmp_path):
    below, above = tmp_path / "a.yaml", tmp_path / "b.yaml"
    below.write_bytes(
        b"\xef\xbb\xbfmodel: {class_path: my.Task, init_args: {x: 1, y: 2}}\n"
        b"data: {class_path: Data, init_args: {train: {a: {path: p, n: 1}, b: {path: q}}, sizes: [1, 2]}}\n"
    )
    above.write_text("model: {class_path: Other, init_args: {z: 3}}\n"
                     "data: {init_args: {train: {a: {n: 5}, b: null}, sizes: [3]}}\n")  # fmt: skip
    assert merged([str(below), str(above)]) == {
        "model": {"class_path": "Other", "init_args": {"z": 3}},
        "data": {"class_path": "Data", "init_args": {"train": {"a": {"path": "p", "n": 5}}, "sizes": [3]}},
    }
    above.write_text("model: {class_path: Task, init_args: {z: 3}}\n")
    assert merged([str(below), str(above)])["model"]["init_args"] == {"x": 1, "y": 2, "z": 3}
    for content, says in (("a: [", "no YAML"), ("- a", "holds a list")):
        above.write_text(content)
        with pytest.raises(ValueError, match=says):
            merged([str(above)])


def test_a_configuration_for_every_shipped_name_is_short():
    for name in names():
        lines = [line for line in find(name).read_text().splitlines() if line and not line.startswith("#")]
        assert len(lines) <= 45, name


def test_a_command_whose_extra_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "onepeace_lightning.inference.server", raising=False)
    with pytest.raises(SystemExit, match=r"pip install 'onepeace-lightning\[serve\]'"):
        main(["serve", "--model", "m"])
