"""Goldens of the released vision files: ImageNet classifier, video classifier, semantic segmentation."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from onepeace_lightning.checkpoints.loading import fill
from onepeace_lightning.checkpoints.released.base import Kind, Opened, ReleasedFile
from onepeace_lightning.checkpoints.released.imagenet import ImageNet
from onepeace_lightning.checkpoints.released.segmentation import Segmentation
from onepeace_lightning.checkpoints.released.video import Video
from onepeace_lightning.checkpoints.released.vision_names import our_name, to_released
from onepeace_lightning.modalities.image import Image
from onepeace_lightning.models.vision.classifier import MeanClassifier
from onepeace_lightning.models.vision.segmentation import class_scores
from onepeace_lightning.models.vision.video import VideoClassifier, VideoClassifierConfig
from onepeace_lightning.models.vision.windows import View, read_views
from onepeace_lightning.tasks import SemanticSegmentationTask
from onepeace_lightning.training.param_groups import parameter_rules
from tests.parity.base import Check, companion, gap, load

MASK_LOGITS = 5e-4
"""Tolerance of mask logits."""


def imagenet(opened: Opened) -> MeanClassifier:
    return MeanClassifier(opened.config, len(opened.settings["classes"]))


def video(opened: Opened) -> VideoClassifier:
    sizes = VideoClassifierConfig(classes=len(opened.settings["classes"]), frames=opened.settings["frames"])
    return VideoClassifier(opened.config, sizes)


def segmentation(opened: Opened) -> torch.nn.Module:
    config = opened.config
    return SemanticSegmentationTask(config, per_block_tables=config.per_block_tables, **opened.settings).build()


BUILD: dict[str, Callable[[Opened], Any]] = {"imagenet": imagenet, "video": video, "segmentation": segmentation}


def opened_model(path: Path, kind: Kind) -> tuple[Any, ReleasedFile]:
    """The filled model, and the file."""
    file = ReleasedFile.read(path)
    if not kind.recognise(file):
        raise ValueError(f"{path} is not recognised as {kind.title}")
    opened = kind.open(file, None)
    with torch.device("meta"):
        model = BUILD[kind.name](opened)
    fill(model, opened.weights, str(path))
    return model.eval(), file


def written_back(model: Any, kind: str, file: ReleasedFile) -> Iterator[Check]:
    """Every tensor by its released name and shape again."""
    back = to_released(kind, model.state_dict())
    wrong = [name for name in {*back, *file.tensors} if name not in back or name not in file.tensors]
    wrong += [name for name in back if name not in wrong and not torch.equal(back[name], file.tensors[name])]
    yield Check(file.path.name, f"tensors that are not written back as they were {wrong[:3]}", float(len(wrong)), 0)


@torch.no_grad()
def imagenet_io(folder: Path) -> Iterator[Check]:
    golden = load(folder / "onepeace_ft_21kto1k_io.pt")
    images = Image(golden["inputs"]["images"].float())
    path = companion(folder, "onepeace_ft_21kto1k.pth")
    for place in (path, folder / "foreign" / path.name):
        if place.exists():
            model, file = opened_model(place, ImageNet())
            name = str(place.relative_to(folder))
            yield Check(name, "logits", gap(model({"image": images}), golden["output"]["logits"]))
            yield from written_back(model, "imagenet", file)


@torch.no_grad()
def video_io(folder: Path) -> Iterator[Check]:
    name = "onepeace_video_k400.pth"
    golden = load(folder / "onepeace_video_k400_io.pt")
    model, file = opened_model(companion(folder, name), Video())
    # (videos, views, colours, frames, …) in the golden
    frames, other = (golden["inputs"][key].float().transpose(2, 3) for key in ("frames", "frames_other"))
    wanted = golden["output"]
    yield Check(name, "features", gap(model.features(frames.flatten(0, 1)).mT, wanted["features"]))
    yield Check(name, "logits", gap(model(frames.flatten(0, 1)), wanted["logits"]))
    yield Check(name, "probabilities", gap(model.probabilities(frames), wanted["probabilities"]))
    model.set_frames(other.shape[2])
    yield Check(name, "logits, other frames", gap(model(other.flatten(0, 1)), wanted["logits_other_frames"]))
    model.set_frames(frames.shape[2])
    yield from written_back(opened_model(folder / name, Video())[0], "video", file)


@torch.no_grad()
def segmentation_io(folder: Path) -> Iterator[Check]:
    name = "onepeace_seg_ade20k.pth"
    golden = load(folder / "onepeace_seg_ade20k_io.pt")
    model, file = opened_model(companion(folder, name), Segmentation())
    inputs, wanted = golden["inputs"], golden["output"]
    pyramid = model.adapter(model.backbone, Image(inputs["images"].float()))
    for stride, map_ in zip((4, 8, 16, 32), pyramid, strict=True):
        yield Check(name, f"features of stride {stride}", gap(map_, wanted[f"feature_{stride}"]))
    maps, pixels = model.head.pixel_decoder(pyramid)
    yield Check(name, "pixel decoder, stride 32", gap(maps[0], wanted["pixel_decoder_32"]))
    yield Check(name, "pixel decoder, stride 16", gap(maps[1], wanted["pixel_decoder_16"]))
    yield Check(name, "mask features", gap(pixels, wanted["mask_features"]))
    said = model.head.mask_decoder(maps, pixels)
    classes = torch.stack([part.classes_BQK for part in said])
    yield Check(name, f"class logits of {len(said)} predictions", gap(classes, wanted["class_logits_each"]))
    yield Check(name, "class logits", gap(said[-1].classes_BQK, wanted["class_logits"]))
    yield Check(name, "mask logits", gap(said[-1].masks_BQYX, wanted["mask_logits"]), MASK_LOGITS)
    semantic = class_scores(said[-1], wanted["semantic"].shape[-1])
    yield Check(name, "semantic scores", gap(semantic, wanted["semantic"]))
    wide, side, step = inputs["wide"][0].float(), inputs["crop"][0], inputs["stride"][0]
    view = View(wide, (wide.shape[1], wide.shape[2]), tuple(inputs["wide_size"]))
    [found] = read_views(lambda pixels: class_scores(model(Image(pixels))[-1], side), [view], side, step)
    yield Check(name, "probabilities of a wide image in windows", gap(found[None], wanted["slide_probabilities"]))
    yield from written_back(model, "segmentation", file)


def optimizer(folder: Path, file: str, of: str, kind: Kind) -> Iterator[Check]:
    """Golden: released name to [factor of the learning rate, weight decay], or None where it is frozen."""
    golden = json.loads((folder / file).read_text())
    model, _ = opened_model(companion(folder, of), kind)
    if kind.name == "video":
        model.backbone.requires_grad_(False)
    found = parameter_rules(model, weight_decay=golden["weight_decay"], layer_decay=golden.get("layer_decay", 1.0))
    ours = {our_name(kind.name, name): value for name, value in golden["parameters"].items()}
    known = dict(model.named_parameters())
    lacking = sorted(map(str, {*ours} ^ {*known}))
    yield Check(file, f"parameters that only one has {lacking[:3]}", float(len(lacking)), 0)
    frozen = [name for name, value in ours.items() if (value is None) == (name in found)]
    yield Check(file, f"parameters that are frozen in one only {frozen[:3]}", float(len(frozen)), 0)
    trained = {name: value for name, value in ours.items() if value is not None and name in found}
    rate = max(abs(found[name][0] - value[0]) for name, value in trained.items())
    decay = max(abs(found[name][1] - value[1]) for name, value in trained.items())
    yield Check(file, f"learning rate factor of {len(trained)} parameters", rate, 1e-6)
    yield Check(file, f"weight decay of {len(trained)} parameters", decay, 1e-9)


CHECKS: dict[str, Callable[[Path], Iterator[Check]]] = {
    "onepeace_ft_21kto1k_io.pt": imagenet_io,
    "onepeace_video_k400_io.pt": video_io,
    "onepeace_seg_ade20k_io.pt": segmentation_io,
    "layer_decay_imagenet.json": partial(
        optimizer, file="layer_decay_imagenet.json", of="onepeace_ft_21kto1k.pth", kind=ImageNet()
    ),
    "layer_decay_ade20k.json": partial(
        optimizer, file="layer_decay_ade20k.json", of="onepeace_seg_ade20k.pth", kind=Segmentation()
    ),
    "optimizer_k400.json": partial(optimizer, file="optimizer_k400.json", of="onepeace_video_k400.pth", kind=Video()),
}
