"""The shipped configurations of published fine-tuning, fact by fact: nothing is left to a default."""

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FINETUNE = ROOT / "configs" / "finetune"
PUBLISHED = sorted(
    path.relative_to(FINETUNE).with_suffix("").as_posix()
    for path in FINETUNE.rglob("*.yaml")
    if not path.name.startswith("toy")
)
FAIRSEQ = {"min_lr": 1e-6, "warmup_steps": 0.1, "weight_decay": 0.05, "betas": [0.9, 0.999]}
"""Every task that was fine-tuned in fairseq; eps 1e-8, a cosine by step and no clipping."""
IMAGENET = {"min_lr": 0.0, "weight_decay": 0.05}

# learning rate, layer decay, drop path, global batch, epochs (or steps)
SIZES: dict[str, tuple[float, float, float, int, int]] = {
    "audio_classification/fsd50k": (1e-4, 0.9, 0.5, 128, 10),
    "audio_classification/vggsound": (8e-5, 0.95, 0.6, 512, 10),
    "audio_question_answering/avqa": (7e-5, 0.9, 0.5, 128, 10),
    # nothing was released of these two: the numbers are those of audio alone
    "audio_visual_classification/vggsound_av": (8e-5, 0.95, 0.6, 512, 10),
    "audio_visual_question_answering/avqa_av": (7e-5, 0.9, 0.5, 128, 10),
    "audio_text_retrieval/audiocaps": (1.5e-4, 0.95, 0.9, 384, 10),
    "audio_text_retrieval/clotho": (1.5e-4, 0.95, 0.9, 384, 10),
    "image_text_retrieval/coco": (8e-5, 0.9, 0.5, 3072, 15),
    "image_text_retrieval/flickr30k": (7e-5, 0.9, 0.4, 3072, 20),
    "visual_grounding/refcoco": (1.5e-4, 0.9, 0.4, 256, 30),
    "visual_grounding/refcoco_plus": (1.5e-4, 0.9, 0.4, 256, 30),
    "visual_grounding/refcocog": (1.5e-4, 0.9, 0.4, 256, 30),
    "visual_question_answering/vqav2": (3e-4, 0.85, 0.5, 512, 10),
    "visual_reasoning/nlvr2": (1e-4, 0.9, 0.4, 128, 25),
    "image_classification/imagenet1k": (5e-5, 0.9, 0.4, 1024, 15),
    "image_classification/imagenet21k": (1e-4, 0.85, 0.4, 3072, 40),
    "semantic_segmentation/ade20k": (1e-5, 0.95, 0.5, 16, 40_000),
    "object_detection/coco": (1e-4, 0.9, 0.6, 64, 92_187),
    "video_classification/kinetics400": (3e-4, 1.0, 0.4, 64, 30),
}
OPTIMIZATION: dict[str, dict[str, Any]] = {
    "image_classification/imagenet1k": IMAGENET | {"warmup_steps": 3 / 15, "betas": [0.9, 0.999]},
    "image_classification/imagenet21k": IMAGENET | {"warmup_steps": 5 / 40, "betas": [0.9, 0.98], "eps": 1e-6},
    "semantic_segmentation/ade20k": {
        "min_lr": 0.0, "warmup_steps": 1500, "warmup_from": 1e-6, "schedule": "linear", "weight_decay": 0.05,
        "betas": [0.9, 0.999],
    },
    "object_detection/coco": {
        "min_lr": 0.0, "warmup_steps": 250, "warmup_from": 0.001, "schedule": "steps", "milestones": [81_944, 88_773],
        "weight_decay": 0.1, "betas": [0.9, 0.999],
    },
    "video_classification/kinetics400": {
        "min_lr": 0.0, "warmup_steps": 3 / 30, "warmup_from": 0.1, "weight_decay": 0.05, "betas": [0.9, 0.999],
    },
}  # fmt: skip
"""Where it is not ``FAIRSEQ``."""
IMAGENET_HEAD = {"pooling": "mean", "per_block_tables": False}
RETRIEVAL = {"keys": "detached"}
TASK: dict[str, dict[str, Any]] = {
    "audio_classification/fsd50k": {"multi_label": True},
    "audio_text_retrieval/audiocaps": RETRIEVAL,
    "audio_text_retrieval/clotho": RETRIEVAL,
    "image_text_retrieval/coco": RETRIEVAL,
    "image_text_retrieval/flickr30k": RETRIEVAL,
    "visual_grounding/refcoco": {"pooled": "image"},
    "visual_grounding/refcoco_plus": {"pooled": "image"},
    "visual_grounding/refcocog": {"pooled": "text"},
    "image_classification/imagenet1k": IMAGENET_HEAD | {"label_smoothing": 0.3},
    "image_classification/imagenet21k": IMAGENET_HEAD | {"label_smoothing": 0.1},
    "semantic_segmentation/ade20k": {"queries": 200},
    "video_classification/kinetics400": {"frames": 16},
}
"""Arguments of the task, besides backbone, drop path and optimization."""
BOX = {"crop_scale": None, "blur": 0.5}
GROUNDING = {"image": {"size": 384}, "text": {"max_words": 70, "truncate": False}}
TIMM = {"crop_scale": [0.08, 1.0], "rand_augment": "rand-m9-mstd0.5-inc1"}
DATA: dict[str, tuple[dict[str, Any], Any]] = {
    "audio_classification/fsd50k": ({"audio": {"max_seconds": 15.0}}, None),
    "audio_classification/vggsound": ({"audio": {"max_seconds": 15.0}}, None),
    "audio_question_answering/avqa": (
        {"audio": {"max_seconds": 15.0}, "text": {"cleaning": "none", "truncate": False}}, None,
    ),
    "audio_visual_classification/vggsound_av": ({"image": {"size": 256}, "audio": {"max_seconds": 15.0}}, None),
    "audio_visual_question_answering/avqa_av": (
        {"image": {"size": 256}, "audio": {"max_seconds": 15.0}, "text": {"cleaning": "none", "truncate": False}}, None,
    ),
    "audio_text_retrieval/audiocaps": ({"audio": {"max_seconds": 20.0}}, None),
    "audio_text_retrieval/clotho": ({"audio": {"max_seconds": 20.0}}, None),
    "image_text_retrieval/coco": ({"image": {"size": 432}}, False),
    "image_text_retrieval/flickr30k": ({"image": {"size": 432}}, False),
    "visual_grounding/refcoco": (GROUNDING, BOX),
    "visual_grounding/refcoco_plus": (GROUNDING, BOX),
    "visual_grounding/refcocog": (GROUNDING, BOX),
    "visual_question_answering/vqav2": ({"image": {"size": 768}}, False),
    "visual_reasoning/nlvr2": (
        {"image": {"size": 256}}, {"colour": 0.5, "blur": 0.5, "flip": 0.5, "operations": 2},
    ),
    "image_classification/imagenet1k": ({"image": {"size": 512, "resize": "crop"}}, TIMM),
    "image_classification/imagenet21k": ({"image": {"size": 256, "resize": "crop"}}, TIMM),
    "semantic_segmentation/ade20k": (
        {"image": {"size": 896}}, {"scale": [0.5, 2.0], "flip": 0.5, "distort": 0.5, "largest_class": 0.75},
    ),
    "object_detection/coco": ({"image": {"size": 1280}}, {"scale": [0.1, 2.0], "flip": 0.5}),
    "video_classification/kinetics400": (
        {"video": {"size": 256, "frames": 16, "step": 8, "clips": 3, "crops": 3, "crop_scale": [0.08, 1.0], "flip": 0.5,
                   "colour_noise": 0.1}}, True,
    ),
}  # fmt: skip
"""Preprocessing and augmentation; None where the file says nothing: audio has none."""
PLAIN = {"backbone", "drop_path", "optimization", "parallel", "windows", "modalities", "item"}
"""Arguments of the task that are no facts about training."""


def test_every_published_configuration_is_in_the_table():
    assert sorted(SIZES) == sorted(DATA) == PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_configuration_says_what_was_published(name):
    content = yaml.safe_load((FINETUNE / f"{name}.yaml").read_text())
    trainer, model, data = content["trainer"], content["model"]["init_args"], content["data"]["init_args"]
    lr, layer_decay, drop_path, batch, length = SIZES[name]
    wanted = {"lr": lr, "eps": 1e-8, "schedule": "cosine", "layer_decay": layer_decay} | OPTIMIZATION.get(name, FAIRSEQ)
    said = {"eps": 1e-8, "schedule": "cosine", "layer_decay": 1.0} | model["optimization"]
    assert said == wanted
    assert trainer["gradient_clip_val"] is None
    assert trainer.get("precision", "bf16-true") in ("bf16-true", "bf16-mixed", "32-true")
    assert model["drop_path"] == drop_path
    assert {key: value for key, value in model.items() if key not in PLAIN} == TASK.get(name, {})
    accumulated = trainer.get("accumulate_grad_batches", 1)
    assert trainer["devices"] * trainer["num_nodes"] * data["train"]["batch_size"] * accumulated == batch
    assert trainer.get("max_steps", trainer.get("max_epochs")) == length
    preprocessing, augmentation = DATA[name]
    assert data["preprocessing"] == preprocessing
    assert data.get("augmentation") == augmentation
