"""The commands of docs/scale.md, in a small form: a tiny model, a bucket on this machine, two machines that are one."""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from onepeace_lightning.cli import main
from onepeace_lightning.cli.options import make_parser
from onepeace_lightning.inference.embed import embed
from tests.conftest import ROOT
from tests.distributed.runs import callback, checkout, lines, output, run

pytest.importorskip("moto", reason="the bucket is moto's server: pip install moto[server]")
pytest.importorskip("s3fs", reason="buckets are an extra: pip install onepeace-lightning[cloud]")

from tests.data.s3 import KEYS, BadS3

PAGE = (ROOT / "docs" / "scale.md").read_text()
SMALL = [
    "--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.limit_val_batches=0",
    "--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
    "--data.init_args.num_workers=0", "--data.init_args.preprocessing={image: {size: 32}}",
    "--model.init_args.optimization.warmup_steps=1", "--data.init_args.steps_per_epoch=2",
]  # fmt: skip


def commands() -> list[str]:
    """Commands of the page's blocks; a job's script is one."""
    found = []
    for block in re.findall(r"(?:^    \S.*\n(?:^(?:    .*)?\n)*)", PAGE, re.MULTILINE):
        text = re.sub(r"^    ", "", block, flags=re.MULTILINE).strip()
        if text.startswith("#!"):
            found.append(text)
        else:
            lines = text.replace("\\\n", " ").splitlines()
            found += [line for line in lines if re.match(r"([A-Z_]+=\S+ )?(onepeace|python|torchrun|aws) ", line)]
    return found


@pytest.fixture
def bucket(monkeypatch):
    """A bucket of which 2 % of the reads of shards fail; everybody finds it by the environment."""
    server = BadS3()
    server.client().create_bucket(Bucket="my-bucket")
    server.network.errors = 0.02
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name, value in KEYS.items():
        monkeypatch.setenv(name.upper(), value)
    yield server
    server.close()


def small(words: list[str], steps: int) -> list[str]:
    """A command of pretraining with the tiny model, on a processor."""
    smaller = {"pretrain/stage1_4b": "pretrain/toy", "8": "1"}
    return [
        *(re.sub(r"batch_size: \d+", "batch_size: 2", smaller.get(word, word)) for word in words),
        *SMALL, f"--trainer.max_steps={steps}",
    ]  # fmt: skip


def test_files_that_the_page_names_exist():
    for name in re.findall(r"`((?:\w+/)+\w+\.py)`", PAGE):
        assert (ROOT / name).exists() or (ROOT / "src/onepeace_lightning" / name).exists(), name


def test_every_command_of_the_page_is_one_of_these():
    kinds = (
        "fit --config",
        "benchmarks.",
        "cli embed",
        "embed --engine ray",
        "onepeace shards",
        "aws s3 cp",
        "cli fit",
        "srun",
    )
    for command in commands():
        assert sum(kind in command for kind in kinds) == 1, command
    for kind in kinds:
        assert any(kind in command for command in commands()), kind


@pytest.mark.parametrize("command", [c for c in commands() if "benchmarks." in c or " embed " in c])
def test_commands_that_other_tests_run_are_typed_as_there(command):
    """``tests/benchmarks``, ``tests/inference/test_parts.py`` and ``test_ray.py`` run them."""
    if "benchmarks." in command:
        name = re.search(r"benchmarks\.(\w+)", command)[1]
        files = (ROOT / "tests" / "benchmarks").glob("test_*.py")
        assert any(re.search(rf"import .*\b{name}\b|benchmarks\.{name}\b", file.read_text()) for file in files)
        source = (ROOT / "benchmarks" / f"{name}.py").read_text()
        assert all(f"    {option}: " in source for option in re.findall(r"--(\w+)", command))
    else:
        given = make_parser(embed, "embed").parse_args(shlex.split(command.split(" embed ")[1]))
        assert given.items == {"image": "data/images"}


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("onepeace fit")])
def test_runs_on_one_machine(command, toy_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("data", "configs"):
        (tmp_path / name).symlink_to(toy_root / name)
    streams = "--data.init_args.train={image-text: {path: data/toy/train/image-text, batch_size: 2}}"
    main([*small(shlex.split(command)[1:], 2), streams])
    assert Path("runs/toy/config.yaml").exists()


def test_two_machines_train_from_a_bucket(bucket, toy_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(toy_root / "data")
    Path("pairs.csv").write_text(
        "path,caption\n" + "".join(f"{name},a picture\n" for name in _images(toy_root, tmp_path / "images", 12))
    )
    client = bucket.client()
    for command in commands():
        words = shlex.split(command.replace("\\\n", " "), comments=True)
        if words[:2] == ["onepeace", "shards"]:
            if words[2] == "manifest":
                for shard in Path("shards/train/image-text").glob("*.tar"):
                    client.upload_file(str(shard), "my-bucket", f"laion/{shard.name}")
            main(words[1:])
        elif words[0] == "aws":
            for file in Path("shards").rglob("*.*"):
                client.upload_file(str(file), "my-bucket", f"pairs/{file.relative_to('shards')}")
        elif words[0] == "torchrun" and "fit" in words:
            _torchrun(small(words[1:], 2), tmp_path)
    assert bucket.network.requests["GET"] > 3
    assert Path("runs/pairs/config.yaml").exists()


def job() -> list[str]:
    """The words of the job's script from srun's command on, SLURM's variables not yet put in."""
    [script] = [command for command in commands() if command.startswith("#!")]
    typed = shlex.split(script.replace("\\\n", " "), comments=True)
    assert typed[:3] == ["srun", "--kill-on-bad-exit=1", "onepeace"]
    return typed[3:]


def test_the_job_of_slurm_is_what_torchrun_runs():
    [other] = [command for command in commands() if "cli fit --run" in command]
    sizes = {"$SLURM_NNODES": "2", "$SLURM_NTASKS_PER_NODE": "8"}
    ours = [sizes.get(word, word) for word in job()]
    theirs = shlex.split(other.partition("onepeace_lightning.cli ")[2])
    assert ours[: len(theirs)] == theirs
    assert ours[len(theirs) :] == [
        "--trainer.callbacks+=onepeace_lightning.training.preemption.StopOnSignal",
        "--trainer.callbacks.checkpoint=runs/pairs/checkpoints/last.ckpt",
    ]


@pytest.mark.timeout(300)
def test_the_job_of_slurm_stops_is_queued_again_and_goes_on(toy_root, tmp_path, monkeypatch):
    """Two nodes that are this machine; one task gets the signal of ``--signal``, and both stop after the same step."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/queue\n')
    (tmp_path / "bin/scontrol").chmod(0o755)
    folder = checkout(tmp_path / "job", toy_root)
    sizes = {"$SLURM_NNODES": "2", "$SLURM_NTASKS_PER_NODE": "1"}
    local = ["--data.init_args.tokenizer=data/toy/tokenizer"]
    for split in ("train", "val"):
        local.append(f"--data.init_args.{split}={{image-text: {{path: data/toy/{split}/image-text, batch_size: 2}}}}")
    [fit, *words] = small([sizes.get(word, word) for word in job()], 3)
    command = [fit, *callback("Record"), *words, *local]  # before what stops the run

    for last in (2, 3):
        told = callback("Kill", step=1, rank=1, signal="SIGUSR1") if last == 2 else []
        assert run(folder, *command, *told, ranks=2, slurm=True, seconds=120) == [0, 0]
        for rank in range(2):
            assert [line["step"] for line in lines(folder, rank)] == list(range(1, last + 1))
        assert (tmp_path / "queue").read_text() == "requeue 4242\n"
    assert output(folder, 0).count("the run starts anew") == 1
    assert "the run starts anew" not in output(folder, 1)


def test_all_tasks_of_a_job_refuse_a_used_folder(tmp_path, monkeypatch):
    """None may wait for the others: srun does not end them by itself."""
    monkeypatch.chdir(tmp_path)
    Path("runs/pairs").mkdir(parents=True)
    Path("runs/pairs/config.yaml").touch()
    monkeypatch.setattr("onepeace_lightning.cli.trainer._PATIENCE", 0)
    monkeypatch.setenv("SLURM_PROCID", "1")
    with pytest.raises(SystemExit, match=r"rank 1.*holds a run already"):
        main(["fit", "--run", "runs/pairs", f"--config={ROOT}/configs/pretrain/toy.yaml", "--trainer.accelerator=cpu"])


def _images(toy_root: Path, folder: Path, count: int) -> list[str]:
    """Files out of the toy world's shards."""
    from onepeace_lightning.data.manifest import read_manifest
    from onepeace_lightning.data.shards import read_shard

    folder.mkdir()
    manifest = read_manifest(toy_root / "data/toy/train/image-text")
    names = []
    for shard in manifest.shards:
        for _, sample in read_shard(manifest, shard, range(shard.samples)):
            [extension] = [name for name in ("png", "jpg", "webp") if name in sample]
            names.append(f"images/{len(names)}.{extension}")
            (folder.parent / names[-1]).write_bytes(sample[extension])
            if len(names) == count:
                return names
    raise AssertionError("the toy world has too few images")


def _torchrun(words: list[str], folder: Path) -> None:
    """The launcher on two machines; the first of them is this one, like the second."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [word.replace("node-0:29500", f"localhost:{port}") for word in words]
    _all_end_well([[sys.executable, "-m", "torch.distributed.run", *words]] * 2, folder)


def _all_end_well(lines: list[list[str]], folder: Path) -> None:
    here = {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    started = [
        subprocess.Popen(line, cwd=folder, env=os.environ | here, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for line in lines
    ]
    try:
        for process in started:
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0, output.decode()[-4000:]
    finally:
        for process in started:
            process.kill()
