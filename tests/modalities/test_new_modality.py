"""A fourth modality from outside: motion sensors, registered here, trained alone against frozen text."""

from dataclasses import dataclass, replace

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.inference.onepeace import OnePeace
from onepeace_lightning.losses.pretraining import pretraining_loss
from onepeace_lightning.modalities import registry
from onepeace_lightning.modalities.arrays import stack
from onepeace_lightning.modalities.base import Inputs, Modality
from onepeace_lightning.modalities.preprocessing import config_from_dict
from onepeace_lightning.modalities.registry import register
from onepeace_lightning.modalities.tokenizers import SentencePieceTokenizer
from onepeace_lightning.models import Adapter, AdapterConfig, ModelConfig, PretrainModel, Tokens
from onepeace_lightning.models.layers import Linear
from onepeace_lightning.models.relative_bias import sequence_buckets, sequence_rows
from onepeace_lightning.tasks import PretrainTask
from onepeace_lightning.training.optimizer import Optimization
from onepeace_lightning.training.param_groups import parameter_groups
from tests.tiny import IMAGE_SIZE, audios, batches, drawn, images, masks, randomised, texts, tiny_config


@dataclass
class Imu(Inputs):
    readings: Tensor

    @property
    def token_lengths(self):
        return [1 + self.readings.shape[1] // 4] * len(self.readings)


@dataclass(frozen=True, kw_only=True)
class ImuConfig(AdapterConfig):
    channels: int = 6
    stride: int = 4

    def build(self, model):
        return ImuAdapter(self, model)

    def decoder_rows(self):
        return 16


class ImuAdapter(Adapter):
    """(B, T, 6) accelerations and turning rates to one token per ``stride`` readings."""

    def __init__(self, config: ImuConfig, model: ModelConfig) -> None:
        super().__init__(config, model)
        self.project = Linear(config.channels * config.stride, model.encoder.width, self.init_std)
        self.positions = nn.Conv1d(model.encoder.width, model.encoder.width, 3, padding=1)
        self.reset_parameters()

    def embed(self, inputs: Imu) -> Tokens:
        x_BLD = self.project(inputs.readings.unflatten(1, (-1, self.config.stride)).flatten(2))
        x_BLD = x_BLD + self.positions(x_BLD.mT).mT
        x_BLD = torch.cat([self.cls_token.expand(len(x_BLD), 1, -1), x_BLD], 1)
        return Tokens.of_padded(x_BLD, [x_BLD.shape[1]] * len(x_BLD))

    def bias_rows(self) -> int:
        return sequence_rows(16)

    def buckets(self, positions: int) -> Tensor:
        return sequence_buckets(positions, 16, self.cls_token.device)


@register
class ImuModality(Modality):
    name = "imu"
    extensions = ("imu",)
    config_type = ImuConfig

    def decode(self, data):
        return torch.frombuffer(bytearray(data), dtype=torch.float32).view(-1, 6)

    def transform(self, item):
        return item

    def num_tokens(self, array):
        return len(array) // 4

    def collate(self, arrays):
        return Imu(stack(arrays))


@pytest.fixture(autouse=True, scope="module")
def forget():
    yield
    del registry._REGISTERED["imu"]


def four_modalities() -> ModelConfig:
    config = tiny_config()
    return replace(config, adapters=config.adapters | {"imu": ImuConfig()})


def pairs(count: int = 8) -> Batch:
    inputs = {"imu": Imu(torch.randn(count, 24, 6, generator=drawn(0))), "text": texts(*range(4, 4 + count))}
    lengths = {"imu": [7] * count, "text": [5 + i for i in range(count)]}
    fused = {name: masks(part, 0.4, last=name != "text", seed=1) for name, part in lengths.items()}
    return Batch([str(i) for i in range(count)], inputs, {"imu": masks(lengths["imu"], 0.5, last=True, seed=2)}, fused)


def test_a_fourth_modality_learns_while_all_else_stays_as_it_is():
    torch.manual_seed(0)
    model: PretrainModel = randomised(PretrainModel(four_modalities()))
    trained = model.trained_in_stage2(("imu",))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in trained
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, lr=3e-3, weight_decay=0.05)
    optimizer = torch.optim.AdamW(groups)
    batch, losses = {"imu-text": pairs()}, []
    for _ in range(30):
        result = pretraining_loss(model, batch, without_gradient=("text", "image", "audio"))
        optimizer.zero_grad()
        result.total.backward()
        optimizer.step()
        losses.append({name: term.item() for name, term in result.terms.items()})
    assert set(losses[0]) == {f"imu-text/{term}" for term in ("contrast", "imu", "fused_imu", "fused_text")}
    for name in losses[0]:
        assert losses[-1][name] < 0.8 * losses[0][name], name

    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    own = ("backbone.adapters.imu.", ".ffns.imu.", ".norms.imu.", "heads.projections.imu.")
    shared = ("denoiser.", "heads.logit_scale")
    assert all(any(part in name for part in own) or name.startswith(shared) for name in moved)
    assert {name for name in before if any(part in name for part in own)} <= moved


def test_a_model_with_a_fourth_modality_survives_its_dictionary():
    config = four_modalities()
    assert config_from_dict(config.to_dict()) == config


@torch.no_grad()
def test_a_fourth_modality_is_seen_together_with_any_other():
    torch.manual_seed(0)
    model = randomised(PretrainModel(four_modalities()))
    inputs = pairs(2).inputs
    together = model.backbone(inputs)
    assert together["imu"].values_TD.shape == (14, 24)
    alone = model.backbone({"imu": inputs["imu"]})
    assert (together["imu"].values_TD - alone["imu"].values_TD).abs().max() > 1e-3
    with pytest.raises(ValueError, match="no 'smell' modality; it has text, image, audio, imu"):
        model.backbone({"smell": inputs["imu"]})


def fitted(task, batch, folder):
    trainer = L.Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(task, DataLoader([batch] * 2, batch_size=None))
    return trainer


def test_stage_2_without_text_leaves_every_other_embedding_and_its_fingerprint(tmp_path):
    SentencePieceTokenizer.train(["a cow"], 300).save(tmp_path / "tokenizer")
    settings = {
        "tokenizer": str(tmp_path / "tokenizer"),
        "optimization": Optimization(lr=1e-2, total_steps=2, warmup_steps=1),
        "preprocessing": {"image": {"size": IMAGE_SIZE}},
    }
    first = PretrainTask(data_types=["image-text"], **settings)
    first.configure_model()
    trainer = fitted(first, batches(first.model, "image-text"), tmp_path)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    raw = {"text": texts(9, 5), "image": images(2), "audio": audios(3600, 2000)}
    before = OnePeace(first.model)
    embedded = {name: before.embed_inputs(name, inputs) for name, inputs in raw.items()}

    second = PretrainTask(
        modalities=["text", "image", "audio", "imu"], data_types=["image-imu"], trainable=["imu"],
        init_from=str(tmp_path / "first.ckpt"), **settings,
    )  # fmt: skip
    second.configure_model()
    untrained = second.model.backbone.adapters["imu"].project.weight.detach().clone()
    inputs = {"image": images(3), "imu": Imu(torch.randn(3, 24, 6, generator=drawn(0)))}
    alone, fused = ({name: masks(part.token_lengths, share, last=True, seed=1) for name, part in inputs.items()}
                    for share in (0.5, 0.4))  # fmt: skip
    fitted(second, {"image-imu": Batch(["a", "b", "c"], inputs, alone, fused)}, tmp_path)
    assert not torch.equal(second.model.backbone.adapters["imu"].project.weight, untrained)
    after = OnePeace(second.model)
    for name, inputs in raw.items():
        assert torch.equal(after.embed_inputs(name, inputs), embedded[name]), name
        assert after.fingerprint(name) == before.fingerprint(name), name
