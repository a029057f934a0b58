"""Goldens of the released COCO detector."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from onepeace_lightning.checkpoints.released.vision_names import our_name, to_released
from onepeace_lightning.models.vision.detector import PROPOSALS, Detector, clipped
from onepeace_lightning.models.vision.proposals import propose
from onepeace_lightning.tasks import ObjectDetectionTask, load_task
from onepeace_lightning.training.param_groups import parameter_groups
from tests.parity.base import Check, companion, gap, load

FILE = "onepeace_det_coco.pth"
LOGITS, PIXELS, COUNTS = 5e-4, 1e-2, 3.0
"""Tolerances of logits, of boxes in pixels, and of numbers of mask pixels."""


def opened(folder: Path) -> ObjectDetectionTask:
    """The task that the file is opened as."""
    path = companion(folder, FILE)
    task = load_task(path)
    assert isinstance(task, ObjectDetectionTask)
    task.model.eval()
    return task


@torch.no_grad()
def detector_io(folder: Path) -> Iterator[Check]:
    """Maps, proposals, stages and answers; each stage on its own proposals, in the order of the golden."""
    golden = load(folder / "onepeace_det_coco_io.pt")
    model, images, expected = opened(folder).model, golden["inputs"]["images"], golden["output"]

    def check(quantity: str, ours: Tensor, tolerance: float = 1e-4) -> Check:
        theirs = expected[quantity]
        return Check(FILE, quantity, gap(ours[: len(theirs)], theirs), tolerance)

    pixels = model.pixels(images)
    corner = expected["padded_corner"].shape[-1]
    yield check("padded_corner", pixels[:, :, -corner:, -corner:])
    features = model.backbone(pixels)
    yield check("last_feat", features)
    maps = model.pyramid(features)
    logits, deltas = model.proposals(maps)
    for level, (x, level_logits, level_deltas) in enumerate(zip(maps, logits, deltas, strict=True), 2):
        yield check(f"p{level}", x)
        yield check(f"rpn_logits_p{level}", level_logits, LOGITS)
        yield check(f"rpn_deltas_p{level}", level_deltas)
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    proposals = propose(logits, deltas, sizes, before=PROPOSALS, after=PROPOSALS)
    yield from stages(model, maps, [part.boxes for part in proposals], sizes, check)
    for number, (proposed, found) in enumerate(zip(proposals, model(images), strict=True)):
        yield check(f"proposals_{number}", proposed.boxes, PIXELS)
        yield check(f"proposal_logits_{number}", proposed.logits, LOGITS)
        yield check(f"boxes_{number}", found.boxes, PIXELS)
        yield check(f"scores_{number}", found.scores)
        yield check(f"classes_{number}", found.classes, 0)
        yield check(f"masks_{number}", found.masks[:, None])
        yield check(f"maskness_scores_{number}", found.mask_scores)
        yield Check(FILE, f"count_{number}", abs(len(found.boxes) - int(expected[f"count_{number}"])), 0)
        size = golden["inputs"]["sizes"][number]
        final = found.at(sizes[number], size)
        yield check(f"final_boxes_{number}", final.boxes, PIXELS)
        yield check(f"final_scores_{number}", final.scores)
        shown = len(expected[f"final_mask_pixels_{number}"])
        counts = final.where(torch.arange(len(final.boxes)) < shown).pasted(size).sum((1, 2))
        yield check(f"final_mask_pixels_{number}", counts, COUNTS)


def stages(
    model: Detector,
    maps: list[Tensor],
    boxes: list[Tensor],
    sizes: list[tuple[int, int]],
    check: Callable[..., Check],
) -> Iterator[Check]:
    """Each stage's answers to the regions of all images, one image after the other."""
    for stage in range(len(model.stages)):
        logits, deltas, moved = model.stage(stage, maps, boxes)
        yield check(f"stage{stage}_logits", logits, LOGITS)
        yield check(f"stage{stage}_deltas", deltas)
        yield check(f"stage{stage}_boxes", torch.cat(moved), PIXELS)
        boxes = clipped(moved, sizes)


def written_back(folder: Path) -> Iterator[Check]:
    """Every tensor by its released name again."""
    model, theirs = opened(folder).model, load(folder / FILE)["model"]
    back = to_released("detection", model.state_dict())
    wrong = [name for name in theirs if "rp_bucket" not in name and not torch.equal(theirs[name], back.pop(name))]
    yield Check(FILE, "tensors that are not written back as they were", float(len(wrong) + len(back)), 0)


def layer_decay(folder: Path) -> Iterator[Check]:
    """Learning rate factor and weight decay of every parameter."""
    name = "layer_decay_coco_det.json"
    golden = json.loads((folder / name).read_text())
    model = opened(folder).model
    groups = parameter_groups(model, lr=1.0, weight_decay=golden["weight_decay"], layer_decay=golden["layer_decay"])
    rules = {id(parameter): (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    ours = {key: rules[id(parameter)] for key, parameter in model.named_parameters()}
    theirs = {our_name("detection", key): tuple(value) for key, value in golden["parameters"].items()}
    yield Check(name, "parameters that only one side has", float(len(ours.keys() ^ theirs.keys())), 0)
    for column, quantity in enumerate(("learning rate factor", "weight decay")):
        most = max(abs(ours[key][column] - theirs[key][column]) for key in ours.keys() & theirs.keys())
        yield Check(name, f"{quantity} of {len(ours)} parameters", most, 1e-9)


CHECKS: dict[str, Callable[[Path], Iterator[Check]]] = {
    FILE: written_back,
    "onepeace_det_coco_io.pt": detector_io,
    "layer_decay_coco_det.json": layer_decay,
}
