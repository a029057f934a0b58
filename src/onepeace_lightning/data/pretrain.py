"""The data of pretraining: any subset of the streams, each with its own folder and batch size."""

from lightning.pytorch.utilities import CombinedLoader

from onepeace_lightning.data.batch import DATA_TYPES
from onepeace_lightning.data.datamodule import StreamConfig, StreamDataModule
from onepeace_lightning.data.masking import MaskRatios
from onepeace_lightning.data.prepare import INPUTS, Prepare
from onepeace_lightning.data.transforms import Preprocessing


class PretrainDataModule(StreamDataModule):
    """Streams of pretraining samples; a training step gets one batch of every stream, by name.

    Args:
        train: name to training stream; the name is the data type unless the stream says otherwise.
        val: name to validation stream; these may be ``audio-image`` too. Each is one loader, in this order.
        tokenizer: folder of a saved tokenizer.
        preprocessing: sizes of pictures and lengths of sounds.
        num_workers: data worker processes per stream.
        seed: orders and augments the samples.
        steps_per_epoch: batches per epoch; one pass over the longest stream if None. Shorter streams start again.
        shuffle_buffer: samples that each worker mixes; it reads one shard at a time for every 64 of them.
        max_bad_fraction: fraction of bad samples, over all ranks, beyond which training stops.
        masks: whether to draw the masks of the denoising objective; contrast alone needs none.
        mask_ratios: how much they hide.
    """

    train_types = DATA_TYPES
    eval_types = tuple(INPUTS)

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
        max_bad_fraction: float = 0.01,
        masks: bool = True,
        mask_ratios: MaskRatios = MaskRatios(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(
            train, val, None, tokenizer=tokenizer, preprocessing=preprocessing, num_workers=num_workers, seed=seed,
            steps_per_epoch=steps_per_epoch, shuffle_buffer=shuffle_buffer, max_bad_fraction=max_bad_fraction,
        )  # fmt: skip
        self.mask_ratios = mask_ratios if masks else None

    def prepare(self, data_type: str, *, train: bool) -> Prepare:
        """What turns a raw sample of a data type into an example."""
        return Prepare(data_type, self.tokenizer, self.preprocessing, train, self.mask_ratios)

    def train_dataloader(self) -> CombinedLoader:
        """Give one batch of every training stream per step: {name: Batch}."""
        steps = self.steps_per_epoch
        return CombinedLoader({name: self.train_loader(name, steps) for name in self.train}, mode="min_size")
