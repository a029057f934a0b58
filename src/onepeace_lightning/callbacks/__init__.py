"""What a run shows and records."""

from .gallery import RetrievalGallery
from .results import ResultsTable

__all__ = ["ResultsTable", "RetrievalGallery"]
