import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from onepeace_lightning.checkpoints.original import load_original
from onepeace_lightning.checkpoints.resize import (
    for_finetuning,
    geometric_coordinates,
    resize_grid_table,
    set_image_size,
)
from onepeace_lightning.data.batch import Batch
from onepeace_lightning.losses.pretraining import pretraining_loss
from onepeace_lightning.models import PretrainModel
from tests.checkpoints.original_format import to_original
from tests.tiny import images, masks, texts, tiny_config, tiny_model

IMAGE_TABLE = "backbone.adapters.image.bias_tables.{}"


def grid_table(values: Tensor) -> Tensor:
    """A table of one head from values by offset (S, S)."""
    return torch.cat([values.flatten(), torch.tensor([7.0, 8.0, 9.0])])[:, None]


@pytest.mark.parametrize(("source", "target"), [(7, 11), (31, 47), (31, 53), (31, 111), (5, 9)])
def test_offsets_lie_on_a_geometric_sequence_that_reaches_the_new_outermost(source, target):
    at = geometric_coordinates(source, target)
    assert len(at) == source
    np.testing.assert_allclose(at, -at[::-1])
    steps = np.diff(at[source // 2 :])
    assert steps[0] == pytest.approx(1)
    ratios = steps[1:] / steps[:-1]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-9)
    # q is at most 1.5
    assert at[-1] == pytest.approx(target // 2, abs=1e-2) or ratios[0] == pytest.approx(1.5, abs=1e-5)


def test_a_separable_table_is_resized_by_cubic_splines_along_each_side():
    rng = np.random.default_rng(0)
    along_y, along_x = rng.standard_normal((2, 7))
    table = grid_table(torch.tensor(np.outer(along_y, along_x), dtype=torch.float32))
    resized = resize_grid_table(table, 6)
    at = geometric_coordinates(7, 11)
    wanted = np.arange(-5, 6).clip(at[0], at[-1])
    expected = np.outer(CubicSpline(at, along_y)(wanted), CubicSpline(at, along_x)(wanted))
    np.testing.assert_allclose(resized[:-3, 0].reshape(11, 11), expected, atol=1e-5)


def test_beyond_the_outermost_offset_its_value_is_taken():
    """From 3 × 3 patches a ratio of at most 1.5 reaches 2.5 offsets of 8."""
    values = torch.arange(25.0).reshape(5, 5)
    resized = resize_grid_table(grid_table(values), 9)[:-3, 0].reshape(17, 17)
    assert resized[0, 0] == pytest.approx(0, abs=1e-4)
    assert resized[5, 5] == pytest.approx(0, abs=1e-4)
    assert resized[8, 8] == pytest.approx(12, abs=1e-4)
    assert resized[16, 0] == pytest.approx(20, abs=1e-4)


def test_cls_rows_heads_type_and_size_are_kept():
    table = torch.randn(7 * 7 + 3, 4).bfloat16()
    resized = resize_grid_table(table, 6)
    assert resized.shape == (11 * 11 + 3, 4)
    assert resized.dtype == torch.bfloat16
    assert torch.equal(resized[-3:], table[-3:])
    alone = resize_grid_table(table[:, 2:3].contiguous(), 6)
    assert torch.equal(resized[:, 2:3], alone)


def test_a_table_of_the_wanted_size_stays_itself():
    table = torch.randn(7 * 7 + 3, 4)
    assert resize_grid_table(table, 4) is table


@pytest.mark.parametrize("rows", [2, 3, 4, 12, 50, 6 * 6 + 3])
def test_what_is_no_table_of_a_grid_is_refused(rows):
    with pytest.raises(ValueError, match=f"table of {rows} rows cannot be resized"):
        resize_grid_table(torch.zeros(rows, 2), 6)


def test_a_model_takes_larger_images_once_it_is_told():
    model = tiny_model(per_block_tables=True).eval()
    tables = [table.clone() for table in model.backbone.adapters["image"].bias_tables]
    positions = model.backbone.adapters["image"].positions.clone()
    set_image_size(model, 96)
    for old, new in zip(tables, model.backbone.adapters["image"].bias_tables, strict=True):
        assert torch.equal(new, resize_grid_table(old, 6))
        assert new.requires_grad
    assert torch.equal(model.backbone.adapters["image"].positions, positions)
    with torch.no_grad():
        assert model.backbone({"image": images(2, size=96)})["image"].lengths == [37, 37]
    with pytest.raises(ValueError, match="images of 48×48 pixels"):
        model.backbone({"image": images(2)})


def test_sizes_after_resizing_build_the_same_model():
    model = tiny_model()
    set_image_size(model, 80)
    assert model.config == model.backbone.config
    again = PretrainModel(model.config)
    again.load_state_dict(model.state_dict())


def test_a_resized_model_still_denoises():
    model = tiny_model()
    set_image_size(model, 64)
    hidden = {"image": masks([17] * 3, 0.7, last=True, seed=1)}
    batch = Batch(["a", "b", "c"], {"image": images(3, size=64)}, hidden, {})
    pretraining_loss(model, {"image": batch}).total.backward()
    assert model.backbone.adapters["image"].bias_tables[0].grad.abs().sum() > 0


def test_frozen_tables_stay_frozen():
    model = tiny_model()
    model.requires_grad_(False)
    set_image_size(model, 96)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_setting_the_same_size_changes_nothing():
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    set_image_size(model, 48)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_impossible_size_changes_nothing():
    model = tiny_model()
    with pytest.raises(ValueError, match="image_size is 50, must be a multiple of 16"):
        set_image_size(model, 50)
    assert model.config == tiny_config()
    assert model.backbone.adapters["image"].config == tiny_config().adapters["image"]


def test_a_model_without_images_has_no_image_size():
    adapters = {name: sizes for name, sizes in tiny_config().adapters.items() if name != "image"}
    with pytest.raises(ValueError, match="no 'image' modality"):
        set_image_size(tiny_model(adapters=adapters), 96)
    with pytest.raises(ValueError, match="96 for a model without images"):
        for_finetuning(tiny_config(adapters=adapters), 96)


@torch.no_grad()
def test_loading_for_finetuning_copies_and_resizes_and_says_so():
    source = tiny_model().eval()
    model = PretrainModel(for_finetuning(source.config, 96), denoise=False).eval()
    report = load_original(model, to_original(source)["model"])
    state = source.state_dict()
    for block in range(3):
        loaded = model.state_dict()[IMAGE_TABLE.format(block)]
        assert torch.equal(loaded, resize_grid_table(state[IMAGE_TABLE.format(0)], 6))
        text = model.state_dict()[f"backbone.adapters.text.bias_tables.{block}"]
        assert torch.equal(text, state["backbone.adapters.text.bias_tables.0"])
    assert not report.missing
    assert all(name.startswith("denoiser.") for name in report.unexpected)
    assert any(
        "image.bias_tables.2 is resized from 28 to 124 rows, for a grid of 6 × 6" in line for line in report.resized
    )
    assert any("audio.bias_tables.1 is a copy of" in line for line in report.resized)
    # text sees the same tables in every block
    features = [m.backbone({"text": texts(5, 3)})["text"].values_TD for m in (source, model)]
    torch.testing.assert_close(*features, atol=0, rtol=0)


def test_copied_tables_train_apart_even_if_the_model_took_the_tensors_themselves():
    with torch.device("meta"):
        model = PretrainModel(for_finetuning(tiny_config()))
    load_original(model, to_original(tiny_model())["model"])
    tables = model.backbone.adapters["text"].bias_tables
    with torch.no_grad():
        tables[0].add_(1)
    assert not torch.equal(tables[0], tables[1])


def test_tables_of_each_block_are_not_merged_silently():
    tensors = to_original(tiny_model(per_block_tables=True))["model"]
    with pytest.raises(ValueError, match="per_block_tables=True"):
        load_original(tiny_model(), tensors)


def test_only_grids_are_resized():
    """A text table of another number of buckets is misshapen, not resized."""
    tensors = to_original(tiny_model())["model"]
    tensors["encoder_wrapper.text_adapter.rel_pos_table_list.0.weight"] = torch.zeros(7 * 7 + 3, 2)
    with pytest.raises(ValueError, match=r"text.bias_tables.0 is \(52, 2\), the model has \(18, 2\)"):
        load_original(tiny_model(), tensors)
