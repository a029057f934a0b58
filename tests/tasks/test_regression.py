import numpy as np
import pytest
import soundfile

from onepeace_lightning.data.datamodule import DataModule
from onepeace_lightning.data.from_table import from_csv
from onepeace_lightning.tasks import RegressionTask, load_task
from tests.tiny import tiny_config

SHORT = {"audio": {"min_seconds": 0.4, "max_seconds": 0.5}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Recordings of noise that is filtered more or less; a number says how much, another one is the first's double."""
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    lines = ["file,smooth,twice"]
    for index in range(24):
        smooth = index % 2
        noise = np.convolve(rng.standard_normal(8000), np.ones(1 + 40 * smooth) / 10, "same")
        soundfile.write(folder / f"{index}.wav", 0.3 * noise / abs(noise).max(), 16000)
        lines.append(f"{index}.wav,{smooth * 40},{smooth * 80}")
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    from_csv(
        str(folder / "t.csv"), out=str(folder / "out"), columns={"audio": "file"}, target_col=["smooth", "twice"],
        split="0.7,0.3",
    )  # fmt: skip
    return folder


def module(data):
    train, val = (str(data / "out" / split / "audio-target") for split in ("train", "val"))
    return DataModule(
        {"path": train, "batch_size": 8}, {"val": {"path": val, "batch_size": 8}}, preprocessing=SHORT,
        steps_per_epoch=40,
    )  # fmt: skip


def test_numbers_are_learned_and_answered_in_their_own_units(data, trainer, tmp_path):
    task = RegressionTask(
        tiny_config(), {"lr": 1e-3, "min_lr": 1e-5, "warmup_steps": 5}, modalities=["audio"], preprocessing=SHORT
    )
    runner = trainer(max_steps=80, check_val_every_n_epoch=1)
    runner.fit(task, module(data))
    assert list(task.scales) == ["smooth", "twice"]
    assert float(runner.callback_metrics["val/R2"]) > 0.5
    runner.save_checkpoint(tmp_path / "a.ckpt")
    again = load_task(tmp_path / "a.ckpt")
    rough, smooth = again.predict([data / "0.wav", data / "1.wav"])
    assert smooth["smooth"] - rough["smooth"] > 15
    assert smooth["twice"] == pytest.approx(2 * smooth["smooth"], abs=25)


def test_what_does_not_fit_is_said(data):
    options = {"modalities": ["audio"], "preprocessing": SHORT}
    with pytest.raises(ValueError, match=r"target 'x' is .*std above 0"):
        RegressionTask(tiny_config(), targets={"x": {"mean": 1, "std": 0}}, **options)
    with pytest.raises(ValueError, match="nobody says what numbers there are"):
        RegressionTask(tiny_config(), **options).build()
    task = RegressionTask(tiny_config(), targets={"x": {"mean": 1, "std": 2}}, **options)
    with pytest.raises(ValueError, match="the data's numbers are smooth, twice, the task's x"):
        task.adopt(module(data))
