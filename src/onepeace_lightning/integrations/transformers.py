"""A model behind Hugging Face's Auto classes; importing this module registers it.

    import onepeace_lightning.integrations.transformers
    from transformers import AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(source), AutoProcessor.from_pretrained(source)
    model(**processor(text=["a cow"], image=["cow.jpg"])).image_embeds

B = items, d = embedding width.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoProcessor, BatchFeature, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from onepeace_lightning.checkpoints.pretrained import MODEL_TYPE
from onepeace_lightning.inference.onepeace import OnePeace
from onepeace_lightning.modalities.base import Modality
from onepeace_lightning.modalities.items import as_items, read_numbered
from onepeace_lightning.models.pretraining import PretrainModel


class OnePeaceConfig(PreTrainedConfig):
    """The content of ``config.json`` as ``OnePeace.save_pretrained`` writes it."""

    model_type = MODEL_TYPE


class OnePeaceModel(PreTrainedModel):
    """Embeds modalities, each seen alone; its parameters are those of ``OnePeace``, so that it can be trained.

    Args:
        config: of the folder.
        onepeace: the opened model, with contrastive heads.
    """

    config_class = OnePeaceConfig
    base_model_prefix = "network"

    def __init__(self, config: OnePeaceConfig, onepeace: OnePeace) -> None:
        super().__init__(config)
        if not isinstance(onepeace.model, PretrainModel):
            raise ValueError(f"{config.name_or_path} has no contrastive heads, so no embeddings: open it with OnePeace")
        self.onepeace = onepeace
        self.network: PretrainModel = onepeace.model

    @classmethod
    def from_pretrained(cls, source: str | Path, *args: Any, config: Any = None, **options: Any) -> Self:  # type: ignore[override]
        """Open what ``OnePeace.from_pretrained`` opens.

        Args:
            source: a folder of ``save_pretrained``, or a name on the hub.
            *args: not looked at.
            config: as ``AutoConfig`` has read it.
            **options: ``revision`` and ``dtype`` are taken; ``device_map`` as the name of one device.

        Raises:
            ValueError: it cannot be opened, or does not embed.
        """
        dtype, device = options.get("dtype"), options.get("device_map")
        if device is not None and not isinstance(device, str):
            raise ValueError(f"device_map is {device!r}; give the name of one device, such as 'cuda:0'")
        onepeace = OnePeace.from_pretrained(
            source,
            revision=None if Path(source).exists() else options.get("revision"),
            device="cpu" if device is None else device,
            dtype=None if dtype == "auto" else dtype,
        )
        config = config or OnePeaceConfig.from_pretrained(source, revision=options.get("revision") or "main")
        return cls(config, onepeace).eval()

    def forward(self, **inputs: Any) -> ModelOutput:
        """Embed what ``OnePeaceProcessor`` gives.

        Args:
            **inputs: modality to a batch of its input.

        Returns:
            For each modality, (B, d) of unit length as ``text_embeds``, ``image_embeds`` ….

        Raises:
            ValueError: the model lacks a modality.
        """
        embeddings: dict[str, Tensor] = {}
        for name, batch in inputs.items():
            self.onepeace.check_embeds(name)
            tokens = self.network.backbone({name: batch.to(self.device, self.dtype)})
            embeddings[f"{name}_embeds"] = self.network.heads(name, tokens)
        return ModelOutput(embeddings)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:  # type: ignore[override]
        """Write the folder that ``OnePeace``, ``SentenceTransformer`` and the Auto classes open."""
        self.onepeace.save_pretrained(save_directory)


class Features(BatchFeature):
    """Modality to a batch of its input; ``to`` moves all of them."""

    def to(self, *args: Any, **options: Any) -> Self:
        """Move, and cast floating-point tensors, as ``Tensor.to`` does."""
        for name, batch in self.data.items():
            self.data[name] = batch.to(*args, **options)
        return self


class OnePeaceProcessor:
    """Items of any modality to what the model takes: tokenizer and preprocessing of the folder.

    Args:
        modalities: by name, with their settings.
    """

    def __init__(self, modalities: Iterable[Modality]) -> None:
        self.modalities = {modality.name: modality for modality in modalities}

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> Self:
        """Open the preprocessing of a folder of ``save_pretrained``, or of a name on the hub."""
        revision = None if Path(source).exists() else options.get("revision")
        onepeace = OnePeace.from_pretrained(source, revision=revision, device="cpu")
        return cls(onepeace.modality(name) for name in onepeace.config.adapters)

    def __call__(self, **items: Sequence[Any] | None) -> Features:
        """Read items.

        Args:
            **items: modality to items, as ``OnePeace.embed`` takes them: ``text=["a cow"], image=["cow.jpg"]``.

        Raises:
            ValueError: the model lacks a modality, or an item cannot be read (its number is named).
        """
        given = {name: as_items(name, part) for name, part in items.items() if part is not None}
        if unknown := [name for name in given if name not in self.modalities]:
            raise ValueError(f"the model has no {', '.join(unknown)}; it takes {', '.join(self.modalities)}")
        return Features({
            name: self.modalities[name].collate([read_numbered(self.modalities[name], row) for row in enumerate(part)])
            for name, part in given.items()
        })  # fmt: skip


AutoConfig.register(MODEL_TYPE, OnePeaceConfig, exist_ok=True)
AutoModel.register(OnePeaceConfig, OnePeaceModel, exist_ok=True)
AutoProcessor.register(OnePeaceConfig, OnePeaceProcessor, exist_ok=True)
