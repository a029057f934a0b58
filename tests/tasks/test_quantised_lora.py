"""Low-rank updates beside weights of 8 and 4 bits: memory, what is computed, training, and what is handed on."""

import copy

import pytest
import torch
from torch import nn

from onepeace_lightning import OnePeace
from onepeace_lightning.cli import main
from onepeace_lightning.models.config import TransformerConfig
from onepeace_lightning.models.quantised import QuantisedLinear, quantised_layers
from onepeace_lightning.tasks import ClassificationTask, Lora, load_task
from onepeace_lightning.training.optimizer import Optimization
from tests.tasks.test_classification import FAST, IMAGES, SIZES, image_data
from tests.tiny import tiny_config, tiny_model

pytest.importorskip("peft", reason="low-rank updates are an extra: pip install onepeace-lightning[lora]")
pytest.importorskip("torchao", reason="quantised weights are an extra: pip install onepeace-lightning[lora]")

BITS = {"int8": 8, "nf4": 4}
ERROR = {"int8": 0.01, "nf4": 0.12}
"""Relative, of weights of a normal distribution."""
COSINE = {"int8": 0.999, "nf4": 0.95}


@pytest.fixture(scope="module")
def pretrained() -> OnePeace:
    """A model wide enough for the scales to weigh little."""
    encoder = TransformerConfig(width=128, depth=2, heads=2, ffn_width=256, layer_scale=0.5)
    return OnePeace(tiny_model(encoder=encoder))


def task_of(model: OnePeace, weights: str, optimization: Optimization = FAST, **options) -> ClassificationTask:
    lora = Lora(rank=2, targets=("query", "value", "down"), weights=weights)
    return ClassificationTask(model, optimization, num_classes=3, lora=lora, **IMAGES, **options)


def size(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def encoded(task: ClassificationTask, picture: torch.Tensor) -> torch.Tensor:
    with task.answering() as model:
        return model.backbone({"image": task.read("image", [picture], 0)})["image"].values_TD


@pytest.mark.parametrize("bits", BITS)
def test_a_layer_takes_that_many_bits_and_computes_what_its_weight_says(bits):
    torch.manual_seed(0)
    layer = nn.Linear(256, 128).requires_grad_(False)
    small = QuantisedLinear(layer, bits)
    assert size(small) < layer.weight.nbytes * BITS[bits] / 32 * 1.1 + layer.bias.nbytes
    full = small.full()
    assert float((full.weight - layer.weight).norm() / layer.weight.norm()) < ERROR[bits]

    x = torch.randn(2, 5, 256, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        out = small(x)
    assert sum(kept) <= x.numel()  # no dequantised weight waits for the backward pass
    torch.testing.assert_close(out, full(x))
    upstream = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, x, upstream), torch.autograd.grad(full(x), x, upstream), rtol=1e-5, atol=1e-5
    )
    with torch.autocast("cpu", torch.bfloat16):
        low = small(x)
        assert low.dtype == full(x).dtype == torch.bfloat16
        torch.testing.assert_close(low, full(x))
    [gradient] = torch.autograd.grad(low, x, upstream.bfloat16())
    assert gradient.dtype == torch.float32

    again = QuantisedLinear(nn.Linear(256, 128, device="meta"), bits)
    again.load_state_dict(small.state_dict(), assign=True)
    assert torch.equal(again(x), small(x))
    assert torch.equal(copy.deepcopy(small)(x), small(x))


@pytest.mark.parametrize("bits", BITS)
def test_what_is_held_in_few_bits_is_near_the_full_model_and_handed_on_whole(pretrained, bits):
    picture = torch.rand(3, 50, 60)
    small, full = (task_of(pretrained, weights, preprocessing=SIZES.to_dict(["image"])) for weights in (bits, "full"))
    for task in (small, full):
        task.configure_model()
    layers = dict(quantised_layers(small.model.backbone))
    assert len(layers) == 2 * 7  # of each block: query, key, value, out, gate, up, down
    before = sum(layer.full().weight.nbytes for layer in layers.values())
    after = sum(size(layer) - (0 if layer.bias is None else layer.bias.nbytes) for layer in layers.values())
    assert after < before * BITS[bits] / 32 * 1.1
    assert size(full.model) - size(small.model) == before - after

    for name, parameter in small.model.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.requires_grad == (".lora_" in name or not name.startswith("backbone."))
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
            full.model.get_parameter(name).data.copy_(parameter)
            full.model.get_parameter(name.replace("lora_B", "lora_A")).data.copy_(
                small.model.get_parameter(name.replace("lora_B", "lora_A"))
            )
    values, expected = encoded(small, picture), encoded(full, picture)
    assert not torch.equal(values, expected)
    assert float(nn.functional.cosine_similarity(values.flatten(), expected.flatten(), dim=0)) > COSINE[bits]

    handed = small.backbone
    assert handed.model.state_dict().keys() == full.backbone.model.state_dict().keys()
    found = handed.encode(image=[picture])["image"][0][0]
    torch.testing.assert_close(found, values, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bits", BITS)
def test_updates_beside_few_bits_learn_and_their_checkpoint_opens(trainer, tmp_path, bits, pretrained):
    data = image_data(tmp_path)
    task = task_of(pretrained, bits)
    task.configure_model()
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    run = trainer(max_steps=20)
    run.fit(task, data)
    for name, tensor in task.model.state_dict().items():
        trained = ".lora_B." in name or not name.startswith("backbone.")
        assert not trained or not torch.equal(tensor, before[name]), name
        assert trained or ".lora_A." in name or torch.equal(tensor, before[name]), name
    [scores] = run.validate(task, data, verbose=False)
    assert scores["val/accuracy"] == 100.0

    path = tmp_path / "task.ckpt"
    run.save_checkpoint(path)
    full = sum(tensor.nbytes for tensor in pretrained.model.backbone.encoder.state_dict().values())
    assert path.stat().st_size < size(task.model) + full  # with the optimizer's state of what trains
    opened = load_task(path, optimization=FAST)
    assert opened.lora == task.lora
    for name, tensor in opened.model.state_dict().items():
        assert torch.equal(tensor, task.model.state_dict()[name]), name
    picture = [torch.rand(3, 50, 60)]
    assert opened.predict(picture) == task.predict(picture)
    again = trainer(max_steps=21)
    again.fit(opened, data, ckpt_path=path, weights_only=True)
    assert again.global_step == 21


def test_a_task_trained_whole_goes_on_with_few_bits(trainer, tmp_path, pretrained):
    task = ClassificationTask(pretrained, num_classes=3, **IMAGES)
    task.configure_model()
    run = trainer(max_steps=0)
    run.strategy.connect(task)
    run.save_checkpoint(tmp_path / "task.ckpt")
    opened = load_task(tmp_path / "task.ckpt", lora={"weights": "int8"})
    picture = [torch.rand(3, 50, 60)]
    assert len(list(quantised_layers(opened.model))) == 14
    assert opened.predict(picture, top=3)[0] == pytest.approx(task.predict(picture, top=3)[0], abs=0.02)


def test_few_bits_are_an_option_of_the_command_line(tmp_path, pretrained):
    image_data(tmp_path)
    pretrained.save_pretrained(tmp_path / "model")
    main([
        "fit", "--model", "ClassificationTask", "--model.backbone", str(tmp_path / "model"),
        "--model.modalities", "[image]", "--model.pooling", "mean", "--model.lora.weights", "nf4",
        "--data", "DataModule", "--data.train.path", str(tmp_path / "train"), "--data.train.batch_size", "4",
        "--data.val", f"{{val: {{path: {tmp_path / 'val'}, batch_size: 4}}}}",
        "--trainer.max_steps", "1", "--trainer.accelerator", "cpu", "--trainer.logger", "csv",
        "--run", str(tmp_path / "run"),
    ])  # fmt: skip
    [path] = (tmp_path / "run").rglob("last.ckpt")
    assert load_task(path).lora.weights == "nf4"


def test_few_bits_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"weights is 'int4'; give 'full', 'int8' or 'nf4'"):
        Lora(weights="int4")
    with pytest.raises(ValueError, match=r"weights is 'int8', and a model from scratch has none"):
        ClassificationTask(tiny_config(), lora=Lora(weights="int8"), num_classes=2, **IMAGES).configure_model()
    with pytest.raises(ValueError, match=r"\(5, 7\) is no multiple of 64"):
        QuantisedLinear(nn.Linear(7, 5), "nf4")
