import io
import math
import resource
import sys

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image, ImageOps, features

from onepeace_lightning.modalities.audio import AudioModality
from onepeace_lightning.modalities.audio_files import SAMPLE_RATE, decode_audio, resample
from onepeace_lightning.modalities.image import ImageModality
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.modalities.text import TextModality

decode_image, decode_text = ImageModality().decode, TextModality().decode


def load_waveform(data):
    return resample(*decode_audio(data))


def waveform_of(waveform, **settings):
    """A 16 kHz waveform as evaluation prepares it."""
    return AudioModality(settings).transform((waveform, SAMPLE_RATE))


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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_applied_as_pillow_does(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(noise_picture(40, 24), exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(decode_image(data)), np.asarray(expected))


def with_exif(jpeg, block):
    """A JPEG file with an EXIF block."""
    return jpeg[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2) + block + jpeg[2:]


@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0\x01\x02\x03garbage!",  # no TIFF header
        b"Exif\0\0",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",  # the directory lies outside
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04abc\0\0\0\0\0",  # the orientation is a text
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0",  # orientation 99
    ],
)
def test_metadata_that_are_none_leave_the_picture_as_it_is(block):
    data = encode(noise_picture(40, 24), "JPEG")
    assert np.array_equal(np.asarray(decode_image(with_exif(data, block))), np.asarray(decode_image(data)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 0.6, 200.4]], np.float32), [0, 1, 200]),
        (np.array([[0, 7, 200]], np.int32), [0, 7, 200]),
        (np.array([[0, 257 * 100, 65535]], np.int32), [0, 100, 255]),
    ],
)
def test_grey_of_32_bits_keeps_its_brightness(values, expected):
    picture = decode_image(encode(Image.fromarray(values), "TIFF"))
    assert picture.mode == "RGB"
    assert np.asarray(picture)[0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.array([[0.0, np.nan]], np.float32), "nan"),
        (np.array([[-0.5, 0.5]], np.float32), r"\[-0.5, 0.5\]; accepted are \[0, 255\], and \[0, 1\]"),
        (np.array([[0, 100_000]], np.int32), r"'I' with values in \[0, 100000\].*\[0, 65535\]"),
        (np.array([[-1, 3]], np.int32), r"\[-1, 3\]"),
    ],
)
def test_grey_of_32_bits_in_another_range_is_refused(values, said):
    with pytest.raises(ValueError, match=said):
        decode_image(encode(Image.fromarray(values), "TIFF"))


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


@pytest.mark.parametrize("rate", [22_050, 44_100, 48_000])
def test_resampling_keeps_what_16_khz_can_hold_and_nothing_else(rate):
    def wave(hertz: int, per_second: int) -> torch.Tensor:
        return torch.sin(2 * math.pi * hertz * torch.arange(per_second, dtype=torch.float64) / per_second).float()

    inner = slice(400, -400)
    torch.testing.assert_close(
        resample(wave(7_000, rate), rate)[inner], wave(7_000, SAMPLE_RATE)[inner], atol=1e-3, rtol=0
    )
    assert resample(wave(9_500, rate), rate)[inner].abs().max() < 1e-4


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
        (sound(tone(1, 8000), 10), "10 Hz; 1000 to 1000000 Hz"),
        (sound(tone(0.1, 8000) * 1e30, subtype="FLOAT"), r"samples in \[-5e\+29, 5e\+29\]"),
        (sound(np.array([0.1, 1e300]), subtype="DOUBLE"), "infinite"),
        (sound(np.array([[1e30, -1e30]]), subtype="FLOAT"), r"samples in \[-1e\+30, 1e\+30\]"),
        (b"", "0 bytes"),
        (b"\xff\xd8\xff\xe0 an image", "JPG"),
    ],
)
def test_unusable_sound_is_an_error_that_says_why(data, said):
    with pytest.raises(ValueError, match=said):
        load_waveform(data)


def test_truncated_flac_is_an_error():
    data = sound(np.random.default_rng(0).normal(size=16000) * 0.1, kind="FLAC")
    with pytest.raises(ValueError, match="FLAC"):
        load_waveform(data[: len(data) // 2])


def test_samples_that_are_integers_of_32_bits_keep_their_shape():
    values = np.round(tone(0.1, SAMPLE_RATE) * 2**31)
    waveform = waveform_of(load_waveform(sound(values, subtype="FLOAT")), min_seconds=0.1)
    expected = waveform_of(torch.from_numpy(tone(0.1, SAMPLE_RATE)).float(), min_seconds=0.1)
    torch.testing.assert_close(waveform, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("rate", [10, 1_000_001, 0x7FFFFFFF])
def test_a_header_with_an_impossible_rate_is_refused_before_anything_is_allocated(rate):
    data = bytearray(sound(tone(0.01, SAMPLE_RATE)))
    data[24:28] = rate.to_bytes(4, "little")
    with pytest.raises(ValueError, match=f"a sample rate of {rate} Hz"):
        load_waveform(bytes(data))


@pytest.mark.parametrize("rate", [1_000, 1_009, 44_101, 48_017, 192_001, 384_000, 999_983])
def test_any_rate_that_is_accepted_takes_little_memory_and_keeps_the_length(rate):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    waveform = resample(torch.zeros(rate // 4), rate)
    assert len(waveform) == math.ceil(rate // 4 * SAMPLE_RATE / rate)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


@pytest.mark.parametrize("bits", [0, 2**36 - 1])
def test_flac_whose_header_does_not_know_the_length(bits):
    whole = sound(tone(1, SAMPLE_RATE), kind="FLAC")
    data = bytearray(whole)
    data[21] = data[21] & 0xF0 | bits >> 32
    data[22:26] = (bits & 0xFFFFFFFF).to_bytes(4)
    if bits:  # an absurd number is not believed either; the file is then taken to be cut off
        with pytest.raises(ValueError, match=r"16000 of its \d+ samples"):
            load_waveform(bytes(data))
    else:
        assert torch.equal(load_waveform(bytes(data)), load_waveform(whole))


@pytest.mark.parametrize("size", [0x7FFFFFFF, 0xFFFFFFFF])
def test_wav_whose_header_does_not_know_the_length(size):
    whole = sound(tone(0.5, SAMPLE_RATE))
    data = whole[:40] + size.to_bytes(4, "little") + whole[44:]
    assert torch.equal(load_waveform(data), load_waveform(whole))


@pytest.mark.parametrize(("kind", "subtype"), [("OGG", "OPUS"), ("OGG", "VORBIS"), ("AIFF", "PCM_16")])
def test_other_audio_formats_keep_their_length_and_rate(kind, subtype):
    waveform, rate = decode_audio(sound(tone(0.5, 24_000), 24_000, kind, subtype))
    assert (len(waveform), rate) == (12_000, 24_000)
    assert float(waveform.abs().max()) == pytest.approx(0.5, abs=0.05)


def aac(samples, rate):
    av = pytest.importorskip("av", reason="the extra video is not installed")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="ipod") as container:  # what .m4a files are
        stream = container.add_stream("aac", rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.stack([samples, samples]).astype(np.float32), "fltp", "stereo")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def test_m4a_is_read_through_pyav(monkeypatch):
    data = aac(tone(1.0, 44_100), 44_100)
    waveform, rate = decode_audio(data)
    assert rate == 44_100
    assert 44_100 <= len(waveform) <= 47_000
    assert float(waveform[10_000:30_000].abs().max()) == pytest.approx(0.5, abs=0.05)
    with pytest.raises(ValueError, match=r"cannot decode|0 samples"):
        decode_audio(data[:200])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"needs PyAV: pip install 'onepeace-lightning\[video\]'"):
        decode_audio(data)


def test_avif_and_heic(monkeypatch):
    if features.check("avif"):
        assert np.asarray(decode_image(encode(Image.new("RGB", (16, 16), "red"), "AVIF")))[0, 0, 0] > 240
    heic = (24).to_bytes(4) + b"ftypheic" + bytes(40)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ValueError, match=r"HEIC, which needs a plug-in: pip install 'onepeace-lightning\[heif\]'"):
        decode_image(heic)
    monkeypatch.undo()
    pytest.importorskip("pillow_heif", reason="the extra heif is not installed").register_heif_opener()
    assert np.asarray(decode_image(encode(Image.new("RGB", (64, 64), "red"), "HEIF")))[0, 0, 0] > 240


# ---------------------------------------------------------------- text


def test_a_byte_order_mark_is_no_part_of_the_text():
    assert decode_text(b"\xef\xbb\xbfa cow") == decode_text(b"a cow") == "a cow"


@pytest.mark.parametrize(
    ("data", "said"), [("a cow".encode("utf-16"), "UTF-16"), ("K\xfche".encode("cp1252"), "not UTF-8")]
)
def test_text_in_another_encoding_is_named(data, said):
    with pytest.raises(ValueError, match=f"{said}.*save it as UTF-8"):
        decode_text(data)


# ---------------------------------------------------------------- preprocessing


def test_evaluation_image_is_the_bicubic_square():
    picture = noise_picture()
    resized = np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC))
    pixels = ImageModality({"size": 32}).transform(picture)
    assert pixels.dtype == torch.uint8
    assert np.array_equal(pixels.numpy(), resized.transpose(2, 0, 1))


def test_training_image_is_a_crop_drawn_from_the_given_generator():
    image, picture = ImageModality({"size": 32}), noise_picture(64, 64)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = (image.augment(picture, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first.shape, first.dtype) == ((3, 32, 32), torch.uint8)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_whole_crop_is_the_evaluation_image():
    image, picture = ImageModality({"size": 32, "crop_scale": (1.0, 1.0)}), noise_picture(64, 64)
    assert torch.equal(image.augment(picture, np.random.default_rng(0)), image.transform(picture))


def test_waveform_is_normalised_before_it_is_cut():
    waveform = torch.cat([torch.ones(8000), -torch.ones(16000)])
    values = waveform.numpy()
    expected = (values - values.mean()) / math.sqrt(values.var() + 1e-5)
    prepared = waveform_of(waveform, max_seconds=1.0)
    assert prepared.shape == (16000,)
    assert np.abs(prepared.numpy() - expected[:16000]).max() < 1e-5


def test_short_waveform_is_repeated_exactly_up_to_the_minimum():
    prepared = waveform_of(torch.arange(1500.0), min_seconds=0.25)
    assert prepared.shape == (4000,)
    assert torch.equal(prepared[1500:3000], prepared[:1500])
    assert torch.equal(prepared[3000:], prepared[:1000])


def test_silence_becomes_zeros():
    assert torch.equal(waveform_of(torch.full((16000,), 0.25)), torch.zeros(16000))


def test_all_preprocessing_problems_are_told_at_once():
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Preprocessing(
            {"image": {"size": 100, "crop_scale": (0.9, 1.5)}, "audio": {"max_seconds": -1, "min_seconds": 0.001}}
        )
    for said in ("size is 100", "such as 96 or 112", "max_seconds is -1", "0.001", "(0.9, 1.5)"):
        assert said in str(caught.value)


def test_description_names_every_evaluation_setting():
    settings = Preprocessing({"image": {"size": 64}, "audio": {"max_seconds": 3, "min_seconds": 0.25}})
    said = settings.describe(["text", "image", "audio"])
    assert all(part in said for part in ("64×64", "first 3 s", "0.25 s", "16 kHz"))
    assert "\n" not in said
