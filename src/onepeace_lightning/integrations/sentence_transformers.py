"""A model as sentence-transformers' input module.

``sentence_transformer("folder")``, or ``SentenceTransformer("folder", trust_remote_code=True)``: the package asks for
that flag for every module that is not its own.

B = inputs, d = embedding width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modality import infer_modality
from sentence_transformers.base.modules import InputModule
from torch import Tensor
from torch.nn import functional as F

from onepeace_lightning.inference.onepeace import OnePeace
from onepeace_lightning.modalities.items import read_numbered


class OnePeaceModule(InputModule):
    """Embeds texts, images, audio and further modalities, and mixtures of them (a dict of modality to item).

    Its parameters are the model's, so that sentence-transformers' losses train it. A mixture is the normalised sum of
    its parts' embeddings.

    Args:
        model: with contrastive heads.
    """

    def __init__(self, model: OnePeace) -> None:
        super().__init__()
        self.onepeace = model
        self.network: Any = model.model

    @property
    def modalities(self) -> list[Any]:
        """What can be embedded; "message" lets one batch have several kinds of inputs."""
        names = list(self.onepeace.config.adapters)
        return [*names, "message"]

    @property
    def max_seq_length(self) -> int | None:
        """Tokens of a text that are read."""
        return getattr(self.onepeace.tokenizer, "max_length", None)

    def get_embedding_dimension(self) -> int:
        """The width d of an embedding."""
        return self.onepeace.config.encoder.width

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """What ``forward`` takes.

        Args:
            inputs: texts, PIL images, paths, audio (path, or dict with "array" and "sampling_rate"), or mixtures.
            prompt: put in front of texts.
            **kwargs: not looked at.

        Raises:
            ValueError: an input cannot be read; its number is named.
        """
        parts = [_parts(item, prompt or "", self.modalities) for item in inputs]
        batch: dict[str, Any] = {}
        for name in dict.fromkeys(name for part in parts for name in part):
            modality = self.onepeace.modality(name)
            rows = [number for number, part in enumerate(parts) if name in part]
            arrays = [read_numbered(modality, (number, parts[number][name])) for number in rows]
            batch[name] = (rows, modality.collate(arrays))
        # sentence-transformers finds a column of a training batch by this name, and counts its rows by it.
        return {"input_ids": torch.arange(len(parts)), "onepeace": batch}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add ``sentence_embedding`` (B, d) of unit length."""
        total: Tensor | None = None
        for name, (rows, inputs) in features["onepeace"].items():
            embeddings = self.network.heads(name, self.network.backbone({name: inputs.to(self.onepeace.device)}))
            if total is None:
                total = embeddings.new_zeros(len(features["input_ids"]), embeddings.shape[1])
            total = total.index_add(0, torch.tensor(rows, device=embeddings.device), embeddings)
        features["sentence_embedding"] = F.normalize(total, dim=-1)  # type: ignore[arg-type]
        return features

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write a folder that ``OnePeace.from_pretrained`` and ``SentenceTransformer`` open."""
        self.onepeace.save_pretrained(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, **kwargs: Any) -> Self:  # type: ignore[override]
        """Open a folder of ``save_pretrained``, or a name on the hub."""
        return cls(OnePeace.from_pretrained(model_name_or_path))


def sentence_transformer(model: OnePeace | str | Path) -> SentenceTransformer:
    """A model as sentence-transformers has them.

    Args:
        model: with contrastive heads, or what ``OnePeace.from_pretrained`` takes.
    """
    opened = model if isinstance(model, OnePeace) else OnePeace.from_pretrained(model)
    return SentenceTransformer(modules=[OnePeaceModule(opened)])


def _parts(item: Any, prompt: str, supported: list[Any]) -> dict[str, Any]:
    """Modality to item of one input."""
    if isinstance(item, Mapping) and "array" not in item:
        return {name: _item(part, prompt if name == "text" else "") for name, part in item.items()}
    name = "image" if isinstance(item, Image.Image) else infer_modality(item, supported_modalities=supported)
    return {str(name): _item(item, prompt if name == "text" else "")}


def _item(part: Any, prompt: str) -> Any:
    """An item as ``OnePeace.embed`` takes it."""
    if isinstance(part, Mapping) and "sampling_rate" in part:
        return np.asarray(part["array"], dtype=np.float32), int(part["sampling_rate"])
    return prompt + part if prompt else part
