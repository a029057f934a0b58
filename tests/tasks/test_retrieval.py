"""Retrieval, fine-tuned and as the backbone is, with one and with several captions."""

import pytest
import torch

from onepeace_lightning.data.datamodule import DataModule, StreamConfig
from onepeace_lightning.tasks import RetrievalTask, load_task
from onepeace_lightning.training.optimizer import Optimization
from tests.samples import COLOURS, PITCHES, as_json, png, wav, write


def captioned(folder, modality, count=6, several=False):
    ending, make, names, noun = {
        "image": ("png", png, list(COLOURS), "square"),
        "audio": ("wav", wav, list(PITCHES), "tone"),
    }[modality]
    samples = []
    for i in range(count):
        name = names[i % 3]
        captions = [f"a {name} {noun}", name][: 1 + i % 2]  # one or two
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
    task = RetrievalTask(reading, Optimization(lr=3e-3, warmup_steps=0.1), item=modality)
    run = trainer(max_steps=60)
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


def test_training_draws_one_of_the_captions_and_uses_all_of_them(reading, words, tmp_path):
    module = data(reading, words, captioned(tmp_path / "train", "image", 6, several=True), None)
    module.setup("fit")
    seen = set()
    loader = module.train_loader("train", 20)
    for batch in loader:
        assert len(batch.inputs["text"].ids_BL) == len(batch) == 3
        seen |= set(batch.captions)
    assert seen == {f"a {name} square" for name in COLOURS} | set(COLOURS)


def test_a_tokenizer_of_another_model_is_refused(reading, tmp_path):
    from onepeace_lightning.modalities.tokenizers import SentencePieceTokenizer

    SentencePieceTokenizer.train(["other words"], 280).save(tmp_path)
    with pytest.raises(ValueError, match="trained with another tokenizer"):
        RetrievalTask(reading, tokenizer=str(tmp_path), item="image")


def test_a_sample_without_a_caption_is_an_error_in_evaluation(reading, words, trainer, tmp_path):
    folder = write(tmp_path / "val", "image-captions", [{"png": png("red"), "json": as_json(captions=[])}])
    val = {"val": StreamConfig(str(folder), 1)}
    with pytest.raises(ValueError, match=r"'000': its captions are \[\]"):
        trainer().validate(RetrievalTask(reading, item="image"), data(reading, words, None, val))
