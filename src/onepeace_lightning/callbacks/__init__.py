"""What a run shows and records."""

from onepeace_lightning.callbacks.answers import AnswersGallery
from onepeace_lightning.callbacks.gallery import RetrievalGallery
from onepeace_lightning.callbacks.results import ResultsTable
from onepeace_lightning.callbacks.throughput import Throughput

__all__ = ["AnswersGallery", "ResultsTable", "RetrievalGallery", "Throughput"]
