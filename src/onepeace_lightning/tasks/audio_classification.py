"""Audio classification, with one label per sound (ESC-50, VGGSound) or several (FSD50K)."""

from collections.abc import Sequence
from typing import ClassVar

from onepeace_lightning.modalities.audio import AudioItem
from onepeace_lightning.tasks.classification import ClassificationTask


class AudioClassificationTask(ClassificationTask):
    """Sounds in classes; see ``ClassificationTask``."""

    modalities = ("audio",)
    published: ClassVar = {"FSD50K": "mAP 69.7", "VGGSound": "accuracy 59.6 (audio only)"}

    def predict(self, audio: Sequence[AudioItem], *, top: int = 5, batch_size: int = 32) -> list[dict[str, float]]:
        """Classify sounds.

        Args:
            audio: paths, or tuples (waveform, sample_rate).
            top: classes to name for each.
            batch_size: sounds that run through the model together.

        Returns:
            For each sound class names with probabilities, likeliest first.

        Raises:
            ValueError: naming a sound that cannot be read.
        """
        return self.classify(audio, top, batch_size)
