import pytest
import torch
from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import normalize, to_dtype

from onepeace_lightning.modalities.audio import Audio, AudioConfig, num_frames
from onepeace_lightning.modalities.base import Modality
from onepeace_lightning.modalities.image import Image, ImageConfig
from onepeace_lightning.modalities.presets import preset_config
from onepeace_lightning.modalities.registry import modality, register
from onepeace_lightning.modalities.text import Text
from onepeace_lightning.modalities.tokenizers.base import EOS, PAD
from onepeace_lightning.models.adapter import Adapter
from onepeace_lightning.models.patches import grid_positions
from tests.tiny import audios, images, mask_rows, masks, texts, tiny_config, tiny_model

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def with_adapter(**sizes) -> dict:
    return tiny_config().adapters | sizes


def channel_norm(x_CN: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    return F.layer_norm(x_CN.movedim(0, -1), (len(x_CN),), weight, bias).movedim(-1, 0)


@torch.no_grad()
def test_text_is_cls_and_embeddings_plus_positions():
    adapter = tiny_model().backbone.adapters["text"]
    tokens = adapter.embed(Text.pad([[7, 9, EOS], [5, EOS]]))
    assert tokens.lengths == [4, 3]
    assert tokens.positions_T.tolist() == [0, 1, 2, 3, 0, 1, 2]
    for rows, ids in zip(tokens.values_TD.split([4, 3]), ([7, 9, EOS], [5, EOS]), strict=True):
        wanted = torch.stack([adapter.cls_token, *adapter.embedding.weight[ids]]) + adapter.positions[: len(ids) + 1]
        torch.testing.assert_close(rows, wanted)


def test_text_longer_than_the_positions_is_refused():
    adapter = tiny_model().backbone.adapters["text"]
    assert adapter.embed(texts(31)).lengths == [32]
    with pytest.raises(ValueError, match="text of 32 tokens; at most 31 fit: lower the tokenizer's max_length"):
        adapter.embed(texts(32))


def test_the_padding_embedding_gets_no_gradient():
    adapter = tiny_model().backbone.adapters["text"]
    adapter.embed(texts(3, 6)).values_TD.square().sum().backward()
    assert not adapter.embedding.weight.grad[PAD].any()
    assert adapter.embedding.weight.grad[EOS].any()


@torch.no_grad()
def test_image_is_cls_and_patches_plus_positions():
    adapter = tiny_model().backbone.adapters["image"]
    pictures = images(2)
    tokens = adapter.embed(pictures)
    assert tokens.lengths == [10, 10]
    first, norm_1, second, norm_2, third = (adapter.stem[i] for i in (0, 1, 3, 4, 6))
    for picture, rows in zip(pictures.pixels, tokens.values_TD.split(10), strict=True):
        torch.testing.assert_close(rows[0], adapter.cls_token + adapter.positions[0])
        for patch in range(9):
            top, left = 16 * (patch // 3), 16 * (patch % 3)
            x = F.conv2d(picture[:, top : top + 16, left : left + 16], first.weight, first.bias, stride=4)
            x = F.gelu(channel_norm(x, norm_1.weight, norm_1.bias))
            x = F.conv2d(x, second.weight, second.bias, stride=2)
            x = F.gelu(channel_norm(x, norm_2.weight, norm_2.bias))
            x = F.conv2d(x, third.weight, third.bias, stride=2).flatten()
            torch.testing.assert_close(rows[1 + patch], x + adapter.positions[1 + patch], **CLOSE)


@torch.no_grad()
def test_position_grids_are_resized_without_touching_cls():
    table = torch.randn(1 + 16, 6)
    assert grid_positions(table, 4) is table
    resized = grid_positions(table, 7)
    assert resized.shape == (1 + 49, 6)
    torch.testing.assert_close(resized[0], table[0])
    square = table[1:].view(4, 4, 6).permute(2, 0, 1)[None]
    wanted = F.interpolate(square, (7, 7), mode="bicubic", align_corners=False)[0].permute(1, 2, 0).reshape(49, 6)
    torch.testing.assert_close(resized[1:], wanted)
    # row by row, not column by column: an image whose rows differ keeps columns alike
    rows = torch.arange(4.0).repeat_interleave(4)[:, None].expand(16, 2)
    grid = grid_positions(torch.cat([torch.zeros(1, 2), rows]), 6)[1:].view(6, 6, 2)
    torch.testing.assert_close(grid, grid[:, :1].expand(6, 6, 2))
    assert grid[0, 0, 0] < grid[5, 0, 0]


def test_an_image_of_another_side_uses_resized_positions_in_float32_under_autocast():
    model = tiny_model(adapters=with_adapter(image=ImageConfig(image_size=48, position_grid=4)))
    adapter = model.backbone.adapters["image"]
    assert len(adapter.positions) == 17
    assert adapter.embed(images(1)).lengths == [10]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(grid_positions(adapter.positions, 3), grid_positions(adapter.positions, 3).float())
        inside = grid_positions(adapter.positions, 3)
    torch.testing.assert_close(inside, grid_positions(adapter.positions, 3), atol=0, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_8_bit_pixels_are_normalised_on_the_way_in(dtype):
    adapter = tiny_model().backbone.adapters["image"].to(dtype)
    bytes_B3SS = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    floats = normalize(to_dtype(bytes_B3SS, torch.float32, scale=True), OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    torch.testing.assert_close(Image(bytes_B3SS).normalised(), floats, atol=1e-6, rtol=0)
    tokens = [adapter.embed(Image(pixels)).values_TD for pixels in (bytes_B3SS, floats.to(dtype))]
    assert tokens[0].dtype == dtype
    torch.testing.assert_close(*tokens, atol=1e-6 if dtype == torch.float32 else 1e-2, rtol=0)


def test_pixels_of_other_whole_numbers_are_refused():
    adapter = tiny_model().backbone.adapters["image"]
    with pytest.raises(ValueError, match=r"images of torch.int64 pixels; give torch.uint8.*or floating-point"):
        adapter.embed(Image(torch.zeros(1, 3, 48, 48, dtype=torch.int64)))


def test_images_of_the_wrong_size_are_refused():
    adapter = tiny_model().backbone.adapters["image"]
    with pytest.raises(ValueError, match=r"images of 32×32 pixels; this model takes 48×48.*multiple of 16"):
        adapter.embed(images(1, size=32))


@pytest.mark.parametrize(("samples", "frames"), [(399, 0), (400, 1), (719, 1), (720, 2), (16_000, 49), (0, 0), (4, 0)])
def test_a_frame_every_320_samples(samples, frames):
    assert num_frames(samples) == frames


@torch.no_grad()
def reference_audio(adapter: Adapter, clip: Tensor, keep: list[int] | None = None) -> Tensor:
    """One clip alone: [CLS; visible frames] with their positions."""
    x = clip[None]
    for (conv, norm, _), stride in zip(adapter.features, (5, 2, 2, 2, 2, 2, 2), strict=True):
        x = F.gelu(channel_norm(F.conv1d(x, conv.weight, stride=stride), norm.weight, norm.bias))
    frames = adapter.project(adapter.norm(x.T))
    frames = frames if keep is None else frames[keep]
    x, width = frames.T, adapter.config.position_kernel
    for conv in adapter.position_convs:
        x = F.conv1d(F.pad(x, (width // 2, width // 2)), conv.weight, conv.bias, groups=adapter.config.position_groups)
        x = F.gelu(channel_norm(x[:, : len(frames)]))
    return torch.cat([(adapter.cls_token + adapter.cls_position)[None], frames + x.T])


@pytest.mark.parametrize("kernel", [5, 4])
@torch.no_grad()
def test_a_padded_sound_has_the_tokens_that_it_has_alone(kernel):
    sizes = AudioConfig(channels=8, position_depth=2, position_kernel=kernel, position_groups=4, buckets=10)
    adapter = tiny_model(adapters=with_adapter(audio=sizes)).backbone.adapters["audio"]
    sounds = audios(5000, 2000, 3571)
    tokens = adapter.view(adapter.embed(sounds))
    assert tokens.lengths == [1 + num_frames(n) for n in (5000, 2000, 3571)]
    for clip, n, rows in zip(
        sounds.waveforms_BN, (5000, 2000, 3571), tokens.values_TD.split(tokens.lengths), strict=True
    ):
        torch.testing.assert_close(rows, reference_audio(adapter, clip[:n]), **CLOSE)


@torch.no_grad()
def test_positions_of_a_masked_sound_come_from_its_visible_frames_packed_together():
    adapter = tiny_model().backbone.adapters["audio"]
    sounds = audios(5000, 2000)
    tokens = adapter.embed(sounds)
    hidden = masks(tokens.lengths, 0.5, last=True, seed=0)
    seen, mask = adapter.view(tokens, hidden), mask_rows(hidden)
    for sample, frames in enumerate(seen.values_TD.split(seen.lengths)):
        keep = [p - 1 for p in range(1, tokens.lengths[sample]) if not mask[sample][p]]
        clip = sounds.waveforms_BN[sample, : int(sounds.lengths[sample])]
        torch.testing.assert_close(frames, reference_audio(adapter, clip, keep), **CLOSE)


@torch.no_grad()
def test_what_fills_up_a_waveform_never_matters():
    adapter = tiny_model().backbone.adapters["audio"]
    sounds = audios(5000, 2000, 800)
    garbage = sounds.waveforms_BN.clone()
    for row, length in enumerate(sounds.lengths):
        garbage[row, length:] = 100 * torch.randn(5000 - length)
    clean, dirty = (adapter.view(adapter.embed(Audio(w, sounds.lengths))) for w in (sounds.waveforms_BN, garbage))
    torch.testing.assert_close(clean.values_TD, dirty.values_TD, atol=0, rtol=0)


def test_a_sound_without_a_frame_is_refused():
    adapter = tiny_model().backbone.adapters["audio"]
    with pytest.raises(ValueError, match="clip of 399 samples has no frame; at least 400"):
        adapter.embed(audios(1000, 399))


def test_cls_of_a_sound_does_not_count_as_a_frame():
    adapter = tiny_model().backbone.adapters["audio"]
    with torch.no_grad():
        before = adapter.view(adapter.embed(audios(2000))).values_TD
        adapter.cls_token.add_(1)
        after = adapter.view(adapter.embed(audios(2000))).values_TD
    torch.testing.assert_close(after[1:], before[1:])
    torch.testing.assert_close(after[0], before[0] + 1)


def test_registering_a_name_twice_is_refused():
    class Impostor(Modality):
        name = "text"

    with pytest.raises(ValueError, match=r"'text' is already registered by .*TextModality"):
        register(Impostor)
    assert modality("text").__name__ == "TextModality"
    assert register(modality("text")) is modality("text")


@pytest.mark.parametrize("name", ["Depth", "a-b", "", "second_image"])
def test_a_name_that_cannot_be_one_is_refused(name):
    with pytest.raises(ValueError, match="give a lower-case word"):
        register(type("Odd", (Modality,), {"name": name}))


def test_an_unknown_modality_is_named():
    with pytest.raises(ValueError, match=r"there is no modality 'smell'; known are text, image, audio"):
        modality("smell")
    with pytest.raises(ValueError, match="smell"):
        preset_config("tiny", modalities=("text", "smell"))
