"""Small pictures, sounds and shards of them, for tests of downstream tasks."""

import io
import json
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from onepeace_lightning.data.instances import encode_mask
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


def scene(box: tuple[int, int, int, int], colour: str, width: int = 60, height: int = 40, seed: int = 0) -> bytes:
    """A noisy grey picture with one coloured rectangle."""
    noise = np.random.default_rng(seed).integers(-20, 20, (height, width, 3))
    pixels = np.full((height, width, 3), 128)
    x0, y0, x1, y1 = box
    pixels[y0:y1, x0:x1] = COLOURS[colour]
    file = io.BytesIO()
    Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


BOXES = ((2, 4, 28, 36), (32, 2, 56, 30))


def pointed_at(folder: Path, count: int = 8, first: int = 0) -> Path:
    """Pictures with one square, in two places, and its box."""
    names = list(COLOURS)
    samples = [
        {
            "png": scene(BOXES[i % 2], names[i % 3], seed=first + i),
            "txt": f"a {names[i % 3]} square".encode(),
            "json": as_json(box=BOXES[i % 2]),
        }
        for i in range(count)
    ]
    return write(folder, "image-box", samples)


def asked_about(folder: Path, count: int = 9, first: int = 0) -> Path:
    """Pictures whose colour is asked for; now and then an answer that is not learned, alone or beside another."""
    names = list(COLOURS)
    answers = [{names[i % 3]: 1.0} if i % 4 else {names[i % 3]: 0.6, "mauve": 0.3} for i in range(count)]
    answers[-1] = {"mauve": 1.0}
    samples = [
        {"png": png(names[i % 3], seed=first + i), "txt": b"what is it?", "json": as_json(answers=answers[i])}
        for i in range(count)
    ]
    return write(folder, "image-question", samples, answers=names)


def pairs(folder: Path, count: int = 12, first: int = 0) -> Path:
    """Statements of the left picture's colour, true or false, where the right picture has the other colour."""
    names = ("red", "blue")
    samples = []
    for i in range(count):
        left, said = names[i % 2], names[i // 2 % 2]
        right = names[1 - i % 2]
        samples.append(
            {
                "png": png(left, seed=first + i),
                "second.png": png(right, side=30, seed=first + 50 + i),
                "txt": f"a {said} square".encode(),
                "json": as_json(labels=[str(left == said)]),
            }
        )
    return write(folder, "image-pair", samples, classes=["True", "False"])


def with_choices(folder: Path, count: int = 12, first: int = 0) -> Path:
    """Sounds whose pitch is asked for, with three answers in changing order."""
    names = list(PITCHES)
    samples = []
    for i in range(count):
        choices = names[i % 2 :] + names[: i % 2]
        fields = as_json(choices=choices, answer=choices.index(names[i % 3]))
        samples.append({"wav": wav(names[i % 3], seed=first + i), "txt": b"what is it?", "json": fields})
    return write(folder, "audio-choices", samples)


SCENES = ((60, 40), (48, 48), (40, 64))
"""Width and height of the pictures that are segmented, in turn."""


def with_mask(box: tuple[int, int, int, int], colour: str, size: tuple[int, int], seed: int = 0) -> dict[str, bytes]:
    """A picture with one coloured rectangle, and a mask: 0 around it, then the colours; its first row has no class."""
    x0, y0, x1, y1 = box
    mask = np.zeros(size[::-1], np.uint8)
    mask[y0:y1, x0:x1] = 1 + list(COLOURS).index(colour)
    mask[0] = 255
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return {"png": scene(box, colour, *size, seed=seed), "mask.png": file.getvalue()}


def segmented(folder: Path, count: int = 9, first: int = 0) -> Path:
    """Pictures of several sizes with one square in one of two places, and the classes of their pixels."""
    names = list(COLOURS)
    samples = [
        with_mask(((4, 6, 26, 28), (14, 10, 36, 34))[i % 2], names[i % 3], SCENES[i % 3], seed=first + i)
        for i in range(count)
    ]
    return write(folder, "image-mask", samples, classes=["ground", *names])


def with_instances(
    boxes: dict[str, tuple[int, int, int, int]], size: tuple[int, int], seed: int = 0
) -> dict[str, bytes]:
    """A noisy grey picture of W × H with rectangles by colour, each an instance."""
    noise = np.random.default_rng(seed).integers(-20, 20, (size[1], size[0], 3))
    pixels, instances = 128 + noise, []
    for colour, (x0, y0, x1, y1) in boxes.items():
        pixels[y0:y1, x0:x1] = np.array(COLOURS[colour]) + noise[y0:y1, x0:x1]
        mask = np.zeros(size[::-1], bool)
        mask[y0:y1, x0:x1] = True
        instances.append({"label": colour, "box": [x0, y0, x1, y1], "mask": encode_mask(mask)})
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return {"png": file.getvalue(), "json": as_json(instances=instances)}


def detected(folder: Path, count: int = 9, first: int = 0) -> Path:
    """Pictures of several sizes with two rectangles; every third has none."""
    names = list(COLOURS)
    samples = []
    for i in range(count):
        boxes = {names[i % 3]: (2 + i % 5, 4, 22 + i % 5, 26), names[(i + 1) % 3]: (27, 12, 41, 34)}
        samples.append(with_instances(boxes if i % 3 < 2 else {}, SCENES[i % 3], seed=first + i))
    return write(folder, "image-boxes", samples, classes=names)
