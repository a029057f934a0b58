"""What the package compares with, and what it calls things."""

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src" / "onepeace_lightning"

NAMED = {
    "modalities/": "the modalities themselves, and presets",
    "checkpoints/": "the files of the original have these three",
    "models/vision/detection_trunk.py": "the published detector is of images",
    "data/from_coco.py": "its instances are in images",
    "data/from_tsv.py": "the original's tables have these columns",
    "tasks/pretrain.py": "by default a model has the three of the paper",
    "tasks/retrieval.py": "by default texts are what searches",
    "tasks/semantic_segmentation.py": "by default as published, of images",
    "tasks/visual_grounding.py": "by default as published, in images",
    "tasks/visual_reasoning.py": "by default as published, of images",
    "tasks/object_detection.py": "the published detector is of images",
    "tasks/video_classification.py": "the published model of videos is that of images, frame by frame",
    "tasks/convert.py": "the original's files say how long its audio is",
    "losses/denoising.py": "the table of how published pairs are denoised",
    "inference/embedding_files.py": "a column of the files is called text",
    "integrations/": "other tools' names for what they give",
}
"""Where the names of the first three modalities may stand, and why; the rest of the package asks the modality."""


def trees():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def test_nothing_else_names_the_first_three_modalities():
    found = {
        f"{path}:{node.lineno}"
        for path, tree in trees()
        if not path.startswith(tuple(NAMED))
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in ("image", "audio", "text")
    }
    assert not found, "ask the modality instead, or say in NAMED why not"


def test_every_place_that_may_name_them_does():
    naming = [path for path, tree in trees() for node in ast.walk(tree)
              if isinstance(node, ast.Constant) and node.value in ("image", "audio", "text")]  # fmt: skip
    assert [place for place in NAMED if not any(path.startswith(place) for path in naming)] == []


ONE_NAME = {"Batch", "BackboneWeights", "Collate", "DataModule", "DataType", "Example", "Inputs", "Item", "Items",
            "Modality", "Preprocessing", "Reader", "Settings", "Source"}  # fmt: skip


def test_these_names_mean_one_thing():
    places = defaultdict(list)
    for path, tree in trees():
        for node in tree.body:
            names = [node.name] if isinstance(node, ast.ClassDef) else []
            if isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            for name in set(names) & ONE_NAME:
                places[name].append(path)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}
