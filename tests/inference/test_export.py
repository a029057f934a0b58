"""Exported graphs give what the model gives, for other sizes than those that were traced."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from onepeace_lightning import OnePeace
from onepeace_lightning.modalities.image import Image
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.models.heads.classifier import ClassifyModel, PoolingConfig
from onepeace_lightning.models.relative_bias import grid_buckets
from onepeace_lightning.models.vision.segmentation import SegmentationConfig, SegmentationModel, class_scores
from onepeace_lightning.tasks import (
    ObjectDetectionTask,
    SemanticSegmentationTask,
    VisualGroundingTask,
    VisualReasoningTask,
)
from onepeace_lightning.tasks import export as module
from onepeace_lightning.tasks.saved import save_task
from tests.inference.conftest import tiny_onepeace
from tests.models.vision.test_segmentation import ADAPTER
from tests.models.vision.test_segmentation import HEAD as MASK_HEAD
from tests.models.vision.test_segmentation import config as four_blocks
from tests.tiny import randomised, tiny_config

onnxruntime = pytest.importorskip("onnxruntime", reason="an extra: pip install onepeace-lightning[export]")


@pytest.fixture(scope="module")
def exported(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    module.export(model=str(model_folder), out=str(folder), int8=True)
    return folder


def test_every_branch_runs_in_onnxruntime_on_batches_and_lengths_of_any_size(exported, model_folder):
    model = OnePeace.from_pretrained(model_folder, device="cpu")
    text = ["dog", "a small dog that barks at the cow"]
    ids = model.modality("text").collate([model.modality("text").read(item) for item in text]).ids_BL
    session = onnxruntime.InferenceSession(str(exported / "text.onnx"))
    [rows] = session.run(None, {"ids": ids.numpy()})
    assert np.abs(rows - model.embed(text=text).numpy()).max() < 1e-4

    rng = np.random.default_rng(1)
    audio = [(rng.standard_normal(samples).astype(np.float32), 16000) for samples in (4000, 9999, 700)]
    inputs = model.modality("audio").collate([model.modality("audio").read(item) for item in audio])
    session = onnxruntime.InferenceSession(str(exported / "audio.onnx"))
    [rows] = session.run(None, {name: tensor.numpy() for name, tensor in inputs.exported().items()})
    assert np.abs(rows - model.embed(audio=audio).numpy()).max() < 1e-4

    images = [rng.integers(0, 256, (50, 40, 3), dtype=np.uint8) for _ in range(4)]
    inputs = model.modality("image").collate([model.modality("image").read(item) for item in images])
    for name, nearness in (("image.onnx", 0.999999), ("image.int8.onnx", 0.99)):
        [rows] = onnxruntime.InferenceSession(str(exported / name)).run(None, {"pixels": inputs.pixels.numpy()})
        assert (rows * model.embed(image=images).numpy()).sum(1).min() > nearness


def test_a_pooling_head_s_answers_over_fused_modalities_are_exported(tmp_path):
    model = tiny_onepeace()
    network = randomised(ClassifyModel(model.config, PoolingConfig(outputs=7, pooled=("text",), pooler=True))).eval()
    draw = module._draw(model.config, model.preprocessing, model.tokenizer, ["text", "image", "audio"])
    counts = {name: len(part.exported()) for name, part in draw(1, 0).items()}
    graph = module.AnswerGraph(network, counts)
    done = module.export_graph(graph, network, draw, "logits", tmp_path / "answer.pt2")
    assert done.difference < 1e-4
    assert done.inputs == ["text_ids", "image_pixels", "audio_waveforms", "audio_lengths"]
    inputs = draw(4, 99)
    tensors = module._tensors(inputs)
    again = module.runner(tmp_path / "answer.pt2")(tensors)
    with torch.no_grad():
        assert (again - network(inputs)).abs().max() < 1e-4


@pytest.mark.parametrize(("kind", "format"), [(VisualGroundingTask, "pt2"), (VisualReasoningTask, "onnx")])
def test_a_task_s_checkpoint_with_boxes_or_two_images_is_exported_and_checked(kind, format, tmp_path, capsys):
    torch.manual_seed(0)
    options = {"classes": ["no", "yes"]} if kind is VisualReasoningTask else {}
    task = kind(tiny_onepeace(), **options)
    task.configure_model()
    randomised(task.model)  # also the vector that marks a second image
    save_task(task, tmp_path / "task.ckpt")
    with pytest.raises(ValueError, match="leave bpe_dir out"):
        module.export(model=str(tmp_path / "task.ckpt"), out=str(tmp_path), bpe_dir="bpe")
    module.export(model=str(tmp_path / "task.ckpt"), out=str(tmp_path), format=format)
    assert "differs from the model by" in capsys.readouterr().out
    model = task.model.eval()
    names = ["text", "image", *(["second_image"] if kind is VisualReasoningTask else [])]
    inputs = module._draw(model.config, task.preprocessing, task.tokenizer, names)(4, 99)
    with torch.no_grad():
        expected = model(inputs)
    expected = expected.sigmoid() if kind is VisualGroundingTask else expected
    given = module.runner(tmp_path / f"answer.{format}")(module._tensors(inputs))
    assert (given - expected).abs().max() < 1e-4
    if kind is VisualReasoningTask:  # the two images are not taken for each other
        swapped = {**inputs, "image": inputs["second_image"], "second_image": inputs["image"]}
        other = module.runner(tmp_path / f"answer.{format}")(module._tensors(swapped))
        assert (given - other).abs().max() > 1e-3


HEAD = {"queries": 6, "decoder_layers": 1, "decoder_width": 32, "decoder_heads": 4, "decoder_inner": 64}


def test_the_masks_of_one_window_are_exported_and_checked(tmp_path, capsys):
    torch.manual_seed(0)
    config = tiny_config(encoder=replace(tiny_config().encoder, depth=1))
    task = SemanticSegmentationTask(
        config, classes=["a", "b", "c"], preprocessing={"image": {"size": 64}}, head="light", **HEAD
    )
    task.configure_model()
    randomised(task.model)
    save_task(task, tmp_path / "task.ckpt")
    module.export(model=str(tmp_path / "task.ckpt"), out=str(tmp_path), format="pt2")
    assert "pixels → scores; differs from the model by" in capsys.readouterr().out
    pixels = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))
    scores = module.runner(tmp_path / "answer.pt2")({"pixels": pixels})
    assert scores.shape == (4, 3, 64, 64)
    classes = task.eval().predict(list(pixels))  # a picture of one window
    for answer, expected in zip(scores.argmax(1), classes, strict=True):
        assert (answer == expected).float().mean() > 0.999


def test_the_published_segmentation_model_is_exported_and_checked(tmp_path):
    torch.manual_seed(0)
    sizes = SegmentationConfig(head=replace(MASK_HEAD, layers=1), adapter=ADAPTER)
    network = randomised(SegmentationModel(four_blocks(), sizes)).eval().requires_grad_(False)
    preprocessing = Preprocessing({"image": {"size": 64}}).fitting(network.config)
    grid_buckets.cache_clear()  # as in a new process: what tracing puts there must not reach the model
    [graph, reference, draw, output, _] = module._masks(network, preprocessing)
    done = module.export_graph(graph, reference, draw, output, tmp_path / "answer.pt2")
    assert done.inputs == ["pixels"]
    assert done.difference < 1e-4
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    expected = class_scores(network(Image(pixels))[-1], 64)
    assert expected.std() > 1e-3
    torch.testing.assert_close(module.runner(done.path)({"pixels": pixels}), expected, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_exported_is_said(tmp_path):
    task = ObjectDetectionTask(tiny_onepeace(), classes=["a", "b"])
    task.configure_model()
    save_task(task, tmp_path / "task.ckpt")
    with pytest.raises(ValueError, match=r"is a \w+; exported are .* not detections"):
        module.export(model=str(tmp_path / "task.ckpt"), out=str(tmp_path))


def test_a_graph_that_differs_is_refused(tmp_path):
    model = tiny_onepeace()
    draw = module._draw(model.config, model.preprocessing, model.tokenizer, ["text"])

    def wrong(inputs):
        return model.model.heads("text", model.model.backbone(inputs)) + 0.01

    graph = module.EmbeddingGraph(model.model.eval(), "text")
    with pytest.raises(ValueError, match=r"differs from the model by 0\.01"):
        module.export_graph(graph, wrong, draw, "embeddings", tmp_path / "text.pt2")


@pytest.mark.parametrize("options", [{"format": "tflite"}, {"format": "pt2", "int8": True}])
def test_options_that_make_no_sense_are_refused(options, tmp_path):
    with pytest.raises(ValueError, match=r"--format|--int8"):
        module.export(model="m", out=str(tmp_path), **options)
