"""The table of kinds, and finding the one that a file is of."""

from pathlib import Path

from onepeace_lightning.checkpoints.loading import read_file
from onepeace_lightning.checkpoints.released.base import Kind, ReleasedFile
from onepeace_lightning.checkpoints.released.detection import Detection
from onepeace_lightning.checkpoints.released.fairseq import (
    AudioClassification,
    AudioQuestionAnswering,
    AudioTextRetrieval,
    Grounding,
    ImageClassification,
    ImageTextRetrieval,
    Pretrained,
    VisualQuestionAnswering,
    VisualReasoning,
)
from onepeace_lightning.checkpoints.released.imagenet import ImageNet
from onepeace_lightning.checkpoints.released.segmentation import Segmentation
from onepeace_lightning.checkpoints.released.video import Video
from onepeace_lightning.checkpoints.released.vision_branch import VisionBranch

KINDS: tuple[Kind, ...] = (
    Pretrained(),
    ImageTextRetrieval(),
    AudioTextRetrieval(),
    Grounding(),
    VisualQuestionAnswering(),
    VisualReasoning(),
    AudioQuestionAnswering(),
    AudioClassification(),
    ImageClassification(),
    VisionBranch(),
    Detection(),
    ImageNet(),
    Video(),
    Segmentation(),
)
"""Every kind of file that can be opened; of each file exactly one recognises it."""


def released(path: str | Path) -> tuple[ReleasedFile, Kind] | None:
    """A released file and its kind; None where the path is no file, or one of this project's.

    Raises:
        ValueError: the file is damaged, refused, or of no known kind.
    """
    if not Path(path).is_file():
        return None
    content, found = read_file(path)
    if not isinstance(content, dict) or "onepeace" in content:
        return None
    file = ReleasedFile.of(path, content, found)
    return file, kind_of(file)


def kind_of(file: ReleasedFile) -> Kind:
    """The kind of a file, from its tensors.

    Raises:
        ValueError: where no kind recognises it, saying what it holds.
    """
    kinds = [kind for kind in KINDS if kind.recognise(file)]
    if len(kinds) == 1:
        return kinds[0]
    some = ", ".join(sorted(file.tensors)[:5])
    known = "; ".join(kind.title for kind in KINDS)
    what = f"may be {' or '.join(kind.title for kind in kinds)}" if kinds else "is no released model of ONE-PEACE"
    raise ValueError(f"{file.path} {what}: its {len(file.tensors)} tensors begin with {some}. Known are {known}")
