"""Votes of neighbours and the linear probe, beside scikit-learn's and by hand."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from onepeace_lightning.metrics.probes import chance_score, class_score, knn_scores, linear_scores


@pytest.fixture
def clusters():
    """Three overlapping classes on the unit sphere, training and measured samples."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 8, generator=generator)

    def draw(count):
        classes = torch.randint(0, 3, (count,), generator=generator)
        points = centres[classes] + 1.5 * torch.randn(count, 8, generator=generator)
        return F.normalize(points, dim=1), F.one_hot(classes, 3).float()

    return *draw(120), *draw(60)


def test_the_linear_probe_is_the_optimum_that_scikit_learn_finds(clusters):
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn comes with MTEB")
    train, targets, queries, wanted = clusters
    decay = 1e-2
    ours = linear_scores(train, targets, queries, decay=decay, steps=500).log_softmax(1)
    mean, scale = train.mean(0), train.std(0, correction=0)
    # scikit-learn weighs the sum of losses by C against half the squared weights
    theirs = linear.LogisticRegression(C=1 / (2 * decay * len(train)), tol=1e-8, max_iter=5000)
    theirs.fit(((train - mean) / scale).numpy(), targets.argmax(1).numpy())
    expected = theirs.predict_log_proba(((queries - mean) / scale).numpy())
    assert np.abs(ours.numpy() - expected).max() < 1e-3
    assert class_score(ours, wanted, several=False) > 60


def test_neighbours_vote_by_their_nearness(clusters):
    train, targets, queries, wanted = clusters
    one = knn_scores(train, targets, queries, k=1)
    nearest = (queries @ train.T).argmax(1)
    assert torch.equal(one.argmax(1), targets[nearest].argmax(1))
    everyone = knn_scores(train, targets, queries, k=10**6, temperature=0.1)
    weights = (queries @ train.T / 0.1).softmax(1) @ targets
    torch.testing.assert_close(everyone / everyone.sum(1, keepdim=True), weights)
    assert class_score(knn_scores(train, targets, queries), wanted, several=False) > 60


def test_a_sample_may_have_several_classes():
    train = torch.eye(4)
    targets = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]])
    for scores in (
        knn_scores(train, targets, train, k=1), linear_scores(train, targets, train, several=True),
    ):  # fmt: skip
        assert class_score(scores, targets, several=True) == 100
    assert chance_score(targets, targets, several=True) == 50  # of the classes that anything has, half have it
    assert chance_score(torch.tensor([[1, 0], [0, 1], [1, 0]]), torch.tensor([[1, 0], [0, 1]]), several=False) == 50


@torch.inference_mode()
def test_a_probe_is_trained_where_nothing_else_has_a_gradient(clusters):
    train, targets, queries, _ = (part.clone() for part in clusters)  # made here, as a validation makes them
    with torch.inference_mode(False):
        wanted = linear_scores(*clusters[:3])
    assert torch.equal(linear_scores(train, targets, queries), wanted)
