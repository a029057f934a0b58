"""The parallel plan: sharded over two processes it trains what one process does, and draws what one process draws."""

import gc
import socket
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._dtensor_spec import DTensorSpec

from onepeace_lightning.data.batch import Batch
from onepeace_lightning.losses.pretraining import Objectives, pretraining_loss, weight
from onepeace_lightning.modalities.audio import Audio
from onepeace_lightning.modalities.image import Image
from onepeace_lightning.modalities.text import Text
from onepeace_lightning.models import PretrainModel
from onepeace_lightning.models.encoder import compile_blocks
from onepeace_lightning.models.inputs import TokenMask
from onepeace_lightning.training import parallelize as plan
from onepeace_lightning.training.clipping import gradient_norm, scale_gradients
from onepeace_lightning.training.optimizer import Optimization, adamw
from onepeace_lightning.training.parallelize import ParallelConfig, materialise, parallelize, shard_like
from tests.tiny import batches, mask_rows, tiny_config, tiny_model

CPU = torch.device("cpu")
STEPS = 3
COUNT = 4
PLAIN = ParallelConfig()
STREAMS = ("image-text", "audio-text", "image", "audio", "text")


@dataclass(frozen=True)
class Case:
    """One way of training."""

    streams: tuple[str, ...] = STREAMS
    settings: ParallelConfig = PLAIN
    stage2: bool = False
    clip: float | None = None
    drop_path: float = 0.0
    replicas: int = 1
    bf16: bool = False
    denoise: bool = True
    gathers: int = 3  # of a block's weights in a step
    counts_objects: bool = False  # after every step, which takes long


CASES = {
    "packed": Case(),
    "contrast alone": Case(streams=("image-text",), denoise=False, gathers=2),
    "stage 2": Case(streams=("audio-text",), stage2=True),
    "compiled": Case(
        streams=("audio-text",), stage2=True, settings=ParallelConfig(compile=True, checkpoint_activations=True)
    ),
    "not checkpointing": Case(streams=("image-text",), drop_path=0.3),
    "checkpointing": Case(streams=("image-text",), settings=ParallelConfig(checkpoint_activations=True), drop_path=0.3),
    "clipping": Case(streams=("audio-text",), clip=0.05, counts_objects=True),
    "weights kept": Case(streams=("image-text",), settings=ParallelConfig(reshard_after_forward=False), gathers=1),
    "replicated": Case(streams=("image-text",), replicas=2, gathers=0, clip=30.0),
    "float32": Case(streams=("text", "image")),
    "bfloat16": Case(streams=("text", "image"), bf16=True, settings=ParallelConfig(checkpoint_activations=True)),
}


def part(batch: Batch, rows: slice) -> Batch:
    kinds = {"text": lambda x: Text(x.ids_BL[rows]), "image": lambda x: Image(x.pixels[rows]),
             "audio": lambda x: Audio(x.waveforms_BN[rows], x.lengths[rows])}  # fmt: skip
    inputs = {name: kinds[name](value) for name, value in batch.inputs.items()}
    hidden = (
        {name: TokenMask.of(mask_rows(mask)[rows]) for name, mask in masks.items()}
        for masks in (batch.masks, batch.fused_masks)
    )
    return Batch(batch.keys[rows], inputs, *hidden)


class Step(nn.Module):
    """A training step as the root of what is sharded."""

    def __init__(self, model: PretrainModel, case: Case) -> None:
        super().__init__()
        self.model = model
        self.denoise = case.denoise
        self.without_gradient = ("text", "image") if case.stage2 else ()

    def terms(self, streams: dict[str, Batch], *, denoise: bool = True) -> dict[str, torch.Tensor]:
        return pretraining_loss(self.model, streams, Objectives(denoise=denoise), self.without_gradient).terms

    def rank_loss(self, streams: dict[str, Batch]) -> torch.Tensor:
        return sum(weight(name) * value for name, value in self.terms(streams, denoise=self.denoise).items())

    def whole_loss(self, streams: dict[str, Batch]) -> torch.Tensor:
        """The mean of what two ranks compute from half a batch each: they share the keys of the contrast only."""
        pairs = {name: batch for name, batch in streams.items() if "-" in name}
        loss = sum(self.terms(pairs, denoise=False).values()) if pairs else torch.zeros(())
        for rank in range(2) if self.denoise else ():
            half = slice(rank * COUNT // 2, (rank + 1) * COUNT // 2)
            terms = self.terms({name: part(batch, half) for name, batch in streams.items()})
            loss = loss + sum(weight(name) * v for name, v in terms.items() if not name.endswith("contrast")) / 2
        return loss


def train(case: Case, rank: int | None, device: torch.device = CPU) -> dict:
    """Train on this rank's half of every batch, or in one process on the whole."""
    config = tiny_config()
    config = replace(config, encoder=replace(config.encoder, drop_path=case.drop_path))
    data = {name: batch.to(device) for name, batch in batches(tiny_model(), *case.streams, count=COUNT).items()}
    torch.manual_seed(0)
    with torch.device("meta"):
        step = Step(PretrainModel(config, denoise=case.denoise), case)
    trained = step.model.trained_in_stage2(("audio",))
    for name, parameter in step.model.named_parameters():
        parameter.requires_grad = not case.stage2 or name in trained
    mesh, gathers = None, Counter()
    if rank is not None:
        size = dist.get_world_size()
        mesh = init_device_mesh(
            device.type, (case.replicas, size // case.replicas), mesh_dim_names=("replicate", "shard")
        )
        mesh = mesh if case.replicas > 1 else mesh["shard"]
        data = {name: part(batch, slice(rank * COUNT // 2, (rank + 1) * COUNT // 2)) for name, batch in data.items()}
    dtype = torch.bfloat16 if case.bf16 else None
    parallelize(step, case.settings, device=device, mesh=mesh, gather_dtype=dtype, entries=["rank_loss"])
    optimizer = adamw(step.model, Optimization(total_steps=20, lr=1e-3, warmup_steps=0))["optimizer"]
    losses, kept = [], []
    for index in range(STEPS):
        if index == 1:
            count_gathers(step, gathers)
        torch.manual_seed(index)
        with torch.autocast(device.type, torch.bfloat16, enabled=case.bf16):
            loss = step.whole_loss(data) if rank is None else step.rank_loss(data)
        loss.backward()
        if case.clip is not None:
            parameters = list(step.parameters())
            norm = gradient_norm(parameters)
            assert norm > case.clip
            if rank is None:
                assert nn.utils.clip_grad_norm_(parameters, case.clip).item() == pytest.approx(norm.item(), rel=1e-6)
            else:
                scale_gradients(parameters, case.clip / (norm + 1e-6))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        if case.counts_objects:
            gc.collect()
            kept.append(sum(type(thing) in (DTensorSpec, tuple) for thing in gc.get_objects()))
    weights = {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in step.model.named_parameters()}
    kinds = {str(p.dtype) for p in step.parameters()}
    per_step = {name: count / (STEPS - 1) for name, count in gathers.items()}
    return {"losses": losses, "weights": {n: p.detach().clone() for n, p in weights.items()}, "gathers": per_step,
            "kinds": kinds, "kept": kept}  # fmt: skip


def count_gathers(step: nn.Module, gathers: Counter) -> None:
    """Count the all-gathers of every sharded module."""
    from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather

    class Counting(DefaultAllGather):
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, *args, **kwargs):
            gathers[self.name] += 1
            return super().__call__(*args, **kwargs)

    for name, module in step.named_modules():
        if isinstance(module, FSDPModule):
            module.set_custom_all_gather(Counting(name))


def float_layer_norm(x, shape, gain=None, bias=None, eps=1e-5):
    """What CUDA's autocast makes of F.layer_norm; the processor's leaves it alone, and it refuses to mix types."""
    return torch.layer_norm(x.float(), shape, *(t if t is None else t.float() for t in (gain, bias)), eps)


def _rank(rank: int, port: int, folder) -> None:
    torch.set_num_threads(1)
    torch.nn.functional.layer_norm = float_layer_norm
    # Inductor would take minutes for graphs that this one traces as well.
    plan.compile_blocks = partial(compile_blocks, backend="aot_eager")
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = {name: train(case, rank) for name, case in CASES.items()}
    torch.manual_seed(0)
    with torch.device("meta"):
        model = PretrainModel(tiny_config())
    parallelize(model, device=CPU, mesh=init_device_mesh("cpu", (2,)))
    torch.save({**found, "drawn": {n: p.full_tensor() for n, p in model.state_dict().items()}}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What each of two processes has found in every case."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_rank, (free_port(), folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", [name for name in CASES if not (CASES[name].bf16 or CASES[name].drop_path)])
def test_two_processes_train_what_one_does(ranks, name):
    single = train(replace(CASES[name], settings=PLAIN), None)
    for step in range(STEPS):
        mean = sum(rank[name]["losses"][step] for rank in ranks) / 2
        assert mean == pytest.approx(single["losses"][step], abs=1e-5)
    assert abs(single["losses"][-1] - single["losses"][0]) > 1e-2
    for parameter, wanted in single["weights"].items():
        torch.testing.assert_close(ranks[0][name]["weights"][parameter], wanted, atol=1e-5, rtol=0, msg=parameter)
        assert torch.equal(ranks[0][name]["weights"][parameter], ranks[1][name]["weights"][parameter]), parameter


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].gathers])
def test_a_block_s_weights_are_gathered_once_per_pass(ranks, name):
    for rank in ranks:
        gathers = rank[name]["gathers"]
        blocks = {module: count for module, count in gathers.items() if "backbone.encoder.blocks" in module}
        assert len(blocks) == 3
        assert set(blocks.values()) == {CASES[name].gathers}
        assert set(gathers.values()) <= {1, 2, 3}  # the root once; the decoder forward and backward


def test_nothing_is_kept_of_a_step(ranks):
    for rank in ranks:
        first, *_, last = rank["clipping"]["kept"][1:]
        # Plans of operations on sharded tensors would be kept of each parameter; some few tuples are of other threads.
        assert last < first + 20


def test_computing_blocks_again_changes_nothing(ranks):
    """Stochastic depth draws the same again."""
    assert ranks[0]["checkpointing"]["losses"] == pytest.approx(ranks[0]["not checkpointing"]["losses"], abs=1e-6)
    for parameter, wanted in ranks[0]["not checkpointing"]["weights"].items():
        got = ranks[0]["checkpointing"]["weights"][parameter]
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0, msg=parameter)


def test_masters_stay_float32_in_bfloat16(ranks):
    losses = ranks[0]["bfloat16"]["losses"]
    assert ranks[0]["bfloat16"]["kinds"] == {"torch.float32"}
    assert losses == pytest.approx(ranks[0]["float32"]["losses"], rel=0.02)
    assert losses != pytest.approx(ranks[0]["float32"]["losses"], rel=1e-5)


@pytest.mark.parametrize("sharded", [False, True])
def test_values_are_those_of_direct_construction(ranks, sharded):
    torch.manual_seed(0)
    wanted = PretrainModel(tiny_config()).state_dict()
    if sharded:
        got = ranks[0]["drawn"]
    else:
        torch.manual_seed(0)
        with torch.device("meta"):
            model = PretrainModel(tiny_config())
        parallelize(model, device=CPU)
        got = model.state_dict()
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(got[name], tensor), name


def test_what_has_values_keeps_them_and_an_owner_without_reset_is_named():
    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

    with torch.device("meta"):
        mixed = nn.ModuleList([nn.Linear(2, 2)])
    mixed.append(nn.Linear(2, 2))
    kept = mixed[1].weight.detach().clone()
    materialise(mixed, CPU)
    assert torch.equal(mixed[1].weight, kept)
    assert not mixed[0].weight.is_meta
    with torch.device("meta"):
        mixed.append(Owner())
    with pytest.raises(TypeError, match="Owner: every owner"):
        materialise(mixed, CPU)


def test_sharding_a_tensor_like_a_whole_one_leaves_it():
    tensor = torch.arange(3)
    assert shard_like(tensor, torch.zeros(3)) is tensor


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gathering_in_bfloat16_on_a_gpu_is_close_to_float32():
    """On a GPU autocast computes layer norms in float32 by itself."""
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    try:
        halved = train(CASES["bfloat16"], 0, torch.device("cuda", 0))
        whole = train(replace(CASES["bfloat16"], bf16=False), 0, torch.device("cuda", 0))
    finally:
        dist.destroy_process_group()
    assert halved["kinds"] == {"torch.float32"}
    assert halved["losses"] == pytest.approx(whole["losses"], rel=0.02)
    assert halved["losses"] != pytest.approx(whole["losses"], rel=1e-5)
