import io
import itertools
import json
import re
import tarfile

import numpy as np
import pytest
import soundfile
from PIL import Image

from data_recipes.toy.audio import MAX_SECONDS, MIN_SECONDS, SAMPLE_RATE, play_clip, play_event
from data_recipes.toy.images import INK, draw_icon, draw_picture, place_icons
from data_recipes.toy.pretraining import TRAIN_TYPES, VAL_TYPES, ToyConfig, build, main
from data_recipes.toy.world import COLOURS, SIZES, THINGS, Group, all_combinations, caption, is_held_out
from onepeace_lightning.data.manifest import read_manifest
from onepeace_lightning.modalities.tokenizers import load_tokenizer

SMALL = ToyConfig(pairs=150, singles=60, gallery=40)
STREAMS = [f"train/{kind}" for kind in TRAIN_TYPES] + [f"val/{kind}" for kind in VAL_TYPES]

GROUP = rf"(a|two|three) (small|big) (?:({'|'.join(COLOURS)}) )?({'|'.join(THINGS)})(s?)"
COUNTS = {"a": 1, "two": 2, "three": 3}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    build(folder, SMALL)
    return folder


def samples(stream_folder):
    """Every sample of a stream, read without the package's own reader: key to {extension: bytes}."""
    found = {}
    for path in sorted(stream_folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, extension = member.name.split(".")
                found.setdefault(key, {})[extension] = tar.extractfile(member).read()
    return found


def combination(sample):
    return tuple(Group(**group) for group in json.loads(sample["json"])["groups"])


def parse(text):
    """Groups and colours that a caption names; fails where the caption is not of the grammar."""
    matches = [re.fullmatch(GROUP, part) for part in text.split(" and ")]
    assert all(matches), text
    for match in matches:
        assert (match[5] == "s") == (match[1] != "a"), text
    return tuple(Group(COUNTS[m[1]], m[2], m[4]) for m in matches), [m[3] for m in matches]


def tree_bytes(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_arguments_give_the_same_bytes_however_many_processes(toy, tmp_path):
    build(tmp_path / "again", SMALL, processes=2)
    assert tree_bytes(tmp_path / "again") == tree_bytes(toy)


def test_another_seed_gives_other_samples_but_the_same_split(toy, tmp_path):
    main(["--out", str(tmp_path), "--pairs=30", "--singles=5", "--gallery=40", "--seed=1", "--processes=1"])
    ours, theirs = samples(toy / "val/image-text"), samples(tmp_path / "val/image-text")
    assert {combination(s) for s in ours.values()} != {combination(s) for s in theirs.values()}
    assert all(is_held_out(combination(s)) for s in theirs.values())


def test_manifests_say_what_is_there(toy):
    for stream in STREAMS:
        manifest = read_manifest(toy / stream)
        assert manifest.samples == len(samples(toy / stream))
        assert (manifest.license, manifest.about["seed"]) == ("CC0-1.0", 0)
    assert read_manifest(toy / "train/image-text").samples == SMALL.pairs
    assert read_manifest(toy / "train/audio").samples == SMALL.singles
    assert read_manifest(toy / "val/audio-image").samples == SMALL.gallery


def test_each_stream_holds_its_modalities_and_no_training_stream_both_picture_and_sound(toy):
    files = {"image": "png", "audio": "wav", "text": "txt"}
    for stream in STREAMS:
        expected = {files[modality] for modality in stream.split("/")[1].split("-")} | {"json"}
        if stream == "val/audio-image":
            expected.add("txt")
        assert all(set(sample) == expected for sample in samples(toy / stream).values()), stream


def test_what_validation_holds_is_in_no_training_stream_in_either_order(toy):
    held_out = {frozenset(combination(s)) for kind in VAL_TYPES for s in samples(toy / "val" / kind).values()}
    for kind in TRAIN_TYPES:
        for sample in samples(toy / "train" / kind).values():
            assert frozenset(combination(sample)) not in held_out
            if "txt" in sample and b"something" not in sample["txt"]:
                assert frozenset(parse(sample["txt"].decode())[0]) not in held_out


def test_the_galleries_are_distinct_and_show_the_same_combinations_in_the_same_order(toy):
    galleries = [[combination(s) for s in samples(toy / "val" / kind).values()] for kind in VAL_TYPES]
    assert galleries[0] == galleries[1] == galleries[2]
    assert len(set(galleries[0])) == SMALL.gallery


def test_captions_name_the_groups_in_order_and_colours_only_where_seen(toy):
    coloured = {}
    for stream in ("train/image-text", "train/audio-text", "train/text", *(f"val/{kind}" for kind in VAL_TYPES)):
        for sample in samples(toy / stream).values():
            groups, colours = parse(sample["txt"].decode())
            assert groups == combination(sample)
            assert len({colour is None for colour in colours}) == 1  # all groups' or none's
            coloured.setdefault(stream.removeprefix("train/").removeprefix("val/"), set()).add(colours[0] is not None)
    assert coloured == {
        "image-text": {True, False}, "text": {True, False}, "audio-text": {False}, "audio-image": {False},
    }  # fmt: skip


def test_caption_examples():
    groups = (Group(3, "small", "bell"), Group(1, "big", "drum"))
    assert caption(groups) == "three small bells and a big drum"
    assert caption(groups, ["red", "blue"]) == "three small red bells and a big blue drum"
    with pytest.raises(ValueError, match="zip"):
        caption(groups, ["red"])


def test_training_draws_broadly(toy):
    seen = [combination(sample) for sample in samples(toy / "train/image-text").values()]
    assert len(set(seen)) == len(seen), "a combination came again before all had come"
    assert {(group.size, group.thing) for c in seen for group in c} == set(itertools.product(SIZES, THINGS))
    assert 0.35 < np.mean([len(c) == 1 for c in seen]) < 0.65


def test_the_world_has_thousands_of_combinations_and_holds_out_a_tenth():
    combinations = all_combinations()
    assert len(set(combinations)) == len(combinations) == 96 + 96 * 93
    assert 0.07 < np.mean([is_held_out(c) for c in combinations]) < 0.13
    assert all(is_held_out(c) == is_held_out(c[::-1]) for c in combinations)
    assert not any((c[0].size, c[0].thing) == (c[-1].size, c[-1].thing) for c in combinations if len(c) == 2)


def test_pictures_and_sounds_decode_within_bounds(toy):
    for sample in samples(toy / "val/audio-image").values():
        picture = Image.open(io.BytesIO(sample["png"]))
        assert (picture.size, picture.mode) == ((96, 96), "RGB")
        wave, rate = soundfile.read(io.BytesIO(sample["wav"]))
        assert (rate, wave.ndim) == (SAMPLE_RATE, 1)
        assert MIN_SECONDS <= len(wave) / rate <= MAX_SECONDS
        assert 0.1 < np.abs(wave).max() <= 1


@pytest.mark.parametrize("thing", THINGS)
def test_small_sounds_an_octave_above_big(thing):
    def centroid(size):
        rng = np.random.default_rng(0)
        power = sum(np.abs(np.fft.rfft(play_event(thing, size, rng), 2048)) ** 2 for _ in range(8))
        return power @ np.fft.rfftfreq(2048, 1 / SAMPLE_RATE) / power.sum()

    assert centroid("small") > 2 * centroid("big")


def log_spectrum(event):
    """Logarithm of the power in 24 bands, a third of an octave or so each, of an event heard in faint noise."""
    event = event / event.std() + 0.02 * np.random.default_rng(0).standard_normal(len(event))
    power = np.abs(np.fft.rfft(event, 2048)) ** 2
    edges = np.geomspace(4, 1024, 25).astype(int)
    return np.log([power[low : max(high, low + 1)].mean() for low, high in itertools.pairwise(edges)])


def test_a_simple_classifier_tells_every_thing_and_size_by_ear():
    rng = np.random.default_rng(0)
    kinds = list(itertools.product(THINGS, SIZES))
    heard = np.array([[log_spectrum(play_event(*kind, rng)) for _ in range(8)] for kind in kinds])
    means = heard[:, :4].mean(1)
    distance = np.linalg.norm(heard[:, 4:, None] - means, axis=-1)
    assert (distance.argmin(-1) == np.arange(len(kinds))[:, None]).mean() > 0.95


def bursts(wave):
    """How many stretches of sound the silences of a clip leave (10 ms windows; pauses inside an event are shorter)."""
    window = SAMPLE_RATE // 100
    energy = np.convolve(wave**2, np.ones(window) / window, "same")
    loud = energy > 1e-5
    starts, ends = np.flatnonzero(np.diff(loud.astype(int)) == 1), np.flatnonzero(np.diff(loud.astype(int)) == -1)
    return 1 + int((starts[1:] - ends[:-1] > 0.02 * SAMPLE_RATE).sum())


@pytest.mark.parametrize("thing", ["bell", "siren", "wave", "guitar", "cricket"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_repetitions_can_be_counted_by_ear(thing, count):
    for size, seed in itertools.product(SIZES, range(3)):
        assert bursts(play_clip((Group(count, size, thing),), np.random.default_rng(seed))) == count


def test_the_longest_clip_fits_and_the_second_group_comes_second():
    three_each = (Group(3, "small", "cricket"), Group(3, "big", "drum"))
    for seed in range(20):
        wave = play_clip(three_each, np.random.default_rng(seed))
        assert len(wave) / SAMPLE_RATE <= MAX_SECONDS
        assert bursts(wave) == 6
    halves = np.array_split(wave, 2)
    crossings = [np.count_nonzero(np.diff(np.sign(half[np.abs(half) > 0.01]))) for half in halves]
    assert crossings[0] > 5 * crossings[1]


def test_icons_differ_by_shape_at_the_smallest_size():
    masks = {thing: np.asarray(draw_icon(thing, 14, COLOURS["red"]), float) / 255 for thing in THINGS}
    for one, other in itertools.combinations(THINGS, 2):
        assert np.abs(masks[one] - masks[other]).mean() > 0.08, (one, other)


def test_an_icon_takes_its_colour_and_keeps_its_ink():
    red, blue = (np.asarray(draw_icon("train", 24, COLOURS[colour])).reshape(-1, 4) for colour in ("red", "blue"))
    assert (red[:, 3] == blue[:, 3]).all()
    assert (red == (*COLOURS["red"], 255)).all(1).sum() == (blue == (*COLOURS["blue"], 255)).all(1).sum() > 50
    assert (red == (*INK, 255)).all(1).sum() > 20


@pytest.mark.parametrize("side", [96, 192])
def test_pictures_show_each_icon_apart_in_its_half(side):
    rng = np.random.default_rng(0)
    for pair in [c for c in all_combinations() if len(c) == 2][::997]:
        icons = place_icons(pair, ["red", "blue"], side, rng)
        assert [icon.thing for icon in icons] == [group.thing for group in pair for _ in range(group.count)]
        covered = np.zeros((side, side), int)
        for icon in icons:
            covered[icon.top : icon.top + icon.side, icon.left : icon.left + icon.side] += 1
            assert (icon.left + icon.side / 2 < side / 2) == (icon.group == 0)
        assert covered.max() == 1
        assert covered.sum() == sum(icon.side**2 for icon in icons)


def test_small_and_big_icons_never_meet_in_size():
    rng = np.random.default_rng(0)
    sides = {
        size: {icon.side for _ in range(50) for icon in place_icons((Group(1, size, "bee"),), ["red"], 96, rng)}
        for size in SIZES
    }
    assert max(sides["small"]) + 4 <= min(sides["big"])


def test_a_picture_holds_the_colours_of_its_groups_on_the_right_side():
    groups = (Group(2, "big", "wave"), Group(2, "big", "train"))
    picture = np.asarray(draw_picture(groups, ["red", "blue"], 96, np.random.default_rng(0)), int)
    difference = picture[..., 0] - picture[..., 2]
    assert (difference[:, :48] > 100).sum() > 200
    assert (difference[:, 48:] > 100).sum() == 0
    assert (difference[:, 48:] < -100).sum() > 200


def test_the_tokenizer_has_a_piece_for_every_word(tmp_path):
    # Sizes near the default's: rare words are whole only if the corpus shows them often enough.
    build(tmp_path, ToyConfig(pairs=600, singles=10, gallery=2))
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    for thing in THINGS:
        words = f"three small orange {thing}s and a big purple {thing}".split()
        assert len(tokenizer.encode(" ".join(words)).ids) == len(words) + 1
        # Words of the downstream tasks; a question mark and a colon are pieces of their own.
        for text in (
            f"what sounds right after the {thing} ? answer : four",
            f"how many {thing}s are there ?",
            f"the left picture has more {thing}s than the right",
            f"the small {thing} at the bottom",
            f"what is above the {thing} ?",
        ):
            assert len(tokenizer.encode(text.replace(" ?", "?").replace(" :", ":")).ids) == len(text.split()) + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gallery", "100000"], r"gallery is 100000; choose 2 to 8\d\d"),
        (["--pairs", "0"], "pairs is 0; choose at least 1"),
        (["--image-side", "8"], "image_side is 8; choose at least 48"),
    ],
)
def test_sizes_out_of_bounds_are_refused(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), *arguments])
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_used_folder_is_refused_unless_overwritten(toy, capsys):
    before = tree_bytes(toy)
    with pytest.raises(SystemExit):
        main(["--out", str(toy)])
    assert "is not empty" in capsys.readouterr().err
    build(toy, SMALL, overwrite=True)
    assert tree_bytes(toy) == before


def test_unknown_groups_are_refused():
    with pytest.raises(ValueError, match=r"no size 'huge': choose one of \('small', 'big'\)"):
        Group(1, "huge", "bell")


def test_depth_maps_show_the_icons_of_their_images_and_training_pairs_them_with_nothing_else(tmp_path):
    build(tmp_path / "with", ToyConfig(pairs=4, singles=2, gallery=4, depth=6))
    build(tmp_path / "without", ToyConfig(pairs=4, singles=2, gallery=4))
    assert {path.name for path in (tmp_path / "with/train").glob("*depth*")} == {"depth-image"}
    tars = [path.relative_to(tmp_path / "without") for path in (tmp_path / "without").rglob("*.tar")]
    assert all((tmp_path / "with" / tar).read_bytes() == (tmp_path / "without" / tar).read_bytes() for tar in tars)
    found = {}
    with tarfile.open(next((tmp_path / "with/train/depth-image").glob("*.tar"))) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            found.setdefault(key, {})[extension] = tar.extractfile(member).read()
    assert len(found) == 6
    for sample in found.values():
        assert set(sample) == {"json", "png", "depth.png"}
        image = np.asarray(Image.open(io.BytesIO(sample["png"])), int)
        metres = np.asarray(Image.open(io.BytesIO(sample["depth.png"])), float) / 1000
        icons = np.abs(image - np.median(image, (0, 1))).max(-1) > 60
        measured = metres > 0
        assert 0.97 < measured.mean() < 1
        assert metres[icons & measured].mean() < 3.2 < metres[~icons & measured].mean()
    assert read_manifest(tmp_path / "with/val/audio-depth").samples == 4
