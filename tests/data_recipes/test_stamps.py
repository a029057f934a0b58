"""The stamps recipe on a miniature package in the real one's layout, with its oddities."""

import gzip
import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from data_recipes.stamps import package as stamps_package
from data_recipes.stamps import pretraining as stamps
from data_recipes.stamps.media import UnusableError, encode_picture, encode_sound
from data_recipes.stamps.package import LICENSE, read_package
from onepeace_lightning.data.manifest import read_manifest
from onepeace_lightning.data.shards import read_shard
from onepeace_lightning.modalities.tokenizers import load_tokenizer
from tests.inference.conftest import tiny_onepeace

RATE = 22_050
NAMES = [f"animals/animal_{number:02d}" for number in range(30)]
OPTIONS = {"vocab_size": 400, "val_fraction": 0.3, "workers": 1}


def tone(pitch, seconds=0.2, rate=RATE, channels=1):
    wave = 0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, axis=1)


def write_sound(path, pitch, **options):
    soundfile.write(path, tone(pitch, **options), options.get("rate", RATE))


def write_stamp(root, name, captions, *, color="red", size=(40, 20)):
    """A caption file and a picture: a disc on a transparent ground."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    english, *others = captions.items()
    lines = [english[1], *(f"{language}.utf8={text}" for language, text in others)]
    path.with_name(path.name + ".txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    picture = Image.new("RGBA", size, (0, 0, 0, 0))
    picture.paste(color, (size[0] // 4, size[1] // 4, size[0] * 3 // 4, size[1] * 3 // 4))
    picture.save(path.with_name(path.name + ".png"))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The package's folder tree, as ``dpkg-deb -x`` leaves it."""
    tree = tmp_path_factory.mktemp("package")
    root = tree / "usr/share/tuxpaint/stamps"
    for number, name in enumerate(NAMES):
        captions = {"en": f"A beast of kind {number}.", "fr": f"Une bête {number}.", "pt_BR": f"Um bicho {number}."}
        write_stamp(root, name, captions, color=(number * 8, 10, 200))
        write_sound(root / f"{name}_desc_fr.ogg", 300 + 17 * number, channels=2)
    root_animals = root / "animals"
    write_sound(root_animals / "animal_00.ogg", 2000)  # effect
    write_sound(root_animals / "animal_00_desc.ogg", 2050)  # English speech
    write_sound(root_animals / "animal_01_desc_pt_br.wav", 2100)  # other case, other format
    write_sound(root_animals / "animal_02_pt_BR.ogg", 2150)  # effect in a language
    write_sound(root_animals / "animal_03_desc_da.ogg", 2200)  # a language without a caption
    soundfile.write(root_animals / "animal_04_desc_fr.ogg.ogg", tone(2300), RATE, format="OGG")  # ending doubled
    (root_animals / "animal_05_desc_pt_BR.ogg").write_bytes(b"OggS, broken")
    soundfile.write(root_animals / "animal_06.ogg", np.zeros(5000), RATE)  # silent
    write_sound(root_animals / "nobody_desc_fr.ogg", 2400)
    shutil.copy(root_animals / "animal_07_desc_fr.ogg", root_animals / "animal_08_desc_fr.ogg")
    write_stamp(root, "food/twin_a", {"en": "A twin.", "fr": "Un premier jumeau."})
    write_stamp(root, "town/twin_b", {"en": "A TWIN.", "ta": "´Õ º", "lv": "Pīļ\x93 te.\\t", "he": "—"})
    (root / "food/twin_a_mirror.png").write_bytes((root / "food/twin_a.png").read_bytes())
    (root / "food/alone.png").write_bytes((root / "food/twin_a.png").read_bytes())
    (root / "food/twin_a.svg").write_text("<svg/>")
    (root / "food/soundless.txt").write_bytes(b"\xef\xbb\xbfNo picture.\nfr.utf8=Sans image.\njunk\n")
    (root / "food/untitled.txt").write_text("\nfr.utf8=Sans titre.\n")
    (root / "food/latin.txt").write_bytes("Caf\xe9".encode("latin-1"))
    write_stamp(root, "food/ghost", {"en": "A white ghost."}, color="white")
    doc = tree / "usr/share/doc/tuxpaint-stamps-default"
    doc.mkdir(parents=True)
    (doc / "changelog.Debian.gz").write_bytes(gzip.compress(b"tuxpaint-stamps (1.2-3) unstable; urgency=medium\n"))
    return tree


@pytest.fixture(scope="module")
def built(unpacked, tmp_path_factory):
    out = tmp_path_factory.mktemp("built")
    return out, stamps.build(out, unpacked, **OPTIONS)


def samples(out, stream):
    manifest = read_manifest(out / stream)
    for shard in manifest.shards:
        yield from (sample for _, sample in read_shard(manifest, shard, range(shard.samples)))


def facts(sample):
    return json.loads(sample["json"])


def find(out, kind, stamp, language):
    """The captions of a stamp's samples in one language, over both parts."""
    return [
        (facts(sample).get("kind"), sample["txt"].decode())
        for part in ("train", "val")
        for sample in samples(out, f"{part}/{kind}")
        if facts(sample)["stamp"] == stamp and facts(sample)["language"] == language
    ]


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pitch(flac):
    wave, rate = soundfile.read(io.BytesIO(flac))
    assert rate == 16_000
    assert wave.ndim == 1
    return np.argmax(np.abs(np.fft.rfft(wave))) * rate / len(wave)


def test_every_stream_is_written_with_licence_source_and_what_was_dropped(built):
    _, manifests = built
    kinds = ["image-text", "audio-text", "image", "audio", "text", "audio-image"]
    expected = {f"train/{kind}" for kind in kinds[:5]} | {f"val/{kind}" for kind in kinds}
    expected |= {f"train_gallery/{kind}" for kind in ("image-text", "audio-text", "audio-image")}
    assert set(manifests) == expected
    for folder, manifest in manifests.items():
        assert manifest.data_type == folder.split("/")[1]
        assert manifest.license == LICENSE
        assert "version 1.2-3" in manifest.source
    assert manifests["train/text"].about["dropped"] == {
        "Tamil caption in a broken encoding": 1,
        "caption file is not UTF-8": 1,
        "caption file without an English caption": 1,
        "caption line that is not LANG.utf8=caption": 1,
        "caption of a validation stamp that is in train/text too (not in val/text)": 0,
        "caption without a letter or digit": 1,
        "mirrored picture of another stamp": 1,
        "picture missing (the stamp's captions and sounds stay)": 1,
        "picture that is blank on white": 1,
        "picture without a caption file": 1,
        "second file of the same recording": 1,
        "second picture (.svg) of the same stamp": 1,
        "silent sound": 1,
        "sound of no stamp": 1,
        "sound that cannot be decoded or is empty": 1,
        "sound that repeats another's samples (once in the audio streams)": 1,
        "sound without a caption in its language (in the audio streams only)": 1,
    }


def test_speech_and_effects_get_the_caption_of_their_language(built):
    out, _ = built
    assert find(out, "audio-text", NAMES[9], "fr") == [("speech", "Une bête 9.")]
    assert sorted(find(out, "audio-text", NAMES[0], "en")) == [
        ("effect", "A beast of kind 0."),
        ("speech", "A beast of kind 0."),
    ]
    assert find(out, "audio-text", NAMES[1], "pt_BR") == [("speech", "Um bicho 1.")]
    assert find(out, "audio-text", NAMES[2], "pt_BR") == [("effect", "Um bicho 2.")]
    assert find(out, "audio-text", NAMES[3], "da") == []
    assert "da" in {facts(s)["language"] for part in ("train", "val") for s in samples(out, f"{part}/audio")}
    for part in ("train", "val"):
        for sample in samples(out, f"{part}/audio-text"):
            if facts(sample)["language"] == "fr" and (number := int(facts(sample)["stamp"][-2:])) not in (4, 8):
                assert pitch(sample["flac"]) == pytest.approx(300 + 17 * number, abs=6)
                assert sample["txt"].decode() == f"Une bête {number}."


def test_captions_are_cleaned_and_all_languages_are_in_the_text_streams(built):
    out, _ = built
    text = [sample["txt"].decode() for part in ("train", "val") for sample in samples(out, f"{part}/text")]
    assert {"A beast of kind 3.", "Une bête 3.", "Um bicho 3.", "No picture.", "Sans image.", "Pīļ te."} <= set(text)
    assert len(text) == len(set(text))
    assert not {"Sans titre.", "junk", "—"} & set(text)


def test_no_stamp_caption_or_recording_is_in_both_parts(built):
    out, manifests = built
    names, sounds, captions = ({"train": set(), "val": set()} for _ in range(3))
    for stream in manifests:
        part = stream.split("/")[0].removesuffix("_gallery")
        for sample in samples(out, stream):
            names[part].add(facts(sample)["stamp"])
            sounds[part].add(sample.get("flac", part))
            if not stream.endswith("audio-text"):
                captions[part].add(sample.get("txt", part.encode()).decode().casefold())
    for kind in (names, sounds, captions):
        assert kind["train"]
        assert kind["val"]
        assert not kind["train"] & kind["val"]
    assert {"food/twin_a", "town/twin_b"} <= names["train"] or {"food/twin_a", "town/twin_b"} <= names["val"]
    assert {NAMES[7], NAMES[8]} <= names["train"] or {NAMES[7], NAMES[8]} <= names["val"]
    assert 3 <= len(names["val"]) <= 18
    assert manifests["val/text"].about["stamps"] == {part: len(found) for part, found in names.items()}


def test_a_split_of_nothing_or_everything_is_possible_to_ask_for(unpacked):
    package = read_package(unpacked)
    media = stamps.Media(package, {}, {})
    assert stamps.split(media, 0.0) == set()
    assert stamps.split(media, 1.0) == set(package.stamps)


def test_galleries_have_one_item_per_stamp_and_prefer_english_speech(built):
    out, _ = built
    for part in ("val", "train_gallery"):
        names = [facts(sample)["stamp"] for sample in samples(out, f"{part}/audio-image")]
        assert len(names) == len(set(names)) > 1
    shown = {facts(s)["stamp"]: s for part in ("val", "train_gallery") for s in samples(out, f"{part}/audio-image")}
    assert set(shown) == set(NAMES)
    assert facts(shown[NAMES[0]]) == {"stamp": NAMES[0], "language": "en", "kind": "speech"}
    assert facts(shown[NAMES[1]])["language"] == "fr"  # the language with the most recordings
    assert shown[NAMES[1]]["txt"].decode() == "A beast of kind 1."
    spoken = {facts(s)["stamp"]: s["txt"].decode() for s in samples(out, "train_gallery/audio-text")}
    assert all(spoken[name] == f"Une bête {int(name[-2:])}." for name in spoken if name != NAMES[0])


def test_pictures_meet_captions_in_more_languages_in_training_only_on_request(unpacked, built, tmp_path):
    out, plain = built
    more = stamps.build(tmp_path / "more", unpacked, image_languages=("en", "fr"), **OPTIONS)
    assert {facts(s)["language"] for s in samples(out, "train/image-text")} == {"en"}
    assert {facts(s)["language"] for s in samples(tmp_path / "more", "train/image-text")} == {"en", "fr"}
    for stream in ("val/image-text", "train/image", "train_gallery/image-text"):
        assert more[stream].fingerprint() == plain[stream].fingerprint()


def test_an_unknown_caption_language_is_refused_with_those_there_are(unpacked, tmp_path):
    with pytest.raises(ValueError, match="no captions in xx; there are some in en, fr, lv, pt_BR"):
        stamps.build(tmp_path / "out", unpacked, image_languages=("en", "xx"), **OPTIONS)


def test_the_tokenizer_is_trained_on_the_captions(built):
    out, _ = built
    tokenizer = load_tokenizer(out / "tokenizer")
    assert tokenizer.vocab_size <= OPTIONS["vocab_size"]
    assert len(tokenizer.encode("A beast of kind").ids) < len(tokenizer.encode("Q zvmnw xv kjhg").ids)


def test_the_same_package_gives_the_same_bytes_also_from_a_deb_and_with_more_processes(unpacked, built, tmp_path):
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb builds the package for this test")
    control = tmp_path / "tree/DEBIAN/control"
    shutil.copytree(unpacked, tmp_path / "tree")
    control.parent.mkdir()
    control.write_text("Package: stamps\nVersion: 1\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: tiny\n")
    deb = tmp_path / "tiny.deb"
    subprocess.run(["dpkg-deb", "-Zxz", "--build", tmp_path / "tree", deb], check=True, capture_output=True)
    stamps.build(tmp_path / "out", deb, **{**OPTIONS, "workers": 2})
    assert content(tmp_path / "out") == content(built[0])

    deb.write_bytes(deb.read_bytes()[:-3000])
    with pytest.raises(ValueError, match=r"cannot unpack data\.tar"):
        stamps.build(tmp_path / "cut", deb, **OPTIONS)


def test_a_picture_is_put_on_a_white_square_and_never_enlarged(tmp_path):
    write_stamp(tmp_path, "flat", {"en": "Flat."}, size=(400, 100))
    big = Image.open(io.BytesIO(encode_picture(tmp_path / "flat.png", 160)))
    assert (big.mode, big.size) == ("RGB", (160, 160))
    assert big.getpixel((2, 2)) == big.getpixel((80, 66)) == (255, 255, 255)
    assert big.getpixel((80, 80)) == (255, 0, 0)
    write_stamp(tmp_path, "small", {"en": "Small."}, size=(10, 30))
    assert Image.open(io.BytesIO(encode_picture(tmp_path / "small.png", 160))).size == (30, 30)
    Image.new("LA", (8, 8), (0, 255)).save(tmp_path / "grey.png")
    assert Image.open(io.BytesIO(encode_picture(tmp_path / "grey.png", 160))).getpixel((4, 4)) == (0, 0, 0)


def test_a_drawing_keeps_its_shape_whatever_its_unit(tmp_path):
    pytest.importorskip("resvg_py")
    head = '<svg xmlns="http://www.w3.org/2000/svg" width="{}" height="{}">'
    for unit in ("", "pt", "mm"):
        path = tmp_path / f"bar{unit}.svg"
        path.write_text(head.format(f"50{unit}", f"200{unit}") + '<rect width="100%" height="100%" fill="blue"/></svg>')
        picture = np.asarray(Image.open(io.BytesIO(encode_picture(path, 80))))
        assert picture.shape == (80, 80, 3)
        assert (picture[40, :, 0] < 128).sum() == 20  # a quarter of the width is blue
    (tmp_path / "broken.svg").write_text("<svg")
    with pytest.raises(UnusableError, match="decoded"):
        encode_picture(tmp_path / "broken.svg", 80)


def test_a_sound_is_cut_and_resampled(tmp_path):
    write_sound(tmp_path / "long.ogg", 440, seconds=2.0, rate=44_100, channels=2)
    flac = encode_sound(tmp_path / "long.ogg", 0.5)
    assert soundfile.info(io.BytesIO(flac)).frames == 8000
    assert soundfile.info(io.BytesIO(flac)).subtype == "PCM_16"
    assert pitch(flac) == pytest.approx(440, abs=3)


def test_svg_pictures_without_resvg_say_what_to_install(tmp_path, monkeypatch):
    tree = tmp_path / "stamps"
    write_stamp(tree, "a/drawn", {"en": "Drawn."})
    (tree / "a/drawn.png").rename(tree / "a/drawn.svg")
    monkeypatch.setattr("data_recipes.stamps.media.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'onepeace-lightning\[recipes\]'"):
        stamps.build(tmp_path / "out", tmp_path, **OPTIONS)


def test_an_unknown_source_is_refused_and_says_what_was_expected(tmp_path):
    (tmp_path / "notes.txt").write_text("A note.\n")
    with pytest.raises(ValueError, match=r"no stamps in .*NAME\.png"):
        stamps.build(tmp_path / "out", tmp_path)
    with pytest.raises(FileNotFoundError, match="apt-get download"):
        stamps.build(tmp_path / "out", tmp_path / "missing")
    with pytest.raises(ValueError, match="not a whole Debian package"):
        stamps.build(tmp_path / "out", tmp_path / "notes.txt")


def test_without_apt_get_or_where_it_fails_one_message_says_how_to_get_the_package(tmp_path, monkeypatch):
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(SystemExit, match=r"there is no apt-get here .*--source FILE\.deb"):
        stamps.main(["--out", str(tmp_path / "out")])
    apt = programs / "apt-get"
    apt.write_text("#!/bin/sh\necho E: no such package >&2\nexit 100\n")
    apt.chmod(0o755)
    with pytest.raises(SystemExit, match=r"E: no such package.*--source FILE\.deb"):
        stamps.main(["--out", str(tmp_path / "out")])


def test_apt_get_fetches_into_a_temporary_folder(tmp_path, monkeypatch):
    programs, scratch = tmp_path / "bin", tmp_path / "scratch"
    programs.mkdir()
    scratch.mkdir()
    apt = programs / "apt-get"
    apt.write_text('#!/bin/sh\necho "$@" > "$2_1_all.deb"\n')
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    assert stamps_package.fetch(scratch).read_text() == "download tuxpaint-stamps-default\n"


def test_a_folder_in_use_is_refused_before_anything_is_done(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ValueError, match=r"is not empty.*--overwrite"):
        stamps.build(tmp_path, Path("missing"))


def test_the_command_line_overwrites_on_request_and_prints_the_counts(unpacked, tmp_path, capsys):
    options = ["--source", str(unpacked), "--vocab-size", "400", "--workers", "1", "--val-fraction", "0.3"]
    for _ in range(2):
        stamps.main(["--out", str(tmp_path / "out"), "--overwrite", *options])
    printed = capsys.readouterr().out
    assert "train/audio-text" in printed
    assert "silent sound" in printed


DIRECTIONS = [("image", "text"), ("text", "image"), ("audio", "text"), ("text", "audio"), ("audio", "image")]


@pytest.mark.parametrize(("query", "document"), DIRECTIONS)
def test_galleries_are_tasks_of_mteb(built, query, document):
    mteb = pytest.importorskip("mteb", reason="MTEB is an extra: pip install onepeace-lightning[mteb]")
    from onepeace_lightning.integrations.mteb import OnePeaceEncoder
    from onepeace_lightning.integrations.mteb_tasks import retrieval_task

    media = [name for name in ("audio", "image") if name in (query, document)]
    gallery = built[0] / "train_gallery" / "-".join([*media, "text"][:2])
    encoder = OnePeaceEncoder(tiny_onepeace(), "tests/tiny")
    task = retrieval_task(str(gallery), query, document)
    results = mteb.evaluate(encoder, task, cache=None, overwrite_strategy="always", raise_error=True)
    [[entry]] = results.task_results[0].scores.values()
    task.load_data()  # MTEB has let go of it
    data = task.dataset["default"]["test"]

    def embedded(side, name):
        items = [(torch.tensor(r["array"]), r["sampling_rate"]) if name == "audio" else r for r in data[side][name]]
        return encoder.model.embed(**{name: items})

    best = (embedded("queries", query) @ embedded("corpus", document).T).argmax(1)
    right = [f"document{row}" in data["relevant_docs"][f"query{asked}"] for asked, row in enumerate(best.tolist())]
    assert len(right) == read_manifest(gallery).samples > 10
    assert entry["main_score"] == pytest.approx(sum(right) / len(right), abs=1e-4)
