"""The data of pretraining: any subset of the streams, each with its own folder and batch size."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import CombinedLoader

from onepeace_lightning.data.batch import DATA_TYPES
from onepeace_lightning.data.loader import EvalLoader, TrainLoader
from onepeace_lightning.data.masking import MaskRatios
from onepeace_lightning.data.prepare import INPUTS, Prepare, collate
from onepeace_lightning.data.shards import read_manifest
from onepeace_lightning.data.tokenizers import Tokenizer, load_tokenizer
from onepeace_lightning.data.transforms import Preprocessing


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


class PretrainDataModule(L.LightningDataModule):
    """Streams of pretraining samples; a training step gets one batch of every stream, by name.

    Args:
        train: name to training stream; the name is the data type unless the stream says otherwise.
        val: name to validation stream; these may be ``audio-image`` too. Each is one loader, in this order.
        tokenizer: folder of a saved tokenizer.
        preprocessing: sizes of pictures and lengths of sounds.
        num_workers: data worker processes per stream.
        seed: orders and augments the samples.
        steps_per_epoch: batches per epoch; one pass over the longest stream if None. Shorter streams start again.
        shuffle_buffer: samples held back by each worker to be mixed; 1 mixes whole shards only.
        max_bad_share: share of bad samples beyond which training stops.
        masks: whether to draw the masks of the denoising objective; contrast alone needs none.
        mask_ratios: how much they hide.
    """

    def __init__(
        self,
        train: dict[str, StreamConfig] | None = None,
        val: dict[str, StreamConfig] | None = None,
        *,
        tokenizer: str,
        preprocessing: Preprocessing = Preprocessing(),  # noqa: B008 (frozen)
        num_workers: int = 0,
        seed: int = 0,
        steps_per_epoch: int | None = None,
        shuffle_buffer: int = 1000,
        max_bad_share: float = 0.01,
        masks: bool = True,
        mask_ratios: MaskRatios = MaskRatios(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        self.train = _streams(train)
        self.val = _streams(val)
        self.tokenizer_folder = Path(tokenizer)
        self.preprocessing = preprocessing
        self.num_workers = num_workers
        self.seed = seed
        self.steps_per_epoch = steps_per_epoch
        self.shuffle_buffer = shuffle_buffer
        self.max_bad_share = max_bad_share
        self.mask_ratios = mask_ratios if masks else None

    @property
    def val_names(self) -> list[str]:
        """Names of the validation streams, in the order of their loaders."""
        return list(self.val)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, loaded from its folder at first use."""
        return load_tokenizer(self.tokenizer_folder)

    def setup(self, stage: str | None = None) -> None:
        """Check the whole configuration against what is on disk.

        Args:
            stage: "validate" leaves the training streams alone, since their data may not be there.

        Raises:
            ValueError: lists every problem.
        """
        problems = self._setting_problems()
        if stage in ("fit", None):
            problems += _stream_problems("train", self.train, DATA_TYPES)
        if stage in ("fit", None) and not self.train:
            problems.append(f"train has no stream; give at least one of {', '.join(DATA_TYPES)}")
        if stage == "validate" and not self.val:
            problems.append(f"val has no stream; give at least one of {', '.join(INPUTS)}")
        problems += _stream_problems("val", self.val, tuple(INPUTS))
        if problems:
            raise ValueError("data:\n  " + "\n  ".join(problems))

    def train_dataloader(self) -> CombinedLoader:
        """Give one batch of every training stream per step: {name: Batch}."""
        steps = self.steps_per_epoch
        if steps is None:
            steps = max(len(self._train_loader(name, None)) for name in self.train)
        return CombinedLoader({name: self._train_loader(name, steps) for name in self.train}, mode="min_size")

    def val_dataloader(self) -> dict[str, EvalLoader]:
        """Give every sample of each validation stream once over all devices, in the order of ``val_names``."""
        rank, world_size = self._place()
        return {
            name: EvalLoader(
                stream.path,
                stream.batch_size,
                self._prepare(name, stream, train=False),
                collate,
                rank=rank,
                world_size=world_size,
                num_workers=self.num_workers,
                pin_memory=torch.cuda.is_available(),
            )
            for name, stream in self.val.items()
        }

    def _train_loader(self, name: str, steps: int | None) -> TrainLoader:
        rank, world_size = self._place()
        stream = self.train[name]
        return TrainLoader(
            stream.path,
            stream.batch_size,
            self._prepare(name, stream, train=True),
            collate,
            steps_per_epoch=steps,
            rank=rank,
            world_size=world_size,
            num_workers=self.num_workers,
            # Streams that share their pictures (image and image-text) must not walk through them in step.
            seed=self.seed + zlib.crc32(name.encode()),
            shuffle_buffer=self.shuffle_buffer,
            max_bad_share=self.max_bad_share,
            pin_memory=torch.cuda.is_available(),
        )

    def _prepare(self, name: str, stream: StreamConfig, *, train: bool) -> Prepare:
        return Prepare(stream.data_type or name, self.tokenizer, self.preprocessing, train, self.mask_ratios)

    def _place(self) -> tuple[int, int]:
        """This process's rank and the number of processes."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _setting_problems(self) -> list[str]:
        problems = []
        try:
            _ = self.tokenizer
        except (FileNotFoundError, ValueError) as error:
            problems.append(f"tokenizer: {error}")
        if self.num_workers < 0:
            problems.append(f"num_workers is {self.num_workers}; give 0 or more")
        if self.steps_per_epoch is not None and self.steps_per_epoch < 1:
            problems.append(f"steps_per_epoch is {self.steps_per_epoch}; give 1 or more, or leave it out")
        if self.seed < 0:
            problems.append(f"seed is {self.seed}; give 0 or more")
        if self.shuffle_buffer < 1:
            problems.append(f"shuffle_buffer is {self.shuffle_buffer}; give 1 (which keeps the order) or more")
        if not 0 <= self.max_bad_share <= 1:
            problems.append(f"max_bad_share is {self.max_bad_share}; give a share from 0 to 1")
        return problems


def _streams(given: Mapping[str, StreamConfig | Mapping] | None) -> dict[str, StreamConfig]:
    return {
        name: stream if isinstance(stream, StreamConfig) else StreamConfig(**stream)
        for name, stream in (given or {}).items()
    }


def _stream_problems(split: str, streams: Mapping[str, StreamConfig], accepted: tuple[str, ...]) -> list[str]:
    problems = []
    for name, stream in streams.items():
        data_type = stream.data_type or name
        if data_type not in accepted:
            hint = " (it is for val only)" if data_type in INPUTS else ""
            problems.append(f"{split}.{name}: data type {data_type!r}{hint}; accepted: {', '.join(accepted)}")
        if stream.batch_size < 1:
            problems.append(f"{split}.{name}: batch_size is {stream.batch_size}; give 1 or more")
        try:
            manifest = read_manifest(stream.path)
        except (OSError, ValueError) as error:
            problems.append(f"{split}.{name}: {error}")
            continue
        if data_type in accepted and manifest.data_type != data_type:
            problems.append(
                f"{split}.{name}: {stream.path} holds {manifest.data_type!r}, not {data_type!r}; "
                "give another path or set data_type"
            )
    return problems
