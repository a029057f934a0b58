"""sentence-transformers opens, encodes with, trains and measures the model, through the real package."""

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

package = pytest.importorskip(
    "sentence_transformers", reason="an extra: pip install onepeace-lightning[sentence-transformers]"
)

from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator  # noqa: E402
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss  # noqa: E402

from onepeace_lightning import OnePeace  # noqa: E402
from onepeace_lightning.integrations.sentence_transformers import sentence_transformer  # noqa: E402

TEXTS = ["a red cow", "dog", "a bell at night"]


def items(folder):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in TEXTS]
    waves = [rng.standard_normal(6000 + 100 * number).astype(np.float32) / 8 for number in range(3)]
    for number, wave in enumerate(waves):
        soundfile.write(folder / f"{number}.wav", wave, 16000, subtype="FLOAT")
    return images, waves, [str(folder / f"{number}.wav") for number in range(3)]


def test_a_saved_folder_opens_and_encodes_what_the_model_does(model_folder, tmp_path):
    model, opened = (
        OnePeace.from_pretrained(model_folder),
        package.SentenceTransformer(str(model_folder), device="cpu", trust_remote_code=True),
    )
    images, waves, paths = items(tmp_path)
    text, image = model.embed(text=TEXTS).numpy(), model.embed(image=images).numpy()
    audio = model.embed(audio=paths).numpy()
    assert np.abs(opened.encode(TEXTS) - text).max() < 1e-6
    assert np.abs(opened.encode(images) - image).max() < 1e-6
    assert np.abs(opened.encode(paths) - audio).max() < 1e-6
    as_dicts = [{"array": wave, "sampling_rate": 16000} for wave in waves]
    assert np.abs(opened.encode(as_dicts) - audio).max() < 1e-5
    assert np.abs(opened.encode([TEXTS[0], images[1], paths[2]]) - [text[0], image[1], audio[2]]).max() < 1e-6
    mixture = opened.encode([{"text": TEXTS[0], "image": images[0]}])[0]
    assert np.abs(mixture - (text[0] + image[0]) / np.linalg.norm(text[0] + image[0])).max() < 1e-6
    assert opened.get_embedding_dimension() == model.config.encoder.width
    assert np.abs(opened.similarity(text, image).numpy() - text @ image.T).max() < 1e-6


def test_its_losses_train_it_and_a_saved_folder_opens_again(model_folder, tmp_path):
    model = sentence_transformer(model_folder)
    images, _, _ = items(tmp_path)
    loss = MultipleNegativesRankingLoss(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    values = []
    for _ in range(12):
        features = [model.preprocess(TEXTS), model.preprocess(images)]
        value = loss(features, None)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value))
    assert values[-1] < 0.5 * values[0]
    model.eval()
    model.save(str(tmp_path / "trained"))
    again = package.SentenceTransformer(str(tmp_path / "trained"), device="cpu", trust_remote_code=True)
    assert np.abs(again.encode(TEXTS) - model.encode(TEXTS)).max() < 1e-6
    ours = OnePeace.from_pretrained(tmp_path / "trained")
    assert np.abs(ours.embed(text=TEXTS).numpy() - model.encode(TEXTS)).max() < 1e-6


def test_its_evaluators_measure_it(model_folder):
    model = sentence_transformer(model_folder)
    texts = {str(number): text for number, text in enumerate(TEXTS)}
    evaluator = InformationRetrievalEvaluator(
        texts, texts, {key: {key} for key in texts}, accuracy_at_k=[1], name="same"
    )
    assert evaluator(model)["same_cosine_accuracy@1"] == 1.0


def test_an_input_that_cannot_be_read_is_named(model_folder):
    model = sentence_transformer(model_folder)
    with pytest.raises(ValueError, match=r"image 1 .*nothing\.png"):
        model.preprocess([{"image": Image.new("RGB", (20, 20))}, {"image": "nothing.png"}])
