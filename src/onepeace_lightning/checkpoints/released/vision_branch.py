"""The image branch alone (one-peace-vision.pkl): where all vision tasks start."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from onepeace_lightning.checkpoints.loading import LoadReport
from onepeace_lightning.checkpoints.original import AnyModel, model_from_original, named
from onepeace_lightning.checkpoints.released.base import Kind, Opened, ReleasedFile
from onepeace_lightning.models.config import ModelConfig


class VisionBranch(Kind):
    """The pretrained image adapter and blocks, without the final norm and the projection."""

    name = "vision-branch"
    title = "the image branch (one-peace-vision.pkl)"
    answers = "features of an image's tokens, as the last block gives them; the start of vision tasks"
    encodes = True

    def recognise(self, file: ReleasedFile) -> bool:
        """The branch's names without any head."""
        own = ("image_adapter.", "encoder.layers.")
        return all(file.has(prefix) for prefix in own) and all(name.startswith(own) for name in file.tensors)

    def open(self, file: ReleasedFile, labels: Sequence[str] | None) -> Opened:
        """A backbone of images only, without final norm."""
        model, report = self.model(file)
        preprocessing = self.preprocessing(file, model.config)
        return Opened(model.config, named(model).state_dict(), {}, preprocessing, report)

    def preprocessing(self, file: ReleasedFile, config: ModelConfig) -> Mapping[str, Mapping[str, Any]]:
        """The side that the bias table is made for."""
        return {"image": {"size": config.adapters["image"].image_size}}  # type: ignore[attr-defined]

    def model(self, file: ReleasedFile) -> tuple[AnyModel, LoadReport]:
        """The backbone."""
        return model_from_original({"cfg": {}, "model": _fairseq_names(file)}, final_norm=False)


def _fairseq_names(file: ReleasedFile) -> dict[str, Tensor]:
    """The tensors by the names that they have in the pretrained model's file."""
    tensors = {}
    for name, tensor in file.tensors.items():
        first, _, rest = name.partition(".")
        tensors[f"encoder_wrapper.{name if first == 'image_adapter' else f'fusion_model.{rest}'}"] = tensor
    return tensors
