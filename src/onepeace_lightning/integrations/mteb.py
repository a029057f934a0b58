"""A model as MTEB's encoder: ``mteb.evaluate(OnePeaceEncoder(model), tasks)``.

d = embedding width.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder

from onepeace_lightning.inference.onepeace import OnePeace

MAX_TOKENS = 70
"""Tokens of a text that the published model reads."""


class OnePeaceEncoder(AbsEncoder):
    """Embeds what a task gives: any modality of the model, or several together.

    An input of several modalities is the normalised sum of its parts' embeddings.

    Args:
        model: with contrastive heads, or what ``OnePeace.from_pretrained`` takes.
        name: ``owner/name``, under which results are kept.
        revision: of the weights; None: their fingerprint.
        prompts: in front of texts, by task's name, task's type, "query" or "document", as MTEB has them.
        **options: of ``OnePeace.from_pretrained``, such as ``device``.
    """

    def __init__(
        self,
        model: OnePeace | str | Path,
        name: str = "onepeace_lightning/model",
        revision: str | None = None,
        *,
        prompts: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.model = model if isinstance(model, OnePeace) else OnePeace.from_pretrained(model, **options)
        self.prompts = dict(prompts or {})
        self.mteb_model_meta = model_meta(self.model, name, revision)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Sequence[Any]]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Embed batches of a task.

        Args:
            inputs: batches, modality to its items; an item that is None is left out of its row.
            task_metadata: of the task; chooses the prompt.
            hf_split: not looked at.
            hf_subset: not looked at.
            prompt_type: "query", "document" or None; chooses the prompt.
            **kwargs: not looked at; MTEB makes the batches.

        Returns:
            (items, d) float32 of unit length.

        Raises:
            ValueError: a batch has no modality of the model, or an item cannot be read.
        """
        prompt = self._prompt(task_metadata, prompt_type)
        return np.concatenate([self._embed(batch, prompt) for batch in inputs])

    def _embed(self, batch: Mapping[str, Sequence[Any]], prompt: str) -> np.ndarray:
        given = [name for name in self.model.config.adapters if name in batch]
        if not given:
            raise ValueError(f"a batch of {sorted(batch)}; the model takes {', '.join(self.model.config.adapters)}")
        rows = np.zeros((len(batch[given[0]]), self.model.config.encoder.width), np.float32)
        for name in given:
            parts = [
                (row, _item(part, prompt))
                for row, item in enumerate(batch[name])
                for part in _parts(item)
                if part is not None
            ]
            if parts:
                embeddings = self.model.embed(**{name: [part for _, part in parts]}).numpy()
                np.add.at(rows, [row for row, _ in parts], embeddings)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if not lengths.all():
            raise ValueError(f"item {int(np.argmin(lengths))} of a batch has nothing to embed")
        return rows / lengths

    def _prompt(self, task: Any, prompt_type: Any) -> str:
        kind = getattr(prompt_type, "value", prompt_type)
        names = [f"{task.name}-{kind}", task.name, f"{task.type}-{kind}", task.type, kind]
        return next((self.prompts[name] for name in names if name in self.prompts), "")


def _parts(item: Any) -> Sequence[Any]:
    """The items of a row: some tasks have several images in one."""
    return item if isinstance(item, list) else [item]


def _item(part: Any, prompt: str) -> Any:
    """An item of MTEB's as ``OnePeace.embed`` takes it."""
    if isinstance(part, str):
        return prompt + part
    if isinstance(part, Mapping) and "sampling_rate" in part:
        return np.asarray(part["array"], dtype=np.float32), int(part["sampling_rate"])
    if hasattr(part, "get_all_samples"):  # torchcodec's decoder, as `datasets` gives it
        samples = part.get_all_samples()
        return samples.data, samples.sample_rate
    return part


def model_meta(model: OnePeace, name: str, revision: str | None = None) -> ModelMeta:
    """What MTEB records of a model."""
    parameters = sum(parameter.numel() for parameter in model.model.parameters())
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.model.parameters())
    modalities: Any = list(model.config.adapters)
    return ModelMeta(
        loader=None,
        name=name,
        revision=revision or "-".join(model.fingerprint(modality) for modality in modalities),
        release_date=None,
        languages=None,
        n_parameters=parameters,
        memory_usage_mb=size / 2**20,
        max_tokens=MAX_TOKENS,
        embed_dim=model.config.encoder.width,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch"],
        similarity_fn_name="cosine",  # type: ignore[arg-type]
        use_instructions=False,
        training_datasets=None,
        modalities=modalities,
    )
