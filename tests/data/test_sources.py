"""Several sources in one stream, and streams by URL, as the command line takes them."""

import json

import fsspec
import pytest

from onepeace_lightning.cli import main
from onepeace_lightning.cli.trainer import command_line
from onepeace_lightning.data.datamodule import DataModule, StreamConfig
from onepeace_lightning.data.shards import ShardWriter


def make(folder, name, samples=20, data_type="text"):
    with ShardWriter(folder, data_type, source="-", license="-", samples_per_shard=6) as writer:
        for index in range(samples):
            writer.write(f"{name}{index:02d}", {"txt": b"a red cow", "json": b"{}"})
    return str(folder)


@pytest.fixture
def fit(toy_root, tmp_path, monkeypatch):
    """Runs the toy pretraining for six steps on a training configuration."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(toy_root / "data")
    (tmp_path / "configs").symlink_to(toy_root / "configs")

    def run(train, *options):
        return [
            "fit", "--config=configs/pretrain/toy.yaml", "--trainer.accelerator=cpu", "--trainer.precision=32-true",
            "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.max_steps=6",
            "--trainer.limit_val_batches=0", "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
            "--trainer.logger.save_dir=logs", "--trainer.log_every_n_steps=1", "--data.init_args.num_workers=0",
            "--data.init_args.steps_per_epoch=3",
            "--model.init_args.optimization.warmup_steps=2", f"--data.init_args.train={json.dumps(train)}", *options,
        ]  # fmt: skip

    return run


def logged(folder):
    [file] = folder.glob("logs/**/metrics.csv")
    header, *rows = [line.split(",") for line in file.read_text().splitlines()]
    return {name: [row[index] for row in rows if row[index]] for index, name in enumerate(header)}


@pytest.mark.parametrize("contrast_batches", [1, 2])
def test_sources_and_streams_of_one_type_are_trained_on(fit, tmp_path, contrast_batches):
    pairs = "data/toy/train/image-text"
    mixed = {"sources": [{"path": pairs, "weight": 3, "name": "A"}, {"path": pairs, "weight": 1, "name": "B"}]}
    streams = {
        "laion": {"data_type": "image-text", "batch_size": 4, **mixed},
        "cc12m": {"path": pairs, "batch_size": 2},
    }
    main(fit(streams, f"--data.init_args.contrast_batches={contrast_batches}", "--trainer.max_steps=3"))
    found = logged(tmp_path)
    seen = 3 * contrast_batches
    assert [float(found[f"data/laion/{name}/seen"][-1]) for name in "AB"] == [3 * seen, seen]
    assert float(found["data/cc12m/seen"][-1]) == 2 * seen
    assert float(found["data/cc12m/bad"][-1]) == 0
    whole, first, second = (
        [float(value) for value in found[f"train/laion/{name}contrast"]] for name in ("", "A/", "B/")
    )
    assert whole == pytest.approx([(3 * a + b) / 4 for a, b in zip(first, second, strict=True)], rel=1e-4)
    assert first != pytest.approx(second, rel=1e-3)
    for term in ("image", "text", "fused_image", "fused_text"):
        assert all(float(value) > 0 for name in "AB" for value in found[f"train/laion/{name}/{term}"])
    assert not [name for name in found if name.startswith("train/cc12m/A")]


def test_a_stream_in_memory_is_trained_on(fit, tmp_path, toy_root):
    memory = fsspec.filesystem("memory")
    memory.put(str(toy_root / "data/toy/train/image-text"), "/pairs", recursive=True)
    storage = ["--data.init_args.storage.retries=2", f"--data.init_args.storage.cache={tmp_path}/cache"]
    main(fit({"image-text": {"path": "memory://pairs", "batch_size": 4}}, *storage))
    assert float(logged(tmp_path)["data/image-text/seen"][-1]) == 24


def test_wrong_streams_are_told(tmp_path):
    one, other = make(tmp_path / "a", "a"), make(tmp_path / "b", "b")
    with ShardWriter(tmp_path / "c", "audio-text", source="-", license="-") as writer:
        writer.write("c", {"flac": b"-", "txt": b"-"})
    sources = [{"path": one}, {"path": other}]
    wrong = {
        "nothing": StreamConfig(batch_size=2),
        "both": StreamConfig(one, 2, sources=sources),
        "kinds": StreamConfig(batch_size=2, sources=[*sources, {"path": str(tmp_path / "c")}]),
    }
    with pytest.raises(ValueError, match=r"train.nothing: give a path, or sources") as error:
        DataModule(wrong, {"text": StreamConfig(batch_size=2, sources=sources)}).setup("fit")
    for part in (
        "train.both: give a path, or",
        "train.kinds: its sources hold text, text, audio-text",
        "val.text: sources",
    ):
        assert part in str(error.value)


def test_settings_of_storage_arrive(fit):
    options = ["--data.init_args.storage.skip_shards=3", "--data.init_args.drop_empty_captions=true"]
    train = {"image-text": {"path": "data/toy/train/image-text", "batch_size": 4}}
    parsed = command_line(fit(train, *options)[1:], run=False)
    assert parsed.datamodule.storage.skip_shards == 3
    assert parsed.datamodule.train_loader("image-text", None).drop_empty_captions
