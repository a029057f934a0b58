import pytest

from onepeace_lightning.models.attention import cpu


@pytest.fixture(autouse=True)
def group_small_batches(monkeypatch):
    """Tests' sequences are too short to be worth grouping: what they show would not hold for real batches."""
    monkeypatch.setattr(cpu, "WORTHWHILE", 4)
