import math

import pytest
import torch

from onepeace_lightning.models.relative_bias import grid_buckets, grid_rows, sequence_buckets, sequence_rows

CPU = torch.device("cpu")


def slow_sequence_bucket(i: int, j: int, b: int) -> int:
    if i == 0 and j == 0:
        return 2 * b + 1
    if i == 0:
        return 2 * b - 1
    if j == 0:
        return 2 * b
    r, mid = i - j, b // 2
    a = mid - 1 if -mid < r < mid else abs(r)
    if a <= mid:
        return r + b - 1
    log_pos = mid + math.ceil(math.log(a / mid) / math.log(1023 / mid) * (mid - 1))
    return (log_pos if r > 0 else -log_pos) + b - 1


@pytest.mark.parametrize("buckets", [8, 10, 256, 512])
def test_sequence_buckets_follow_the_formula_up_to_the_longest_input(buckets):
    rows = sequence_buckets(1024, buckets, CPU)
    assert rows.shape == (1024, 1024)
    for i in [0, 1, 2, 5, 127, 128, 129, 255, 256, 257, 500, 1022, 1023]:
        assert rows[i].tolist() == [slow_sequence_bucket(i, j, buckets) for j in range(1024)]


@pytest.mark.parametrize("buckets", [8, 9, 20, 100, 256, 300, 512])
def test_no_distance_runs_into_the_rows_of_cls(buckets):
    rows = sequence_buckets(1024, buckets, CPU)
    assert rows[1:, 1:].min() >= 0
    assert rows[1:, 1:].max() <= 2 * buckets - 2


def test_the_three_last_rows_are_query_cls_key_cls_and_both():
    for rows, count in [(sequence_buckets(5, 8, CPU), sequence_rows(8)), (grid_buckets(2, CPU), grid_rows(2))]:
        assert set(rows[0, 1:].tolist()) == {count - 3}
        assert set(rows[1:, 0].tolist()) == {count - 2}
        assert rows[0, 0] == count - 1
        assert rows[1:, 1:].max() < count - 3


def test_shorter_inputs_see_the_first_rows_of_longer_ones():
    torch.testing.assert_close(sequence_buckets(30, 16, CPU), sequence_buckets(70, 16, CPU)[:30, :30])


@pytest.mark.parametrize("side", [1, 2, 3, 5])
def test_grid_buckets_follow_the_formula(side):
    rows = grid_buckets(side, CPU)
    span = 2 * side - 1
    assert rows.shape == (side**2 + 1,) * 2
    for i in range(side**2):
        for j in range(side**2):
            (yi, xi), (yj, xj) = divmod(i, side), divmod(j, side)
            assert rows[i + 1, j + 1] == (yi - yj + side - 1) * span + (xi - xj + side - 1)


def test_more_than_1024_positions_are_refused():
    with pytest.raises(ValueError, match=r"1025 positions.*at most 1024.*shorten"):
        sequence_buckets(1025, 256, CPU)


def test_what_is_cached_in_inference_mode_serves_training():
    sequence_buckets.cache_clear()
    grid_buckets.cache_clear()
    with torch.inference_mode():
        sequence_buckets(7, 8, CPU)
        grid_buckets(2, CPU)
    for rows, count in [(sequence_buckets(7, 8, CPU), sequence_rows(8)), (grid_buckets(2, CPU), grid_rows(2))]:
        assert not rows.is_inference()
        table = torch.zeros(count, 2, requires_grad=True)
        torch.nn.functional.embedding(rows, table).sum().backward()
        assert table.grad.sum() == 2 * rows.numel()
