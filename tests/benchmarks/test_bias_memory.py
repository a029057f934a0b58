import re

import pytest
import torch

from benchmarks import bias_memory
from onepeace_lightning.modalities.presets import preset_config


def test_bias_memory_runs(monkeypatch, capsys):
    monkeypatch.setattr(bias_memory, "fresh", lambda function, *arguments: function(*arguments))
    bias_memory.main(["--preset", "tiny", "--image_size", "48", "--blocks", "[2,3]"])
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split("  ")[0].strip() for line in lines[1:-1]] == ["inference"] * 2 + ["training step"] * 2
    wanted = r"ratio: \d+\.\d\d \(memory of all first against one at a time, inference with 3 blocks\)"
    assert re.fullmatch(wanted, lines[-1])


def test_a_single_block_is_refused():
    with pytest.raises(ValueError, match=r"blocks is \(1, 4\); give numbers of 2 or more"):
        bias_memory.run(blocks=(1, 4))


def test_other_features_are_not_compared(monkeypatch):
    block = bias_memory.AllFirst.block
    monkeypatch.setattr(bias_memory.AllFirst, "block", lambda self, index: block(self, 0))
    with pytest.raises(RuntimeError, match="features of the ways differ"):
        bias_memory.check_same("tiny", 48, 2, "cpu")


@torch.no_grad()
def test_the_baseline_holds_the_biases_of_all_blocks():
    backbone = bias_memory.make_backbone("tiny", 48, 3, bias_memory.ALL)
    made = []
    backend = backbone.encoder.backend
    backbone.encoder.backend = lambda *pass_: made.append(backend(*pass_)) or made[-1]
    backbone({"image": bias_memory.Image(torch.randn(2, 3, 48, 48))})
    biases = [bias for block in made[0].all for bias in block]
    assert [bias.shape for bias in biases] == [(1, 4, 10, 10)] * 3
    assert len({bias.data_ptr() for bias in biases}) == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_flex_keeps_no_bias_for_the_backward_pass():
    def per_block(variant):
        few, many = (bias_memory.peak(variant, "small", 384, 1, "cuda", blocks, True) for blocks in (2, 6))
        return (many - few) / 4

    heads, length = preset_config("small").encoder.heads, (384 // 16) ** 2 + 1
    assert per_block(bias_memory.ONE) - per_block(bias_memory.KERNEL) > 0.9 * heads * length**2 * 4
