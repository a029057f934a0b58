"""What every data module is made of: named streams of shards, and exact loaders over them."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import lightning as L
import torch

from onepeace_lightning.data.dataloader import Collate, EvalLoader, Prepare, TrainLoader
from onepeace_lightning.data.prepare import collate
from onepeace_lightning.data.shards import read_manifest
from onepeace_lightning.data.transforms import Preprocessing
from onepeace_lightning.modalities.tokenizers import Tokenizer, load_tokenizer


@dataclass
class StreamConfig:
    """One stream of samples.

    Attributes:
        path: folder of shards with a ``manifest.json``.
        batch_size: samples per batch on each device.
        data_type: what the samples are; the stream's name if None.
    """

    path: str
    batch_size: int
    data_type: str | None = None


class StreamDataModule(L.LightningDataModule, ABC):
    """Streams of samples by name, training ones and ones to evaluate on.

    Args:
        train: name to training stream.
        val: name to validation stream; each is one loader, in this order.
        test: the same for testing.
        tokenizer: folder of a saved tokenizer; None where there is no text.
        preprocessing: sizes of pictures and lengths of sounds.
        num_workers: data worker processes per stream.
        seed: orders and augments the samples.
        steps_per_epoch: batches per epoch; one pass over the longest stream if None. Shorter streams start again.
        shuffle_buffer: samples that each worker mixes; it reads one shard at a time for every 64 of them.
        max_bad_fraction: fraction of bad samples, over all ranks, beyond which training stops.
    """

    collate: Collate = staticmethod(collate)

    def __init__(
        self,
        train: Mapping[str, StreamConfig | Mapping] | None,
        val: Mapping[str, StreamConfig | Mapping] | None,
        test: Mapping[str, StreamConfig | Mapping] | None,
        *,
        tokenizer: str | None,
        preprocessing: Preprocessing,
        num_workers: int,
        seed: int,
        steps_per_epoch: int | None,
        shuffle_buffer: int,
        max_bad_fraction: float,
    ) -> None:
        super().__init__()
        self.train, self.val, self.test = streams(train), streams(val), streams(test)
        self.tokenizer_folder = None if tokenizer is None else Path(tokenizer)
        self.preprocessing = preprocessing
        self.num_workers = num_workers
        self.seed = seed
        self.given_steps_per_epoch = steps_per_epoch
        self.shuffle_buffer = shuffle_buffer
        self.max_bad_fraction = max_bad_fraction

    @abstractmethod
    def prepare(self, data_type: str, *, train: bool) -> Prepare:
        """What turns a raw sample of a data type into an example."""

    @property
    @abstractmethod
    def train_types(self) -> tuple[str, ...]:
        """Data types that can be trained on."""

    @property
    @abstractmethod
    def eval_types(self) -> tuple[str, ...]:
        """Data types that can be evaluated on."""

    def data_type(self, name: str, stream: StreamConfig) -> str:
        """What a stream's samples are."""
        return stream.data_type or name

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, loaded from its folder at first use; None where no folder was given."""
        return None if self.tokenizer_folder is None else load_tokenizer(self.tokenizer_folder)

    def evaluated(self, stage: str) -> dict[str, StreamConfig]:
        """The streams that a stage evaluates on, in the order of their loaders."""
        return self.test if stage == "test" else self.val

    @property
    def steps_per_epoch(self) -> int:
        """Training batches per epoch."""
        if self.given_steps_per_epoch is not None:
            return self.given_steps_per_epoch
        return max(len(self.train_loader(name, None)) for name in self.train)

    def setup(self, stage: str | None = None) -> None:
        """Check the whole configuration against what is on disk.

        Args:
            stage: "validate" and "test" leave the training streams alone, since their data may not be there.

        Raises:
            ValueError: lists every problem.
        """
        problems = self.problems()
        if stage in ("fit", None):
            problems += self._stream_problems("train", self.train, self.train_types)
        if stage in ("fit", None) and not self.train:
            problems.append(f"train has no stream; give at least one of {', '.join(self.train_types)}")
        if stage in ("validate", "test") and not self.evaluated(stage):
            split = "test" if stage == "test" else "val"
            problems.append(f"{split} has no stream; give at least one of {', '.join(self.eval_types)}")
        if stage != "test":
            problems += self._stream_problems("val", self.val, self.eval_types)
        if stage in ("test", None):
            problems += self._stream_problems("test", self.test, self.eval_types)
        if problems:
            raise ValueError("data:\n  " + "\n  ".join(problems))

    def val_dataloader(self) -> dict[str, EvalLoader]:
        """Give every sample of each validation stream once over all devices."""
        return self._eval_loaders(self.val)

    def test_dataloader(self) -> dict[str, EvalLoader]:
        """Give every sample of each test stream once over all devices."""
        return self._eval_loaders(self.test)

    def train_loader(self, name: str, steps: int | None) -> TrainLoader:
        """One training stream's loader, with so many steps per epoch."""
        rank, world_size = self._place()
        stream = self.train[name]
        return TrainLoader(
            stream.path,
            stream.batch_size,
            self.prepare(self.data_type(name, stream), train=True),
            self.collate,
            steps_per_epoch=steps,
            rank=rank,
            world_size=world_size,
            num_workers=self.num_workers,
            # Streams that share their pictures (image and image-text) must not walk through them in step.
            seed=self.seed + zlib.crc32(name.encode()),
            shuffle_buffer=self.shuffle_buffer,
            max_bad_fraction=self.max_bad_fraction,
            pin_memory=torch.cuda.is_available(),
        )

    def problems(self) -> list[str]:
        """What is wrong with the settings themselves."""
        problems = []
        try:
            _ = self.tokenizer
        except (FileNotFoundError, ValueError) as error:
            problems.append(f"tokenizer: {error}")
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
        rank, world_size = self._place()
        return {
            name: EvalLoader(
                stream.path,
                stream.batch_size,
                self.prepare(self.data_type(name, stream), train=False),
                self.collate,
                rank=rank,
                world_size=world_size,
                num_workers=self.num_workers,
                pin_memory=torch.cuda.is_available(),
            )
            for name, stream in of.items()
        }

    def _stream_problems(self, split: str, of: Mapping[str, StreamConfig], accepted: tuple[str, ...]) -> list[str]:
        problems = []
        for name, stream in of.items():
            if stream.batch_size < 1:
                problems.append(f"{split}.{name}: batch_size is {stream.batch_size}; give 1 or more")
            try:
                manifest = read_manifest(stream.path)
            except (OSError, ValueError) as error:
                problems.append(f"{split}.{name}: {error}")
                continue
            data_type = self.data_type(name, stream)
            if data_type not in accepted:
                hint = " (it is for val only)" if data_type in self.eval_types else ""
                problems.append(f"{split}.{name}: data type {data_type!r}{hint}; accepted: {', '.join(accepted)}")
            elif manifest.data_type != data_type:
                problems.append(
                    f"{split}.{name}: {stream.path} holds {manifest.data_type!r}, not {data_type!r}; "
                    "give another path or set data_type"
                )
        return problems

    def _place(self) -> tuple[int, int]:
        """This process's rank and the number of processes."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


def streams(given: Mapping[str, StreamConfig | Mapping] | None) -> dict[str, StreamConfig]:
    """Streams given as mappings become configurations."""
    return {
        name: stream if isinstance(stream, StreamConfig) else StreamConfig(**stream)
        for name, stream in (given or {}).items()
    }
