import io
from collections import Counter
from itertools import chain

import lightning as L
import numpy as np
import pytest
import soundfile
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from onepeace_lightning.data.datamodule import DataModule, StreamConfig
from onepeace_lightning.data.shards import ShardWriter
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.modalities.tokenizers import SentencePieceTokenizer

SMALL = Preprocessing({"image": {"size": 16}, "audio": {"min_seconds": 0.025}})
COUNTS = {"image-text": 22, "audio-text": 9, "text": 13}


def encoded(index):
    picture, sound = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8), (index, 0, 0)).save(picture, "PNG")
    soundfile.write(sound, np.sin(np.arange(400) * (index + 1) / 50), 16000, format="WAV")
    return {"image": ("png", picture.getvalue()), "audio": ("wav", sound.getvalue()), "text": ("txt", b"a thing")}


def write(folder, data_type, count):
    with ShardWriter(folder, data_type, source="test", license="CC0", samples_per_shard=4) as writer:
        for index in range(count):
            fields = encoded(index)
            needed = {*data_type.split("-"), *(["text"] if data_type == "audio-image" else [])}
            writer.write(f"{index:03d}", dict(fields[modality] for modality in sorted(needed)))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for data_type, count in COUNTS.items():
        write(root / "train" / data_type, data_type, count)
    for data_type, count in {"image-text": 7, "audio-image": 5}.items():
        write(root / "val" / data_type, data_type, count)
    SentencePieceTokenizer.train(["a thing", "two things"], 300).save(root / "tokenizer")
    return root


def module(root, train=("image-text", "audio-text"), val=("audio-image", "image-text"), **options):
    return DataModule(
        {
            name: StreamConfig(str(root / "train" / name), {"image-text": 4, "audio-text": 3, "text": 5}[name])
            for name in train
        },
        {name: StreamConfig(str(root / "val" / name), 3) for name in val},
        **{"tokenizer": str(root / "tokenizer"), "preprocessing": SMALL, **options},
    )


class Recorder(L.LightningModule):
    """Remembers the keys and masks of every batch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.validated = [], []

    def training_step(self, batch, index):
        assert self.trainer.num_training_batches == 6
        self.seen.append({name: (part.keys, fingerprint(part)) for name, part in batch.items()})
        return self.weight * 0

    def validation_step(self, batch, index, dataloader_idx=0):
        self.validated.append((dataloader_idx, batch.keys))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fingerprint(batch):
    """Something that changes with any augmentation or mask."""
    pixels = batch.inputs["image"].pixels.double().sum().item() if "image" in batch.inputs else 0.0
    return pixels, [mask.hidden_M.tolist() for mask in (*batch.masks.values(), *batch.fused_masks.values())]


def fit(data, folder, steps, *, checkpoint=None, every=None, val=0):
    callbacks = [ModelCheckpoint(folder, filename="{step}", every_n_train_steps=every, save_top_k=-1)] if every else []
    recorder = Recorder()
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, callbacks=callbacks, default_root_dir=folder,
        enable_checkpointing=bool(every), enable_progress_bar=False, enable_model_summary=False, limit_val_batches=val,
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(recorder, datamodule=data, ckpt_path=checkpoint)
    return recorder


# ---------------------------------------------------------------- training


def test_each_step_has_a_batch_of_every_stream_and_the_longest_sets_the_epoch(root):
    data = module(root, train=("image-text", "audio-text", "text"))
    data.setup("fit")
    loader = data.train_dataloader()
    batches = [batch for batch, _, _ in loader]
    assert len(batches) == len(loader) == 6  # ceil(22 / 4)
    for batch in batches:
        assert {name: len(part) for name, part in batch.items()} == {"image-text": 4, "audio-text": 3, "text": 5}
        assert list(batch["image-text"].inputs) == ["text", "image"]
        assert set(batch["image-text"].fused_masks) == {"text", "image"}
    counts = Counter(key for batch in batches[:5] for key in batch["image-text"].keys)
    assert max(counts.values()) == 1
    again = Counter(key for batch in batches for key in batch["audio-text"].keys)
    assert set(again.values()) == {2}  # 6 × 3 of 9 samples: the shorter stream went round twice


def test_steps_per_epoch_and_masks_can_be_set(root):
    data = module(root, steps_per_epoch=2, masks=False)
    data.setup("fit")
    batches = [batch for batch, _, _ in data.train_dataloader()]
    assert len(batches) == 2
    assert not batches[0]["image-text"].masks


def test_streams_are_shuffled_apart(root):
    path = str(root / "train" / "image-text")
    train = {name: StreamConfig(path, 4, "image-text") for name in ("one", "other")}
    data = DataModule(train, tokenizer=str(root / "tokenizer"), preprocessing=SMALL)
    data.setup("fit")
    batches = [batch for batch, _, _ in data.train_dataloader()]
    assert any(batch["one"].keys != batch["other"].keys for batch in batches)


@pytest.mark.parametrize(("workers", "stopped"), [(0, 4), (0, 6), (2, 3)])
def test_a_stopped_run_goes_on_at_the_very_next_batch(root, tmp_path, workers, stopped):
    whole = fit(module(root, num_workers=workers), tmp_path, 9)
    fit(module(root, num_workers=workers), tmp_path, stopped, every=stopped)
    resumed = fit(module(root, num_workers=workers), tmp_path, 9, checkpoint=str(tmp_path / f"step={stopped}.ckpt"))
    assert len(whole.seen) == 9
    assert resumed.seen == whole.seen[stopped:]


# ---------------------------------------------------------------- validation


def test_validation_has_every_sample_once_in_the_order_of_the_names(root, tmp_path):
    data = module(root)
    assert list(data.val) == ["audio-image", "image-text"]
    recorder = fit(data, tmp_path, 6, val=1.0)
    seen = [[key for index, keys in recorder.validated if index == wanted for key in keys] for wanted in (0, 1)]
    assert seen == [[f"{index:03d}" for index in range(count)] for count in (5, 7)]


def test_two_processes_share_the_validation_samples(root):
    seen = []
    for rank in (0, 1):
        data = module(root)
        data.trainer = type("Trainer", (), {"global_rank": rank, "world_size": 2})()
        seen += [key for batch in list(data.val_dataloader().values())[1] for key in batch.keys]
    assert sorted(seen) == [f"{index:03d}" for index in range(7)]


def test_validating_needs_no_training_data(root):
    data = DataModule(
        {"image": StreamConfig("gone", 4)},
        {"image-text": StreamConfig(str(root / "val" / "image-text"), 3)},
        tokenizer=str(root / "tokenizer"),
    )
    data.setup("validate")
    with pytest.raises(ValueError, match=r"train\.image.*gone"):
        data.setup("fit")


# ---------------------------------------------------------------- configuration


def test_all_problems_are_told_at_once(root, tmp_path):
    data = DataModule(
        {
            "others": StreamConfig(str(root / "train" / "text"), 4, "smell"),
            "image": StreamConfig(str(root / "train" / "image-text"), 4),
            "text": StreamConfig(str(tmp_path / "gone"), 0),
        },
        {"image-text": StreamConfig(str(root / "train" / "text"), 3)},
        tokenizer=str(tmp_path),
        num_workers=-1,
        max_bad_fraction=2.0,
        shuffle_buffer=0,
        steps_per_epoch=0,
        seed=-1,
    )
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        data.setup("fit")
    for said in (
        "train.others: data type 'smell': 'smell' is no modality",
        "holds 'image-text', not 'image'",
        "gone",
        "train.text: batch_size is 0",
        "holds 'text', not 'image-text'",
        "tokenizer: ",
        "num_workers is -1",
        "max_bad_fraction is 2.0",
        "shuffle_buffer is 0",
        "steps_per_epoch is 0",
        "seed is -1",
    ):
        assert said in str(caught.value)


def test_no_stream_is_an_error(root):
    for stage, said in (("fit", "train has no stream"), ("validate", "val has no stream")):
        with pytest.raises(ValueError, match=said):
            DataModule(tokenizer=str(root / "tokenizer")).setup(stage)


def test_yaml_builds_it(root):
    parser = ArgumentParser()
    parser.add_class_arguments(DataModule, "data")
    config = parser.parse_object(
        {
            "data": {
                "train": {"image-text": {"path": str(root / "train" / "image-text"), "batch_size": 4}},
                "val": {
                    "pairs": {"path": str(root / "val" / "audio-image"), "batch_size": 2, "data_type": "audio-image"}
                },
                "tokenizer": str(root / "tokenizer"),
                "preprocessing": {
                    "image": {"size": 32, "crop_scale": [0.5, 1.0], "mask_ratio": 0.5},
                    "audio": {"min_seconds": 0.25},
                },
            }
        }
    )
    data = parser.instantiate_classes(config).data
    assert data.train == {"image-text": StreamConfig(str(root / "train" / "image-text"), 4)}
    assert data.preprocessing == Preprocessing(
        {"image": {"size": 32, "crop_scale": (0.5, 1.0), "mask_ratio": 0.5}, "audio": {"min_seconds": 0.25}}
    )
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))[0]["image-text"]
    assert batch.inputs["image"].pixels.shape == (4, 3, 32, 32)
    assert batch.masks["image"].visible_lengths == [3] * 4
    captions = [batch.captions for batch in next(iter(data.val_dataloader().values()))]
    assert [*chain.from_iterable(captions)] == ["a thing"] * 5
    assert max(map(len, captions)) == 2


def test_plain_dictionaries_are_streams_too(root):
    data = DataModule({"text": {"path": "x", "batch_size": 3}}, tokenizer="t")
    assert data.train == {"text": StreamConfig("x", 3)}
