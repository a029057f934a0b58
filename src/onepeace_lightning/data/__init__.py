"""Streams of samples from shards."""

from .pretrain import PretrainDataModule, StreamConfig

__all__ = ["PretrainDataModule", "StreamConfig"]
