"""``onepeace export``: a model for other runtimes, as ONNX or in PyTorch's own format, checked against it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace_lightning.inference.onepeace import OnePeace
from onepeace_lightning.modalities.base import Inputs
from onepeace_lightning.modalities.preprocessing import Preprocessing
from onepeace_lightning.modalities.registry import modality
from onepeace_lightning.modalities.tokenizers import Tokenizer
from onepeace_lightning.models.adapter import SECOND
from onepeace_lightning.models.heads.classifier import ClassifyModel
from onepeace_lightning.models.pretraining import PretrainModel
from onepeace_lightning.models.vision.light_segmentation import LightSegmentationModel
from onepeace_lightning.models.vision.segmentation import SegmentationModel, class_scores
from onepeace_lightning.tasks.export_graphs import AnswerGraph, EmbeddingGraph, MaskGraph
from onepeace_lightning.tasks.lora import merged
from onepeace_lightning.tasks.saved import is_task, load_task
from onepeace_lightning.tasks.visual_grounding import VisualGroundingTask

Format = Literal["onnx", "pt2"]

TOLERANCE = 1e-4
"""Greatest difference to the model that an exported one may have."""

BATCH = 3  # of the inputs that are traced; sizes of 0 and 1 would be taken for constants


@dataclass(frozen=True)
class Exported:
    """What one file holds.

    Attributes:
        path: the file.
        inputs: the names of its inputs.
        difference: the greatest one to the model, over other inputs than those that were traced.
    """

    path: Path
    inputs: list[str]
    difference: float


def export_graph(
    graph: nn.Module,
    reference: Callable[[Mapping[str, Inputs]], Tensor],
    draw: Callable[[int, int], dict[str, Inputs]],
    output: str,
    path: Path,
) -> Exported:
    """Write one graph and compare it with the model.

    Args:
        graph: a function of tensors.
        reference: what the model itself gives for the same inputs.
        draw: random inputs by modality, of a batch size and a seed.
        output: name of what comes out.
        path: ends in ``.onnx`` or ``.pt2``.

    Raises:
        ValueError: the exported graph differs from the model.
    """
    graph.eval()
    checked = [draw(batch, seed) for seed, batch in enumerate((1, 2, 5), 1)]
    with torch.no_grad():
        # First: what a model computes once and keeps (bias buckets) must not come from the traced pass.
        expected = [reference(inputs) for inputs in checked]
    first = draw(BATCH, 0)
    tensors = _tensors(first)
    dims: dict[str, Any] = {}
    shapes = tuple(
        {dim: dims.setdefault(name, torch.export.Dim.DYNAMIC) for dim, name in part.dynamic.get(key, {}).items()}
        for part in first.values()
        for key in part.exported()
    )
    with torch.no_grad():
        if path.suffix == ".pt2":
            program = torch.export.export(graph, tuple(tensors.values()), dynamic_shapes=(shapes,))
            torch.export.save(program, path)
        else:
            torch.onnx.export(
                graph, tuple(tensors.values()), str(path), input_names=list(tensors), output_names=[output],
                dynamic_shapes=(shapes,), dynamo=True, external_data=False, verbose=False, optimize=True,
            )  # fmt: skip
    run = runner(path)
    with torch.no_grad():
        differences = [
            float((run(_tensors(inputs)) - wanted).abs().max())
            for inputs, wanted in zip(checked, expected, strict=True)
        ]
    if not (worst := max(differences)) <= TOLERANCE:
        raise ValueError(f"{path} differs from the model by {worst:.2g}, more than {TOLERANCE:g}; it is not to be used")
    return Exported(path, list(tensors), worst)


def runner(path: Path) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """What runs an exported file: tensors by name to its output."""
    if path.suffix == ".pt2":
        module = torch.export.load(path).module()
        return lambda tensors: module(*tensors.values())
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(tensors: Mapping[str, Tensor]) -> Tensor:
        known = {entry.name for entry in session.get_inputs()}
        return torch.from_numpy(session.run(None, {k: v.numpy() for k, v in tensors.items() if k in known})[0])

    return run


def quantise(path: Path, draw: Callable[[int, int], dict[str, Inputs]]) -> tuple[Path, float, float]:
    """Write the int8 form of an ONNX file beside it.

    Returns:
        Its path, the mean cosine of its outputs to those of the full one, and how many times faster it is here.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    small = path.with_suffix(".int8.onnx")
    quantize_dynamic(str(path), str(small), weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
    tensors = _tensors(draw(8, 7))
    full, quick = runner(path), runner(small)
    cosine = float(F.cosine_similarity(full(tensors), quick(tensors), dim=-1).mean())
    return small, cosine, _seconds(full, tensors) / _seconds(quick, tensors)


def _seconds(run: Callable[[Mapping[str, Tensor]], Tensor], tensors: Mapping[str, Tensor], times: int = 5) -> float:
    """Median seconds of a call."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        run(tensors)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def _tensors(inputs: Mapping[str, Inputs]) -> dict[str, Tensor]:
    """The inputs of a graph by name, with the modality in front where there are several."""
    several = len(inputs) > 1
    return {
        f"{name}_{key}" if several else key: tensor
        for name, part in inputs.items()
        for key, tensor in part.exported().items()
    }


def _draw(
    config: Any, preprocessing: Preprocessing, tokenizer: Tokenizer | None, names: Sequence[str]
) -> Callable[[int, int], dict[str, Inputs]]:
    def draw(batch: int, seed: int) -> dict[str, Inputs]:
        rng = np.random.default_rng(seed)
        plain = {name: name.removeprefix(SECOND) for name in names}
        return {
            name: preprocessing.modality(one, tokenizer).random(config.adapters[one], batch, rng)
            for name, one in plain.items()
        }

    return draw


def export(*, model: str, out: str, format: Format = "onnx", int8: bool = False, bpe_dir: str | None = None) -> None:
    """Export the embedding of each modality, or the answers of a task, and compare them with the model.

    Args:
        model: a model that embeds (a folder, a checkpoint, a name on the hub), or a task's checkpoint.
        out: folder to write; one file for each modality (``text.onnx`` …), or ``answer.onnx`` of a task: logits; a
            box (x0, y0, x1, y1) in fractions of the image; or, of semantic segmentation, the scores (B, K, S, S) of K
            classes for every pixel of a window, a square of the side S that the model takes.
        format: onnx, or pt2 for ``torch.export.load``.
        int8: also write ONNX files with weights of 8 bits, and say how near they are and how much faster.
        bpe_dir: folder with the vocabulary, for the original's checkpoints.

    Raises:
        ValueError: the model has nothing that can be exported, or an exported graph differs from it.
    """
    if format not in ("onnx", "pt2"):
        raise ValueError(f"--format is {format}; give onnx or pt2")
    if int8 and format != "onnx":
        raise ValueError("--int8 is for --format onnx")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for graph, reference, draw, output, name in _graphs(model, bpe_dir):
        done = export_graph(graph, reference, draw, output, folder / f"{name}.{format}")
        print(f"{done.path}: {', '.join(done.inputs)} → {output}; differs from the model by {done.difference:.1e}")
        if int8:
            small, cosine, faster = quantise(done.path, draw)
            print(f"{small}: cosine to the full one {cosine:.4f}, {faster:.2f} times its speed here")


def _graphs(model: str, bpe_dir: str | None) -> list[tuple[Any, ...]]:
    """What a model can be exported to: graph, reference, random inputs, name of the output, name of the file."""
    if is_task(model):
        task = load_task(model, bpe_dir=bpe_dir)
        task.configure_model()
        if isinstance(task.model, ClassifyModel | PretrainModel | LightSegmentationModel | SegmentationModel):
            task.model.backbone = merged(task.model.backbone)
        network, preprocessing, tokenizer = task.model.float(), task.preprocessing, task.tokenizer
        output = "box" if isinstance(task, VisualGroundingTask) else "logits"
    else:
        onepeace = OnePeace.from_pretrained(model, bpe_dir=bpe_dir, device="cpu", dtype="float32")
        network, preprocessing, tokenizer = onepeace.model, onepeace.preprocessing, onepeace.tokenizer
        output = "logits"
    network.eval().requires_grad_(False)
    if isinstance(network, PretrainModel):
        return [_embedding(network, name, preprocessing, tokenizer) for name in network.config.adapters]
    if isinstance(network, ClassifyModel):
        return [_answer(network, preprocessing, tokenizer, output)]
    if isinstance(network, LightSegmentationModel | SegmentationModel):
        return [_masks(network, preprocessing)]
    raise ValueError(
        f"{model} is a {type(network).__name__}; exported are embeddings and what a pooling head gives (classes,"
        " answers, choices, statements about two images, boxes of expressions) and masks, not detections or features"
    )


def _embedding(
    network: PretrainModel, name: str, preprocessing: Preprocessing, tokenizer: Tokenizer | None
) -> tuple[Any, ...]:
    def reference(inputs: Mapping[str, Inputs]) -> Tensor:
        return network.heads(name, network.backbone(inputs))

    draw = _draw(network.config, preprocessing, tokenizer, [name])
    return EmbeddingGraph(network, name), reference, draw, "embeddings", name


def _answer(
    network: ClassifyModel, preprocessing: Preprocessing, tokenizer: Tokenizer | None, output: str
) -> tuple[Any, ...]:
    names = list(network.config.adapters)
    if network.head.config.images == 2:
        [item] = [name for name in names if not modality(name).reads_text]
        names.append(SECOND + item)
    draw = _draw(network.config, preprocessing, tokenizer, names)
    counts = {name: len(part.exported()) for name, part in draw(1, 0).items()}
    graph = AnswerGraph(network, counts, box=output == "box")

    def reference(inputs: Mapping[str, Inputs]) -> Tensor:
        logits = network(inputs)
        return logits.sigmoid() if graph.box else logits

    return graph, reference, draw, output, "answer"


def _masks(network: LightSegmentationModel | SegmentationModel, preprocessing: Preprocessing) -> tuple[Any, ...]:
    graph = MaskGraph(network)

    def reference(inputs: Mapping[str, Inputs]) -> Tensor:
        return class_scores(network(inputs[graph.modality])[-1], graph.side)

    return graph, reference, _draw(network.config, preprocessing, None, [graph.modality]), "scores", "answer"
