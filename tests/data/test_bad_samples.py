import numpy as np
import pytest
from scipy.stats import binom

from onepeace_lightning.data.bad_samples import LEVEL, BadSample, TooManyBadSamplesError, WorkerCounts, judge

LIMIT = 0.01


def stopped_from(seen):
    """The number of bad samples from which on ``judge`` stops a run."""
    return binom.isf(LEVEL, seen, LIMIT) + 1


@pytest.mark.parametrize("seen", [5, 100, 5000, 10**6, 10**9])
def test_the_limit_is_where_the_binomial_tail_says(seen):
    first = int(stopped_from(seen))
    judge("here", (seen, first - 1, 0, 0, 0), LIMIT, drop_empty_captions=False)
    with pytest.raises(TooManyBadSamplesError, match=f"{first} of {seen} samples were bad over all ranks"):
        judge("here", (seen, first, 0, 0, 0), LIMIT, drop_empty_captions=False)


def test_kinds_of_samples():
    def stops(*counts, limit=LIMIT, drop=False):
        try:
            judge("here", counts, limit, drop_empty_captions=drop)
        except TooManyBadSamplesError:
            return True
        return False

    assert stops(1000, 0, 500, 0, 0)
    assert not stops(1000, 0, 500, 0, 0, drop=True)
    assert stops(1000, 50, 0, 0, 0)
    assert not stops(1000, 0, 0, 900, 1)  # shards that cannot be read have a budget of their own
    assert stops(1, 1, 0, 0, 0, limit=0.0)
    assert not stops(1000, 1000, 0, 0, 0, limit=1.0)


def test_a_tenth_of_what_is_permitted_stops_no_run():
    """512 ranks of 8 workers in batches of 64: the chance that any look of a run of 200 000 steps stops it."""
    looks = np.arange(1, 2001)
    seen = looks * 100 * 512 * 64
    assert binom.sf(stopped_from(seen) - 1, seen, LIMIT / 10).sum() < 1e-6
    # The same for one small process, whose first looks are at a few samples.
    seen = np.arange(1, 100_000)
    assert binom.sf(stopped_from(seen) - 1, seen, LIMIT / 10).sum() < 1e-6


def test_a_tenth_of_what_is_permitted_stops_no_simulated_run():
    """Samples of 4 096 workers, judged every 100 batches of 8 of each rank; bad luck in one worker is certain."""
    rng = np.random.default_rng(0)
    workers, looks, per_look = 512 * 8, 50, 100
    unlucky = 0
    for _ in range(20):
        bad = rng.binomial(per_look, LIMIT / 10, (looks, workers))
        unlucky += int((bad[0] > LIMIT * per_look).any())
        for look, each in enumerate(np.cumsum(bad.sum(axis=1)), 1):
            judge("here", (look * workers * per_look, int(each), 0, 0, 0), LIMIT, drop_empty_captions=False)
    assert unlucky == 20  # a worker that judged alone would have stopped each of these runs
    seen = workers * per_look
    bad = int(rng.binomial(seen, 1.2 * LIMIT))
    with pytest.raises(TooManyBadSamplesError):
        judge("here", (seen, bad, 0, 0, 0), LIMIT, drop_empty_captions=False)


def test_a_run_at_the_limit_itself_goes_on():
    looks = np.arange(1, 2001)
    seen = looks * 100 * 512 * 64
    assert binom.sf(stopped_from(seen) - 1, seen, LIMIT).max() < LEVEL


def test_a_spoilt_shard_is_no_reason_to_stop_a_worker_but_nothing_else_is():
    counts = WorkerCounts(["here"], [10**9])
    for _ in range(3):
        for index in range(5000):
            counts.skip(0, BadSample("broken", str(index), "one.tar"), first_pass=False)
        counts.good(0)
    assert counts.take().tolist() == [[0, 15_000, 0, 0, 0]]
    assert counts.take().tolist() == [[0, 0, 0, 0, 0]]
    errors = [BadSample("broken", str(index), f"{index % 7}.tar") for index in range(1000)]
    for error in errors[:-1]:
        counts.skip(0, error, first_pass=False)
    with pytest.raises(TooManyBadSamplesError, match="none of the last 1000 samples, out of 7 shards"):
        counts.skip(0, errors[-1], first_pass=False)
