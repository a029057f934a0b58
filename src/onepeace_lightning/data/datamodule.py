"""The data of every task: named streams of shards, read as their data type says, and exact loaders over them."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import CombinedLoader

from onepeace_lightning.data.data_types import DataType, data_type
from onepeace_lightning.data.dataloader import Grouped, TrainLoader
from onepeace_lightning.data.eval_loader import EvalLoader
from onepeace_lightning.data.manifest import Manifest, read_manifest
from onepeace_lightning.data.readers import READERS, AlignedReader, Reader
from onepeace_lightning.data.readers.base import Augmentation
from onepeace_lightning.data.sources import Source, shared_manifest
from onepeace_lightning.data.storage import StorageConfig
from onepeace_lightning.data.tars import ShardError
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.modalities.tokenizers import Tokenizer, load_tokenizer


@dataclass
class StreamConfig:
    """One stream of samples.

    Attributes:
        path: where its shards are: a folder or its URL (``s3://…``), a manifest, or shards (see ``manifest.Paths``).
        batch_size: samples per batch on each device.
        data_type: what the samples are, to have it checked; None: as the manifest says, unless the stream's name is a
            data type.
        sources: instead of ``path``, several sets of shards that every training batch mixes by their weights.
    """

    path: str | list[str] | None = None
    batch_size: int = 0
    data_type: str | None = None
    sources: list[Source] | None = None

    def __post_init__(self) -> None:
        self.sources = self.sources and [s if isinstance(s, Source) else Source(**s) for s in self.sources]

    @property
    def paths(self) -> list[str | list[str]]:
        """Where the shards of each source are."""
        return [source.path for source in self.sources or ()] + ([] if self.path is None else [self.path])


class DataModule(L.LightningDataModule):
    """Streams of samples: to train on, to validate and to test on.

    What a stream's samples are, its manifest says (``data.data_types``); that decides how they are read.

    Args:
        train: one stream, whose batches a training step gets as they are; or streams by name, of each of which a step
            gets one batch, {name: batch}, with the masks of the denoising objective.
        val: name to validation stream; each is one loader, in this order.
        test: the same for testing.
        tokenizer: folder of a saved tokenizer; None where there is no text.
        preprocessing: modality to its settings, such as ``{"image": {"size": 96}}``; the defaults of those that are not
            named.
        augmentation: what is done to training samples. None: the default of their data type; False: nothing; True: the
            modalities' own augmentation; a mapping: settings of the data type's augmentation, for a label
            ``crop_scale``, ``flip``, ``rand_augment`` and ``erase``, for a box ``crop_scale``, ``flip`` and ``blur``,
            for a pair ``colour``, ``blur``, ``flip`` and ``operations``, for a mask ``scale``, ``flip``, ``distort``
            and ``largest_class``, for boxes ``scale`` and ``flip``.
        num_workers: data worker processes per stream.
        seed: orders and augments the samples.
        steps_per_epoch: training steps per epoch; one pass over the longest stream if None, shorter ones start again.
        shuffle_buffer: samples that each worker mixes; it reads one shard at a time for every 64 of them.
        max_bad_fraction: fraction of bad samples, over all ranks, beyond which training stops.
        drop_empty_captions: leave training samples with an empty caption out without calling them bad.
        storage: how files at URLs are read.
        masks: draw masks in streams by name; contrast alone needs none.
        contrast_batches: of streams by name a training step gets so many batches, {name: [batch, …]}, with one contrast
            over all of them and the memory of one (``training.gradient_cache``); a step is then so many times larger.
    """

    def __init__(
        self,
        train: StreamConfig | dict[str, StreamConfig] | None = None,
        val: dict[str, StreamConfig] | None = None,
        test: dict[str, StreamConfig] | None = None,
        *,
        tokenizer: str | None = None,
        preprocessing: dict[str, dict[str, Any]] | None = None,
        augmentation: dict[str, Any] | bool | None = None,
        num_workers: int = 0,
        seed: int = 0,
        steps_per_epoch: int | None = None,
        shuffle_buffer: int = 1000,
        max_bad_fraction: float = 0.01,
        drop_empty_captions: bool = False,
        storage: StorageConfig = StorageConfig(),  # noqa: B008 (frozen)
        masks: bool = True,
        contrast_batches: int = 1,
    ) -> None:
        super().__init__()
        single = isinstance(train, StreamConfig) or (train is not None and bool({"path", "sources"} & set(train)))
        self.single = single
        self.train, self.val, self.test = _streams({"train": train} if single else train), _streams(val), _streams(test)
        self.tokenizer_folder = None if tokenizer is None else Path(tokenizer)
        self.preprocessing = Preprocessing(preprocessing)
        self.augmentation: Augmentation = augmentation
        self.num_workers = num_workers
        self.seed = seed
        self.given_steps_per_epoch = steps_per_epoch
        self.shuffle_buffer = shuffle_buffer
        self.max_bad_fraction = max_bad_fraction
        self.drop_empty_captions = drop_empty_captions
        self.storage = storage
        self.masks = masks
        self.contrast_batches = contrast_batches

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, loaded from its folder at first use; None where no folder was given."""
        return None if self.tokenizer_folder is None else load_tokenizer(self.tokenizer_folder)

    def evaluated(self, stage: str) -> dict[str, StreamConfig]:
        """The streams that a stage evaluates on, in the order of their loaders."""
        return self.test if stage == "test" or (stage == "predict" and self.test) else self.val

    def data_type(self, stream: StreamConfig) -> DataType:
        """What a stream's samples are."""
        return data_type(self.stream_manifest(stream).data_type)

    def stream_manifest(self, stream: StreamConfig) -> Manifest:
        """The manifest of a stream, of its first source where it has several."""
        return read_manifest(stream.paths[0], self.storage)

    def reader(self, stream: StreamConfig, *, train: bool) -> Reader:
        """What reads a stream's samples.

        Raises:
            ValueError: the data type needs a tokenizer or classes that there are none of, or the augmentation does not
                go with it.
        """
        kind = self.data_type(stream)
        reader, options = READERS[kind.answer], {}
        if reader is AlignedReader:
            options["masks"] = train and self.masks and not self.single
        about = {name: listed for name in ("classes", "answers") if (listed := self.names(name)) is not None}
        return reader.of(
            kind, self.preprocessing, self.tokenizer, train=train, augmentation=self.augmentation, about=about,
            **options,
        )  # fmt: skip

    @property
    def steps_per_epoch(self) -> int:
        """Training steps per epoch."""
        if self.given_steps_per_epoch is not None:
            return self.given_steps_per_epoch
        return ceil(max(len(self.train_loader(name, None)) for name in self.train) / self.contrast_batches)

    def setup(self, stage: str | None = None) -> None:
        """Check the whole configuration against what is on disk.

        Args:
            stage: "validate" and "test" leave the training streams alone, since their data may not be there.

        Raises:
            ValueError: lists every problem.
        """
        problems = self.problems()
        if stage in ("fit", None):
            problems += self._stream_problems("train", self.train, train=True)
            if not self.train:
                problems.append("train has no stream; give one, {path: …, batch_size: …}, or several by name")
        if stage in ("validate", "test", "predict") and not self.evaluated(stage):
            split = "test" if stage == "test" else "val"
            problems.append(f"{split} has no stream; give at least one by name, {{name: {{path: …, batch_size: …}}}}")
        if stage != "test":
            problems += self._stream_problems("val", self.val, train=False)
        if stage in ("test", None) or (stage == "predict" and self.test):
            problems += self._stream_problems("test", self.test, train=False)
        if problems:
            raise ValueError("data:\n  " + "\n  ".join(problems))

    def train_dataloader(self) -> Any:
        """The training stream's batches; of streams by name one batch of each per step, {name: batch}."""
        steps = self.steps_per_epoch * self.contrast_batches
        loaders: dict[str, Any] = {name: self.train_loader(name, steps) for name in self.train}
        if self.contrast_batches > 1:
            loaders = {name: Grouped(loader, self.contrast_batches) for name, loader in loaders.items()}
        return loaders["train"] if self.single else CombinedLoader(loaders, mode="min_size")

    def val_dataloader(self) -> dict[str, EvalLoader]:
        """Give every sample of each validation stream once over all devices."""
        return self._eval_loaders(self.val)

    def test_dataloader(self) -> dict[str, EvalLoader]:
        """Give every sample of each test stream once over all devices."""
        return self._eval_loaders(self.test)

    def predict_dataloader(self) -> dict[str, EvalLoader]:
        """Give every sample of each test stream once, of the validation streams where there is none to test."""
        return self._eval_loaders(self.evaluated("predict"))

    def train_loader(self, name: str, steps: int | None) -> TrainLoader:
        """One training stream's loader, with so many steps per epoch."""
        rank, world_size = self._rank()
        stream = self.train[name]
        reader = self.reader(stream, train=True)
        return TrainLoader(
            stream.sources or stream.paths[0],
            stream.batch_size,
            reader,
            reader.collate,
            steps_per_epoch=steps,
            rank=rank,
            world_size=world_size,
            num_workers=self.num_workers,
            # Streams that share their images (image and image-text) must not walk through them in step.
            seed=self.seed + zlib.crc32(name.encode()),
            shuffle_buffer=self.shuffle_buffer,
            max_bad_fraction=self.max_bad_fraction,
            drop_empty_captions=self.drop_empty_captions,
            storage=self.storage,
            pin_memory=torch.cuda.is_available(),
        )

    def manifests(self) -> dict[str, Manifest]:
        """The manifest of every configured stream whose data are there, the training streams' first."""
        found = {}
        for split, streams in (("train", self.train), ("val", self.val), ("test", self.test)):
            for name, stream in streams.items():
                try:
                    manifest = self.stream_manifest(stream)
                except (OSError, ShardError):  # ``setup`` tells of those that a stage needs
                    continue
                found[split if self.single and split == "train" else f"{split}.{name}"] = manifest
        return found

    def names(self, kind: str) -> list[str] | None:
        """The class names or answers that the first folder's manifest lists (``about``); None where none does.

        Args:
            kind: "classes" or "answers".

        Raises:
            ValueError: two folders list other ones.
        """
        manifests = self.manifests()
        listed = {name: manifest.about[kind] for name, manifest in manifests.items() if kind in manifest.about}
        for name, names in listed.items():
            first = next(iter(listed))
            if names != listed[first]:
                raise ValueError(
                    f"data: {name} lists other {kind} ({len(names)}) than {first} ({len(listed[first])}): "
                    f"make both folders with the same list"
                )
        return next(iter(listed.values()), None)

    def problems(self) -> list[str]:
        """What is wrong with the settings themselves."""
        problems = []
        try:
            _ = self.tokenizer
        except (FileNotFoundError, ValueError) as error:
            problems.append(f"tokenizer: {error}")
        if self.contrast_batches < 1 or (self.single and self.contrast_batches > 1):
            problems.append(
                f"contrast_batches is {self.contrast_batches}; give 1 or more, and more than 1 only with training"
                " streams by name"
            )
        if self.num_workers < 0:
            problems.append(f"num_workers is {self.num_workers}; give 0 or more")
        if self.given_steps_per_epoch is not None and self.given_steps_per_epoch < 1:
            problems.append(f"steps_per_epoch is {self.given_steps_per_epoch}; give 1 or more, or leave it out")
        if self.seed < 0:
            problems.append(f"seed is {self.seed}; give 0 or more")
        if self.shuffle_buffer < 1:
            problems.append(f"shuffle_buffer is {self.shuffle_buffer}; give 1 or more")
        if not 0 <= self.max_bad_fraction <= 1:
            problems.append(f"max_bad_fraction is {self.max_bad_fraction}; give a fraction from 0 to 1")
        return problems

    def _eval_loaders(self, of: Mapping[str, StreamConfig]) -> dict[str, EvalLoader]:
        rank, world_size = self._rank()
        loaders = {}
        for name, stream in of.items():
            reader = self.reader(stream, train=False)
            loaders[name] = EvalLoader(
                stream.paths[0],
                stream.batch_size,
                reader,
                reader.collate,
                rank=rank,
                world_size=world_size,
                num_workers=self.num_workers,
                storage=self.storage,
                pin_memory=torch.cuda.is_available(),
            )
        return loaders

    def _stream_problems(self, split: str, of: Mapping[str, StreamConfig], *, train: bool) -> list[str]:
        problems = []
        for name, stream in of.items():
            where = split if self.single and split == "train" else f"{split}.{name}"
            if stream.batch_size < 1:
                problems.append(f"{where}: batch_size is {stream.batch_size}; give 1 or more")
            if (stream.path is None) == (not stream.sources):
                problems.append(f"{where}: give a path, or sources: [{{path: …, weight: …}}, …]")
                continue
            if stream.sources and split != "train":
                problems.append(f"{where}: sources are mixed in training only; give a stream for each")
                continue
            try:
                types = [data_type(shared_manifest(path, self.storage).data_type) for path in stream.paths]
                held = types[0]
                expected = held
                if (said := stream.data_type or _named(name, held)) is not None:
                    expected = data_type(said)
            except (OSError, ValueError) as error:
                problems.append(f"{where}: {error}")
                continue
            if held != expected:
                problems.append(
                    f"{where}: {stream.paths[0]} holds {str(held)!r}, not {said!r}; give another path or data_type"
                )
                continue
            if any(each != held for each in types):
                problems.append(f"{where}: its sources hold {', '.join(map(str, types))}; mix one data type")
                continue
            try:
                self.reader(stream, train=train)
            except (OSError, ValueError) as error:
                problems.append(f"{where}: {error}")
        return problems

    def _rank(self) -> tuple[int, int]:
        """This process's rank and the number of processes."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


def _named(name: str, held: DataType) -> str | None:
    """A stream's name, where it says what is to be aligned or denoised."""
    try:
        return name if held.answer is None and data_type(name).answer is None else None
    except ValueError:  # a name like any other
        return None


def _streams(given: Any) -> dict[str, StreamConfig]:
    """Streams given as mappings become configurations."""
    return {
        name: stream if isinstance(stream, StreamConfig) else StreamConfig(**stream)
        for name, stream in (given or {}).items()
    }
