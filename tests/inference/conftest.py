"""A tiny model in a folder, and things to embed."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from onepeace_lightning import OnePeace
from onepeace_lightning.checkpoints.export import to_original
from onepeace_lightning.data.shards import ShardWriter
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.modalities.text import TextConfig
from onepeace_lightning.modalities.tokenizers import SentencePieceTokenizer, load_tokenizer
from onepeace_lightning.models import PretrainModel
from tests.modalities.test_tokenizers import write_tiny_bpe
from tests.tiny import IMAGE_SIZE, randomised, tiny_config

CAPTIONS = ["a red cow", "a small dog that barks at the cow", "dog", "a bell", "a bell at night"]


def tiny_onepeace(seed: int = 0) -> OnePeace:
    tokenizer = SentencePieceTokenizer.train(CAPTIONS, 300, max_length=20)
    config = tiny_config()
    text = TextConfig(vocab_size=tokenizer.vocab_size, positions=80, buckets=8)
    torch.manual_seed(seed)
    model = randomised(PretrainModel(replace(config, adapters={**config.adapters, "text": text}), denoise=False))
    preprocessing = Preprocessing({"image": {"size": IMAGE_SIZE}, "audio": {"max_seconds": 1.0, "min_seconds": 0.1}})
    return OnePeace(model, tokenizer=tokenizer, preprocessing=preprocessing)


def save_original(folder: Path) -> tuple[Path, PretrainModel]:
    """A checkpoint of the original's format with a decoder, and its vocabulary in ``bpe``."""
    (folder / "bpe").mkdir()
    write_tiny_bpe(folder / "bpe")
    config = tiny_config()
    text = TextConfig(vocab_size=load_tokenizer(folder / "bpe").vocab_size, positions=80, buckets=8)
    torch.manual_seed(0)
    model = randomised(PretrainModel(replace(config, adapters={**config.adapters, "text": text})))
    torch.save(to_original(model), folder / "one-peace.pt")
    return folder / "one-peace.pt", model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_onepeace().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "other"
    tiny_onepeace(seed=1).save_pretrained(folder)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working folder with pictures, sounds, a table and shards of both."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "photos" / "trip").mkdir(parents=True)
    (tmp_path / "sounds").mkdir()
    rows = []
    for index, caption in enumerate(CAPTIONS):
        name = f"trip/{index}.png" if index % 2 else f"{index}.jpg"
        Image.fromarray(rng.integers(0, 256, (30 + index, 50, 3), dtype=np.uint8)).save(tmp_path / "photos" / name)
        wave = rng.standard_normal(4000 + 900 * index).clip(-3, 3) / 4
        soundfile.write(tmp_path / "sounds" / f"{index}.wav", wave, 16000)
        rows.append({"path": f"photos/{name}", "sound": f"sounds/{index}.wav", "caption": caption})
    with (tmp_path / "pairs.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["path", "sound", "caption"])
        writer.writeheader()
        writer.writerows(rows)
    with ShardWriter(tmp_path / "shards", "image-text", source="test", license="CC0", samples_per_shard=2) as writer:
        for row in rows:
            file = tmp_path / row["path"]
            writer.write(file.stem, {file.suffix[1:]: file.read_bytes(), "txt": row["caption"].encode()})
    return tmp_path
