import io
import math

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from onepeace_lightning.data.decoding import SAMPLE_RATE, decode_audio, decode_image, load_waveform
from onepeace_lightning.data.transforms import Preprocessing


def encode(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def sound(samples, rate=SAMPLE_RATE, kind="WAV", subtype=None):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def tone(seconds, rate, hertz=440.0):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def noise_picture(width=40, height=24):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


# ---------------------------------------------------------------- pictures


def test_rgb_png_comes_back_unchanged():
    picture = noise_picture()
    assert np.array_equal(np.asarray(decode_image(encode(picture))), np.asarray(picture))


def test_transparent_palette_png_shows_white():
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    decoded = decode_image(encode(picture, transparency=0))
    assert decoded.mode == "RGB"
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]


def test_half_transparent_pixel_is_mixed_with_white():
    decoded = decode_image(encode(Image.new("RGBA", (1, 1), (0, 0, 0, 128))))
    assert decoded.getpixel((0, 0)) == (127, 127, 127)


def test_cmyk_jpeg_keeps_its_colour():
    decoded = decode_image(encode(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=95))
    assert np.abs(np.asarray(decoded).reshape(-1, 3).mean(0) - [0, 255, 255]).max() < 5


def test_16_bit_grey_is_scaled_not_clipped():
    decoded = decode_image(encode(Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))))
    assert np.asarray(decoded)[0, :, 0].tolist() == [0, 100, 255]


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    assert decode_image(encode(noise_picture(40, 24), "JPEG", exif=exif)).size == (24, 40)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_truncated_picture_is_an_error(kind):
    data = encode(noise_picture(64, 64), kind)
    with pytest.raises(ValueError, match="cannot decode the image"):
        decode_image(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("data", "said"), [(b"", "0 bytes"), (b"<html>not found</html>", "<html>"), (b"fLaC" * 9, "FLAC")]
)
def test_other_bytes_are_named(data, said):
    with pytest.raises(ValueError, match=said):
        decode_image(data)


# ---------------------------------------------------------------- sounds


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_every_format_decodes(kind):
    waveform, rate = decode_audio(sound(tone(0.5, 44100), 44100, kind))
    assert rate == 44100
    assert waveform.dtype == torch.float32
    assert abs(len(waveform) - 22050) < 1200  # codecs with blocks may pad
    assert 0.3 < waveform.std() < 0.4  # 0.5 / sqrt(2)


def test_stereo_44k_becomes_the_mean_at_16k():
    left, right = tone(0.5, 44100, 300), tone(0.5, 44100, 1000)
    waveform = load_waveform(sound(np.stack([left, right], 1), 44100, "FLAC"))
    expected = (tone(0.5, SAMPLE_RATE, 300) + tone(0.5, SAMPLE_RATE, 1000)) / 2
    assert waveform.shape == (8000,)
    assert np.abs(waveform.numpy() - expected)[200:-200].max() < 2e-3


def test_8_bit_wav_is_centred_on_zero():
    waveform = load_waveform(sound(tone(0.1, SAMPLE_RATE), subtype="PCM_U8"))
    assert np.abs(waveform.numpy() - tone(0.1, SAMPLE_RATE)).max() < 0.02


def test_odd_rate_is_resampled_within_bounds():
    waveform = load_waveform(sound(tone(0.25, 44101), 44101))
    assert abs(len(waveform) - 4000) <= 4
    assert np.abs(waveform.numpy()[200:3000] - tone(0.25, SAMPLE_RATE)[200:3000]).max() < 0.02


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (sound(np.zeros(0)), "0 samples"),
        (sound(np.array([0.0, np.nan]), subtype="FLOAT"), "NaN"),
        (sound(np.array([0.0, np.inf]), subtype="FLOAT"), "infinite"),
        (sound(tone(1, 8000), 10), "10 Hz"),
        (b"", "0 bytes"),
        (b"\xff\xd8\xff\xe0 a picture", "JPEG"),
    ],
)
def test_unusable_sound_is_an_error_that_says_why(data, said):
    with pytest.raises(ValueError, match=said):
        load_waveform(data)


def test_truncated_flac_is_an_error():
    data = sound(np.random.default_rng(0).normal(size=16000) * 0.1, kind="FLAC")
    with pytest.raises(ValueError, match="FLAC"):
        load_waveform(data[: len(data) // 2])


# ---------------------------------------------------------------- preprocessing


def test_evaluation_image_is_the_bicubic_square():
    picture = noise_picture()
    resized = np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC))
    pixels = Preprocessing(image_size=32).image(picture)
    assert pixels.dtype == torch.uint8
    assert np.array_equal(pixels.numpy(), resized.transpose(2, 0, 1))


def test_training_image_is_a_crop_drawn_from_the_given_generator():
    preprocessing, picture = Preprocessing(image_size=32), noise_picture(64, 64)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = (preprocessing.augmented_image(picture, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first.shape, first.dtype) == ((3, 32, 32), torch.uint8)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_whole_crop_is_the_evaluation_image():
    preprocessing, picture = Preprocessing(image_size=32, crop_scale=(1.0, 1.0)), noise_picture(64, 64)
    assert torch.equal(preprocessing.augmented_image(picture, np.random.default_rng(0)), preprocessing.image(picture))


def test_waveform_is_normalised_before_it_is_cut():
    waveform = torch.cat([torch.ones(8000), -torch.ones(16000)])
    values = waveform.numpy()
    expected = (values - values.mean()) / math.sqrt(values.var() + 1e-5)
    prepared = Preprocessing(max_audio_seconds=1.0).waveform(waveform)
    assert prepared.shape == (16000,)
    assert np.abs(prepared.numpy() - expected[:16000]).max() < 1e-5


def test_short_waveform_is_repeated_exactly_up_to_the_minimum():
    prepared = Preprocessing(min_audio_seconds=0.25).waveform(torch.arange(1500.0))
    assert prepared.shape == (4000,)
    assert torch.equal(prepared[1500:3000], prepared[:1500])
    assert torch.equal(prepared[3000:], prepared[:1000])


def test_silence_becomes_zeros():
    assert torch.equal(Preprocessing().waveform(torch.full((16000,), 0.25)), torch.zeros(16000))


def test_all_preprocessing_problems_are_told_at_once():
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Preprocessing(image_size=100, max_audio_seconds=-1, min_audio_seconds=0.001, crop_scale=(0.9, 1.5))
    for said in ("image_size is 100", "such as 96 or 112", "max_audio_seconds is -1", "0.001", "(0.9, 1.5)"):
        assert said in str(caught.value)


def test_description_names_every_evaluation_setting():
    said = Preprocessing(image_size=64, max_audio_seconds=3, min_audio_seconds=0.25).describe()
    assert all(part in said for part in ("64×64", "first 3 s", "0.25 s", "16 kHz"))
    assert "\n" not in said
