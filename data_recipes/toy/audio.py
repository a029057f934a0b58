"""Sounds of the toy world: one short synthetic event a thing, and clips made of events.

A synthesiser takes the times of its samples in seconds, a pitch factor (1 for the big thing, more for the small one)
and a random generator, and returns a waveform of any level; ``play_event`` gives all events the same loudness.
"""

import io
from collections.abc import Callable

import numpy as np
import soundfile
from scipy.signal import butter, sosfilt

from data_recipes.toy.world import Combination, Group

SAMPLE_RATE = 16_000
PITCH = {"small": 2.3, "big": 1.0}
"""Factor on every frequency of a thing's sound."""

MIN_SECONDS, MAX_SECONDS = 0.4, 1.15
"""Bounds of a clip's length."""

_EVENT_SECONDS = (0.12, 0.13)
_GAP_SECONDS = (0.035, 0.045)  # between the repetitions of a group
_PAUSE_SECONDS = (0.07, 0.09)  # between two groups
_EDGE_SECONDS = (0.015, 0.03)
_LOUDNESS = 0.07  # root mean square of an event
_HUM = 0.0012  # root mean square of the background noise

Wave = np.ndarray
Synthesiser = Callable[[Wave, float, np.random.Generator], Wave]


def _tone(frequency: Wave | float, t: Wave, harmonics: tuple[float, ...] = (1.0,)) -> Wave:
    """A sum of harmonics (their amplitudes given, from the first) on a frequency in Hz that may change over time."""
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(frequency, t.shape)) / SAMPLE_RATE
    return np.sum([a * np.sin(k * phase) for k, a in enumerate(harmonics, 1)], axis=0)


def _noise(t: Wave, low: float, high: float, rng: np.random.Generator) -> Wave:
    """White noise between two frequencies in Hz."""
    return _filter(rng.standard_normal(len(t)), low, high)


def _filter(wave: Wave, low: float, high: float) -> Wave:
    """Band-pass; the band in Hz is cut at 7.8 kHz."""
    band = butter(2, [low, min(high, 7800.0)], "bandpass", fs=SAMPLE_RATE, output="sos")
    return sosfilt(band, wave)


def _bell(t: Wave, pitch: float, rng: np.random.Generator) -> Wave:
    partials = ((1.0, 1.0, 18), (2.76, 0.7, 30), (5.4, 0.35, 50))
    return np.sum([a * np.exp(-d * t) * _tone(440 * ratio * pitch, t) for ratio, a, d in partials], axis=0)


def _drum(t: Wave, pitch: float, rng: np.random.Generator) -> Wave:
    skin = np.exp(-28 * t) * _tone(pitch * (85 + 90 * np.exp(-50 * t)), t)
    return skin + 0.15 * np.exp(-250 * t) * _noise(t, 300 * pitch, 1200 * pitch, rng)


def _siren(t: Wave, pitch: float, rng: np.random.Generator) -> Wave:
    sweep = np.sin(np.pi * t / t[-1]) ** 2
    return _tone(pitch * (380 + 500 * sweep), t, (1, 0.6, 0.4))


def _bird(t: Wave, pitch: float, rng: np.random.Generator) -> Wave:
    rise = (t * 30) % 1  # an upward chirp every 33 ms
    return np.sin(np.pi * rise) * _tone(pitch * (1250 + 1200 * rise), t)


def _raincloud(t: Wave, pitch: float, rng: np.random.Generator) -> Wave:
    drops = (rng.random(len(t)) < 400 / SAMPLE_RATE) * rng.standard_normal(len(t))
    return _filter(drops + 0.05 * rng.standard_normal(len(t)), 2000 * pitch, 3100 * pitch)


def _clock(t: Wave, pitch: float, rng: np.random.Generator) -> Wave:
    tick = np.exp(-300 * t) * _tone(1300 * pitch, t, (1, 0.5))
    tock = np.exp(-300 * np.maximum(t - 0.035, 0)) * (t >= 0.035) * _tone(950 * pitch, t, (1, 0.5))
    return tick + tock


def _dog(t: Wave, pitch: float, rng: np.random.Generator) -> Wave:
    shape = np.sin(np.pi * np.minimum(t / 0.08, 1))
    bark = _tone(pitch * (170 + 130 * shape), t, (0.5, 1, 1, 0.7, 0.3))
    return shape * (bark + 0.8 * _noise(t, 500 * pitch, 1400 * pitch, rng))


def _train(t: Wave, pitch: float, rng: np.random.Generator) -> Wave:
    chuff = np.exp(-60 * ((t * 30) % 1) / 30)
    return chuff * _noise(t, 250 * pitch, 700 * pitch, rng)


def _frog(t: Wave, pitch: float, rng: np.random.Generator) -> Wave:
    croak = np.exp(-90 * ((t * 55) % 1) / 55)
    return croak * _tone(620 * pitch, t, (1, 0.4))


def _guitar(t: Wave, pitch: float, rng: np.random.Generator) -> Wave:
    strings = [np.exp(-8 * k * t) / k * _tone(150 * k * pitch, t) for k in range(1, 8)]
    return np.sum(strings, axis=0)


def _bee(t: Wave, pitch: float, rng: np.random.Generator) -> Wave:
    wobble = 1 + 0.06 * np.sin(2 * np.pi * 22 * t)
    return _tone(210 * pitch * wobble, t, tuple(1 / k for k in range(1, 13)))


def _horn(t: Wave, pitch: float, rng: np.random.Generator) -> Wave:
    odd = (1, 0, 0.6, 0, 0.45, 0, 0.3)
    return _tone(330 * pitch, t, odd) + _tone(415 * pitch, t, odd)


def _whistle(t: Wave, pitch: float, rng: np.random.Generator) -> Wave:
    pea = np.sin(2 * np.pi * 45 * t)
    return (1 + 0.5 * pea) * _tone(pitch * (1900 + 120 * pea), t)


def _cricket(t: Wave, pitch: float, rng: np.random.Generator) -> Wave:
    return np.clip(np.sin(2 * np.pi * 60 * t), 0, 1) * _tone(2800 * pitch, t)


def _wave(t: Wave, pitch: float, rng: np.random.Generator) -> Wave:
    swell = (t / t[-1]) ** 1.5
    return swell * _noise(t, 800 * pitch, 1600 * pitch, rng)


def _phone(t: Wave, pitch: float, rng: np.random.Generator) -> Wave:
    warble = np.where((t * 40).astype(int) % 2 == 0, 700.0, 1050.0)
    return _tone(pitch * warble, t, (1, 0, 0.5))


_SOUNDS: dict[str, Synthesiser] = {
    "bell": _bell,
    "drum": _drum,
    "siren": _siren,
    "bird": _bird,
    "raincloud": _raincloud,
    "clock": _clock,
    "dog": _dog,
    "train": _train,
    "frog": _frog,
    "guitar": _guitar,
    "bee": _bee,
    "horn": _horn,
    "whistle": _whistle,
    "cricket": _cricket,
    "wave": _wave,
    "phone": _phone,
}


def play_event(thing: str, size: str, rng: np.random.Generator) -> Wave:
    """Synthesise one occurrence of a thing's sound.

    Args:
        thing: one of ``THINGS``.
        size: "small" for the high, "big" for the low version.
        rng: draws length (120 to 130 ms), pitch (±3 %), gain (±2 dB) and noise.

    Returns:
        (samples,) float64 at 16 kHz.
    """
    t = np.arange(int(rng.uniform(*_EVENT_SECONDS) * SAMPLE_RATE)) / SAMPLE_RATE
    event = _SOUNDS[thing](t, PITCH[size] * rng.uniform(0.97, 1.03), rng)
    fade = np.minimum(1, np.minimum(t / 0.002, (t[-1] - t) / 0.005))
    event = event * fade
    gain = 10 ** (rng.uniform(-2, 2) / 20)
    return event * gain * _LOUDNESS / np.sqrt(np.mean(event**2))


def play_clip(combination: Combination, rng: np.random.Generator) -> Wave:
    """Play the groups one after the other: as many events as each counts, between short silences.

    Returns:
        (samples,) float32 in -1 .. 1 at 16 kHz, ``MIN_SECONDS`` to ``MAX_SECONDS`` long.
    """
    pieces = [_silence(_EDGE_SECONDS, rng)]
    for index, group in enumerate(combination):
        if index:
            pieces.append(_silence(_PAUSE_SECONDS, rng))
        pieces.extend(_play_group(group, rng))
    pieces.append(_silence(_EDGE_SECONDS, rng))
    clip = np.concatenate(pieces)
    clip = np.pad(clip, (0, max(0, round(MIN_SECONDS * SAMPLE_RATE) - len(clip))))
    clip += _HUM * rng.standard_normal(len(clip))
    return np.clip(clip, -0.99, 0.99).astype(np.float32)


def _play_group(group: Group, rng: np.random.Generator) -> list[Wave]:
    pieces = [play_event(group.thing, group.size, rng)]
    for _ in range(group.count - 1):
        pieces += [_silence(_GAP_SECONDS, rng), play_event(group.thing, group.size, rng)]
    return pieces


def _silence(bounds: tuple[float, float], rng: np.random.Generator) -> Wave:
    return np.zeros(int(rng.uniform(*bounds) * SAMPLE_RATE))


def encode_wav(clip: Wave) -> bytes:
    """A clip as 16-bit WAV, which decodes 2.5 times as fast as FLAC and is only 1.6 times as large."""
    buffer = io.BytesIO()
    soundfile.write(buffer, clip, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
