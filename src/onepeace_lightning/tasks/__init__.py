"""One LightningModule per task, all on one backbone."""

from onepeace_lightning.tasks.audio_classification import AudioClassificationTask
from onepeace_lightning.tasks.audio_question_answering import AudioQuestionAnsweringTask
from onepeace_lightning.tasks.base import FinetuneTask
from onepeace_lightning.tasks.image_classification import ImageClassificationTask
from onepeace_lightning.tasks.lora import Lora
from onepeace_lightning.tasks.object_detection import ObjectDetectionTask
from onepeace_lightning.tasks.pretrain import PretrainTask
from onepeace_lightning.tasks.retrieval import AudioTextRetrievalTask, ImageTextRetrievalTask
from onepeace_lightning.tasks.saved import load_task
from onepeace_lightning.tasks.semantic_segmentation import SemanticSegmentationTask
from onepeace_lightning.tasks.video_classification import VideoClassificationTask
from onepeace_lightning.tasks.visual_grounding import VisualGroundingTask
from onepeace_lightning.tasks.visual_question_answering import VisualQuestionAnsweringTask
from onepeace_lightning.tasks.visual_reasoning import VisualReasoningTask
from onepeace_lightning.tasks.zero_shot import ZeroShotAudioClassificationTask, ZeroShotImageClassificationTask
from onepeace_lightning.training.optimizer import Optimization

__all__ = [
    "AudioClassificationTask",
    "AudioQuestionAnsweringTask",
    "AudioTextRetrievalTask",
    "FinetuneTask",
    "ImageClassificationTask",
    "ImageTextRetrievalTask",
    "Lora",
    "ObjectDetectionTask",
    "Optimization",
    "PretrainTask",
    "SemanticSegmentationTask",
    "VideoClassificationTask",
    "VisualGroundingTask",
    "VisualQuestionAnsweringTask",
    "VisualReasoningTask",
    "ZeroShotAudioClassificationTask",
    "ZeroShotImageClassificationTask",
    "load_task",
]
