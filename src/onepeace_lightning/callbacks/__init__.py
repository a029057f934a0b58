"""What a run shows and records."""

from onepeace_lightning.callbacks.answers import AnswersGallery
from onepeace_lightning.callbacks.failures import FiniteLoss, LostProcess
from onepeace_lightning.callbacks.gallery import RetrievalGallery
from onepeace_lightning.callbacks.preemption import StopOnSignal
from onepeace_lightning.callbacks.results import ResultsTable
from onepeace_lightning.callbacks.throughput import Throughput

__all__ = [
    "AnswersGallery",
    "FiniteLoss",
    "LostProcess",
    "ResultsTable",
    "RetrievalGallery",
    "StopOnSignal",
    "Throughput",
]
