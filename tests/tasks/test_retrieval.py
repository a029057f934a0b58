"""Retrieval, fine-tuned and as the backbone is, with one and with several captions."""

import json
import shutil
from collections import Counter

import pytest
import torch

from onepeace_lightning.data.datamodule import DataModule, StreamConfig
from onepeace_lightning.tasks import RetrievalTask, load_task
from onepeace_lightning.training.optimizer import Optimization
from tests.samples import COLOURS, PITCHES, as_json, png, wav, write


def captions_of(modality, index):
    """One or two."""
    names, noun = {"image": (list(COLOURS), "square"), "audio": (list(PITCHES), "tone")}[modality]
    return [f"a {names[index % 3]} {noun}", names[index % 3]][: 1 + index % 2]


def captioned(folder, modality, count=6, several=False):
    ending, make, names = {"image": ("png", png, list(COLOURS)), "audio": ("wav", wav, list(PITCHES))}[modality]
    samples = []
    for i in range(count):
        name = names[i % 3]
        captions = captions_of(modality, i)
        fields = {"json": as_json(captions=captions)} if several else {"txt": captions[0].encode()}
        samples.append({ending: make(name, seed=i), **fields})
    return StreamConfig(str(write(folder, f"{modality}-{'captions' if several else 'text'}", samples)), 3)


def data(reading, words, train, val):
    return DataModule(train, val, tokenizer=words, preprocessing=reading.preprocessing)


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_fine_tuning_aligns_and_the_checkpoint_answers(modality, reading, words, trainer, tmp_path):
    # three samples a batch, all different: equal captions in one batch would be negatives of each other
    train = captioned(tmp_path / "train", modality, 3)
    val = {"val": captioned(tmp_path / "val", modality)}
    task = RetrievalTask(reading, Optimization(lr=1e-3, warmup_steps=0.1), item=modality)
    run = trainer(max_steps=180)
    run.fit(task, data(reading, words, train, val))
    [scores] = run.validate(task, data(reading, words, None, val), verbose=False)
    assert scores[f"val/{modality}_to_text/R@1"] == scores[f"val/text_to_{modality}/R@1"] == 100
    assert scores["val/score"] == 100
    run.save_checkpoint(tmp_path / "task.ckpt")
    make, names, noun, ending = (
        (png, COLOURS, "square", "png") if modality == "image" else (wav, PITCHES, "tone", "wav")
    )
    files = []
    for name in names:
        files.append(tmp_path / f"{name}.{ending}")
        files[-1].write_bytes(make(name, seed=50))
    cosines = load_task(tmp_path / "task.ckpt").predict(files, [f"a {name} {noun}" for name in names], batch_size=2)
    assert cosines.argmax(1).tolist() == [0, 1, 2]
    torch.testing.assert_close(cosines, task.predict(files, [f"a {name} {noun}" for name in names]))


def test_zero_shot_scores_are_those_of_the_model_s_embeddings_over_every_caption(reading, words, trainer, tmp_path):
    val = {"val": captioned(tmp_path / "val", "image", 7, several=True)}
    task = RetrievalTask(reading, item="image")
    [scores] = trainer().validate(task, data(reading, words, None, val), verbose=False)
    names = list(COLOURS)
    files, captions, owners = [], [], []
    for i in range(7):
        (tmp_path / f"{i}.png").write_bytes(png(names[i % 3], seed=i))
        files.append(tmp_path / f"{i}.png")
        own = [f"a {names[i % 3]} square", names[i % 3]][: 1 + i % 2]
        captions += own
        owners += [i] * len(own)
    cosines = reading.similarity(image=files, text=captions)
    owners = torch.tensor(owners)
    # equal captions of other pictures tie with a picture's own: a tie counts as wrong
    best = cosines.amax(0, keepdim=True)
    right = (cosines.argmax(0) == owners) & ((cosines > best - 1e-6).sum(0) == 1)
    assert scores["val/text_to_image/R@1"] == pytest.approx(100 * right.float().mean().item())
    assert scores["val/chance/text_to_image/R@1"] == pytest.approx(100 / 7)


def test_a_pass_of_training_has_every_caption_of_every_item_once(reading, words, tmp_path):
    stream = captioned(tmp_path / "train", "image", 6, several=True)
    module = data(reading, words, stream, None)
    module.setup("fit")
    loader = module.train_loader("train", None)
    assert len(loader) == 3  # nine captions in batches of three
    rows = []
    for batch in [*loader, *loader]:
        assert len(batch.inputs["text"].ids_BL) == len(batch) == 3
        rows += zip(batch.targets["answer"], batch.captions, strict=True)
    every = [(i, caption) for i in range(6) for caption in captions_of("image", i)]
    wanted = Counter((f"{i // 5:05d}.tar/{i:03d}", caption) for i, caption in every)
    assert Counter(rows[:9]) == Counter(rows[9:]) == wanted
    module.train["train"].path = str(uncounted(tmp_path / "train", tmp_path / "uncounted"))
    with pytest.raises(ValueError, match="does not say how many captions its samples have: count them with"):
        module.train_loader("train", None)


def uncounted(folder, elsewhere):
    """The same shards with a manifest that says nothing of captions."""
    shutil.copytree(folder, elsewhere)
    content = json.loads((elsewhere / "manifest.json").read_text())
    for shard in content["shards"]:
        del shard["captions"], shard["most_captions"]
    (elsewhere / "manifest.json").write_text(json.dumps(content))
    return elsewhere


def test_a_backbone_is_fitted_to_another_vocabulary_and_says_so(reading, tmp_path, caplog):
    from onepeace_lightning.modalities.tokenizers import SentencePieceTokenizer

    other = SentencePieceTokenizer.train(["other words"], 280)
    other.save(tmp_path)
    task = RetrievalTask(reading, tokenizer=str(tmp_path), item="image")
    assert "another vocabulary" in caplog.text
    assert task.tokenizer.fingerprint() == other.fingerprint()
    task.configure_model()
    own = task.model.backbone.adapters["text"].embedding.weight
    before = RetrievalTask(reading, item="image")
    before.configure_model()
    letter = [one.tokenizer.pieces().index(b"w") for one in (task, before)]
    assert len(own) == other.vocab_size
    assert torch.equal(own[letter[0]], before.model.backbone.adapters["text"].embedding.weight[letter[1]])


def test_a_sample_without_a_caption_is_an_error_in_evaluation(reading, words, trainer, tmp_path):
    folder = write(tmp_path / "val", "image-captions", [{"png": png("red"), "json": as_json(captions=[])}])
    val = {"val": StreamConfig(str(folder), 1)}
    with pytest.raises(ValueError, match=r"'000': its captions are \[\]"):
        trainer().validate(RetrievalTask(reading, item="image"), data(reading, words, None, val))
