"""Training and embedding beside open_clip: recall, samples per second, memory, and embeddings at equal FLOPs.

The same shards, order of batches, pixels, token ids, steps, batch size, learning rates and trainer; what differs is the
model and what it learns by. Each way trains in a process of its own, one after the other:

* open_clip: its CLIP (a tower of each modality, text read causally), and its loss. The towers are as wide as this
  project's model and of so many layers that there are about as many parameters;
* onepeace, aligned: one transformer with shared attention, learning by the aligning contrast alone: the like-for-like;
* onepeace, aligned and denoised: with the denoising contrast, as the paper trains. Its decoder serves training alone
  and is not among the parameters that are compared.

Then embeddings per second, of open_clip's towers with so many layers that one embedding takes about as many FLOPs.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch
from jsonargparse import auto_cli
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import Device, fresh, interleaved, own_peak
from data_recipes.toy import pretraining as toy
from onepeace_lightning.cli.trainer import quieten
from onepeace_lightning.data.batch import Batch
from onepeace_lightning.data.datamodule import DataModule, StreamConfig
from onepeace_lightning.losses.pretraining import Objectives
from onepeace_lightning.metrics import CrossModalRecall, caption_ids
from onepeace_lightning.modalities.presets import Preset, preset_config
from onepeace_lightning.modalities.tokenizers import load_tokenizer
from onepeace_lightning.modalities.tokenizers.base import EOS, PAD
from onepeace_lightning.models import PretrainModel
from onepeace_lightning.models.config import ModelConfig
from onepeace_lightning.tasks.pretrain import PretrainTask
from onepeace_lightning.training.optimizer import Optimization
from onepeace_lightning.training.schedule import warmup_and_decay

STREAM = "image-text"
MODALITIES = ("text", "image")
OPEN_CLIP, ALIGNED, DENOISED = "open_clip", "onepeace, aligned", "onepeace, aligned and denoised"
WAYS = (OPEN_CLIP, ALIGNED, DENOISED)


@dataclass(frozen=True)
class Setting:
    """What all ways have in common.

    Attributes:
        data: folder with ``train/image-text``, ``val/image-text`` and ``tokenizer``.
        preset: size of this project's model.
        side: of the images in pixels.
        steps: of the optimizer.
        batch_size: pairs in a step.
        lr: peak learning rate.
        seed: of weights and order.
        device: where it runs.
        context: token ids, eos included, that open_clip pads every caption to; here nothing is padded.
    """

    data: str
    preset: Preset
    side: int
    steps: int
    batch_size: int
    lr: float
    seed: int
    device: Device
    context: int

    @property
    def preprocessing(self) -> dict[str, dict[str, Any]]:
        """Images of that side, uncropped in training."""
        return {"image": {"size": self.side, "crop_scale": [1.0, 1.0]}}

    @property
    def tokenizer(self) -> str:
        """Folder of the tokenizer."""
        return str(Path(self.data) / "tokenizer")

    @property
    def optimization(self) -> Optimization:
        """A tenth of the steps warms up."""
        return Optimization(total_steps=self.steps, lr=self.lr, min_lr=self.lr / 100, warmup_steps=0.1)

    def config(self) -> ModelConfig:
        """Sizes of this project's model of image and text."""
        sizes = {"image": {"image_size": self.side}, "text": {"vocab_size": load_tokenizer(self.tokenizer).vocab_size}}
        return preset_config(self.preset, modalities=MODALITIES, sizes=sizes)

    def module(self, *, masks: bool) -> DataModule:
        """The shards; batches and their order follow from the seed alone."""
        streams = {
            split: {STREAM: StreamConfig(str(Path(self.data) / split / STREAM), size)}
            for split, size in (("train", self.batch_size), ("val", 64))
        }
        return DataModule(
            streams["train"], streams["val"], tokenizer=self.tokenizer, preprocessing=self.preprocessing,
            seed=self.seed, steps_per_epoch=self.steps, masks=masks,
        )  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """What one way came to.

    Attributes:
        parameters: of the model that embeds.
        recall: direction to R@1 in percent.
        chance: of R@1 in percent.
        samples: pairs per second of training, the first step left out.
        peak: greatest memory in bytes: of the process, or allocated on the GPU.
        start: the same before anything was built.
    """

    parameters: int
    recall: dict[str, float]
    chance: float
    samples: float
    peak: int
    start: int


def clip(setting: Setting, layers: Mapping[str, int]) -> nn.Module:
    """open_clip's CLIP, as wide as this project's model.

    Args:
        setting: of which sizes are taken.
        layers: of each modality's tower.
    """
    import open_clip

    encoder, tokenizer = setting.config().encoder, load_tokenizer(setting.tokenizer)
    width, heads = encoder.width, encoder.heads
    return open_clip.CLIP(
        embed_dim=width,
        vision_cfg={
            "layers": layers["image"], "width": width, "head_width": width // heads, "patch_size": 16,
            "image_size": setting.side,
        },
        text_cfg={
            "layers": layers["text"], "width": width, "heads": heads, "vocab_size": tokenizer.vocab_size,
            "context_length": setting.context, "pool_type": "eos", "eos_id": EOS, "pad_id": PAD,
        },
    )  # fmt: skip


def clip_embed(model: Any, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """(B, D) of unit length by modality, of open_clip's model and this project's inputs.

    Raises:
        ValueError: a caption is longer than the model's context.
    """
    encoders = {
        "image": lambda images: model.encode_image(images.normalised(), normalize=True),
        "text": lambda texts: model.encode_text(_in_context(texts.ids_BL, model.context_length), normalize=True),
    }
    return {name: encoders[name](part) for name, part in inputs.items()}


def _in_context(ids_BL: Tensor, context: int) -> Tensor:
    """(B, context) ids, padded as open_clip's tokenizers do it."""
    if ids_BL.shape[1] > context:
        raise ValueError(f"context is {context}, a caption has {ids_BL.shape[1]} token ids; give so many or more")
    return F.pad(ids_BL, (0, context - ids_BL.shape[1]), value=PAD)


class ClipTask(L.LightningModule):
    """open_clip's model under the same trainer: its loss, its bound on the temperature, its groups of weight decay."""

    def __init__(self, model: nn.Module, optimization: Optimization) -> None:
        super().__init__()
        import open_clip

        self.model, self.optimization, self.loss = model, optimization, open_clip.ClipLoss()

    def training_step(self, batches: Mapping[str, Batch], batch_idx: int) -> Tensor:
        """Loss of one batch of pairs."""
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, torch.tensor(100.0).log().item())  # type: ignore[operator]
        embeddings = clip_embed(self.model, batches[STREAM].inputs)
        return self.loss(embeddings["image"], embeddings["text"], self.model.logit_scale.exp())  # type: ignore[operator]

    def configure_optimizers(self) -> Any:
        """AdamW as here; vectors and scalars have no weight decay, as in open_clip."""
        settings, total = self.optimization, self.optimization.total_steps or 1
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for parameter in self.model.parameters():
            groups[parameter.ndim > 1].append(parameter)
        optimizer = torch.optim.AdamW(
            [
                {"params": params, "weight_decay": settings.weight_decay * matrix}
                for matrix, params in groups.items()
            ],
            lr=settings.lr, betas=settings.betas, eps=settings.eps,
        )  # fmt: skip
        schedule = warmup_and_decay(
            optimizer, total_steps=total, warmup_steps=round(settings.warmup_steps * total), min_lr=settings.min_lr
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _Clock(L.Callback):
    """When each step ended."""

    def __init__(self, device: Device) -> None:
        self.device, self.ends = device, list[float]()

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def train(way: str, setting: Setting, layers: Mapping[str, int]) -> Trained:
    """Train and measure one way; for a process of its own.

    Args:
        way: one of ``WAYS``.
        setting: of all ways.
        layers: of open_clip's towers.
    """
    quieten()
    start = own_peak(setting.device)
    L.seed_everything(setting.seed, verbose=False)
    denoise = way == DENOISED
    module = setting.module(masks=denoise)
    task: L.LightningModule
    if way == OPEN_CLIP:
        task = ClipTask(clip(setting, layers), setting.optimization)
    else:
        task = PretrainTask(
            setting.tokenizer, setting.optimization, setting.preset, (STREAM,), MODALITIES,
            preprocessing=setting.preprocessing, objectives=Objectives(denoise=denoise),
        )  # fmt: skip
    clock = _Clock(setting.device)
    trainer = L.Trainer(
        accelerator="gpu" if setting.device == "cuda" else "cpu", devices=1, max_steps=setting.steps,
        limit_val_batches=0, num_sanity_val_steps=0, gradient_clip_val=3.0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[clock],
    )  # fmt: skip
    trainer.fit(task, module)
    model: Any = task.model
    model.to(setting.device).eval()
    embed = model.embed if way != OPEN_CLIP else lambda inputs: clip_embed(model, inputs)
    recall = CrossModalRecall("image", "text")
    with torch.no_grad():
        for batch in module.val_dataloader()[STREAM]:
            found = {name: rows.cpu() for name, rows in embed(batch.to(setting.device).inputs).items()}
            recall.update(found["image"], found["text"], caption_ids(batch.targets["answer"]))
    scores = {name: float(value) for name, value in recall.compute().items() if name.endswith("R@1")}
    return Trained(
        parameters=_parameters(model),
        recall={name: value for name, value in scores.items() if not name.startswith("chance/")},
        chance=median(value for name, value in scores.items() if name.startswith("chance/")),
        samples=setting.batch_size * (setting.steps - 1) / (clock.ends[-1] - clock.ends[0]),
        peak=own_peak(setting.device),
        start=start,
    )


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("denoiser."))


def _nearest_layers(wanted: int, measure: Callable[[int], int]) -> int:
    """How many layers come nearest to a size or cost, which grows by the same with each."""
    one, two = measure(1), measure(2)
    return max(1, 1 + round((wanted - one) / (two - one)))


def layers_of_equal_size(setting: Setting) -> dict[str, int]:
    """Layers of each of open_clip's towers with which there are about as many parameters as here."""
    with torch.device("meta"):
        wanted = _parameters(PretrainModel(setting.config(), denoise=False))
    count = _nearest_layers(wanted, lambda layers: _parameters(clip(setting, dict.fromkeys(MODALITIES, layers))))
    return dict.fromkeys(MODALITIES, count)


def embedding_flops(embed: Callable[[Mapping[str, Any]], Any], inputs: Mapping[str, Any]) -> int:
    """Floating point operations of embedding a batch, counted as they are done: padding too, where it is computed."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # fused kernels are not counted
        embed(inputs)
    return counter.get_total_flops()


@dataclass(frozen=True)
class Speed:
    """Embeddings of one modality by one model.

    Attributes:
        layers: of its tower or encoder.
        flops: of one embedding.
        per_second: embeddings.
    """

    layers: int
    flops: float
    per_second: float


def speeds(setting: Setting, batch: Batch, repetitions: int) -> dict[str, dict[str, Speed]]:
    """Embeddings per second at about equal FLOPs, by modality and model.

    Args:
        setting: of all ways.
        batch: what is embedded.
        repetitions: timed passes of each, taking turns.
    """
    found = {}
    config = setting.config()
    ours = PretrainModel(config, denoise=False)
    for name in MODALITIES:
        inputs = {name: batch.inputs[name]}
        flops = embedding_flops(ours.embed, inputs)

        def tower(layers: int, name: str = name) -> Any:
            return clip(setting, {**dict.fromkeys(MODALITIES, 1), name: layers})

        def cost(model: Any, inputs: Mapping[str, Any] = inputs) -> int:
            return embedding_flops(lambda given: clip_embed(model, given), inputs)

        layers = _nearest_layers(flops, lambda count: cost(tower(count)))
        theirs = tower(layers)
        counted = {OPEN_CLIP: (layers, cost(theirs)), "onepeace": (config.encoder.depth, flops)}
        models: tuple[Any, Any] = theirs.to(setting.device).eval(), ours.to(setting.device).eval()
        there = batch.to(setting.device).inputs[name]

        def run_theirs(_: int, model: Any = models[0], name: str = name, there: Any = there) -> None:
            _finished(clip_embed(model, {name: there}), setting.device)

        def run_ours(_: int, model: Any = models[1], name: str = name, there: Any = there) -> None:
            _finished(model.embed({name: there}), setting.device)

        with torch.inference_mode():
            run_theirs(0)  # the first call prepares kernels
            run_ours(0)
            times = interleaved({OPEN_CLIP: run_theirs, "onepeace": run_ours}, repetitions)
        found[name] = {
            model: Speed(depth, total / len(batch), len(batch) / median(times[model]))
            for model, (depth, total) in counted.items()
        }
        ours.cpu().train()
    return found


def _finished(_: Any, device: Device) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def has_audio() -> bool:
    """Whether any model that the installed open_clip knows has an audio tower."""
    import open_clip

    configs = (open_clip.get_model_config(name) or {} for name in open_clip.list_models())
    return any("audio_cfg" in config for config in configs)


def run(
    data: str | None = None,
    preset: Preset = "tiny",
    side: int = 64,
    steps: int = 300,
    batch_size: int = 32,
    lr: float = 1e-3,
    seed: int = 0,
    device: Device = "cpu",
    context: int = 16,
    pairs: int = 4000,
    gallery: int = 256,
    repetitions: int = 5,
) -> None:
    """Train every way on the same pairs, then time embeddings, and print both tables.

    Args:
        data: folder with ``train/image-text``, ``val/image-text`` and ``tokenizer``; None: a new toy world.
        preset: size of this project's model, which open_clip's is fitted to.
        side: of the images in pixels, a multiple of 16.
        steps: of the optimizer, 2 or more.
        batch_size: pairs in a step, and items that are embedded together.
        lr: peak learning rate of both.
        seed: of weights and order.
        device: where it runs.
        context: token ids that open_clip pads every caption to, those of the longest one; CLIP's own is 77.
        pairs: of the toy world.
        gallery: of the toy world: samples to search among.
        repetitions: timed passes of embeddings.

    Raises:
        ValueError: there are fewer than 2 steps.
    """
    if steps < 2:
        raise ValueError(f"steps is {steps}; give 2 or more, the first is not timed")
    quieten()
    with tempfile.TemporaryDirectory() as folder:
        if data is None:
            toy.build(Path(folder), toy.ToyConfig(pairs=pairs, singles=8, gallery=gallery, image_side=side))
        setting = Setting(data or folder, preset, side, steps, batch_size, lr, seed, device, context)
        layers = layers_of_equal_size(setting)
        results = {way: fresh(train, way, setting, layers) for way in WAYS}
        module = setting.module(masks=False)
        module.setup("fit")
        [batch] = next(iter(module.train_dataloader()))[0].values()
        _print_training(setting, layers, results)
        _print_speeds(speeds(setting, batch, repetitions))
    audio = "has an audio tower, which is not trained here" if has_audio() else "has no audio tower to compare with"
    print(f"\naudio-text: open_clip {version('open_clip_torch')} {audio}")


def _print_training(setting: Setting, layers: Mapping[str, int], results: Mapping[str, Trained]) -> None:
    shown = {key: value for key, value in asdict(setting).items() if key != "data"}
    print(", ".join(f"{key} {value}" for key, value in shown.items()))
    print(
        f"open_clip {version('open_clip_torch')} with {layers['image']} layers in each tower; torch"
        f" {torch.__version__}, {torch.get_num_threads()} threads; R@1 in percent, chance"
        f" {results[OPEN_CLIP].chance:.1f}\n"
    )
    directions = list(results[OPEN_CLIP].recall)
    columns = ["parameters", *directions, "samples/s", "peak MiB", "at start"]
    print(f"{'':<32}" + "".join(f"{column:>20}" for column in columns))
    for way, result in results.items():
        cells = [
            f"{result.parameters:,}", *(f"{result.recall[name]:.1f}" for name in directions),
            f"{result.samples:.1f}", f"{result.peak / 2**20:.0f}", f"{result.start / 2**20:.0f}",
        ]  # fmt: skip
        print(f"{way:<32}" + "".join(f"{cell:>20}" for cell in cells))


def _print_speeds(found: Mapping[str, Mapping[str, Speed]]) -> None:
    print(f"\n{'embeddings at equal FLOPs':<32}{'layers':>20}{'MFLOPs each':>20}{'per second':>20}")
    for name, models in found.items():
        for model, speed in models.items():
            print(f"{f'{name}, {model}':<32}{speed.layers:>20}{speed.flops / 1e6:>20.1f}{speed.per_second:>20.1f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line; ``None`` takes the process's own."""
    auto_cli(run, args=list(sys.argv[1:] if arguments is None else arguments), as_positional=False)


if __name__ == "__main__":
    main()
