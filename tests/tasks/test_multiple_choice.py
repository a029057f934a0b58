import pytest
import torch

from onepeace_lightning.data.datamodule import DataModule, StreamConfig
from onepeace_lightning.modalities.audio import Audio
from onepeace_lightning.modalities.text import Text
from onepeace_lightning.tasks import MultipleChoiceTask, load_task
from tests.samples import PITCHES, wav, with_choices
from tests.tasks.conftest import learn
from tests.tiny import audios, texts

ASKED = ["what is it?"]


@pytest.fixture
def data(tmp_path, words, reading) -> DataModule:
    return DataModule(
        StreamConfig(str(with_choices(tmp_path / "train")), 6),
        {"val": StreamConfig(str(with_choices(tmp_path / "val", 6, first=100)), 4)},
        tokenizer=words,
        preprocessing=reading.preprocessing,
    )


def test_right_choices_are_learned_and_given_from_a_checkpoint(trainer, tmp_path, reading, data):
    data.setup("validate")
    batch = next(iter(data.val_dataloader()["val"]))
    task = MultipleChoiceTask(reading, modalities=["audio"])
    before, after = learn(task, batch, 60)
    assert after < 0.6 * before
    run = trainer(max_steps=1)
    run.fit(task, data)
    [scores] = run.validate(task, data, verbose=False)
    assert 0 <= scores["val/accuracy"] == scores["val/score"] <= 100
    assert scores["val/chance/accuracy"] == pytest.approx(100 / len(PITCHES))
    run.save_checkpoint(tmp_path / "task.ckpt")
    (tmp_path / "high.wav").write_bytes(wav("high", seed=70))
    opened = load_task(tmp_path / "task.ckpt")
    choices = list(PITCHES)
    [answer] = opened.predict([tmp_path / "high.wav"], ASKED, [choices])
    assert set(answer) == set(choices)
    assert list(answer.values()) == sorted(answer.values(), reverse=True)
    assert [answer] == task.predict([tmp_path / "high.wav"], ASKED, [choices])
    [turned] = opened.predict([tmp_path / "high.wav"], ASKED, [choices[::-1]])
    assert turned == pytest.approx(answer, abs=1e-4)


def test_the_score_is_the_share_of_right_choices(reading, data):
    task = MultipleChoiceTask(reading, modalities=["audio"])
    task.configure_model()
    data.setup("validate")
    batch = next(iter(data.val_dataloader()["val"]))
    metrics = task.make_metrics()
    outputs = task(batch)
    task.measure(outputs, batch, metrics)
    scores = outputs["scores"]
    right = sum(
        row.index(max(row)) == answer
        for row, answer in zip(scores.tolist(), batch.targets["answer"].tolist(), strict=True)
    )
    assert metrics.compute()["accuracy"].item() == pytest.approx(right / len(batch))
    batch.targets["answer"] = scores.argmax(1)
    metrics.reset()
    task.measure(outputs, batch, metrics)
    assert metrics.compute()["accuracy"].item() == 1


def test_a_sound_is_embedded_once_and_scored_as_if_it_were_given_with_every_choice(reading):
    task = MultipleChoiceTask(reading, modalities=["audio"])
    words, sounds = texts(9, 4, 7, 5, 6, 8), audios(320 * 11 + 80, 320 * 6 + 80)
    rows = []
    with task.answering() as model:
        adapter = model.backbone.adapter("audio")
        embed = adapter.embed
        adapter.embed = lambda inputs: rows.append(len(inputs.lengths)) or embed(inputs)
        scores = task.scores({"text": words, "audio": sounds}, 2)
        clips = [sounds.waveforms_BN[row, : sounds.lengths[row]] for row in (0, 0, 0, 1, 1, 1)]
        separately = model({"text": words, "audio": Audio.pad(clips)})
        last = model({"text": Text(words.ids_BL[5:, :8]), "audio": Audio.pad(clips[5:])})
    assert rows[0] == 2
    torch.testing.assert_close(scores.flatten(), separately.flatten(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores[1, 2], last[0, 0], atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_sound_once_for_all_choices(reading):
    task = MultipleChoiceTask(reading, modalities=["audio"])
    task.configure_model()
    words, sounds = texts(6, 4, 7, 5), audios(320 * 11 + 80, 320 * 6 + 80)
    weight = task.model.backbone.adapter("audio").project.weight
    grads = []
    for audio, choices in ((sounds, 2), (None, 1)):
        clips = [sounds.waveforms_BN[row, : sounds.lengths[row]] for row in (0, 0, 1, 1)]
        scores = task.model.eval()({"text": words, "audio": audio or Audio.pad(clips)}, choices=choices)
        grads.append(torch.autograd.grad(scores.pow(2).sum(), weight)[0])
    assert grads[0].abs().max() > 0
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_answered_is_refused(trainer, tmp_path, words, reading):
    task = MultipleChoiceTask(reading, modalities=["audio"])
    sound = (torch.rand(8000), 16_000)
    for choices, message in (
        ([["a"]], r"choices 0: \['a'\]; give 2 or more"),
        ([["a", "a"]], "different"),
        (["ab"], "no list of texts"),
    ):
        with pytest.raises(ValueError, match=message):
            task.predict([sound], ASKED, choices)
    with pytest.raises(ValueError, match=r"choices 1: .*as many as for the first question \(2\)"):
        task.predict([sound] * 2, ASKED * 2, [["a", "b"], ["a", "b", "c"]])
    with pytest.raises(ValueError, match=r"'audio': 1, 'question': 1, 'choices': 2"):
        task.predict([sound], ASKED, [["a", "b"], ["a", "b"]])
    with pytest.raises(ValueError, match="question None is no text"):
        task.predict([sound], [None], [["a", "b"]])
    (tmp_path / "no.wav").write_bytes(b"no sound")
    with pytest.raises(ValueError, match=r"audio 0 .*no\.wav"):
        task.predict([tmp_path / "no.wav"], ASKED, [["a", "b"]])
