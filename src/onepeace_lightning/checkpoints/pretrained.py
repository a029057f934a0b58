"""Models with what gives their weights a meaning (sizes, tokenizer, preprocessing), from folders, files and the hub."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from onepeace_lightning.checkpoints.card import CARD_FILE, RECORD, model_card, written_here
from onepeace_lightning.checkpoints.hub import download, is_hub_name
from onepeace_lightning.checkpoints.loading import LoadReport, fill, fill_from, read_checkpoint, read_file
from onepeace_lightning.checkpoints.original import AnyModel, named
from onepeace_lightning.checkpoints.released.base import ReleasedFile
from onepeace_lightning.checkpoints.released.kinds import kind_of
from onepeace_lightning.checkpoints.shard_files import is_sharded
from onepeace_lightning.files import check_fetched
from onepeace_lightning.modalities.preprocessing import Preprocessing, config_from_dict
from onepeace_lightning.modalities.registry import modality
from onepeace_lightning.modalities.tokenizers import Tokenizer, load_tokenizer, tokenizer_from_files
from onepeace_lightning.modalities.tokenizers.base import SETTINGS_FILE
from onepeace_lightning.modalities.tokenizers.gpt2_bpe import BPE_FILES
from onepeace_lightning.modalities.tokenizers.sentencepiece import MODEL_FILE
from onepeace_lightning.models.backbone import Backbone
from onepeace_lightning.models.config import ModelConfig
from onepeace_lightning.models.heads.classifier import ClassifyModel, PoolingConfig
from onepeace_lightning.models.pretraining import PretrainModel

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
MODULES_FILE = "modules.json"
"""Says to sentence-transformers how to open the folder."""
TOKENIZER_FILES = (MODEL_FILE, *BPE_FILES, SETTINGS_FILE)
MODEL_TYPE = "onepeace"
"""By which transformers' Auto classes find ``integrations.transformers``."""
FORMAT_VERSION = 1
"""Of ``config.json``; raised when older readers would misread it."""

HUB_TEXT = {"cleaning": "lower"}
"""Settings of text where the original's hub embeds it; training and evaluation clean it."""

_ACCEPTED = (
    f"a folder written by save_pretrained (with {CONFIG_FILE}), a training checkpoint (.ckpt) of this project, file or"
    " folder, a file of the original ONE-PEACE's release (.pt, .pkl), or a name 'owner/name' on the Hugging Face hub"
)
_MODULES = [
    {
        "idx": 0,
        "name": "0",
        "path": "",
        "type": "onepeace_lightning.integrations.sentence_transformers.OnePeaceModule",
    }
]


@dataclass(frozen=True)
class Pretrained:
    """A model and what it was trained with.

    Attributes:
        model: the weights; a backbone with contrastive heads (and perhaps a denoiser), with a pooling head, or alone.
        preprocessing: settings of its modalities.
        tokenizer: None where the model has no text, or its source no vocabulary.
        report: what did not fit when the weights were loaded.
        record: of the run that trained it (``training.record``), where it is known.
    """

    model: AnyModel
    preprocessing: Preprocessing
    tokenizer: Tokenizer | None = None
    report: LoadReport = field(default_factory=LoadReport)
    record: Mapping[str, Any] | None = None


def read_pretrained(source: str | Path, bpe_dir: str | Path | None = None, revision: str | None = None) -> Pretrained:
    """Read a model from wherever it is; tensors are mapped from disk, not copied, unless they were sharded.

    Args:
        source: a ``save_pretrained`` folder, a training checkpoint (a file, or a folder of shards), a checkpoint of the
            original, or a name on the hub.
        bpe_dir: folder with the original's ``dict.txt``, ``encoder.json`` and ``vocab.bpe``, for a source without a
            vocabulary.
        revision: a branch, tag or commit, for a name on the hub.

    Raises:
        FileNotFoundError: where a file is missing.
        ValueError: where the source is nothing known, damaged, or does not fit the vocabulary.
    """
    path = Path(source)
    if revision is not None and (path.exists() or not is_hub_name(source)):
        raise ValueError(f"revision={revision!r} is for a name on the hub; {source} is none, or is a file here")
    if path.is_dir() and not is_sharded(path):
        pretrained = _read_folder(path)
    elif path.exists():
        pretrained = _read_file(path)
    elif isinstance(source, str) and is_hub_name(source) and not _means_a_file(path):
        files = [CONFIG_FILE, WEIGHTS_FILE, MODULES_FILE, *TOKENIZER_FILES]
        pretrained = _read_folder(download(source, revision, files))
    else:
        raise FileNotFoundError(f"there is no {source}{_beside(path)}; accepted is {_ACCEPTED}")
    if bpe_dir is not None:
        if pretrained.tokenizer is not None:
            raise ValueError(f"{source} has a tokenizer of its own; leave bpe_dir={str(bpe_dir)!r} out")
        pretrained = replace(pretrained, tokenizer=load_tokenizer(bpe_dir))
    _check_vocabulary(pretrained, source)
    return pretrained


def _means_a_file(path: Path) -> bool:
    """Whether what could be ``owner/name`` on the hub is a mistyped path: its folder is here, or it ends so."""
    return path.parent.is_dir() or path.suffix in (".ckpt", ".pt", ".pth", ".pkl", ".safetensors")


def _beside(path: Path) -> str:
    """What there is in the place of a missing file."""
    there = path.parent
    while not there.is_dir():
        there = there.parent
    found = sorted(one.name for one in there.iterdir() if not one.name.startswith("."))
    shown = ", ".join(found[:8]) + (", …" if len(found) > 8 else "")
    return f" ({there} has {shown})" if found and there != Path() else ""


def write_pretrained(pretrained: Pretrained, folder: str | Path) -> None:
    """Write ``config.json``, ``model.safetensors``, the tokenizer's files and a model card.

    Args:
        pretrained: the model.
        folder: made if need be; a card that somebody has written stays as it is.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().contiguous() for name, tensor in pretrained.model.state_dict().items()}
    # The model may be mapped from the very file that is replaced.
    partial = folder / f"{WEIGHTS_FILE}.partial"
    safetensors.torch.save_file(tensors, partial, metadata={"format": "pt"})
    os.replace(partial, folder / WEIGHTS_FILE)
    tokenizer = pretrained.tokenizer
    if tokenizer is not None:
        tokenizer.save(folder)
    config = {
        "format_version": FORMAT_VERSION,
        "model_type": MODEL_TYPE,
        "model": pretrained.model.config.to_dict(),
        **model_parts(pretrained.model),
        "preprocessing": pretrained.preprocessing.to_dict(list(pretrained.model.config.adapters)),
        "tokenizer": None if tokenizer is None else tokenizer.fingerprint(),
        RECORD: None if pretrained.record is None else dict(pretrained.record),
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    if config["contrastive_heads"]:
        (folder / MODULES_FILE).write_text(json.dumps(_MODULES, indent=2) + "\n")
    card = folder / CARD_FILE
    if not card.exists() or written_here(card.read_text(encoding="utf-8")):
        card.write_text(
            model_card(pretrained.model, pretrained.preprocessing, tokenizer, pretrained.record), encoding="utf-8"
        )


def model_parts(model: nn.Module) -> dict[str, Any]:
    """What there is around the backbone, of what can be opened again; nothing for a model of a task's own making."""
    return {
        "contrastive_heads": isinstance(model, PretrainModel),
        "denoiser": isinstance(model, PretrainModel) and model.denoiser is not None,
        "logit_bias": isinstance(model, PretrainModel) and model.heads.logit_bias is not None,
        "pooling_head": asdict(model.head.config) if isinstance(model, ClassifyModel) else None,
    }


_DRAWS = (Tensor.normal_, Tensor.uniform_, Tensor.erfinv_, Tensor.mul_, Tensor.add_, Tensor.clamp_)
"""What initialisations are made of."""


class _NothingDrawn(TorchFunctionMode):
    """Parameters are left as they are allocated: on the meta device PyTorch imports its compiler to draw nothing."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _DRAWS:
            return args[0]
        return func(*args, **(kwargs or {}))


def _build(config: ModelConfig, parts: Mapping[str, Any]) -> AnyModel:
    with torch.device("meta"), _NothingDrawn():
        if parts["contrastive_heads"]:
            return PretrainModel(config, denoise=parts["denoiser"], logit_bias=parts.get("logit_bias", False))
        if parts["pooling_head"] is not None:
            return ClassifyModel(config, PoolingConfig(**parts["pooling_head"]))
        return Backbone(config)


def recorded(path: str | Path) -> Mapping[str, Any] | None:
    """What a training checkpoint says of its run (``training.record``), None where it says nothing."""
    if is_sharded(path):
        from onepeace_lightning.checkpoints.sharded import read_rest

        return read_rest(path).get(RECORD)
    return read_checkpoint(path).get(RECORD)


def _read_folder(folder: Path) -> Pretrained:
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"the folder {folder} has no {CONFIG_FILE}; accepted is {_ACCEPTED}")
    config = _read_config(folder / CONFIG_FILE)
    try:
        sizes = config_from_dict(config["model"])
        model = _build(sizes, config)
        preprocessing, fingerprint = Preprocessing(config["preprocessing"]), config["tokenizer"]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / CONFIG_FILE} is damaged ({type(error).__name__}: {error}); save the model again"
        ) from error
    report = fill(model, _read_weights(folder / WEIGHTS_FILE), str(folder / WEIGHTS_FILE))
    tokenizer = None if fingerprint is None else load_tokenizer(folder)
    if tokenizer is not None and tokenizer.fingerprint() != fingerprint:
        raise ValueError(
            f"the tokenizer in {folder} (fingerprint {tokenizer.fingerprint()}) is not the one that the model was saved"
            f" with ({fingerprint}): its ids mean other words; put the original files back"
        )
    return Pretrained(model, preprocessing, tokenizer, report, config.get(RECORD))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    version = config.get("format_version") if isinstance(config, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {version!r}; this release reads {FORMAT_VERSION}: was it written by"
            " save_pretrained, or by a newer release?"
        )
    return config


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; the folder was not saved to its end")
    check_fetched(path)
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} cannot be read: it is cut short or damaged ({error})") from error


def _read_file(path: Path) -> Pretrained:
    if is_sharded(path):
        return _read_training(path, read_checkpoint(path))
    content, found = read_file(path)
    if isinstance(content, dict) and "onepeace" in content:
        return _read_training(path, content)
    file = ReleasedFile.of(path, content, found)
    kind = kind_of(file)
    model, report = kind.model(file)
    settings = dict(kind.preprocessing(file, model.config))
    if "text" in settings:
        settings["text"] = dict(HUB_TEXT)
    return Pretrained(model, Preprocessing(settings).fitting(model.config), report=report)


def _read_training(path: Path, content: Mapping[str, Any]) -> Pretrained:
    about = content["onepeace"]
    if about["parts"] is None:
        raise ValueError(
            f"{path} holds low-rank updates beside its weights: open it with onepeace_lightning.tasks.load_task and"
            " take its backbone, in which they are merged"
        )
    config = config_from_dict(about["config"])
    model = _build(config, about["parts"])
    # A task's own parts, such as a segmentation head, are opened by load_task.
    report = fill_from(named(model), content, str(path), may_drop=lambda name: isinstance(model, Backbone))
    tokenizer = None if about["tokenizer"] is None else tokenizer_from_files(about["tokenizer"], source=str(path))
    preprocessing = Preprocessing(about.get("preprocessing")).fitting(config)
    return Pretrained(model, preprocessing, tokenizer, report, content.get(RECORD))


def _check_vocabulary(pretrained: Pretrained, source: str | Path) -> None:
    tokenizer = pretrained.tokenizer
    if tokenizer is None:
        return
    for name, sizes in pretrained.model.config.adapters.items():
        for size, needed in modality(name)(None, tokenizer).sizes().items() if modality(name).reads_text else ():
            if getattr(sizes, size) != needed:
                raise ValueError(
                    f"the tokenizer has {needed} ids, the model of {source} {getattr(sizes, size)}; they do not belong"
                    " together"
                )
