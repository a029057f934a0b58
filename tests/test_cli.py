"""The command line over the shipped configurations, in a tiny form."""

import json
from pathlib import Path

import pytest
import torch

from onepeace_lightning.cli import main
from onepeace_lightning.cli.runs import refuse_used
from onepeace_lightning.cli.trainer import best_precision, command_line
from onepeace_lightning.modalities.preprocessing import config_from_dict

ROOT = Path(__file__).parent.parent
TINY = [
    "--trainer.accelerator=cpu",
    "--trainer.precision=32-true",
    "--trainer.max_steps=4",
    "--trainer.val_check_interval=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--model.init_args.optimization.warmup_steps=1",
    "--data.init_args.num_workers=0",
    *(f"--data.init_args.train.{kind}.batch_size=4" for kind in ("image-text", "audio-text", "image", "audio", "text")),
]
TOY = ["--config=configs/pretrain/toy.yaml", *TINY]
DIRECTIONS = [
    f"{a}_to_{b}" for a, b in [("image", "text"), ("audio", "text"), ("audio", "image")] for a, b in [(a, b), (b, a)]
]


@pytest.fixture
def checkout(toy_root, tmp_path, monkeypatch):
    """An own working folder with the shared toy data, so that runs do not meet."""
    (tmp_path / "data").symlink_to(toy_root / "data")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_fit_then_validate_gives_the_same_scores_and_leaves_what_it_says(checkout, capsys):
    main(["fit", *TOY])
    results = json.loads((checkout / "runs/toy/results.json").read_text())
    for direction in DIRECTIONS:
        assert 0 <= results[f"{direction}/R@1"] <= results[f"{direction}/R@10"] <= 100
    # 16 distinct combinations: one right answer in 16
    assert results["chance/audio_to_image/R@1"] == pytest.approx(100 / 16, abs=0.01)
    assert (checkout / "runs/toy/report.png").stat().st_size > 1000
    page = (checkout / "runs/toy/report.html").read_text()
    assert "audio-image" in page
    assert "<audio" in page
    assert list((checkout / "runs/toy/logs").rglob("events*"))
    printed = capsys.readouterr().out
    assert "preprocessing:" in printed
    assert "fingerprint" in printed

    # the last checkpoint is that of the last step, whether or not it is the best
    assert torch.load("runs/toy/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    assert (checkout / "runs/toy/checkpoints/best.ckpt").exists()
    (checkout / "runs/toy/results.json").unlink()
    main(["validate", *TOY, "--ckpt_path=runs/toy/checkpoints/last.ckpt"])
    assert json.loads((checkout / "runs/toy/results.json").read_text()) == results


def test_a_checkpoint_carries_its_tokenizer_and_sizes(checkout):
    main(["fit", *TOY, "--trainer.max_steps=2", "--trainer.val_check_interval=2"])
    checkpoint = torch.load("runs/toy/checkpoints/last.ckpt", weights_only=True)
    saved = checkpoint["onepeace"]
    folder = checkout / "data/toy/tokenizer"
    assert saved["tokenizer"] == {file.name: file.read_bytes() for file in folder.iterdir()}
    assert saved["preprocessing"]["audio"]["min_seconds"] == 0.4
    config = config_from_dict(saved["config"])
    assert config.adapters["image"].image_size == 96
    assert config.adapters["text"].vocab_size == len(
        checkpoint["state_dict"]["model.backbone.adapters.text.embedding.weight"]
    )


def test_a_run_that_ends_between_two_validations_leaves_its_last_step(checkout, capsys):
    ends = ["--trainer.max_steps=3", "--trainer.val_check_interval=2"]
    main(["fit", *TOY, *ends])
    assert torch.load("runs/toy/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    assert "no checkpoint was written" not in capsys.readouterr().out
    main(["fit", *TOY, "--run=own", "--trainer.max_steps=2", "--trainer.val_check_interval=3",
          "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint"])  # fmt: skip
    assert not list((checkout / "runs/own").rglob("*.ckpt"))
    assert "no checkpoint was written" in capsys.readouterr().out


def test_resuming_gives_the_weights_of_the_uninterrupted_run(checkout):
    every_2 = [
        "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
        "--trainer.callbacks.dirpath=steps",
        "--trainer.callbacks.filename={step}",
        "--trainer.callbacks.save_top_k=-1",
        "--trainer.callbacks.every_n_train_steps=2",
    ]
    main(["fit", *TOY, *every_2, "--data.init_args.steps_per_epoch=3"])
    whole = weights(checkout / "steps/step=4.ckpt")
    (checkout / "steps/step=4.ckpt").unlink()
    main(["fit", *TOY, *every_2, "--data.init_args.steps_per_epoch=3", "--ckpt_path=steps/step=2.ckpt"])
    resumed = weights(checkout / "steps/step=4.ckpt")
    started = weights(checkout / "steps/step=2.ckpt")
    moved = [name for name in whole if not torch.equal(whole[name], started[name])]
    assert len(moved) > 100
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name


def test_stage_2_trains_audio_and_leaves_the_rest_bit_for_bit(checkout):
    one_stage = ["--config=configs/pretrain/toy.yaml", *TINY[:-5], "--data.init_args.val=null"]
    saver = "{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {dirpath: CKPT, save_last: true}}"
    monitor = f"--trainer.callbacks=[{saver}]"
    pairs = "--data.init_args.train={KIND: {path: data/toy/train/KIND, batch_size: 4}}"
    validation = ["--trainer.limit_val_batches=0", "--trainer.max_steps=3"]
    main(["fit", *one_stage, *validation, pairs.replace("KIND", "image-text"), monitor.replace("CKPT", "one"),
          "--model.init_args.modalities=[text, image]"])  # fmt: skip
    main(["fit", *one_stage, *validation, pairs.replace("KIND", "audio-text"), monitor.replace("CKPT", "two"),
          "--run=second", "--model.init_args.init_from=one/last.ckpt",
          "--model.init_args.trainable=[audio]"])  # fmt: skip
    first, second = weights(checkout / "one/last.ckpt"), weights(checkout / "two/last.ckpt")
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert all(name.startswith(("model.denoiser.", "model.heads.logit_scale")) for name in changed)
    assert {"model.heads.logit_scale", "model.denoiser.inputs.text.project.weight"} <= changed
    assert not any("image" in name for name in changed)
    assert "model.backbone.adapters.audio.project.weight" in second


@pytest.mark.parametrize("name", ["toy", "stamps", "stage1_4b", "stage2_4b"])
def test_shipped_configurations_parse_and_everything_linked_arrives(name, checkout):
    tokenizer = "--data.init_args.tokenizer=data/toy/tokenizer"
    local = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1"]
    cli = command_line([f"--config=configs/pretrain/{name}.yaml", tokenizer, *local], run=False)
    task, data = cli.model, cli.datamodule
    assert task.tokenizer.fingerprint() == data.tokenizer.fingerprint()
    assert not data.preprocessing.misfits(task.config)
    assert {str(kind) for kind in task.data_types} == set(data.train)
    published = {"stage1_4b": (5e-4, 3000, 200_000, None), "stage2_4b": (2e-4, 781, 7812, ["audio"])}
    if name in published:
        settings = task.optimization
        assert (settings.lr, settings.warmup_steps, cli.trainer.max_steps, task.trainable) == published[name]
        assert (settings.min_lr, settings.weight_decay, settings.betas, settings.eps) == (1e-6, 0.05, (0.9, 0.98), 1e-8)
        assert task.config.encoder.drop_path == 0.4
        assert cli.trainer.gradient_clip_val == 3.0
        assert task.config.encoder.depth == 40


def test_a_setting_of_one_modality_keeps_the_others(checkout):
    words = ["--data.preprocessing.image.size=64", "--data.init_args.preprocessing.audio.max_seconds", "1e0"]
    cli = command_line([*TOY[:1], *words, "--trainer.accelerator=cpu"], run=False)
    image, audio = (cli.datamodule.preprocessing[name] for name in ("image", "audio"))
    assert (image.size, image.crop_scale) == (64, (1.0, 1.0))
    assert (audio.max_seconds, audio.min_seconds) == (1.0, 0.4)
    assert cli.model.config.adapters["image"].image_size == 64


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--data.preprocessing.image.size=100"], r"100.*multiple of 16"),
        (["--data.preprocessing.image.colour=1"], r"preprocessing of image: there is no colour; there is .*size"),
        (["--data.preprocessing.smell.size=1"], r"there is no modality 'smell'"),
        (["--model.init_args.learning_rate=1"], r"Option 'learning_rate' is not accepted"),
        (["--trainer.max_steps=abc"], r"trainer.max_steps:\n  'abc' is not of type int"),
        (["--trainer.max_stepz=3"], r"max_stepz=3; did you mean --trainer.max_steps\?"),
        (["--model=NoTask"], r"model:\n  there is no class 'NoTask'.*--import MODULE"),
        (["--trainer.callbacks=NoCallback"], r"trainer.callbacks:\n  there is no class 'NoCallback'"),
        (["--model.optimization.lr=abc"], r"PretrainTask:\n    optimization.lr:\n      'abc' is not of type float"),
        (["--data.train.image-text.batch_sizze=3"], r"'batch_sizze' is not accepted; did you mean batch_size\?"),
        (["--data.init_args.preprocessing={image: {size: 100}}"], r"100.*multiple of 16"),
        (["--data.init_args.train.image-text.path=nowhere"], r"train.image-text: there is no folder nowhere"),
        (["--data.init_args.tokenizer=nowhere"], r"nowhere holds no tokenizer"),
        (["--config=pretrain/toi"], r"neither a file pretrain/toi .* did you mean pretrain/toy"),
        (["--import=no_such_module"], r"--import no_such_module: there is no such module"),
        (["--run=s3://bucket/run"], r"--run is s3://bucket/run; a run's folder is local"),
    ],
)
def test_what_is_wrong_is_said_on_one_screen_and_leaves_no_run(checkout, words, says):
    with pytest.raises(SystemExit, match=says) as stop:
        main(["fit", *TOY, *words])
    message = str(stop.value)
    assert message.startswith("onepeace fit: ")
    assert len(message.splitlines()) < 12
    assert "Traceback" not in message
    assert "import path string" not in message
    assert "Subtypes" not in message
    refuse_used(Path("runs/toy"))  # nothing stands in the way of the next try


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_told_in_words(checkout):
    with pytest.raises(SystemExit, match=r"gpu backend.*--trainer\.accelerator cpu"):
        main(["fit", *TOY, "--trainer.accelerator=gpu"])


def test_a_checkpoint_of_another_vocabulary_is_refused(checkout):
    main(["fit", *TOY, "--trainer.max_steps=2", "--trainer.val_check_interval=2"])
    checkpoint = torch.load("runs/toy/checkpoints/last.ckpt", weights_only=True)
    checkpoint["onepeace"]["tokenizer"]["sentencepiece.model"] += b"x"
    torch.save(checkpoint, "other.ckpt")
    with pytest.raises(SystemExit, match="another tokenizer"):
        main(["validate", *TOY, "--ckpt_path=other.ckpt"])


def test_the_data_must_use_the_model_s_tokenizer(checkout, toy_root):
    from onepeace_lightning.modalities.tokenizers import SentencePieceTokenizer

    SentencePieceTokenizer.train(["other words altogether"], 300).save(checkout / "other")
    cli = command_line([*TOY], run=False)
    cli.datamodule.tokenizer_folder = checkout / "other"
    with pytest.raises(ValueError, match="same folder"):
        cli.trainer.fit(cli.model, cli.datamodule)


def test_shards_from_csv(checkout, capsys):
    from PIL import Image

    Image.new("RGB", (20, 20), "red").save("red.png")
    Image.new("RGB", (20, 20), "blue").save("blue.png")
    Path("pairs.csv").write_text("path,caption\nred.png,a red square\nblue.png,a blue square\n")
    main(
        [
            "shards",
            "from-csv",
            "pairs.csv",
            "--image-col",
            "path",
            "--text-col",
            "caption",
            "--out",
            "data2",
            "--vocab-size=300",
        ]
    )
    manifest = json.loads(Path("data2/train/image-text/manifest.json").read_text())
    assert sum(shard["samples"] for shard in manifest["shards"]) == 2
    assert Path("data2/tokenizer/sentencepiece.model").exists()


def test_shard_commands_end_with_what_is_wrong(checkout):
    Path("pairs.csv").write_text("path,caption\nnowhere.png,a red square\n")
    with pytest.raises(SystemExit, match=r"nowhere\.png"):
        main(["shards", "from-csv", "pairs.csv", "--image-col", "path", "--text-col", "caption", "--out", "data2"])


@pytest.mark.parametrize(
    ("abilities", "precision"),
    [
        ({}, "32-true"),
        ({"avx512_bf16": True}, "bf16-mixed"),
        ({"avx512_bf16": True, "avx512_fp16": True}, "32-true"),
        ({"avx512_bf16": True, "avx512_fp16": True, "amx_bf16": True}, "bf16-mixed"),
    ],
)
def test_precision_is_the_one_that_the_processor_is_fast_at(abilities, precision, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: abilities)
    assert best_precision() == precision


# ---------------------------------------------------------------- the run's folder


def test_recent_checkpoints_take_the_place_of_the_run_s_last(checkout):
    words = [
        *TOY, "--run=mine", "--trainer.callbacks=RecentCheckpoints", "--trainer.callbacks.every_n_train_steps=3",
    ]  # fmt: skip
    main(["fit", *words])
    folder = Path("runs/mine/checkpoints")
    assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt", "step=3.ckpt", "step=4.ckpt"]
    assert (folder / "last.ckpt").readlink() == Path("step=4.ckpt")
    main(["fit", *words, "--ckpt_path=last", "--trainer.max_steps=5"])
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 5


def test_a_run_keeps_everything_in_its_folder_and_is_never_overwritten(checkout, capsys):
    main(["fit", *TOY, "--run=mine"])
    folder = Path("runs/mine")
    assert {path.name for path in folder.iterdir()} == {
        "checkpoints", "config.yaml", "logs", "report.html", "report.png", "results.json",
    }  # fmt: skip
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert [path.name for path in Path("runs").iterdir()] == ["mine"]
    printed = capsys.readouterr().out
    assert "M parameters, all trained, 32-true, 1 CPU; 4 steps; written to runs/mine" in printed
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match=r"runs/mine holds a run already.*--ckpt_path last.*--run mine-2"):
        main(["fit", *TOY, "--run=runs/mine"])
    with pytest.raises(SystemExit, match=r"have their random initial values.*--ckpt_path best"):
        main(["validate", *TOY, "--run=mine"])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    # its own configuration makes the same run again, and the run goes on
    main(["fit", "--config=runs/mine/config.yaml", "--run=again"])
    assert json.loads(Path("runs/again/results.json").read_text()) == json.loads((folder / "results.json").read_text())
    with pytest.raises(SystemExit, match=r"several machines start the processes with torchrun or srun"):
        main(["fit", *TOY, "--run=mine", "--ckpt_path=last", "--trainer.num_nodes=2", "--trainer.strategy=ddp"])
    main(["fit", *TOY, "--run=mine", "--ckpt_path=last", "--trainer.max_steps=6"])
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 6
    (folder / "results.json").unlink()
    main(["validate", *TOY, "--run=mine", "--ckpt_path=best"])
    assert (folder / "results.json").is_file()
    with pytest.raises(SystemExit, match=r"no runs/toy/checkpoints/best.ckpt; it has none. Say which run with --run"):
        main(["validate", *TOY, "--ckpt_path=best"])


def test_a_later_configuration_changes_one_stream_and_keeps_the_others(checkout):
    Path("over.yaml").write_text("data: {init_args: {train: {image-text: {batch_size: 2}, text: null}}}")
    cli = command_line([*TOY[:1], "--config=over.yaml", "--trainer.accelerator=cpu"], run=False)
    assert {name: stream.batch_size for name, stream in cli.datamodule.train.items()} == {
        "image-text": 2, "audio-text": 32, "image": 4, "audio": 4,
    }  # fmt: skip
    assert cli.datamodule.train["image-text"].path == "data/toy/train/image-text"
    assert {str(kind) for kind in cli.model.data_types} == {"image-text", "audio-text", "image", "audio"}


def test_several_streams_of_one_type_and_names_that_are_other_types(checkout):
    Path("streams.yaml").write_text(
        "data: {init_args: {train: {image-text: null, audio-text: null, text: null, audio: null,"
        " laion: {path: data/toy/train/image-text, batch_size: 4, data_type: image-text},"
        " image: {path: data/toy/train/image-text, batch_size: 4, data_type: image-text}},"
        " val: {audio-text: null, audio-image: null, image-text: null,"
        " coco: {path: data/toy/val/image-text, batch_size: 8, data_type: image-text}}}}"
    )
    words = [*TOY[:1], "--config=streams.yaml", *TINY[:-5], "--run=streams"]
    cli = command_line(words, run=False)
    assert [str(kind) for kind in cli.model.data_types] == ["image-text"]
    main(["fit", *words])
    assert Path("runs/streams/checkpoints/best.ckpt").exists()
    state = weights(Path("runs/streams/checkpoints/last.ckpt"))
    start = command_line(words, run=False).model
    start.configure_model()
    changed = [name for name, value in start.state_dict().items() if not torch.equal(value, state[name])]
    assert any(".text." in name for name in changed)


def test_training_by_epochs_knows_its_number_of_steps(checkout):
    epochs = ["--trainer.max_steps=-1", "--trainer.max_epochs=2", "--data.init_args.steps_per_epoch=3",
              "--trainer.val_check_interval=1.0", "--trainer.limit_val_batches=1"]  # fmt: skip
    main(["fit", *TOY, *epochs, "--run=linked"])
    main(["fit", *TOY, *epochs, "--run=given", "--model.init_args.optimization.total_steps=100"])
    last = [torch.load(f"runs/{run}/checkpoints/last.ckpt", weights_only=True) for run in ("linked", "given")]
    assert [checkpoint["global_step"] for checkpoint in last] == [6, 6]
    rates = [checkpoint["lr_schedulers"][0]["_last_lr"][0] for checkpoint in last]
    assert rates[0] == pytest.approx(1e-5)  # the cosine ends with the run
    assert rates[1] > 9e-4


def test_a_module_of_the_user_is_imported_before_its_names_are_read(checkout, monkeypatch):
    Path("my_tasks.py").write_text(
        "from onepeace_lightning.tasks import PretrainTask\n\n\nclass MyTask(PretrainTask):\n    pass\n"
    )
    Path("mine.yaml").write_text("import: [my_tasks]\nmodel: {class_path: MyTask}\n")
    for words in (["--config=mine.yaml"], ["--import=my_tasks", "--model=MyTask"]):
        config = [*TOY[:1], *words, "--model.init_args.optimization={lr: 1e-3, min_lr: 1e-5, warmup_steps: 1}"]
        cli = command_line([*config, "--trainer.accelerator=cpu"], run=False)
        assert type(cli.model).__name__ == "MyTask"
