"""A published score stands beside a run that could have given it, and where a run could not, it is said why."""

import pytest

from data_recipes import (
    audiocaps,
    avqa,
    clotho,
    coco,
    coco_detection,
    esc50,
    flickr30k,
    fsd50k,
    imagenet,
    nlvr2,
    refcoco,
    vggsound,
)
from onepeace_lightning.checkpoints.released.protocol import PROTOCOLS, Protocol, names_compared, published_result
from onepeace_lightning.checkpoints.released.published import PUBLISHED

CORPORA = {
    "COCO": coco.CORPORA["karpathy"],
    "COCO zero-shot": coco.CORPORA["karpathy"],
    "Flickr30K": flickr30k.CORPORA["karpathy"],
    "Flickr30K zero-shot": flickr30k.CORPORA["karpathy"],
    "AudioCaps": next(iter(audiocaps.CORPORA.values())),
    "Clotho": next(iter(clotho.CORPORA.values())),
    "ESC-50 zero-shot": esc50.CORPORA["all"],
    "FSD50K": next(iter(fsd50k.CORPORA.values())),
    "VGGSound": next(iter(vggsound.CORPORA.values())),
    "AVQA": next(iter(avqa.CORPORA.values())),
    "NLVR2": nlvr2.CORPORA["nlvr2"],
    "RefCOCO": refcoco.CORPORA["refcoco"],
    "RefCOCO+": refcoco.CORPORA["refcoco+"],
    "RefCOCOg": refcoco.CORPORA["refcocog"],
    "ImageNet-1k": next(iter(imagenet.CORPORA.values())),
    "COCO detection": next(iter(coco_detection.CORPORA.values())),
}


def test_every_published_score_of_a_file_has_a_protocol():
    assert set(PUBLISHED) - set(PROTOCOLS) == {"VGGSound-AV", "AVQA-AV"}
    assert set(PROTOCOLS) <= set(PUBLISHED)


@pytest.mark.parametrize("name", CORPORA)
def test_splits_are_those_of_the_recipe(name):
    for split, count in PROTOCOLS[name].splits.items():
        assert CORPORA[name].published[split] == (count,)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_run_by_the_protocol_stands_beside_the_score(name):
    protocol: Protocol = PROTOCOLS[name]
    assert protocol.describe()
    for choice in protocol.choices:
        assert set(choice) <= names_compared()
        for split, count in protocol.splits.items():
            line = published_result(name, "gallery", {"split": split}, count or 77, choice)
            if count == 0 and name == "VQAv2":
                assert "by another protocol" in line
                continue
            assert line == f"published for {name}, by the protocol of gallery: {PUBLISHED[name]}"


@pytest.mark.parametrize(
    ("name", "about", "samples", "changes", "reason"),
    [
        ("COCO", {"split": "val"}, 5_000, {}, "the split is val, published test"),
        ("COCO", {"split": "test"}, 4_999, {}, "4,999 samples, published 5,000"),
        ("COCO", {}, 16, {}, "16 samples, published 5,000"),
        ("COCO", {"split": "test"}, 5_000, {"ties": "strict"}, "ties is strict, published published"),
        ("COCO", {"split": "test"}, 5_000, {"image.size": 256}, "image.size is 256, published 432"),
        ("NLVR2", {}, 6_966, {}, "6,966 samples, published 6,982 or 6,967"),
        ("ImageNet-1k", {"split": "val"}, 50_000, {"image.size": 256}, "image.size is 256, published 384 or 512"),
        ("ADE20K", {"split": "val"}, 2_000, {"flip": True}, "flip is True, published False"),
        ("VQAv2", {"split": "val"}, 214_354, {}, "the split is val, published test-dev and test-std"),
        ("VQAv2", {}, 214_354, {}, "214,354 samples, published without answers"),
        ("AVQA-AV", {}, 16_910, {}, "how it was measured is not known"),
    ],
)
def test_a_run_by_another_protocol_says_why(name, about, samples, changes, reason):
    run = dict(PROTOCOLS[name].choices[0]) if name in PROTOCOLS else {}
    line = published_result(name, "mine", about, samples, run | changes)
    assert line.startswith(f"published for {name}, by another protocol than mine's: {PUBLISHED[name]}")
    assert reason in line
