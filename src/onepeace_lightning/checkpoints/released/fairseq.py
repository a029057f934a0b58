"""Files of the fairseq part of the release: the pretrained model, retrieval, and all tasks with a pooling head."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from onepeace_lightning.checkpoints.key_map import MODALITIES
from onepeace_lightning.checkpoints.loading import LoadReport
from onepeace_lightning.checkpoints.original import AnyModel, head_from_original, model_from_original, named
from onepeace_lightning.checkpoints.released.base import Kind, Opened, ReleasedFile, class_names
from onepeace_lightning.models.config import ModelConfig
from onepeace_lightning.models.heads.classifier import PoolingConfig

AUDIO_SECONDS, RETRIEVAL_AUDIO_SECONDS = 15.0, 20.0
_HEAD = "classify_head."


class FairseqKind(Kind):
    """A file of fairseq's layout; its model is one of this project's own."""

    modalities: ClassVar[tuple[str, ...]]
    """What it must hold, and nothing else; in this project's order."""
    seconds: ClassVar[float] = AUDIO_SECONDS
    """Of a clip, where the file does not say."""
    text: ClassVar[Mapping[str, Any]] = {}
    """Settings of text in training and evaluation."""
    corpora: ClassVar[tuple[str, ...]] = ()
    """Data sets that its published scores are of."""

    def recognise(self, file: ReleasedFile) -> bool:
        """By the modalities, and by the pooling head or that there is none."""
        decoder = file.has("decoder_wrapper.")
        return modalities_of(file) == self.modalities and not decoder and self.fits(_head(file))

    def fits(self, head: PoolingConfig | None) -> bool:
        """Whether a file with this pooling head, or with none, is of this kind."""
        return head is None

    def open(self, file: ReleasedFile, labels: Sequence[str] | None) -> Opened:
        """The model's own tensors; bias tables of each block are kept."""
        model, report = self.model(file)
        return Opened(
            model.config,
            named(model).state_dict(),
            self.settings(file, labels),
            self.preprocessing(file, model.config),
            report,
        )

    def model(self, file: ReleasedFile) -> tuple[AnyModel, LoadReport]:
        """The model, its tensors mapped from the file."""
        return model_from_original({"cfg": file.cfg, "model": file.tensors})

    def settings(self, file: ReleasedFile, labels: Sequence[str] | None) -> dict[str, Any]:
        """Arguments of the task."""
        return {}

    def preprocessing(self, file: ReleasedFile, config: ModelConfig) -> Mapping[str, Mapping[str, Any]]:
        """The side of images from the tensors, the length of clips as the file says."""
        given: dict[str, dict[str, Any]] = {}
        adapters = config.adapters
        if "text" in adapters:
            given["text"] = dict(self.text)
        if "image" in adapters:
            given["image"] = {"size": adapters["image"].image_size}  # type: ignore[attr-defined]
        if "audio" in adapters:
            given["audio"] = {"max_seconds": float(_task(file).get("max_duration") or self.seconds)}
        return given

    def published(self, file: ReleasedFile) -> Sequence[str]:
        """Of each data set."""
        return self.corpora

    def outputs(self, file: ReleasedFile) -> int | None:
        """Of the pooling head."""
        return _outputs(file) if self.takes_labels else None


class Pretrained(FairseqKind):
    """The pretrained model of three modalities, or any pretraining checkpoint."""

    name = "pretrained"
    title = "the pretrained model (one-peace.pt)"
    answers = "embeddings and features of text, images and audio; zero-shot retrieval and classification"
    takes_vocabulary = True
    corpora = ("COCO", "Flickr30K", "ESC-50")

    def recognise(self, file: ReleasedFile) -> bool:
        """Projections of three modalities, or a decoder."""
        if file.has(_HEAD) or not file.has("encoder_wrapper."):
            return False
        return modalities_of(file) == MODALITIES or file.has("decoder_wrapper.")

    def published(self, file: ReleasedFile) -> Sequence[str]:
        """What it does without fine-tuning."""
        return [f"{corpus} zero-shot" for corpus in self.corpora]


class ImageTextRetrieval(FairseqKind):
    """Fine-tuned for retrieval between images and captions."""

    name = "image-text-retrieval"
    title = "image-text retrieval (finetune_coco.pt, finetune_flickr.pt)"
    answers = "cosines of images and texts; their embeddings"
    task = "RetrievalTask"
    takes_vocabulary = True
    modalities = ("text", "image")

    def settings(self, file: ReleasedFile, labels: Sequence[str] | None) -> dict[str, Any]:
        """What captions are compared with."""
        return {"item": "image"}

    def published(self, file: ReleasedFile) -> Sequence[str]:
        """Of the data set that the file was trained on, or of both."""
        words = _words(file)
        names = [name for name, word in (("COCO", "coco"), ("Flickr30K", "flickr")) if word in words]
        return names or ("COCO", "Flickr30K")


class AudioTextRetrieval(FairseqKind):
    """Fine-tuned for retrieval between audio and captions."""

    name = "audio-text-retrieval"
    title = "audio-text retrieval (finetune_al_retrieval.pt)"
    answers = "cosines of audio clips and texts; their embeddings"
    task = "RetrievalTask"
    takes_vocabulary = True
    modalities = ("text", "audio")
    seconds = RETRIEVAL_AUDIO_SECONDS
    corpora = ("AudioCaps", "Clotho")

    def settings(self, file: ReleasedFile, labels: Sequence[str] | None) -> dict[str, Any]:
        """What captions are compared with."""
        return {"item": "audio"}


class Grounding(FairseqKind):
    """The box that a text points at."""

    name = "grounding"
    title = "visual grounding (finetune_refcoco.pt, finetune_refcoco+.pt, finetune_refcocog.pt)"
    answers = "a box in an image for a text"
    task = "VisualGroundingTask"
    takes_vocabulary = True
    modalities = ("text", "image")
    text: ClassVar[Mapping[str, Any]] = {"max_words": 70, "truncate": False}

    def fits(self, head: PoolingConfig | None) -> bool:
        """Four numbers, and no pooler before them."""
        return head is not None and head.outputs == 4 and head.images == 1 and not head.pooler

    def settings(self, file: ReleasedFile, labels: Sequence[str] | None) -> dict[str, Any]:
        """What is pooled."""
        return {"pooled": pooled_modality(file)}

    def model(self, file: ReleasedFile) -> tuple[AnyModel, LoadReport]:
        """With the head that pools what the file was trained to."""
        model, report = super().model(file)
        model.head.config = replace(model.head.config, pooled=(pooled_modality(file),))  # type: ignore[union-attr,type-var]
        return model, report

    def published(self, file: ReleasedFile) -> Sequence[str]:
        """Of the one of the three data sets that the file was trained on."""
        corpus = _refcoco(file)
        return [corpus] if corpus else ("RefCOCO", "RefCOCO+", "RefCOCOg")

    def describe(self, file: ReleasedFile) -> Sequence[str]:
        """What is pooled, and how that is known."""
        said = "use_image_features" in file.cfg.get("model", {})
        why = "as its cfg says" if said else f"as for {_refcoco(file) or 'RefCOCO'}: its cfg does not say"
        return [f"pools the {pooled_modality(file)}'s tokens, {why}"]


class VisualQuestionAnswering(FairseqKind):
    """One of many learned answers to a question about an image."""

    name = "vqa"
    title = "visual question answering (finetune_vqa.pt)"
    answers = "answers to a question about an image"
    task = "QuestionAnsweringTask"
    takes_labels = True
    takes_vocabulary = True
    modalities = ("text", "image")
    corpora = ("VQAv2",)

    def fits(self, head: PoolingConfig | None) -> bool:
        """With a pooler."""
        return head is not None and head.pooler

    def settings(self, file: ReleasedFile, labels: Sequence[str] | None) -> dict[str, Any]:
        """What is asked about, and the answers."""
        return {"modalities": ["image"], "answers": _names(file, labels)}


class VisualReasoning(FairseqKind):
    """Whether a statement about two images is true."""

    name = "nlvr2"
    title = "visual reasoning about two images (finetune_nlvr2.pt)"
    answers = "whether a statement about two images is true"
    task = "VisualReasoningTask"
    takes_labels = True
    takes_vocabulary = True
    modalities = ("text", "image")
    corpora = ("NLVR2",)

    def fits(self, head: PoolingConfig | None) -> bool:
        """For two images."""
        return head is not None and head.images == 2

    def settings(self, file: ReleasedFile, labels: Sequence[str] | None) -> dict[str, Any]:
        """The classes; of two the published order is known."""
        if labels is None and _outputs(file) == 2:
            labels = ["True", "False"]
        return {"classes": _names(file, labels)}


class AudioQuestionAnswering(FairseqKind):
    """The right one of a question's choices."""

    name = "avqa"
    title = "audio question answering (finetune_aqa.pt)"
    answers = "the best of several answers to a question about an audio clip"
    task = "MultipleChoiceTask"
    takes_vocabulary = True
    modalities = ("text", "audio")
    text: ClassVar[Mapping[str, Any]] = {"cleaning": "none", "truncate": False}
    corpora = ("AVQA",)

    def settings(self, file: ReleasedFile, labels: Sequence[str] | None) -> dict[str, Any]:
        """What is asked about."""
        return {"modalities": ["audio"]}

    def fits(self, head: PoolingConfig | None) -> bool:
        """One number."""
        return head is not None and head.outputs == 1


class AudioClassification(FairseqKind):
    """Classes of an audio clip."""

    name = "audio-classification"
    title = "audio classification (finetune_fsd50k.pt, finetune_vggsound.pt)"
    answers = "classes of an audio clip"
    task = "ClassificationTask"
    takes_labels = True
    modalities = ("audio",)

    def fits(self, head: PoolingConfig | None) -> bool:
        """Any."""
        return head is not None

    def settings(self, file: ReleasedFile, labels: Sequence[str] | None) -> dict[str, Any]:
        """Classes, and whether a clip may be in several."""
        return {"modalities": ["audio"], "classes": _names(file, labels), "multi_label": self.multi_label(file)}

    def multi_label(self, file: ReleasedFile) -> bool:
        """FSD50K's clips are; its number of classes tells it from VGGSound, else what the loss was told."""
        by_size = {200: True, 309: False}.get(_outputs(file) or 0)
        if by_size is not None:
            return by_size
        return bool(file.cfg.get("criterion", {}).get("use_multi_label", "fsd" in _words(file)))

    def published(self, file: ReleasedFile) -> Sequence[str]:
        """Of the data set that the file was trained on."""
        return ["FSD50K" if self.multi_label(file) else "VGGSound"]


class ImageClassification(FairseqKind):
    """Classes of an image by a pooling head; no such file was released, and no task here has that head."""

    name = "pooled-image-classification"
    title = "an image classifier with attention pooling"
    answers = "features of an image; a backbone to train a task with"
    modalities = ("image",)

    def fits(self, head: PoolingConfig | None) -> bool:
        """Any."""
        return head is not None


def modalities_of(file: ReleasedFile) -> tuple[str, ...]:
    """Modalities whose adapters a fairseq file has, in this project's order."""
    return tuple(name for name in MODALITIES if file.has(f"encoder_wrapper.{name}_adapter."))


def pooled_modality(file: ReleasedFile) -> str:
    """Whose tokens a grounding file pools: ``cfg`` says it where it was written late enough, else the data set does."""
    said = file.cfg.get("model", {}).get("use_image_features")
    if said is None:
        return "text" if _refcoco(file) == "RefCOCOg" else "image"
    return "image" if said else "text"


def _head(file: ReleasedFile) -> PoolingConfig | None:
    return head_from_original({"cfg": file.cfg, "model": file.tensors})


def _outputs(file: ReleasedFile) -> int | None:
    head = _head(file)
    return None if head is None else head.outputs


def _names(file: ReleasedFile, labels: Sequence[str] | None) -> list[str]:
    return class_names(labels, file.shape(f"{_HEAD}classifier.3.weight")[0], file.path)


def _task(file: ReleasedFile) -> Mapping[str, Any]:
    return file.cfg.get("task", {})


def _words(file: ReleasedFile) -> str:
    """What names the data set: the file, and where its training data lay."""
    return f"{file.path.name} {_task(file).get('data', '')} {_task(file).get('_name', '')}".lower()


def _refcoco(file: ReleasedFile) -> str | None:
    words = _words(file)
    for word, corpus in (("refcocog", "RefCOCOg"), ("refcoco+", "RefCOCO+"), ("refcoco", "RefCOCO")):
        if word in words:
            return corpus
    return None
