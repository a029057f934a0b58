"""Small pictures, sounds and shards of them, for tests of downstream tasks."""

import io
import json
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from onepeace_lightning.data.shards import ShardWriter

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 220)}
PITCHES = {"low": 200.0, "middle": 800.0, "high": 3000.0}


def png(colour: str, side: int = 40, seed: int = 0) -> bytes:
    """A noisy picture of one colour."""
    noise = np.random.default_rng(seed).integers(-20, 20, (side, side, 3))
    pixels = (np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def wav(pitch: str, seconds: float = 0.3, seed: int = 0) -> bytes:
    """A noisy tone."""
    time = np.arange(round(seconds * 16_000)) / 16_000
    noise = 0.05 * np.random.default_rng(seed).standard_normal(len(time))
    file = io.BytesIO()
    soundfile.write(file, 0.5 * np.sin(2 * np.pi * PITCHES[pitch] * time) + noise, 16_000, format="WAV")
    return file.getvalue()


def as_json(**entries: object) -> bytes:
    return json.dumps(entries).encode()


def write(folder: Path, data_type: str, samples: list[dict[str, bytes]], **about: object) -> Path:
    """Shards of five samples each."""
    with ShardWriter(folder, data_type, source="test", license="CC0", samples_per_shard=5, about=dict(about)) as writer:
        for index, fields in enumerate(samples):
            writer.write(f"{index:03d}", fields)
    return folder


def labelled_images(folder: Path, count: int = 12, first: int = 0) -> Path:
    names = list(COLOURS)
    samples = [{"png": png(names[i % 3], seed=first + i), "json": as_json(labels=[names[i % 3]])} for i in range(count)]
    return write(folder, "image-label", samples, classes=names)


def labelled_sounds(folder: Path, count: int = 12, first: int = 0) -> Path:
    names = list(PITCHES)
    samples = [{"wav": wav(names[i % 3], seed=first + i), "json": as_json(labels=[names[i % 3]])} for i in range(count)]
    return write(folder, "audio-label", samples, classes=names)
