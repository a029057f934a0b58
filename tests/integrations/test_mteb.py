"""MTEB runs its own mock tasks, and tasks whose data is made here, through the real package."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

mteb = pytest.importorskip("mteb", reason="MTEB is an extra: pip install onepeace-lightning[mteb]")

from mteb.mocks import mock_tasks  # noqa: E402
from mteb.types import PromptType  # noqa: E402

from onepeace_lightning.data.shards import ShardWriter  # noqa: E402
from onepeace_lightning.integrations.mteb import OnePeaceEncoder  # noqa: E402
from onepeace_lightning.integrations.mteb_tasks import retrieval_task  # noqa: E402
from tests.inference.conftest import tiny_onepeace  # noqa: E402

TASKS = [
    "MockBitextMiningTask", "MockClassificationTask", "MockMultilabelClassification", "MockImageClassificationTask",
    "MockImageMultilabelClassificationTask", "MockAudioClassification", "MockAudioMultilabelClassificationTask",
    "LegacyMockClusteringFastTask",
    "MockImageClusteringFastTask", "MockAudioClusteringTask", "MockPairClassificationTask",
    "MockPairImageClassificationTask", "MockImageTextPairClassificationTask", "MockAudioPairClassification",
    "MockRegressionTask", "MockImageRegressionTask", "MockRerankingTask", "MockAudioReranking", "MockRetrievalTask",
    "MockInstructionRetrieval", "MockMultiChoiceTask", "MockAny2AnyRetrievalI2TTask", "MockAny2AnyRetrievalT2ITask",
    "MockAny2AnyRetrievalT2ATask", "MockAny2AnyRetrievalA2TTask", "MockAny2AnyRetrievalA2ATask", "MockSTSTask",
    "MockVisualSTSTask", "MockSummarizationTask", "MockZeroShotClassificationTask",
    "MockTextZeroShotClassificationTask", "MockAudioZeroshotClassificationTask",
]  # fmt: skip


@pytest.fixture(scope="module")
def encoder():
    return OnePeaceEncoder(tiny_onepeace(), "tests/tiny")


@pytest.mark.parametrize("name", TASKS)
def test_every_type_of_task_that_the_model_supports_runs(encoder, name, tmp_path):
    task = getattr(mock_tasks, name)()
    if "audio" in task.metadata.modalities:
        pytest.importorskip(
            "torchcodec", reason="MTEB's audio is decoded by torchcodec", exc_type=(ImportError, RuntimeError)
        )
    results = mteb.evaluate(encoder, task, cache=None, overwrite_strategy="always", raise_error=True)
    scores = [entry["main_score"] for split in results.task_results[0].scores.values() for entry in split]
    assert scores
    if name != "MockVisualSTSTask":  # all its true scores are equal: no correlation is defined
        assert np.isfinite(scores).all()


def test_what_is_embedded_is_what_the_model_gives(encoder):
    model = encoder.model
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(3)]
    sounds = [{"array": rng.standard_normal(6000) / 8, "sampling_rate": 8000} for _ in range(3)]
    texts = ["a red cow", "dog", "a bell"]
    about = mock_tasks.MockRetrievalTask.metadata

    def encode(*batches, kind=None):
        return encoder.encode(batches, task_metadata=about, hf_split="test", hf_subset="default", prompt_type=kind)

    text, image = model.embed(text=texts).numpy(), model.embed(image=images).numpy()
    audio = model.embed(audio=[(torch.tensor(s["array"]).float(), 8000) for s in sounds]).numpy()
    assert np.abs(encode({"text": texts[:2]}, {"text": texts[2:]}) - text).max() < 1e-6
    assert np.abs(encode({"audio": sounds}) - audio).max() < 1e-6

    mixed = encode({"text": [*texts[:2], None], "image": images, "id": [1, 2, 3]})
    expected = np.stack([text[0] + image[0], text[1] + image[1], image[2]])
    assert np.abs(mixed - expected / np.linalg.norm(expected, axis=1, keepdims=True)).max() < 1e-6

    several = encode({"image": [images[:2], images[2]]})
    assert np.abs(several[0] - (image[0] + image[1]) / np.linalg.norm(image[0] + image[1])).max() < 1e-6

    encoder.prompts = {"query": "dog "}
    asked = encode({"text": ["a bell"]}, kind=PromptType.query)
    encoder.prompts = {}
    assert np.abs(asked - model.embed(text=["dog a bell"]).numpy()).max() < 1e-6
    with pytest.raises(ValueError, match=r"a batch of \['smell'\]; the model takes"):
        encode({"smell": [1]})
    with pytest.raises(ValueError, match="item 0 of a batch has nothing to embed"):
        encode({"text": [None, "dog"]})


def test_the_record_says_what_the_model_is(encoder):
    about = encoder.mteb_model_meta
    assert about.modalities == ["text", "image", "audio"]
    assert about.embed_dim == encoder.model.config.encoder.width
    assert about.n_parameters == sum(p.numel() for p in encoder.model.model.parameters())


# Tasks of this project's own data, offline

DIRECTIONS = [("image", "text"), ("text", "image"), ("audio", "text"), ("text", "audio"), ("audio", "image")]


@pytest.mark.parametrize(("query", "document"), DIRECTIONS)
def test_retrieval_on_the_toy_world_scores_what_the_embeddings_give(encoder, toy_root, query, document):
    pair = {"image", "audio"} & {query, document}
    stream = "audio-image" if len(pair) == 2 else f"{next(iter(pair))}-text"
    task = retrieval_task(str(toy_root / "data/toy/val" / stream), query, document)
    results = mteb.evaluate(encoder, task, cache=None, overwrite_strategy="always", raise_error=True)
    [[entry]] = results.task_results[0].scores.values()
    task.load_data()  # MTEB has let go of it
    data = task.dataset["default"]["test"]

    def items(side, name):
        given = data[side][name]
        return [(torch.tensor(r["array"]), r["sampling_rate"]) if name == "audio" else r for r in given]

    cosines = encoder.model.similarity(**{query: items("queries", query), document: items("corpus", document)})
    right = (cosines.argmax(1) == torch.arange(16)).float().mean()  # no two of the gallery show the same
    assert entry["main_score"] == pytest.approx(float(right), abs=1e-4)


def test_equal_texts_are_right_for_each_other_and_a_lacking_modality_is_named(tmp_path):
    with ShardWriter(tmp_path, "image-text", source="test", license="CC0", samples_per_shard=8) as writer:
        for index, caption in enumerate(["a cow", "a dog", "a cow"]):
            picture = io.BytesIO()
            Image.new("RGB", (8, 8), (index, 0, 0)).save(picture, "PNG")
            writer.write(str(index), {"png": picture.getvalue(), "txt": caption.encode()})
    task = retrieval_task(str(tmp_path), "text", "image")
    task.load_data()
    assert task.dataset["default"]["test"]["relevant_docs"]["query0"] == {"document0": 1, "document2": 1}
    with pytest.raises(ValueError, match="holds 'image-text': its sample 0 has no audio"):
        retrieval_task(str(tmp_path), "audio", "text")
