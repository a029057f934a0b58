"""Readers of raw samples, one for each kind of answer; ``data.data_types`` says which fields they find."""

from collections.abc import Mapping

from onepeace_lightning.data.data_types import ANSWERS
from onepeace_lightning.data.readers.aligned import AlignedReader
from onepeace_lightning.data.readers.base import Reader
from onepeace_lightning.data.readers.boxes import BoxReader
from onepeace_lightning.data.readers.captions import CaptionsReader
from onepeace_lightning.data.readers.detection import InstancesReader
from onepeace_lightning.data.readers.labels import LabelReader, TargetReader
from onepeace_lightning.data.readers.masks import MaskReader
from onepeace_lightning.data.readers.questions import ChoicesReader, PairReader, QuestionReader

READERS: Mapping[str | None, type[Reader]] = {
    None: AlignedReader,
    "label": LabelReader,
    "target": TargetReader,
    "captions": CaptionsReader,
    "box": BoxReader,
    "boxes": InstancesReader,
    "mask": MaskReader,
    "question": QuestionReader,
    "choices": ChoicesReader,
    "pair": PairReader,
}
"""Kind of answer to what reads it."""

if set(READERS) != {None, *ANSWERS}:
    raise RuntimeError("READERS and data_types.ANSWERS name other answers")
