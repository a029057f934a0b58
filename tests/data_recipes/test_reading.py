"""What the recipes write is what the data modules of the downstream tasks read."""

import pytest

from data_recipes import corpora
from onepeace_lightning.data.datamodule import DataModule, StreamConfig
from onepeace_lightning.data.manifest import read_manifest
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.modalities.tokenizers import SentencePieceTokenizer
from tests.data_recipes.test_corpora import CASES, run

MODULES = {
    "coco": DataModule,
    "clotho": DataModule,
    "fsd50k": DataModule,
    "imagenet": DataModule,
    "avqa": DataModule,
    "refcoco": DataModule,
    "vqav2": DataModule,
    "nlvr2": DataModule,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    SentencePieceTokenizer.train(["What is it? a caption of the left one", "There are two dogs, rain falls"], 400).save(
        folder
    )
    return str(folder)


@pytest.mark.parametrize("name", MODULES)
def test_every_sample_of_training_and_evaluation_is_read(name, tokenizer, tmp_path):
    CASES[name][2](tmp_path / "root")
    run(name, tmp_path / "root", tmp_path / "out")
    corpora._files.cache_clear()
    streams = {split: next((tmp_path / "out" / split).iterdir()) for split in CASES[name][3]}
    other = next(split for split in streams if split != "train")
    count = read_manifest(streams["train"]).samples
    data = MODULES[name](
        StreamConfig(str(streams["train"]), batch_size=count),
        {other: StreamConfig(str(streams[other]), batch_size=1)},
        tokenizer=tokenizer if "label" not in streams["train"].name else None,
        preprocessing=Preprocessing({"image": {"size": 32}}),
    )
    data.setup()
    # An item with several captions comes once with each.
    assert len({key for batch in data.train_dataloader() for key in batch.keys}) == count
    read = [key for batch in data.val_dataloader()[other] for key in batch.keys]
    assert len(set(read)) == read_manifest(streams[other]).samples
    if "classes" in read_manifest(streams["train"]).about:
        assert data.names("classes") == read_manifest(streams["train"]).about["classes"]
