"""Streams of samples from shards."""
