"""Goldens of released files: ``NAME.pt`` in exactly the released layout beside ``NAME_io.pt`` of inputs and outputs.

Each file is opened as a user opens it; ``foreign/`` holds the same in pickles with other projects' classes. Rules of
text and audio, and learning rates, are in ``text.json`` and ``recipes.json``.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from onepeace_lightning.checkpoints.released.base import ReleasedFile
from onepeace_lightning.inference.onepeace import OnePeace
from onepeace_lightning.modalities import Audio, Image, Text
from onepeace_lightning.tasks import load_task
from tests.parity.base import Check, companion, gap, load

TASKS = ("refcoco", "vqa", "nlvr2", "aqa", "audio_classification")
RETRIEVAL = ("vl", "al")


def inputs_of(golden: dict[str, Tensor]) -> dict[str, Text | Image | Audio]:
    """Raw inputs as adapters take them; images are stored in half precision, clips as they were recorded."""
    makers: dict[str, tuple[str, Callable]] = {
        "tokens": ("text", Text),
        "images": ("image", lambda images: Image(images.float())),
        "waveforms": ("audio", lambda clips: Audio.pad([prepared(clip) for clip in clips])),
    }
    return {name: make(golden[key]) for key, (name, make) in makers.items() if key in golden}


def prepared(clip: Tensor) -> Tensor:
    """A clip normalised over its samples and repeated up to 1 s."""
    clip = F.layer_norm(clip.float(), clip.shape)
    return clip if len(clip) >= 16_000 else clip.repeat(-(-16_000 // len(clip)))[:16_000]


def twins(folder: Path, file: str) -> list[Path]:
    """A file and the same in a foreign pickle, where there is one."""
    stem = file.removesuffix("_io.pt")
    found = [companion(folder, next((p.name for p in folder.glob(f"{stem}.p*")), f"{stem}.pt"))]
    return [*found, *sorted((folder / "foreign").glob(f"{stem}.p*"))]


def named(folder: Path, path: Path) -> str:
    """A file's path within the folder."""
    return path.relative_to(folder).as_posix()


@torch.no_grad()
def embeddings(folder: Path, file: str) -> Iterator[Check]:
    """Of each modality of a file that embeds."""
    golden = load(folder / file)
    inputs = inputs_of(golden["inputs"])
    for path in twins(folder, file):
        model = OnePeace.from_pretrained(path)
        for name, wanted in golden["output"].items():
            yield Check(named(folder, path), f"{name} embedding", gap(model.embed_inputs(name, inputs[name]), wanted))


@torch.no_grad()
def logits(folder: Path, file: str) -> Iterator[Check]:
    """Of a file that answers, opened as a task; each clip also gives what it gives alone."""
    golden = load(folder / file)
    inputs, wanted = inputs_of(golden["inputs"]), golden["output"]["logits"]
    choices = len(golden["inputs"]["tokens"]) // len(wanted) if file == "finetune_aqa_io.pt" else 1
    if "images_2" in golden["inputs"]:
        inputs["second_image"] = Image(golden["inputs"]["images_2"].float())
    for path in twins(folder, file):
        with load_task(path).answering() as model:
            ours = model(inputs, choices).view(len(wanted), -1)
        yield Check(named(folder, path), "logits", gap(ours, wanted))


@torch.no_grad()
def branch(folder: Path, file: str) -> Iterator[Check]:
    """Features of the image branch; with the norm and projection that it lacks, the pretrained embedding."""
    golden = load(folder / file)
    images, output, dropped = Image(golden["inputs"]["images"].float()), golden["output"], golden["dropped"]
    norm, projection = dropped["image_layer_norm"], dropped["image_proj"]
    for path in twins(folder, file):
        features, _ = OnePeace.from_pretrained(path).model({"image": images})["image"].padded()
        normed = F.layer_norm(features, features.shape[-1:], norm["weight"], norm["bias"])
        embedding = F.normalize(F.linear(normed[:, 0], projection["weight"], projection["bias"]), dim=-1)
        for name, ours in (("features", features), ("features_normed", normed), ("embedding", embedding)):
            yield Check(named(folder, path), name.replace("_", " "), gap(ours, output[name]))


def foreign(folder: Path, file: str) -> Iterator[Check]:
    """Tensors of a foreign pickle against those of its twin."""
    for twin in twins(folder, f"{file}_io.pt")[1:]:
        ours, wanted = (ReleasedFile.read(path).tensors for path in (twin, twins(folder, f"{file}_io.pt")[0]))
        differing = sorted(k for k in {*ours, *wanted} if k not in ours or not torch.equal(ours[k], wanted[k]))
        yield Check(named(folder, twin), f"differing tensors {differing[:3]}", float(len(differing)), 0)


CHECKS: dict[str, Callable[[Path], Iterator[Check]]] = {
    "one-peace_io.pt": partial(embeddings, file="one-peace_io.pt"),
    **{f"finetune_retrieval_{k}_io.pt": partial(embeddings, file=f"finetune_retrieval_{k}_io.pt") for k in RETRIEVAL},
    **{f"finetune_{task}_io.pt": partial(logits, file=f"finetune_{task}_io.pt") for task in TASKS},
    "one-peace-vision_io.pt": partial(branch, file="one-peace-vision_io.pt"),
    "foreign/onepeace_ft_21kto1k.pth": partial(foreign, file="onepeace_ft_21kto1k"),
}
