"""Every trainer configuration over every run's configuration: what each says arrives, and nothing else changes."""

import csv
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from onepeace_lightning.cli import main
from onepeace_lightning.cli.trainer import OnePeaceCLI, command_line
from onepeace_lightning.training.strategy import FullyShardedStrategy
from onepeace_lightning.training.throughput import Throughput

CONFIGS = Path(__file__).parent.parent / "configs"
RUNS = {
    "toy": ["toy"], "toy_depth": ["toy_depth"], "stamps": ["stamps"], "stamps_stage2": ["stamps", "stamps_stage2"],
    "stage1_4b": ["stage1_4b"], "stage2_4b": ["stage2_4b"],
}  # fmt: skip
PLACES = {
    "cpu": (["cpu"], SingleDeviceStrategy, 1),
    "one_gpu": (["one_gpu"], SingleDeviceStrategy, 1),
    "ddp": (["ddp"], (DDPStrategy, SingleDeviceStrategy), 1),
    "fsdp": (["fsdp"], FullyShardedStrategy, None),
    "ddp on nodes": (["ddp", "multi_node"], DDPStrategy, 2),
    "fsdp on nodes": (["fsdp", "multi_node"], FullyShardedStrategy, 2),
}
"""Trainer files, the strategy that they give, and the number of nodes (None: the run's own)."""


@pytest.fixture
def checkout(toy_root, tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(toy_root / "data")
    (tmp_path / "configs").symlink_to(CONFIGS)
    monkeypatch.chdir(tmp_path)


def parsed(run: list[str], trainer: list[str]) -> OnePeaceCLI:
    """Everything instantiated, on the processor whatever the files say."""
    files = [f"--config=configs/pretrain/{name}.yaml" for name in run]
    files += [f"--config=configs/trainer/{name}.yaml" for name in trainer]
    here = ["--data.init_args.tokenizer=data/toy/tokenizer", "--trainer.accelerator=cpu"]
    return command_line([*files, *here], run=False)


def leaves(tree, *path):
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, *path, key)
    else:
        yield path, tree


def read(name: str) -> dict:
    return yaml.safe_load((CONFIGS / "trainer" / f"{name}.yaml").read_text())


def at(config, path):
    for key in path:
        config = config[key]
    return config


def test_every_trainer_file_is_tested():
    assert {path.stem for path in CONFIGS.glob("trainer/*.yaml")} == {n for files, *_ in PLACES.values() for n in files}
    assert {path.stem for path in CONFIGS.glob("pretrain/*.yaml")} == {n for files in RUNS.values() for n in files}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("run", RUNS)
def test_what_a_trainer_file_says_arrives(run, place, checkout):
    files, strategy, nodes = PLACES[place]
    cli = parsed(RUNS[run], files)
    wanted = {path: value for name in files for path, value in leaves(read(name))}
    for path, value in wanted.items():
        if path != ("trainer", "accelerator"):
            assert at(cli.config, path) == value, path
    assert isinstance(cli.trainer.strategy, strategy)
    if nodes is not None:
        assert cli.trainer.num_nodes == nodes
    # what is said reaches the objects, too
    if ("trainer", "precision") in wanted:
        assert cli.trainer.precision == wanted["trainer", "precision"]
    if files[0] == "fsdp":
        assert cli.model.parallel.checkpoint_activations is True
        assert cli.trainer.strategy.replicas == 1
    if "multi_node" in files:
        assert cli.trainer.num_devices == 8
        assert cli.trainer.world_size == 16


@pytest.mark.parametrize("run", RUNS)
def test_a_trainer_file_leaves_the_run_alone(run, checkout):
    here = ["--trainer.devices=1", "--trainer.num_nodes=1"]
    files = [f"--config=configs/pretrain/{name}.yaml" for name in RUNS[run]]
    rest = ["--data.init_args.tokenizer=data/toy/tokenizer", "--trainer.accelerator=cpu"]
    alone = command_line([*files, *here, *rest], run=False)
    placed = parsed(RUNS[run], ["cpu"])
    assert placed.model.optimization == alone.model.optimization
    assert placed.model.objectives == alone.model.objectives
    assert [type(one) for one in placed.trainer.callbacks] == [type(one) for one in alone.trainer.callbacks]
    assert (placed.trainer.max_steps, placed.trainer.gradient_clip_val) == (
        alone.trainer.max_steps,
        alone.trainer.gradient_clip_val,
    )


@pytest.mark.parametrize("run", RUNS)
def test_every_run_logs_its_throughput(run, checkout):
    assert sum(isinstance(one, Throughput) for one in parsed(RUNS[run], ["cpu"]).trainer.callbacks) == 1


def test_a_run_with_a_trainer_file_trains_and_logs_its_throughput(checkout, tmp_path):
    kinds = ("image-text", "audio-text", "image", "audio", "text")
    main(
        [
            "fit", "--config=configs/pretrain/toy.yaml", "--config=configs/trainer/cpu.yaml",
            "--trainer.precision=32-true", "--trainer.max_steps=3", "--trainer.limit_val_batches=0",
            "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
            "--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir=logs",
            "--trainer.log_every_n_steps=3", "--model.init_args.optimization.warmup_steps=1",
            "--trainer.callbacks=onepeace_lightning.training.throughput.Throughput", "--trainer.callbacks.window=2",
            "--data.init_args.num_workers=0",
            *(f"--data.init_args.train.{kind}.batch_size=4" for kind in kinds),
        ]
    )  # fmt: skip
    (path,) = (tmp_path / "logs").rglob("metrics.csv")
    with path.open(newline="") as file:
        logged = {name: float(value) for row in csv.DictReader(file) for name, value in row.items() if value}
    assert {name for name in logged if name.startswith("throughput/")} == {
        f"throughput/{name}"
        for name in (
            "samples_per_second", "text_tokens_per_second", "image_tokens_per_second", "audio_tokens_per_second",
            "data_wait", "peak_memory_gib", "model_tflop_per_step", "model_tflop_per_second",
        )
    }  # fmt: skip
    assert all(value > 0 for name, value in logged.items() if name.startswith("throughput/"))
    assert logged["throughput/data_wait"] < 1
