"""ONE-PEACE as PyTorch Lightning modules: vision, audio and language in one transformer."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onepeace_lightning.cli.train import train
    from onepeace_lightning.inference.onepeace import OnePeace

__all__ = ["OnePeace", "train"]


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: every submodule's import passes through here.
    if name == "OnePeace":
        from onepeace_lightning.inference.onepeace import OnePeace

        return OnePeace
    if name == "train":
        from onepeace_lightning.cli.train import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
