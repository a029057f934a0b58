import logging
from dataclasses import replace

import pytest
import torch

from onepeace_lightning.checkpoints.loading import load_pretrained
from onepeace_lightning.checkpoints.vocabulary import fit_vocabulary
from onepeace_lightning.modalities.tokenizers import SentencePieceTokenizer
from onepeace_lightning.models.pretraining import PretrainModel
from tests.tiny import tiny_config

NAME = "backbone.adapters.text.embedding.weight"
BEFORE = SentencePieceTokenizer.train(["a red bell", "a drum", "two red drums and a bell"] * 3, 330)
NOW = SentencePieceTokenizer.train(["a blue bell", "the drum is loud", "bells ring loudly"] * 3, 340)


def test_common_pieces_keep_their_embeddings_and_others_are_made_of_their_parts():
    table = torch.randn(BEFORE.vocab_size, 6)
    fitted, said = fit_vocabulary({NAME: table, "other": torch.ones(3)}, BEFORE, NOW)
    old, new = BEFORE.pieces(), NOW.pieces()
    assert fitted[NAME].shape == (NOW.vocab_size, 6)
    assert torch.equal(fitted["other"], torch.ones(3))
    assert torch.equal(fitted[NAME][:4], table[:4])
    common = [piece for piece in new[4:] if piece in old]
    assert len(common) > 256
    for piece in (piece for piece in common if len(piece) > 1):
        assert torch.equal(fitted[NAME][new.index(piece)], table[old.index(piece)])
    alone = next(piece for piece in new[4:] if piece not in old and piece.startswith(b" l"))
    parts = BEFORE.encode(alone.decode()).ids[:-1]
    assert torch.allclose(fitted[NAME][new.index(alone)], table[parts].mean(0))
    assert f"{len(common)} of its {NOW.vocab_size - 4} pieces" in said
    assert fit_vocabulary({NAME: table}, BEFORE, BEFORE)[1] == ""


def sized(tokenizer):
    config = tiny_config()
    text = replace(config.adapters["text"], vocab_size=tokenizer.vocab_size)
    return PretrainModel(replace(config, adapters={**config.adapters, "text": text}), denoise=False)


def test_a_model_starts_from_one_with_another_vocabulary_and_says_so(tmp_path, caplog):
    models = [sized(one) for one in (BEFORE, NOW)]
    weights = {f"model.{name}": tensor for name, tensor in models[0].state_dict().items()}
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": weights, "onepeace": {"tokenizer": BEFORE.to_files()}}, path)
    with pytest.raises(ValueError, match=r"embedding\.weight is"):
        load_pretrained(models[1], path)
    with caplog.at_level(logging.WARNING):
        load_pretrained(models[1], path, tokenizer=NOW)
    assert "another vocabulary" in caplog.text
    bell = [model.backbone.adapters["text"].embedding.weight[tokenizer.pieces().index(b" bell")]
            for model, tokenizer in zip(models, (BEFORE, NOW), strict=True)]  # fmt: skip
    assert torch.equal(*bell)
