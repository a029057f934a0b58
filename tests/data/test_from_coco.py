"""``onepeace shards from-coco``: a JSON file of one's own."""

import json

import pytest

from onepeace_lightning.cli import main
from onepeace_lightning.data.from_coco import from_coco
from onepeace_lightning.data.instances import read_annotations
from onepeace_lightning.data.manifest import read_manifest
from onepeace_lightning.data.shards import read_shard
from tests.data_recipes import miniatures


@pytest.fixture
def annotations(tmp_path):
    miniatures.coco_instances(tmp_path)
    return tmp_path / "annotations/instances_train2017.json"


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_a_file_becomes_a_split(annotations, tmp_path):
    root, out = tmp_path / "train2017", tmp_path / "mine"
    main(["shards", "from-coco", str(annotations), f"--root={root}", f"--out={out}", "--license=CC0"])
    manifest = read_manifest(out / "train/image-boxes")
    assert manifest.about["classes"] == ["dog", "toothbrush"]
    assert (manifest.samples, manifest.license, manifest.about["missing"]) == (2, "CC0", 0)
    shard = manifest.shards[0]
    facts = [json.loads(sample["json"]) for _, sample in read_shard(manifest, shard, range(shard.samples))]
    [instances] = [one["instances"] for one in facts if one["instances"]]
    found = read_annotations(instances, {"dog": 0, "toothbrush": 1}, (6, 8))
    assert found.classes.tolist() == [0, 1]
    assert found.masks.sum((1, 2)).tolist() == [12, 12]


def test_missing_images_are_named_or_left_out(annotations, tmp_path, capsys):
    root, out = tmp_path / "train2017", tmp_path / "mine"
    (root / "000000000002.jpg").unlink()
    with pytest.raises(ValueError, match=r"000000000002\.jpg"):
        from_coco(str(annotations), root=str(root), out=str(out))
    from_coco(str(annotations), root=str(root), out=str(out), max_missing=0.5)
    assert "1 samples of image-boxes, 1 left out for missing files" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content.pop("categories"), "'categories' is None; expected: list"),
        (lambda content: content["images"].pop(), None),
        (lambda content: content["images"].pop(0), "no image has the id 1, which annotations name"),
        (lambda content: content["images"][0].update(width="8"), "image 0: 'width' is '8'; expected: int"),
        (lambda content: content["annotations"][0].update(segmentation=[]), "neither polygons"),
        (lambda content: content["annotations"][0].update(bbox=[0, 0, 1, True]), None),
        (lambda content: content["annotations"].append(3), "annotation 3: 'category_id' is None"),
    ],
)
def test_what_is_wrong_is_named(annotations, tmp_path, edit, message):
    change(annotations, edit)
    options = {"root": str(tmp_path / "train2017"), "out": str(tmp_path / "mine")}
    if message is None:
        from_coco(str(annotations), **options)
        return
    with pytest.raises(ValueError, match=message):
        from_coco(str(annotations), **options)


def test_what_is_no_json_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("[1,")
    with pytest.raises(ValueError, match=r"a\.json is not JSON"):
        from_coco(str(tmp_path / "a.json"), root=str(tmp_path), out=str(tmp_path / "mine"))
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ValueError, match="'categories' is None"):
        from_coco(str(tmp_path / "a.json"), root=str(tmp_path), out=str(tmp_path / "mine"))
