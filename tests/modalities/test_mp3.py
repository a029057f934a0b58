import io

import numpy as np
import pytest
import soundfile
from scipy.signal import correlate

from onepeace_lightning.modalities.audio_files import decode_audio
from onepeace_lightning.modalities.mp3 import with_right_length


def mp3(rate=44100, channels=1, seconds=1.0, **options):
    t = np.arange(round(rate * seconds)) / rate
    # From silence to noise: a variable bit rate, whose first frames say little of the others.
    values = 0.5 * np.sin(2 * np.pi * 440 * t) + np.random.default_rng(0).normal(size=len(t)) * 0.1 * (t > seconds / 2)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.repeat(values[:, None], channels, 1), rate, format="MP3", **options)
    return buffer.getvalue()


def tag(data):
    return max(data.find(b"Xing"), data.find(b"Info"))


def with_count(data, count):
    return data[: tag(data) + 8] + count.to_bytes(4) + data[tag(data) + 12 :]


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 24000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_header_that_is_right_is_left_alone(rate, channels):
    data = mp3(rate, channels)
    assert with_right_length(data) is data
    assert len(decode_audio(data)[0]) == rate


@pytest.mark.parametrize("count", [1, 5, 10**6, 2**32 - 1])
def test_a_wrong_number_of_frames_is_mended(count):
    data = mp3()
    assert with_right_length(with_count(data, count)) == data
    assert len(decode_audio(with_count(data, count))[0]) == 44100


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_without_a_header_frame_nothing_is_cut_off(rate, channels, mode):
    data = mp3(rate, channels, bitrate_mode=mode)
    samples_per_frame = 1152 if rate >= 32000 else 576
    first = with_right_length(data.replace(b"Xing", bytes(4)).replace(b"Info", bytes(4)))
    waveform = decode_audio(data.replace(b"Xing", bytes(4)).replace(b"Info", bytes(4)))[0].numpy()
    frames = int.from_bytes(first[tag(first) + 8 : tag(first) + 12])
    assert rate <= len(waveform) <= rate + 5 * samples_per_frame  # the encoder's delay and filling are kept
    assert abs(len(waveform) - frames * samples_per_frame) <= 2 * samples_per_frame
    whole = decode_audio(data)[0].numpy()
    start = int(correlate(waveform, whole, "valid").argmax())
    assert np.abs(waveform[start : start + rate] - whole)[2000:].max() < 0.05


def test_metadata_before_and_behind_the_frames_are_no_frames():
    data = mp3()
    cover = b"\xff\xfb\x90\xc4" * 300
    size = bytes(len(cover) >> shift & 0x7F for shift in (21, 14, 7, 0))
    tagged = b"ID3\x04\0\0" + size + cover + data + b"TAG".ljust(128, b"\0")
    assert with_right_length(tagged) is tagged
    waveform = decode_audio(tagged.replace(b"Xing", bytes(4)).replace(b"Info", bytes(4)))[0]
    assert 44100 <= len(waveform) <= 44100 + 5 * 1152


def test_a_cut_file_gives_what_is_there():
    data = mp3()
    waveform = decode_audio(data[: len(data) // 2])[0]
    assert 4_000 < len(waveform) < 40_000


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"ID3", b"\xff\xfb\x90", b"RIFF1234WAVE", b"\xff\xf1\x50\x80 AAC in ADTS"]
)
def test_other_bytes_are_left_alone(data):
    assert with_right_length(data) is data
