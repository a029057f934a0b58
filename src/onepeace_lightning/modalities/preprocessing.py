"""The settings of all modalities together, and the sizes of a model that follow from them."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from onepeace_lightning.modalities.base import Modality, read_settings
from onepeace_lightning.modalities.registry import modality
from onepeace_lightning.modalities.tokenizers import Tokenizer
from onepeace_lightning.models.config import DecoderConfig, ModelConfig, TransformerConfig


class Preprocessing:
    """The settings of every modality; those that are not named have their defaults.

    Args:
        settings: modality to its settings, or to a mapping such as ``{"image": {"size": 96}}``.

    Raises:
        ValueError: for an unknown modality or setting, or a value out of its range.
    """

    def __init__(self, settings: "Preprocessing | Mapping[str, Any] | None" = None) -> None:
        given = settings._settings if isinstance(settings, Preprocessing) else (settings or {})
        if not isinstance(given, Mapping):
            raise ValueError(f"preprocessing is {settings!r}; give a mapping such as {{image: {{size: 256}}}}")
        self._settings: dict[str, Any] = {}
        problems = []
        for name, value in given.items():
            try:
                self._settings[name] = read_settings(modality(name), value)
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("; ".join(problems))

    def __getitem__(self, name: str) -> Any:
        """A modality's settings."""
        return self._settings[name] if name in self._settings else modality(name).settings_type()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Preprocessing):
            return NotImplemented
        return all(self[name] == other[name] for name in {**self._settings, **other._settings})

    def __repr__(self) -> str:
        return f"Preprocessing({self._settings})"

    def modality(self, name: str, tokenizer: Tokenizer | None = None) -> Modality:
        """A modality with its settings."""
        return modality(name)(self[name], tokenizer)

    def changed(self, **settings: Mapping[str, Any]) -> "Preprocessing":
        """The same with other values of some settings: ``changed(image={"size": 96})``."""
        return Preprocessing(
            {**self._settings, **{name: dataclasses.replace(self[name], **some) for name, some in settings.items()}}
        )

    def sizes(self, names: Iterable[str], tokenizer: Tokenizer | None) -> dict[str, dict[str, Any]]:
        """Modality to the sizes of its adapter that follow from the settings and the tokenizer."""
        return {name: self.modality(name, tokenizer).sizes() for name in names}

    def fitting(self, config: ModelConfig) -> "Preprocessing":
        """The same with what a model of these sizes needs."""
        fitted = {name: modality(name).settings_for(self[name], sizes) for name, sizes in config.adapters.items()}
        return Preprocessing({**self._settings, **fitted})

    def misfits(self, config: ModelConfig) -> list[str]:
        """A line for each setting that a model of these sizes cannot take."""
        wrong = []
        for name, sizes in config.adapters.items():
            ours, needed = self[name], modality(name).settings_for(self[name], sizes)
            wrong += [
                f"{entry.name} of {name} is {getattr(ours, entry.name)}, the model takes {getattr(needed, entry.name)};"
                " give both the same"
                for entry in dataclasses.fields(ours)
                if getattr(ours, entry.name) != getattr(needed, entry.name)
            ]
        return wrong

    def to_dict(self, names: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
        """Plain containers, of these modalities and of all that were given."""
        return {name: dataclasses.asdict(self[name]) for name in dict.fromkeys([*names, *self._settings])}

    def describe(self, names: Sequence[str]) -> str:
        """What evaluation does to the input of these modalities, in one line, to print beside scores."""
        return "; ".join(said for name in names if (said := self.modality(name).describe()))


def config_from_dict(data: Mapping[str, Any]) -> ModelConfig:
    """The inverse of ``ModelConfig.to_dict``.

    Raises:
        ValueError: for a modality that nobody registered, naming it.
    """
    decoder = data["decoder"]
    return ModelConfig(
        encoder=TransformerConfig(**data["encoder"]),
        adapters={name: modality(name).config_type(**sizes) for name, sizes in data["adapters"].items()},
        decoder=DecoderConfig(
            transformer=TransformerConfig(**decoder["transformer"]), positions=dict(decoder["positions"])
        ),
        per_block_tables=data["per_block_tables"],
    )
