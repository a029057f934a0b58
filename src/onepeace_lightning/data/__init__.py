"""Streams of samples from shards."""

from onepeace_lightning.data.pretrain import PretrainDataModule, StreamConfig

__all__ = ["PretrainDataModule", "StreamConfig"]
