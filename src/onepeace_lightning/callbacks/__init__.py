"""What a run shows and records."""

from onepeace_lightning.callbacks.gallery import RetrievalGallery
from onepeace_lightning.callbacks.results import ResultsTable

__all__ = ["ResultsTable", "RetrievalGallery"]
