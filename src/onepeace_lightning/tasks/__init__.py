"""One LightningModule per kind of task, all on one backbone; most take the modalities that they are told."""

from onepeace_lightning.tasks.base import FinetuneTask
from onepeace_lightning.tasks.classification import ClassificationTask
from onepeace_lightning.tasks.lora import Lora
from onepeace_lightning.tasks.multiple_choice import MultipleChoiceTask
from onepeace_lightning.tasks.object_detection import ObjectDetectionTask
from onepeace_lightning.tasks.pretrain import PretrainTask
from onepeace_lightning.tasks.question_answering import QuestionAnsweringTask
from onepeace_lightning.tasks.regression import RegressionTask
from onepeace_lightning.tasks.retrieval import RetrievalTask
from onepeace_lightning.tasks.saved import load_task
from onepeace_lightning.tasks.semantic_segmentation import SemanticSegmentationTask
from onepeace_lightning.tasks.video_classification import VideoClassificationTask
from onepeace_lightning.tasks.visual_grounding import VisualGroundingTask
from onepeace_lightning.tasks.visual_reasoning import VisualReasoningTask
from onepeace_lightning.tasks.zero_shot import ZeroShotClassificationTask
from onepeace_lightning.training.optimizer import Optimization

__all__ = [
    "ClassificationTask",
    "FinetuneTask",
    "Lora",
    "MultipleChoiceTask",
    "ObjectDetectionTask",
    "Optimization",
    "PretrainTask",
    "QuestionAnsweringTask",
    "RegressionTask",
    "RetrievalTask",
    "SemanticSegmentationTask",
    "VideoClassificationTask",
    "VisualGroundingTask",
    "VisualReasoningTask",
    "ZeroShotClassificationTask",
    "load_task",
]
