"""How large the deliberate differences from the original are (``docs/differences.md``): a line for each.

What depends on weights is measured on any model that embeds images and audio; by default on a small one with random
weights, which shows that a difference is there, not what it is worth.
"""

import io
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jsonargparse import auto_cli
from PIL import Image
from torch import Tensor

from onepeace_lightning.inference.onepeace import OnePeace
from onepeace_lightning.metrics import CrossModalRecall
from onepeace_lightning.metrics.recall import Ties
from onepeace_lightning.modalities.audio import Audio, AudioAdapter
from onepeace_lightning.modalities.image import ImageModality
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.modalities.presets import preset_config
from onepeace_lightning.models import PretrainModel

RATE = 16_000
ORIENTATION = 0x0112


class LeakingAdapter(AudioAdapter):
    """An audio adapter whose positional convolutions read what fills a short clip up, as the original's do."""

    def positions(self, x_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        """As if every frame were the clip's own."""
        return super().positions(x_BLD, torch.ones_like(valid_BL))


def ties(items: int, repeated: float, rng: np.random.Generator) -> dict[str, float]:
    """R@1 of items that find their own caption, a part of which stands under several items, by both rules."""
    vectors = torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((items, 64), dtype=np.float32)), dim=1)
    texts = vectors.clone()
    same = int(repeated * items)
    texts[:same] = texts[items - same :]
    vectors[:same] = vectors[items - same :]
    ids = torch.arange(items)
    found: dict[str, float] = {}
    rules: tuple[Ties, ...] = ("strict", "published")
    for rule in rules:
        metric = CrossModalRecall("image", "text", ties=rule)
        metric.update(vectors, texts, ids, ids)
        found[rule] = float(metric.compute()["text_to_image/R@1"])
    return found


def padding(model: OnePeace, seconds: Sequence[float], rng: np.random.Generator) -> dict[str, float]:
    """Least cosine of a clip's embedding alone and beside a longer one, here and with padding that leaks."""
    clips = [torch.from_numpy(rng.standard_normal(int(RATE * s), dtype=np.float32)) for s in seconds]
    adapter = model.backbone.adapters["audio"]
    alone = torch.cat([model.embed_inputs("audio", Audio.pad([clip])) for clip in clips])
    together = model.embed_inputs("audio", Audio.pad(clips))
    adapter.__class__ = LeakingAdapter
    leaking = model.embed_inputs("audio", Audio.pad(clips))
    adapter.__class__ = AudioAdapter
    return {"here": float((alone * together).sum(1).min()), "leaking": float((alone * leaking).sum(1).min())}


def decoding(model: OnePeace, rng: np.random.Generator) -> Iterator[tuple[str, float]]:
    """Cosine of an image's embeddings, decoded upright and as it is stored."""
    pixels = np.kron(rng.integers(0, 256, (4, 6, 4)), np.ones((16, 16, 1))).astype(np.uint8)
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    for what, image, options in (
        ("an image that EXIF turns by 90°", Image.fromarray(pixels[..., :3]), {"exif": turned}),
        ("an image with transparency", Image.fromarray(pixels, "RGBA"), {}),
    ):
        file = io.BytesIO()
        image.save(file, "PNG", **options)
        upright, stored = (ImageModality({"decoding": how}).decode(file.getvalue()) for how in ("upright", "stored"))
        first, second = model.embed(image=[upright, stored])
        yield what, float(first @ second)


def run(model: str | None = None, items: int = 1000, repeated: float = 0.05, seed: int = 0) -> None:
    """Print the size of each difference.

    Args:
        model: a folder, checkpoint or hub name; None: a small model with random weights.
        items: of the gallery in which recall is measured.
        repeated: fraction of its items whose image and caption stand there twice.
        seed: of all that is drawn.
    """
    rng = np.random.default_rng(seed)
    if model is None:
        torch.manual_seed(seed)
        config = preset_config("tiny")
        opened = OnePeace(PretrainModel(config, denoise=False), preprocessing=Preprocessing().fitting(config))
    else:
        opened = OnePeace.from_pretrained(model)
    recall = ties(items, repeated, rng)
    print(
        f"ties: {repeated:.0%} of {items} items stand twice: R@1 text to image {recall['strict']:.2f} strict,"
        f" {recall['published']:.2f} published"
    )
    clips = padding(opened, (1.0, 4.0), rng)
    print(
        f"padding: a clip of 1 s beside one of 4 s, cosine with itself alone: {clips['here']:.6f} here,"
        f" {clips['leaking']:.6f} where padding leaks"
    )
    for what, cosine in decoding(opened, rng):
        print(f"decoding: {what}: cosine of its embeddings upright and as stored {cosine:.4f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    auto_cli(run, args=None if arguments is None else list(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
