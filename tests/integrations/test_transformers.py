"""Hugging Face's Auto classes open a saved model, embed what it embeds, and train it."""

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers", reason="an extra: pip install onepeace-lightning[transformers]")

from transformers import AutoConfig, AutoModel, AutoProcessor  # noqa: E402

import onepeace_lightning.integrations.transformers as module  # noqa: E402
from onepeace_lightning import OnePeace  # noqa: E402

TEXTS = ["a red cow", "a small dog that barks at the cow"]


@pytest.fixture
def given():
    rng = np.random.default_rng(0)
    return {
        "text": TEXTS,
        "image": [rng.integers(0, 256, (40, 50, 3), dtype=np.uint8) for _ in TEXTS],
        "audio": [(rng.standard_normal(4000 + 900 * i).astype(np.float32), 16000) for i in range(2)],
    }


def test_the_auto_classes_give_what_the_model_gives(model_folder, given, tmp_path):
    assert isinstance(AutoConfig.from_pretrained(model_folder), module.OnePeaceConfig)
    model, processor = AutoModel.from_pretrained(model_folder), AutoProcessor.from_pretrained(model_folder)
    ours = OnePeace.from_pretrained(model_folder, device="cpu")
    with torch.no_grad():
        embeddings = model(**processor(**given))
    for name, items in given.items():
        torch.testing.assert_close(embeddings[f"{name}_embeds"], ours.embed(**{name: items}), atol=1e-6, rtol=0)
    assert torch.equal(embeddings.text_embeds, embeddings["text_embeds"])

    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert again.dtype == torch.bfloat16
    with torch.no_grad():
        rough = again(**processor(text=TEXTS).to("cpu", torch.bfloat16)).text_embeds.float()
    assert torch.cosine_similarity(rough, embeddings.text_embeds).min() > 0.99


def test_its_weights_train(model_folder, given):
    model, processor = AutoModel.from_pretrained(model_folder).train(), AutoProcessor.from_pretrained(model_folder)
    out = model(**processor(text=given["text"], image=given["image"]))
    (out.text_embeds * out.image_embeds).sum().backward()
    touched = {name.split(".")[3] for name, p in model.named_parameters() if p.grad is not None and "adapters" in name}
    assert touched == {"text", "image"}


def test_what_it_cannot_take_is_named(model_folder):
    model, processor = AutoModel.from_pretrained(model_folder), AutoProcessor.from_pretrained(model_folder)
    with pytest.raises(ValueError, match="the model has no smell; it takes text, image, audio"):
        processor(smell=["rose"])
    with pytest.raises(ValueError, match="smell"):
        model(smell=None)
    with pytest.raises(ValueError, match=r"device_map is .*; give the name of one device"):
        AutoModel.from_pretrained(model_folder, device_map={"": 0})
