import io

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from onepeace_lightning.modalities.audio import AudioModality
from onepeace_lightning.modalities.audio_files import resample
from onepeace_lightning.modalities.image import ImageModality
from onepeace_lightning.modalities.items import as_items, read_batch
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.modalities.tokenizers import SentencePieceTokenizer

PREPROCESSING = Preprocessing({"image": {"size": 32}})
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def batch_of(modality, items, tokenizer=None, first=0):
    return read_batch(PREPROCESSING.modality(modality, tokenizer), items, first)


def to_picture(item):
    return ImageModality().load(item)


def to_waveform(item):
    return resample(*AudioModality().load(item))


@pytest.fixture(scope="module")
def tokenizer():
    return SentencePieceTokenizer.train(["a cow and a dog"], 300)


def test_a_picture_is_the_same_in_every_form(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "picture.png")
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1)
    forms = [
        tmp_path / "picture.png",
        str(tmp_path / "picture.png"),
        Image.fromarray(PIXELS),
        PIXELS,
        PIXELS[:, ::-1][:, ::-1],
        tensor,
        tensor / 255,
        (tensor / 255).double().requires_grad_(),
    ]
    for form in forms:
        assert np.array_equal(np.asarray(to_picture(form)), PIXELS)
    pixels = batch_of("image", forms).pixels
    assert pixels.shape == (8, 3, 32, 32)
    assert (pixels == pixels[0]).all()


def test_a_pil_picture_is_turned_and_freed_of_transparency_as_its_file_is(tmp_path):
    picture = Image.fromarray(PIXELS).convert("RGBA")
    picture.putalpha(128)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    opened = to_picture(Image.open(tmp_path / "turned.png"))
    assert opened.size == (24, 40)
    assert np.array_equal(np.asarray(opened), np.asarray(to_picture(tmp_path / "turned.png")))


def test_a_pil_picture_with_unreadable_metadata_is_read():
    picture = Image.fromarray(PIXELS)
    picture.info["exif"] = b"Exif\0\0\x01\x02\x03 none"
    assert np.array_equal(np.asarray(to_picture(picture)), PIXELS)


@pytest.mark.parametrize(
    ("item", "says"),
    [
        (PIXELS.astype(np.float32), r"array of float32 \(24, 40, 3\).*uint8 \(height, width, 3\)"),
        (PIXELS[..., :2], r"\(24, 40, 2\)"),
        (PIXELS[:0], r"\(0, 40, 3\)"),
        (torch.zeros(24, 40, 3), r"shape \(24, 40, 3\).*\(3, height, width\)"),
        (torch.zeros(3, 0, 4), r"shape \(3, 0, 4\)"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "int64"),
        (torch.full((3, 4, 4), -0.5), r"\[-0.5, -0.5\], not \[0, 1\].*before any normalisation"),
        (torch.full((3, 4, 4), 255.0), r"\[255, 255\]"),
        (torch.full((3, 4, 4), torch.nan), "nan"),
        (3.5, "float is no image; give a path"),
    ],
)
def test_what_is_no_picture_is_refused(item, says):
    with pytest.raises(ValueError, match=says):
        to_picture(item)


def tone(rate, seconds=1.0):
    return torch.sin(2 * torch.pi * 440 * torch.arange(round(rate * seconds)) / rate)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_any_rate_becomes_16_khz(rate):
    waveform = to_waveform((tone(rate), rate))
    assert waveform.shape == (16000,)
    assert (waveform - tone(16000))[200:-200].abs().max() < 0.02


def test_a_sound_is_the_same_in_every_form(tmp_path):
    samples = (tone(16000) * 20000).round().to(torch.int16)
    soundfile.write(tmp_path / "tone.wav", samples.numpy(), 16000, subtype="PCM_16")
    from_file = to_waveform(tmp_path / "tone.wav")
    floats = samples.float() / 32768
    forms = [
        (samples, 16000),
        (samples.numpy(), np.int64(16000)),
        (samples.to(torch.int32) * 65536, 16000),
        (floats.double(), 16000),
        (floats[None], 16000),
        (floats.expand(6, -1), 16000),
        (floats.clone().requires_grad_(), 16000),
    ]
    for form in forms:
        waveform = to_waveform(form)
        assert waveform.dtype == torch.float32
        assert not waveform.requires_grad
        torch.testing.assert_close(waveform, from_file, atol=1e-6, rtol=0)


def test_channels_are_averaged():
    left, right = tone(16000), torch.randn(16000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(to_waveform((torch.stack([left, right]), 16000)), (left + right) / 2)


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ((torch.zeros(100, 2), 16000), "100 channels and 2 samples; channels go first: transpose"),
        ((torch.zeros(1, 2, 100), 16000), r"shape \(1, 2, 100\)"),
        ((torch.zeros(0), 16000), r"shape \(0,\)"),
        ((torch.tensor(0.5), 16000), r"shape \(\)"),
        ((torch.zeros(100), 0), "sample rate of 0 Hz; 1000 to 1000000"),
        ((torch.zeros(100), 44100.5), "sample rate of 44100.5"),
        ((torch.zeros(100), "16000"), "sample rate of '16000'"),
        ((torch.zeros(100, dtype=torch.uint8), 16000), "uint8; give floating-point"),
        ((torch.tensor([0.0, torch.inf]), 16000), "infinite or undefined"),
        ((torch.full((100,), 1e30), 16000), r"samples in \[1e\+30, 1e\+30\]"),
        ((torch.tensor([[1e30, 0.0], [-1e30, 0.0]]), 16000), r"samples in \[-1e\+30, 1e\+30\]"),
        ((torch.zeros(100), 0x7FFFFFFF), "sample rate of 2147483647 Hz"),
        ((16000, torch.zeros(100)), r"\(int, Tensor\) is no audio; give a path or a tuple \(waveform, sample_rate\)"),
        (torch.zeros(100), "Tensor is no audio"),
    ],
)
def test_what_is_no_sound_is_refused(item, says):
    with pytest.raises(ValueError, match=says):
        to_waveform(item)


def test_clips_are_padded_and_keep_their_lengths():
    audio = batch_of("audio", [(torch.randn(20000), 16000), (torch.randn(24000), 16000)])
    assert audio.lengths == [20000, 24000]
    assert audio.waveforms_BN.shape == (2, 24000)
    assert (audio.waveforms_BN[0, 20000:] == 0).all()
    torch.testing.assert_close(audio.waveforms_BN[0, :20000].std(correction=0), torch.tensor(1.0), atol=1e-3, rtol=0)


def test_a_bad_item_names_its_index_and_path(tmp_path, tokenizer):
    Image.fromarray(PIXELS).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"^image 41 \(.*bad\.png\): cannot decode") as error:
        batch_of("image", [tmp_path / "good.png", str(tmp_path / "bad.png")], first=40)
    assert error.value.__cause__ is not None
    with pytest.raises(ValueError, match=r"^image 0 \(.*absent\.jpg\): .*No such file"):
        batch_of("image", [tmp_path / "absent.jpg"])
    (tmp_path / "bad.flac").write_bytes(b"fLaC nonsense")
    with pytest.raises(ValueError, match=r"^audio 1 \(.*bad\.flac\): cannot decode"):
        batch_of("audio", [(tone(16000), 16000), tmp_path / "bad.flac"])
    with pytest.raises(ValueError, match=r"^audio 2: a sample rate of 0"):
        batch_of("audio", [(tone(16000), 16000), (tone(16000), 16000), (tone(16000), 0)])
    with pytest.raises(ValueError, match=r"^text 1: caption '\?!' has no words"):
        batch_of("text", ["a cow", "?!"], tokenizer)
    with pytest.raises(ValueError, match=r"^text 0: a int is no text"):
        batch_of("text", [7], tokenizer)


def test_a_lazily_opened_broken_picture_is_named():
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    opened = Image.open(io.BytesIO(buffer.getvalue()[:1500]))
    with pytest.raises(ValueError, match=r"^image 0: "):
        batch_of("image", [opened])


@pytest.mark.parametrize("items", ["a cow", b"cow", Image.new("RGB", (4, 4)), 7])
def test_a_single_item_is_not_taken_apart(items):
    with pytest.raises(ValueError, match=r"give a list, such as image=\[item\]"):
        as_items("image", items)


def test_batches_of_arrays_and_generators_are_taken_apart():
    assert len(as_items("image", torch.zeros(5, 3, 4, 4))) == 5
    assert as_items("text", (word for word in ["a", "b"])) == ["a", "b"]
