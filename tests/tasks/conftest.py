"""What tests of downstream tasks share."""

import lightning as L
import pytest
import torch

from onepeace_lightning import OnePeace
from onepeace_lightning.data.batch import Batch
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.modalities.text import TextConfig
from onepeace_lightning.modalities.tokenizers import SentencePieceTokenizer, load_tokenizer
from onepeace_lightning.models import PretrainModel
from onepeace_lightning.tasks import FinetuneTask
from tests.tiny import IMAGE_SIZE, randomised, tiny_config

WORDS = ["a red square", "a green square", "a blue square", "a low tone", "a middle tone", "a high tone", "what is it?"]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def words(tmp_path_factory) -> str:
    """Folder of a tokenizer that knows a few words."""
    folder = tmp_path_factory.mktemp("tokenizer")
    SentencePieceTokenizer.train(WORDS, 290).save(folder)
    return str(folder)


@pytest.fixture
def reading(words) -> OnePeace:
    """A tiny model that reads these words."""
    tokenizer = load_tokenizer(words)
    adapters = tiny_config().adapters | {"text": TextConfig(vocab_size=tokenizer.vocab_size, positions=32, buckets=8)}
    sizes = Preprocessing(
        {"image": {"size": IMAGE_SIZE, "crop_scale": (1.0, 1.0)}, "audio": {"min_seconds": 0.2, "max_seconds": 1.0}}
    )
    model = randomised(PretrainModel(tiny_config(adapters=adapters)))
    return OnePeace(model, tokenizer=tokenizer, preprocessing=sizes)


@pytest.fixture
def trainer(tmp_path):
    def make(**options) -> L.Trainer:
        return L.Trainer(
            accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path, **{"max_steps": 30, "enable_checkpointing": False, **options},
        )  # fmt: skip

    return make


def learn(task: FinetuneTask, batch: Batch, steps: int = 40, lr: float = 3e-3) -> tuple[float, float]:
    """Train on one batch; the loss before and after."""
    task.configure_model()
    randomised(task.model.head)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr)
    losses = []
    for _ in range(steps + 1):
        loss = task.loss(batch)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses[0], losses[-1]
