"""The toy tasks, answered anew from what the metadata say is seen and heard."""

import io
import json
import re
import tarfile
from collections import Counter

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torchvision.ops import masks_to_boxes

from data_recipes.toy.items import ASKED_THINGS, TOLD_APART_COLOURS
from data_recipes.toy.questions import ANSWERS
from data_recipes.toy.scenes import ink_box, place_things
from data_recipes.toy.tasks import TASKS, ToyTasksConfig, build, main, plan
from data_recipes.toy.world import COLOURS, SIZES, THINGS, Group, caption, is_held_out
from onepeace_lightning.data.instances import read_annotations
from onepeace_lightning.data.manifest import read_manifest

SMALL = ToyTasksConfig(train=112, val=48)
COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4}
STREAMS = [(name, split) for name in TASKS for split in ("train", "val")]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    build(folder, SMALL)
    return folder


def stream(folder, name, split):
    return folder / name / split / TASKS[name].data_type


def samples(folder, name, split):
    """Every sample of a stream, read without the package's own reader, with its metadata as ``facts``."""
    found = {}
    for path in sorted(stream(folder, name, split).glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, extension = member.name.split(".", 1)
                found.setdefault(key, {})[extension] = tar.extractfile(member).read()
    for sample in found.values():
        sample["facts"] = json.loads(sample["json"])
    return list(found.values())


def both(folder, name):
    return [*samples(folder, name, "train"), *samples(folder, name, "val")]


def groups_of(facts, key="groups"):
    """The combination that the metadata name; single things are groups of one."""
    if "things" in facts:
        return tuple(Group(1, one["size"], one["thing"]) for one in facts["things"])
    return tuple(Group(group["count"], group["size"], group["thing"]) for group in facts[key])


def centre(one):
    x0, y0, x1, y1 = one["box"]
    return (x0 + x1) / 2, (y0 + y1) / 2


STANDS = {
    "left of": lambda a, b: centre(a)[0] < centre(b)[0],
    "right of": lambda a, b: centre(a)[0] > centre(b)[0],
    "above": lambda a, b: centre(a)[1] < centre(b)[1],
    "below": lambda a, b: centre(a)[1] > centre(b)[1],
}


def picture(data):
    return np.asarray(Image.open(io.BytesIO(data)), int)


def difference_from_ground(pixels):
    """How far each pixel is from the colour that most of the picture has."""
    values, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    return np.abs(pixels - values[counts.argmax()]).max(-1)


def tree_bytes(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_arguments_give_the_same_bytes_however_many_processes(tasks, tmp_path):
    build(tmp_path, SMALL, processes=2)
    assert tree_bytes(tmp_path) == tree_bytes(tasks)


@pytest.mark.parametrize(("name", "split"), STREAMS)
def test_manifests_state_the_split_and_a_chance_with_its_definition(tasks, name, split):
    manifest = read_manifest(stream(tasks, name, split))
    assert manifest.samples == (SMALL.val if split == "val" else SMALL.train * TASKS[name].items)
    assert manifest.license == "CC0-1.0"
    assert manifest.about["split"] == split
    assert "sha256" in manifest.about["split_rule"]
    assert (0 if name == "object_detection" else 1e-9) <= manifest.about["chance"]["percent"] <= 51
    assert manifest.about["chance"]["definition"]


def test_what_a_text_points_at_in_validation_is_in_no_training_scene_with_its_colours(tasks):
    train, val = (
        {
            tuple(sorted((one["size"], one["colour"], one["thing"]) for one in sample["facts"]["things"]))
            for sample in samples(tasks, "visual_grounding", split)
        }
        for split in ("train", "val")
    )
    assert not train & val


@pytest.mark.parametrize("name", [name for name in TASKS if name != "visual_grounding"])
def test_what_validation_shows_together_is_in_no_training_item(tasks, name):
    shown = {}
    for split in ("train", "val"):
        facts = [sample["facts"] for sample in samples(tasks, name, split)]
        combinations = [groups_of(one) for one in facts]
        combinations += [groups_of(one, "second_groups") for one in facts if "second_groups" in one]
        shown[split] = {tuple(sorted(combination)) for combination in combinations}
        if name not in ("image_classification", "audio_classification"):
            assert {is_held_out(combination) for combination in combinations} == {split == "val"}
    assert not shown["train"] & shown["val"]


@pytest.mark.parametrize("name", ["image_classification", "audio_classification"])
def test_classes_are_balanced_and_all_validated(tasks, name):
    for split in ("train", "val"):
        labels = Counter(sample["facts"]["labels"][0] for sample in samples(tasks, name, split))
        items = SMALL.val if split == "val" else SMALL.train * TASKS[name].items
        assert labels == dict.fromkeys(THINGS, items // len(THINGS))
    assert read_manifest(stream(tasks, name, "val")).about["classes"] == list(THINGS)
    for sample in both(tasks, name):
        assert [group["thing"] for group in sample["facts"]["groups"]] == sample["facts"]["labels"]


def test_tags_are_the_two_things_that_are_heard(tasks):
    for sample in both(tasks, "audio_tagging"):
        heard = {group["thing"] for group in sample["facts"]["groups"]}
        assert set(sample["facts"]["labels"]) == heard
        assert len(sample["facts"]["labels"]) == 2
        assert 0.4 <= soundfile.info(io.BytesIO(sample["wav"])).duration <= 1.15


def test_every_caption_of_a_picture_is_true_and_tells_it_apart(tasks):
    gallery = set()
    for sample in both(tasks, "image_text_retrieval"):
        groups, captions = groups_of(sample["facts"]), sample["facts"]["captions"]
        colours = [group["colour"] for group in sample["facts"]["groups"]]
        assert captions[:2] == [caption(groups), caption(groups, colours)]
        if len(groups) == 2:
            left, right = ([caption((g,)), caption((g,), [c])] for g, c in zip(groups, colours, strict=True))
            assert captions[2:] == [f"{left[0]} left of {right[0]}", f"{right[1]} right of {left[1]}"]
        assert captions[0] not in gallery
        gallery.add(captions[0])


def test_every_caption_of_a_sound_is_true_and_tells_it_apart(tasks):
    gallery = set()
    for sample in both(tasks, "audio_text_retrieval"):
        first, *rest = (caption((group,)) for group in groups_of(sample["facts"]))
        expected = (
            [f"{first} and {rest[0]}", f"{first} then {rest[0]}", f"{rest[0]} after {first}"] if rest else [first]
        )
        assert sample["facts"]["captions"] == expected
        assert expected[0] not in gallery
        gallery.add(expected[0])


def fits(text, scene):
    """The things that an expression means, found by its words; independent of how it was made."""
    colours, things = "|".join(COLOURS), "|".join(THINGS)
    match = re.fullmatch(
        rf"the (?:({'|'.join(SIZES)}) )?(?:({colours}) )?({things}|one)"
        rf"(?: (on the left|on the right|at the top|at the bottom)| ({'|'.join(STANDS)}) the ({things}))?",
        text,
    )
    assert match, text
    size, colour, thing, place, relation, anchor = match.groups()
    found = [
        one for one in scene
        if thing in ("one", one["thing"]) and size in (None, one["size"]) and colour in (None, one["colour"])
    ]  # fmt: skip
    if place:
        axis, pick = {"on the left": (0, min), "on the right": (0, max), "at the top": (1, min)}.get(place, (1, max))
        assert len(found) > 1
        found = [pick(found, key=lambda one: centre(one)[axis])]
    if relation:
        (other,) = (one for one in scene if one["thing"] == anchor)
        found = [one for one in found if STANDS[relation](one, other)]
    return found


def test_an_expression_means_one_thing_alone_and_its_box_is_tight(tasks):
    words, nameless, full = Counter(), [], []
    for sample in both(tasks, "visual_grounding"):
        scene, box = sample["facts"]["things"], sample["facts"]["box"]
        assert [one["box"] for one in fits(sample["txt"].decode(), scene)] == [box]
        assert 2 <= len(scene) <= 3
        said = sample["txt"].decode().split()
        words.update(said)
        nameless.append("one" in said)
        full.append(len(said) == 4 and said[1] in SIZES and said[2] in TOLD_APART_COLOURS)
        x0, y0, x1, y1 = box
        differs = difference_from_ground(picture(sample["png"]))
        inside = differs[y0:y1, x0:x1] > 5
        assert inside.mean() > 0.3
        assert all(side.any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
        for one in scene:  # outside all boxes there is nothing but pixels that are less than half covered
            differs[one["box"][1] : one["box"][3], one["box"][0] : one["box"][2]] = 0
        assert differs.max() < 115
    assert {"left", "right", "above", "below", "top", "bottom", "one", *SIZES, *TOLD_APART_COLOURS} <= set(words)
    assert 0.28 < np.mean(nameless) < 0.38
    assert 0.1 < np.mean(full) < 0.3  # all of the target's features at once, of which one will do


def test_the_things_of_a_scene_are_apart_and_inside():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scene = place_things([("big", "red", thing) for thing in THINGS[:3]], 96, rng)
        covered = np.zeros((96, 96), int)
        for one in scene:
            icon = one.icon
            covered[icon.top : icon.top + icon.side, icon.left : icon.left + icon.side] += 1
            assert one.box == ink_box(icon)
        assert covered.max() == 1
        assert covered.sum() == sum(one.icon.side**2 for one in scene)
        for axis in ([one.x for one in scene], [one.y for one in scene]):
            assert np.diff(sorted(axis)).min() >= 6
    with pytest.raises(ValueError, match="5 things found no room in a picture of 96 pixels"):
        place_things([("big", "red", thing) for thing in THINGS[:5]], 96, rng)


def test_masks_agree_with_the_pictures(tasks):
    classes = read_manifest(stream(tasks, "semantic_segmentation", "val")).about["classes"]
    assert classes == ["background", *ASKED_THINGS]
    for sample in both(tasks, "semantic_segmentation"):
        mask = Image.open(io.BytesIO(sample["mask.png"]))
        assert (mask.mode, mask.size) == ("L", (96, 96))
        mask = np.asarray(mask)
        things = {one["thing"]: one["box"] for one in sample["facts"]["things"]}
        assert {classes[index] for index in np.unique(mask)} == {"background", *things}
        for thing, (x0, y0, x1, y1) in things.items():
            rows, columns = np.nonzero(mask == classes.index(thing))
            assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x0, y0, x1, y1)
        differs = difference_from_ground(picture(sample["png"]))
        assert (differs[mask > 0] > 5).mean() > 0.93  # drawing leaves a pixel out here and there, within a thing
        # Less than half covered; a pixel that is covered wholly differs most. Rounding adds one.
        assert differs[mask == 0].max() <= differs.max() / 2 + 1


def test_instances_agree_with_the_images(tasks):
    classes = read_manifest(stream(tasks, "object_detection", "val")).about["classes"]
    indices = {name: index for index, name in enumerate(classes)}
    for sample in both(tasks, "object_detection"):
        found = read_annotations(sample["facts"]["instances"], indices, (96, 96))
        things = {one["thing"]: one["box"] for one in sample["facts"]["things"]}
        assert {classes[index]: box for index, box in zip(found.classes, found.boxes.tolist(), strict=True)} == things
        assert found.masks.sum(0).max() == 1
        assert torch.equal(masks_to_boxes(found.masks) + torch.tensor([0, 0, 1, 1]), found.boxes)
        differs = difference_from_ground(picture(sample["png"]))
        assert (differs[found.masks.any(0).numpy()] > 5).mean() > 0.93


def answer(question, facts):
    """Answer a question about a picture from its metadata."""
    if match := re.fullmatch(r"how many (\w+)s are there\?", question):
        return str(sum(group["count"] for group in facts["groups"] if group["thing"] == match[1]))
    if match := re.fullmatch(r"what colour (is|are) the (\w+)\?", question):
        (group,) = (g for g in facts["groups"] if g["thing"] == (match[2] if match[1] == "is" else match[2][:-1]))
        assert (group["count"] == 1) == (match[1] == "is")
        return group["colour"]
    if match := re.fullmatch(r"is there a (\w+)\?", question):
        return "yes" if match[1] in [group["thing"] for group in facts["groups"]] else "no"
    if match := re.fullmatch(r"what is on the (left|right)\?", question):
        return facts["groups"][0 if match[1] == "left" else 1]["thing"]
    if question == "what is there?":
        (group,) = facts["groups"]
        return group["thing"]
    match = re.fullmatch(rf"what is ({'|'.join(STANDS)}) the (\w+)\?", question)
    assert match, question
    (named,) = (one for one in facts["things"] if one["thing"] == match[2])
    (found,) = (one for one in facts["things"] if one is not named and STANDS[match[1]](one, named))
    return found["thing"]


def test_questions_about_pictures_are_answered_by_what_is_there(tasks):
    given = Counter()
    for sample in both(tasks, "visual_question_answering"):
        expected = answer(sample["txt"].decode(), sample["facts"])
        assert sample["facts"]["answers"] == {expected: 1.0}
        given[expected] += 1
    assert set(given) <= set(ANSWERS)
    assert {"yes", "no", "1", "3"} < set(given)
    assert read_manifest(stream(tasks, "visual_question_answering", "val")).about["answers"] == list(ANSWERS)
    assert max(given.values()) < 0.2 * sum(given.values())


def is_true(statement, left, right):
    """Judge a statement from the groups of both pictures."""
    sides = {"left": left, "right": right}
    if match := re.fullmatch(r"the (\w+) picture has more (?:(\w+) )?(\w+)s than the (\w+) picture", statement):
        here, there = (
            sum(
                group["count"]
                for group in sides[match[n]]
                if match[2] in (None, group["colour"]) and match[3] in ("thing", group["thing"])
            )
            for n in (1, 4)
        )
        return here > there
    match = re.fullmatch(r"(?:the (\w+) picture has|both pictures have) (something )?(\w+)", statement)
    assert match, statement
    meant = sides.values() if match[1] is None else [sides[match[1]]]
    if match[2]:
        return all(match[3] in {group["colour"] for group in groups} for groups in meant)
    return all(match[3] in {f"{group['thing']}s" for group in groups} for groups in meant)


def test_statements_about_two_pictures_are_judged_right_and_balanced(tasks):
    for split in ("train", "val"):
        labels = Counter()
        for sample in samples(tasks, "visual_reasoning", split):
            facts = sample["facts"]
            assert facts["labels"] == [str(is_true(sample["txt"].decode(), facts["groups"], facts["second_groups"]))]
            assert picture(sample["png"]).shape == picture(sample["second.png"]).shape == (96, 96, 3)
            labels.update(facts["labels"])
        assert labels["True"] == labels["False"]
    assert read_manifest(stream(tasks, "visual_reasoning", "val")).about["classes"] == ["True", "False"]


def test_what_is_stated_of_one_picture_holds_for_the_other_half_of_the_times(tasks):
    held = {"True": [], "False": []}
    for sample in samples(tasks, "visual_reasoning", "train"):
        statement, facts = sample["txt"].decode(), sample["facts"]
        if statement.startswith("the") and "more" not in statement:
            swapped = is_true(statement, facts["second_groups"], facts["groups"])
            held[facts["labels"][0]].append(swapped)
    for label, other in held.items():
        assert 0.4 < np.mean(other) < 0.6, label


def choice(question, groups):
    """Answer a question about a sound from the order of its groups."""
    things = [group["thing"] for group in groups]
    if match := re.fullmatch(r"what sounds (first|last)\?", question):
        return things[0 if match[1] == "first" else -1]
    if match := re.fullmatch(r"what sounds right (after|before) the (\w+)\?", question):
        return things[things.index(match[2]) + (1 if match[1] == "after" else -1)]
    match = re.fullmatch(r"how many times does the (\w+) sound\?", question)
    assert match, question
    words = {count: word for word, count in COUNTS.items()}
    return words[groups[things.index(match[1])]["count"]]


def test_questions_about_sounds_have_four_choices_of_which_one_is_right_at_an_even_place(tasks):
    for split in ("train", "val"):
        places = Counter()
        for sample in samples(tasks, "audio_question_answering", split):
            facts, question = sample["facts"], sample["txt"].decode()
            assert len(set(facts["choices"])) == 4
            assert facts["choices"][facts["answer"]] == choice(question, facts["groups"])
            heard = {group["thing"] for group in facts["groups"]}
            if "how many" not in question:
                assert len(heard & set(facts["choices"])) >= 2  # to hear which is not to hear when
            places[facts["answer"]] += 1
            assert 0.4 <= soundfile.info(io.BytesIO(sample["wav"])).duration <= 1.15
        assert max(places.values()) == min(places.values())


def test_nothing_is_learned_from_words_alone():
    larger = ToyTasksConfig(train=2000, val=300)
    for number, (name, most) in enumerate(
        (("visual_question_answering", 28), ("visual_reasoning", 58), ("audio_question_answering", 34))
    ):
        train, val = (plan(TASKS[name], split, (0, number), larger) for split in ("train", "val"))
        chance = TASKS[name].chance(train, val)
        assert max(chance.percent, *chance.baselines.values()) < most


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--val", "100000"], r"val is 100000; choose 1 to 8\d\d"),
        (["--train", "0"], "train is 0; choose 1 to"),
        (["--image-side", "8"], "image_side is 8; choose at least 96"),
    ],
)
def test_sizes_out_of_bounds_are_refused(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), *arguments])
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_used_folder_is_refused_and_the_chances_are_printed(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--train=20", "--val=10", "--processes=1"]
    main(arguments)
    printed = capsys.readouterr().out
    assert "audio_tagging" in printed
    assert f"{len(TASKS)} tasks" in printed
    with pytest.raises(SystemExit):
        main(arguments)
    assert "is not empty" in capsys.readouterr().err
