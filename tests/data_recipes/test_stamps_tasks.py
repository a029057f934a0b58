"""The stamps' downstream tasks on a miniature package in the real one's layout, answered anew from the metadata."""

import io
import json
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data_recipes import stamps_tasks
from data_recipes.stamps_media import UnusableError, cut_out
from data_recipes.stamps_package import LICENSE, read_package
from data_recipes.stamps_tasks_plans import sentences
from data_recipes.stamps_tasks_scenes import CATEGORIES, make_cutouts, short_noun
from onepeace_lightning.data.shards import read_manifest, read_shard
from tests.data_recipes.test_stamps import write_sound, write_stamp

OPTIONS = {
    "train": 40, "val": 40, "image_size": 96, "val_fraction": 0.4, "min_stamps": 8, "min_recordings": 20, "workers": 1,
}  # fmt: skip
TYPES = {
    "image_classification": "image-label",
    "audio_classification": "audio-label",
    "visual_grounding": "image-box",
    "semantic_segmentation": "image-mask",
    "visual_question_answering": "image-question",
}
ONE = {words[0]: category for category, words in CATEGORIES.items()}
SEVERAL = {words[1]: category for category, words in CATEGORIES.items()}
AXIS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
PLACES = {"on the left": (0, -1), "on the right": (0, 1), "at the top": (1, -1), "at the bottom": (1, 1)}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """Eight stamps in each category, each read aloud in French and Russian; one folder too small to be a class."""
    tree = tmp_path_factory.mktemp("package")
    root = tree / "usr/share/tuxpaint/stamps"
    for place, category in enumerate(CATEGORIES):
        for number in range(8):
            name = f"{category}/kind{number}/it_{number}"
            color = (place * 40, number * 30, 90)
            write_stamp(root, name, {"en": f"A {category} thing{number}."}, color=color, size=(40, 24 + 2 * number))
            for offset, language in enumerate(("fr", "ru")):
                write_sound(root / f"{name}_desc_{language}.ogg", 300 + 700 * offset + 90 * place + 11 * number)
    for number in range(3):
        write_stamp(root, f"space/star_{number}", {"en": f"Star number {number}."}, color=(250, 250, number))
        write_sound(root / f"space/star_{number}_desc_el.ogg", 3000 + 50 * number)
    Image.new("RGB", (30, 30), "red").save(root / "food/kind0/it_0.png")  # no transparent ground
    return tree


@pytest.fixture(scope="module")
def built(unpacked, tmp_path_factory):
    out = tmp_path_factory.mktemp("built")
    return out, stamps_tasks.build(out, unpacked, **OPTIONS)


def manifest(out, task, part):
    return read_manifest(out / task / part / TYPES[task])


def samples(out, task, *parts):
    for part in parts or ("train", "val"):
        found = manifest(out, task, part)
        for shard in found.shards:
            for _, sample in read_shard(found, shard, range(shard.samples)):
                yield {**sample, "facts": json.loads(sample["json"])}


def centre(one):
    x0, y0, x1, y1 = one["box"]
    return (x0 + x1) / 2, (y0 + y1) / 2


def stands(words, one, other):
    axis, sign = AXIS[words]
    return (centre(one)[axis] - centre(other)[axis]) * sign > 0


def extreme(place, things):
    axis, sign = PLACES[place]
    return max(things, key=lambda one: centre(one)[axis] * sign)


def test_every_part_is_written_with_licence_split_and_chance(built):
    out, chances = built
    assert set(chances) == set(TYPES)
    for task in TYPES:
        for part in ("train", "val"):
            found = manifest(out, task, part)
            assert found.license == LICENSE
            assert found.about["split"] == part
            assert "by stamp" in found.about["split_rule"]
            assert 0 < found.about["chance"]["percent"] == round(chances[task].percent, 2)
            assert found.about["not_in_scenes"] == {"picture without a transparent ground": 1}
    assert manifest(out, "visual_grounding", "train").samples == OPTIONS["train"]


def test_no_stamp_is_in_both_parts_of_any_task(built):
    out, _ = built
    names = {"train": set(), "val": set()}
    for task in TYPES:
        for part, found in names.items():
            for sample in samples(out, task, part):
                facts = sample["facts"]
                found.update([facts["stamp"]] if "stamp" in facts else [one["stamp"] for one in facts["things"]])
    assert names["train"]
    assert names["val"]
    assert not names["train"] & names["val"]


def test_pictures_and_voices_have_the_label_of_their_folder_and_language(built):
    out, _ = built
    assert manifest(out, "image_classification", "val").about["classes"] == sorted(CATEGORIES)
    seen = [sample["facts"] for sample in samples(out, "image_classification")]
    assert all(facts["labels"] == [facts["stamp"].split("/")[0]] for facts in seen)
    assert len({facts["stamp"] for facts in seen}) == len(seen) == 48
    assert manifest(out, "audio_classification", "val").about["classes"] == ["fr", "ru"]
    heard = Counter(sample["facts"]["labels"][0] for sample in samples(out, "audio_classification"))
    assert heard == {"fr": 48, "ru": 48}


def test_an_expression_means_one_stamp_alone(built):
    out, _ = built
    kinds = Counter()
    called = rf"(?:{'|'.join(ONE)}|[\w ]+?)"
    pattern = rf"the ({called})(?: ({'|'.join(PLACES)})| ({'|'.join(AXIS)}) the ({called}))?"
    for sample in samples(out, "visual_grounding"):
        things = sample["facts"]["things"]
        match = re.fullmatch(pattern, sample["txt"].decode())
        name, place, relation, anchor = match.groups()

        def named(word, things=things):
            return [one for one in things if word in (one["noun"],) or one["thing"] == ONE.get(word)]

        found = named(name)
        if place:
            assert len(found) > 1
            found = [extreme(place, found)]
        if relation:
            (other,) = named(anchor)
            found = [one for one in found if stands(relation, one, other)]
        assert [one["box"] for one in found] == [sample["facts"]["box"]]
        kinds[bool(place), bool(relation), name in ONE] += 1
    assert len(kinds) == 4  # by noun, by category, by place, by relation


def test_boxes_are_tight_and_masks_agree_with_the_pictures(built):
    out, _ = built
    classes = manifest(out, "semantic_segmentation", "val").about["classes"]
    for sample in samples(out, "semantic_segmentation"):
        pixels = np.asarray(Image.open(io.BytesIO(sample["png"])), int)
        values, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
        differs = np.abs(pixels - values[counts.argmax()]).max(-1)
        mask = np.asarray(Image.open(io.BytesIO(sample["mask.png"])))
        assert mask.shape == pixels.shape[:2] == (96, 96)
        assert (differs[mask > 0] > 50).all()
        assert {classes[index] for index in np.unique(mask)} == {
            "background", *(one["thing"] for one in sample["facts"]["things"]),
        }  # fmt: skip
        for one in sample["facts"]["things"]:
            rows, columns = np.nonzero(mask == classes.index(one["thing"]))
            assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == one["box"]
            differs[one["box"][1] : one["box"][3], one["box"][0] : one["box"][2]] = 0
        assert differs.max() < 130  # outside all boxes there are faint edges alone


def answer(question, things):
    shown = Counter(one["thing"] for one in things)
    if match := re.fullmatch(r"how many (.+) are there\?", question):
        return str(shown[SEVERAL[match[1]]])
    if match := re.fullmatch(r"is there a (.+)\?", question):
        return "yes" if shown[ONE[match[1]]] else "no"
    if match := re.fullmatch(rf"what is ({'|'.join(PLACES)})\?", question):
        found = extreme(match[1], things)
    else:
        match = re.fullmatch(rf"what is ({'|'.join(AXIS)}) the (.+)\?", question)
        (named,) = (one for one in things if one["thing"] == ONE[match[2]])
        (found,) = (one for one in things if one is not named and stands(match[1], one, named))
    return CATEGORIES[found["thing"]][0]


def test_questions_are_answered_by_what_is_there(built):
    out, _ = built
    known = manifest(out, "visual_question_answering", "val").about["answers"]
    for sample in samples(out, "visual_question_answering"):
        expected = answer(sample["txt"].decode(), sample["facts"]["things"])
        assert sample["facts"]["answers"] == {expected: 1.0}
        assert expected in known


def test_the_vocabulary_is_trained_on_what_is_asked(built):
    known = set(sentences())
    asked = {sample["txt"].decode() for sample in samples(built[0], "visual_question_answering")}
    assert asked <= known


def test_the_same_package_gives_the_same_bytes(unpacked, built, tmp_path):
    stamps_tasks.build(tmp_path, unpacked, **OPTIONS)
    ours, theirs = (
        {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
        for root in (built[0], tmp_path)
    )
    assert ours == theirs


def test_a_cutout_is_cut_to_what_is_seen(tmp_path):
    picture = Image.new("RGBA", (100, 60), (0, 0, 0, 0))
    ImageDraw.Draw(picture).rectangle((20, 10, 79, 39), fill="red")
    picture.save(tmp_path / "it.png")
    assert cut_out(tmp_path / "it.png", 100).size == (60, 30)
    assert cut_out(tmp_path / "it.png", 30).size == (30, 15)
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(tmp_path / "it.png")
    with pytest.raises(UnusableError, match="transparent"):
        cut_out(tmp_path / "it.png", 30)
    (tmp_path / "it.png").write_bytes(b"no picture")
    with pytest.raises(UnusableError, match="decoded"):
        cut_out(tmp_path / "it.png", 30)


def test_nouns_are_those_of_short_captions():
    assert short_noun("A fire truck.") == "fire truck"
    assert short_noun("The Sun.") == "sun"
    assert short_noun("The tender carries water and coal for the engine.") is None


def test_a_split_that_leaves_a_part_without_a_category_is_refused(unpacked, tmp_path):
    options = ["--out", str(tmp_path / "out"), "--source", str(unpacked), "--workers", "1"]
    with pytest.raises(SystemExit, match=r"no usable picture of animals, .* for val.*choose another val_fraction"):
        stamps_tasks.main([*options, "--val-fraction", "0"])
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused_before_anything_is_done(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(SystemExit, match=r"is not empty.*--overwrite"):
        stamps_tasks.main(["--out", str(tmp_path), "--source", str(tmp_path / "missing")])


def test_stamps_of_other_folders_are_in_no_scene(unpacked):
    cutouts, unusable = make_cutouts(list(read_package(unpacked).stamps.values()), 96)
    assert {cutout.category for cutout in cutouts} == set(CATEGORIES)
    assert unusable == {"picture without a transparent ground": 1}
