"""The tiny model of the inference tests."""

from tests.inference.conftest import model_folder

__all__ = ["model_folder"]
