"""Goldens of the model and its pretraining: features, losses, gradients, decay, text ids.

Their ``cfg`` has the sizes; other files hold inputs and outputs for the weights of ``pretrain.pt``.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace_lightning.checkpoints.key_map import name_map, our_name
from onepeace_lightning.checkpoints.original import (
    config_from_original,
    load_original,
    model_from_original,
    read_original,
)
from onepeace_lightning.data.batch import Batch
from onepeace_lightning.losses.pretraining import Objectives, pretraining_loss
from onepeace_lightning.modalities.audio import Audio
from onepeace_lightning.modalities.image import Image
from onepeace_lightning.modalities.text import Text
from onepeace_lightning.modalities.tokenizers import load_tokenizer
from onepeace_lightning.models import PretrainModel
from onepeace_lightning.models.heads.classifier import ClassifyModel, PoolingConfig
from onepeace_lightning.models.inputs import TokenMask
from onepeace_lightning.tasks import (
    FinetuneTask,
    MultipleChoiceTask,
    QuestionAnsweringTask,
    VisualGroundingTask,
    VisualReasoningTask,
)
from onepeace_lightning.training.param_groups import parameter_rules
from tests.parity.base import Check, companion, gap, load, vocabulary


def pretrain_model(folder: Path) -> tuple[PretrainModel, list[str]]:
    checkpoint = read_original(companion(folder, "pretrain.pt"))
    model = PretrainModel(config_from_original(checkpoint))
    load_original(model, checkpoint["model"])
    return model, list(checkpoint["model"])


def normalised(waveforms: Tensor | list[Tensor]) -> Audio:
    return Audio.pad([F.layer_norm(clip, clip.shape) for clip in waveforms])


@torch.no_grad()
def encode_io(folder: Path) -> Iterator[Check]:
    model, _ = pretrain_model(folder)
    golden = load(folder / "encode_io.pt")
    text, image = Text(golden["tokens"]), Image(golden["images"])
    audio = normalised(golden["waveforms"])
    inputs = {"text": text, "image": image, "audio": audio}
    backbone = model.backbone.eval()
    tokens = backbone.embed(inputs)
    names = [("text",), ("image",), ("audio",), ("text", "image"), ("text", "audio")]
    features = backbone.encode([backbone.view({m: tokens[m] for m in view}) for view in names])
    prefix = {("text", "image"): "vl_", ("text", "audio"): "al_"}
    for view, result in zip(names, features, strict=True):
        for modality in view:
            wanted = golden[f"{prefix.get(view, '')}{modality}_features"]
            padded, valid = result[modality].padded()
            difference = max(gap(padded[b][valid[b]], wanted[b][: int(valid[b].sum())]) for b in range(len(padded)))
            yield Check("encode_io.pt", f"{'+'.join(view)}: {modality} features", difference)
        if len(view) == 1:
            embedding = model.heads(view[0], result)
            yield Check("encode_io.pt", f"{view[0]} embedding", gap(embedding, golden[f"{view[0]}_embedding"]))


TERMS = {
    "vl_pretrain_io.pt": {
        "itc_loss": "contrast", "dcl_text_loss": "text", "dcl_image_loss": "image",
        "dcl_vl_text_loss": "fused_text", "dcl_vl_image_loss": "fused_image",
    },
    "al_pretrain_io.pt": {
        "atc_loss": "contrast", "dcl_audio_loss": "audio",
        "dcl_al_text_loss": "fused_text", "dcl_al_audio_loss": "fused_audio",
    },
}  # fmt: skip


def token_mask(mask_BP: Tensor, lengths: list[int]) -> TokenMask:
    """The mask that a golden has padded."""
    return TokenMask.of([row[:length].numpy() for row, length in zip(mask_BP, lengths, strict=True)])


def pretrain_io(folder: Path, file: str, other: str, prefix: str) -> Iterator[Check]:
    model, names = pretrain_model(folder)
    golden = load(folder / file)
    inputs = golden["inputs"]
    data_type = f"{other}-text"
    if other == "image":
        raw = Image(inputs["src_images"])
    else:
        # column 0 of the padding mask is CLS; the frames left tell the clip's samples
        frames = (~inputs["audio_padding_masks"]).sum(1) - 1
        full = inputs["src_audios"].shape[1]
        lengths = [full if f == frames.max() else int(f) * 320 + 80 for f in frames]
        raw = normalised([clip[:n] for clip, n in zip(inputs["src_audios"], lengths, strict=True)])
    items = {other: raw, "text": Text(inputs["src_tokens"])}
    masks, fused = (
        {m: token_mask(inputs[k], items[m].token_lengths) for m in items if (k := f"{begin}{m}_mask_indices") in inputs}
        for begin in ("", f"{prefix}_")
    )
    batch = Batch([f"sample {i}" for i in range(len(inputs["src_tokens"]))], items, masks, fused)
    frozen = ("text",) if other == "audio" else ()
    result = pretraining_loss(model, {data_type: batch}, Objectives(keys="detached"), frozen)
    result.total.backward()

    yield Check(file, "loss", gap(result.total.detach(), golden["log"]["loss"]))
    for key, term in TERMS[file].items():
        yield Check(file, key, gap(result.terms[f"{data_type}/{term}"].detach(), golden["log"][key]))
    for key, wanted in golden["student_features"].items():
        term = key.replace(f"{prefix}_", "fused_")
        mask = inputs[f"{key}_mask_indices"]
        yield Check(file, f"student {key}", gap(result.students[f"{data_type}/{term}"].detach(), wanted[mask]))
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    known = name_map(names)
    for key, wanted in golden["grads"].items():
        ours = grads.get(known.get(key, ""), torch.zeros_like(wanted))
        yield Check(file, f"gradient {key}", gap(ours.reshape(wanted.shape), wanted))
    silent = [name for name, ours in known.items() if name not in golden["grad_norms"] and ours in grads]
    largest = max((float(grads[known[name]].abs().max()) for name in silent), default=0.0)
    yield Check(file, f"gradients of the {len(silent)} others", largest)
    for key, wanted in golden["grad_norms"].items():
        ours = grads.get(known.get(key, ""), torch.zeros(1)).norm()
        yield Check(file, f"gradient norm {key}", abs(float(ours) - float(wanted)))


def layer_decay(folder: Path, file: str) -> Iterator[Check]:
    """Golden: original name to [lr scale, weight decay]; depth, decay rate and weight decay are read off the values."""
    golden = json.loads((folder / file).read_text())
    config = replace(config_from_original(read_original(companion(folder, "pretrain.pt"))), per_block_tables=True)
    kept = name_map(golden)
    with torch.device("meta"):
        model: nn.Module = PretrainModel(config)
        if any(name.startswith("head.") for name in kept.values()):
            pooler = any(name.startswith("head.pooler.") for name in kept.values())
            model = ClassifyModel(config, PoolingConfig(outputs=2, pooled=("text",), pooler=pooler))
    decay = max(value[1] for value in golden.values())
    blocks = 1 + max(int(found[1]) for name in golden if (found := re.search(r"layers\.(\d+)\.", name)))
    rate = min(value[0] for value in golden.values()) ** (1 / (blocks + 1))
    rules = parameter_rules(model, weight_decay=decay, layer_decay=rate)
    difference = max(abs(rules[kept[name]][0] - golden[name][0]) for name in kept)
    yield Check(file, f"lr scale of {len(kept)} parameters", difference, 1e-6)
    wrong = [name for name in kept if abs(rules[kept[name]][1] - golden[name][1]) > 1e-9]
    yield Check(file, f"weight decay of {len(kept)} parameters {wrong[:3]}", float(len(wrong)), 0)


def stage2(folder: Path) -> Iterator[Check]:
    golden = {our_name(name) for name in json.loads((folder / "stage2_trainable.json").read_text())} - {None}
    with torch.device("meta"):
        model = PretrainModel(config_from_original(read_original(companion(folder, "pretrain.pt"))))
    ours = model.trained_in_stage2(("audio",))
    yield Check("stage2_trainable.json", f"differing names {sorted(golden ^ ours)[:3]}", float(len(golden ^ ours)), 0)


@torch.no_grad()
def retrieval(folder: Path, file: str) -> Iterator[Check]:
    """Embeddings of a checkpoint's own inputs; for the larger image also those of ``pretrain.pt`` made to fit."""
    checkpoint = read_original(folder / file)
    model, _ = model_from_original(checkpoint)
    yield from _embeddings(model, checkpoint, file, "")
    source = folder / "pretrain.pt"
    if file != "retrieval_vl_hires.pt" or not source.exists():
        return
    config = model.config
    size = config.adapters["image"].image_size
    resized, _ = model_from_original(
        read_original(source), modalities=tuple(config.adapters), image_size=size, per_block_tables=True
    )
    made = dict(resized.named_parameters())
    for name, wanted in model.named_parameters():
        if "bias_tables" in name:
            yield Check(file, f"{name} made from pretrain.pt", gap(made[name], wanted))
    yield from _embeddings(resized, checkpoint, file, " by pretrain.pt made to fit")


def _embeddings(model: PretrainModel, checkpoint: dict, file: str, note: str) -> Iterator[Check]:
    inputs = raw_inputs(checkpoint["inputs"])
    for name, wanted in checkpoint["output"].items():
        features = model.eval().backbone({name: inputs[name]})
        yield Check(file, f"{name} embedding{note}", gap(model.heads(name, features), wanted))


def raw_inputs(golden: dict) -> dict[str, Text | Image | Audio]:
    kinds = {"tokens": ("text", Text), "images": ("image", Image), "waveforms": ("audio", normalised)}
    return {name: make(golden[key]) for key, (name, make) in kinds.items() if key in golden}


@torch.no_grad()
def classification(folder: Path, file: str) -> Iterator[Check]:
    """Logits and, where the golden has one, the task's loss: a sum over the batch but for grounding."""
    checkpoint = read_original(folder / file)
    model, _ = model_from_original(checkpoint)
    assert isinstance(model, ClassifyModel)
    inputs, golden, wanted = raw_inputs(checkpoint["inputs"]), checkpoint["inputs"], checkpoint["output"]
    batch = len(wanted["logits"])
    # rows 4n ... 4n + 3 of the text are clip n's answers
    choices = len(golden["tokens"]) // batch if file == "aqa.pt" else 1
    if "images_2" in golden:
        inputs["second_image"] = Image(golden["images_2"])
    logits = model.eval()(inputs, choices)
    yield Check(file, "logits", gap(logits.view(batch, -1), wanted["logits"]))
    names = [str(place) for place in range(logits.shape[1])]
    tables = {"per_block_tables": model.config.per_block_tables}
    tasks: dict[str, Callable[[], FinetuneTask]] = {
        "grounding.pt": lambda: VisualGroundingTask(model.config, pooled=model.head.config.pooled[0], **tables),
        "vqa.pt": lambda: QuestionAnsweringTask(model.config, answers=names, **tables, modalities=["image"]),
        "nlvr2.pt": lambda: VisualReasoningTask(model.config, classes=names, **tables),
        "aqa.pt": lambda: MultipleChoiceTask(model.config, **tables, modalities=["audio"]),
    }
    if file not in tasks:
        return
    task = tasks[file]()
    ours, theirs = ({name: p.shape for name, p in part.named_parameters()} for part in (task.build(), model))
    differing = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    yield Check(file, f"parameters that the task has otherwise {differing[:3]}", float(len(differing)), 0)
    task.model = model
    targets = {
        "grounding.pt": lambda: {"box": golden["target"]},
        "vqa.pt": lambda: {"answers": [dict(zip(names, row, strict=True)) for row in golden["target"].tolist()]},
        "aqa.pt": lambda: {"answer": golden["target"]},
    }
    for key, times in (("loss", 1), ("loss_sum", batch), ("hinge_loss_sum", batch)):
        if key in wanted:
            loss = task.loss(Batch([str(row) for row in range(batch)], inputs, targets=targets[file]()))
            yield Check(file, key.replace("_", " "), gap(loss * times, wanted[key]))


def bpe(folder: Path) -> Iterator[Check]:
    tokenizer = load_tokenizer(vocabulary(folder))
    for case in json.loads((folder / "bpe.json").read_text()):
        encoding = tokenizer.encode(case["text"])
        same = encoding.ids == case["ids"] and [int(start) for start in encoding.word_starts] == case["word_start"]
        yield Check("bpe.json", repr(case["text"][:40]), 0.0 if same else float("inf"), 0)


CLASSIFICATION = ("image_classification", "audio_classification", "vqa", "nlvr2", "grounding", "aqa")

CHECKS: dict[str, Callable[[Path], Iterator[Check]]] = {
    "encode_io.pt": encode_io,
    "vl_pretrain_io.pt": lambda folder: pretrain_io(folder, "vl_pretrain_io.pt", "image", "vl"),
    "al_pretrain_io.pt": lambda folder: pretrain_io(folder, "al_pretrain_io.pt", "audio", "al"),
    **{
        f"retrieval_{name}.pt": partial(retrieval, file=f"retrieval_{name}.pt")
        for name in ("val_zero_shot", "vl_hires")
    },
    **{f"{name}.pt": partial(classification, file=f"{name}.pt") for name in CLASSIFICATION},
    "layer_decay_retrieval.json": lambda folder: layer_decay(folder, "layer_decay_retrieval.json"),
    "layer_decay_vqa.json": lambda folder: layer_decay(folder, "layer_decay_vqa.json"),
    "stage2_trainable.json": stage2,
    "bpe.json": bpe,
}
