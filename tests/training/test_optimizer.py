import torch

from onepeace_lightning.training.optimizer import ShardAdamW


def test_the_update_does_not_depend_on_how_a_gradient_lies_in_memory():
    # torch's fused AdamW mixes up entries of gradients that are not contiguous, on processors (torch 2.11).
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    moved = []
    for gradient in (rows, rows.t().contiguous().t()):
        parameter = torch.nn.Parameter(torch.zeros(4, 6))
        optimizer = ShardAdamW([{"params": [parameter]}], lr=0.1)
        for scale in (1.0, -3.0):
            parameter.grad = scale * gradient
            optimizer.step()
        moved.append(parameter.detach())
    torch.testing.assert_close(moved[0], moved[1])
    assert moved[0].abs().min() > 0
