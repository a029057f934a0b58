import itertools
import os

import pytest
import torch

from onepeace_lightning.metrics import CrossModalRecall, caption_ids, recall


def score(first, second, ids, **options):
    metric = CrossModalRecall("image", "text", **options)
    metric.update(first, second, torch.as_tensor(ids))
    return {name: value.item() for name, value in metric.compute().items()}


def random_pairs(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(rows, 6, generator=generator)
    return first, first + 1.5 * torch.randn(rows, 6, generator=generator)


def plain_recall(queries, keys, ids, k):
    """The definition, one query at a time."""
    similarity = torch.nn.functional.cosine_similarity(queries[:, None], keys[None], dim=-1)
    hits = [
        any(ids[key] == ids[row] for key in similarity[row].topk(min(k, len(ids))).indices) for row in range(len(ids))
    ]
    return 100 * sum(hits) / len(hits)


def test_matches_the_definition_both_ways():
    first, second = random_pairs(40)
    ids = torch.arange(40) % 25  # some labels twice
    scores = score(first, second, ids)
    for k in (1, 5, 10):
        assert scores[f"image_to_text/R@{k}"] == pytest.approx(plain_recall(first, second, ids, k))
        assert scores[f"text_to_image/R@{k}"] == pytest.approx(plain_recall(second, first, ids, k))
    assert scores["image_to_text/R@1"] != scores["text_to_image/R@1"]  # or the directions could be swapped unseen
    assert len(scores) == 12


def test_several_captions_of_each_picture():
    first, _ = random_pairs(10)
    ids, second_ids = torch.arange(10), torch.arange(30) % 10
    second = first[second_ids] + torch.randn(30, 6, generator=torch.Generator().manual_seed(1))
    metric = CrossModalRecall("image", "text")
    for part in (slice(0, 4), slice(4, 10)):
        captions = torch.isin(second_ids, ids[part])
        metric.update(first[part], second[captions], ids[part], second_ids[captions])
    scores = metric.compute()
    similarity = torch.nn.functional.cosine_similarity(first[:, None], second[None], dim=-1)
    nearest = similarity.argmax(1)
    assert scores["image_to_text/R@1"] == pytest.approx(100 * (second_ids[nearest] == ids).float().mean().item())
    nearest = similarity.argmax(0)
    assert scores["text_to_image/R@1"] == pytest.approx(100 * (nearest == second_ids).float().mean().item())
    # three right answers in thirty captions; one right picture in ten
    assert scores["chance/image_to_text/R@1"] == pytest.approx(10)
    assert scores["chance/text_to_image/R@1"] == pytest.approx(10)
    assert scores["chance/text_to_image/R@5"] == pytest.approx(50)


def test_chunks_do_not_change_the_scores(monkeypatch):
    first, second = random_pairs(40)
    ids = torch.arange(40) % 25
    whole = score(first, second, ids)
    monkeypatch.setattr(recall, "QUERIES_AT_ONCE", 7)
    assert score(first, second, ids) == pytest.approx(whole)


def test_length_of_embeddings_does_not_matter():
    first, second = random_pairs(20)
    scales = torch.linspace(0.01, 100, 20)[:, None]
    assert score(first * scales, second / scales, torch.arange(20)) == pytest.approx(
        score(first, second, torch.arange(20))
    )


def test_equal_captions_are_right_answers():
    first = torch.eye(3)
    second = first[[1, 0, 2]]
    assert score(first, second, [0, 1, 2])["image_to_text/R@1"] == pytest.approx(100 / 3)
    assert score(first, second, [7, 7, 2])["image_to_text/R@1"] == pytest.approx(100)


def test_a_collapsed_model_scores_nothing():
    same = torch.randn(1, 6).expand(30, 6)
    scores = score(same, same, torch.arange(30))
    assert scores["image_to_text/R@1"] == scores["text_to_image/R@10"] == 0


def test_a_tie_with_one_wrong_key_costs_one_rank():
    queries = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    keys = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 0, 1]])
    scores = score(queries, keys, [0, 1, 2])
    assert scores["image_to_text/R@1"] == pytest.approx(100 / 3)  # only the third is clear of ties
    assert scores["image_to_text/R@5"] == 100


def test_ties_as_published_are_ranked_as_topk_gives_them():
    queries = torch.eye(3)
    keys = queries[[0, 0, 2]]
    scores = score(queries, keys, [0, 1, 2], ties="published")
    assert scores["image_to_text/R@1"] == pytest.approx(plain_recall(queries, keys, [0, 1, 2], 1))
    assert scores["image_to_text/R@1"] > score(queries, keys, [0, 1, 2])["image_to_text/R@1"]


def test_both_rankings_agree_where_there_are_no_ties():
    first, second = random_pairs(40)
    ids = torch.arange(40) % 25
    assert score(first, second, ids, ties="published") == pytest.approx(score(first, second, ids))


def test_unknown_ties_are_named():
    with pytest.raises(ValueError, match="ties is 'fair'; choose one of strict, published"):
        CrossModalRecall("image", "text", ties="fair")


def test_chance_is_the_mean_over_all_rankings():
    ids = [0, 0, 1, 2, 1, 3, 3, 3]
    scores = score(*random_pairs(8), ids)
    for k in (1, 5):
        drawn = list(itertools.combinations(ids, k))
        expected = 100 * sum(sum(label in keys for keys in drawn) / len(drawn) for label in ids) / len(ids)
        assert scores[f"chance/image_to_text/R@{k}"] == pytest.approx(expected)
        assert scores[f"chance/text_to_image/R@{k}"] == pytest.approx(expected)


def test_gallery_smaller_than_k():
    scores = score(*random_pairs(3), [0, 1, 2])
    assert scores["image_to_text/R@5"] == scores["chance/image_to_text/R@10"] == 100
    assert scores["chance/image_to_text/R@1"] == pytest.approx(100 / 3)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_embeddings_that_are_not_finite_raise(side, value):
    pair = random_pairs(4)
    pair[side][2, 3] = value
    with pytest.raises(ValueError, match=rf"{['image', 'text'][side]} embeddings of rows \[2\]"):
        score(*pair, torch.arange(4))


def test_shapes_that_disagree_raise():
    first, second = random_pairs(4)
    with pytest.raises(ValueError, match=r"\(4, 6\).*\(3, 6\).*\(4,\)"):
        score(first, second[:3], torch.arange(4))
    with pytest.raises(ValueError, match=r"\(4, 6\), \(3,\)"):
        score(first, second, torch.arange(3))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_an_empty_gallery_says_so():
    with pytest.raises(ValueError, match="image-text gallery is empty"):
        CrossModalRecall("image", "text").compute()


def test_sides_need_two_names():
    with pytest.raises(ValueError, match="'text'"):
        CrossModalRecall("text", "text")


def test_reset_forgets_the_gallery():
    metric = CrossModalRecall("image", "text")
    metric.update(*random_pairs(20, seed=1), torch.arange(20))
    metric.reset()
    first, second = random_pairs(10)
    metric.update(first, second, torch.arange(10))
    assert metric.compute()["image_to_text/R@1"].item() == pytest.approx(
        score(first, second, range(10))["image_to_text/R@1"]
    )


def test_materialising_from_meta_needs_no_initialisation():
    with torch.device("meta"):
        metric = CrossModalRecall("image", "text")
    assert not [*metric.parameters(), *metric.buffers()]
    torch.nn.ModuleList([metric]).to_empty(device="cpu")
    metric.update(torch.eye(12), torch.eye(12), torch.arange(12))
    assert metric.compute()["image_to_text/R@1"] == 100


def test_caption_ids():
    ids = caption_ids(["a bell", "a drum", "a bell"])
    assert ids.dtype == torch.int64
    assert ids[0] == ids[2] != ids[1]
    assert caption_ids(["abc"]).item() == int.from_bytes(bytes.fromhex("ba7816bf8f01cfea"), "big", signed=True)
    with pytest.raises(ValueError, match="caption 1 is ' '"):
        caption_ids(["a bell", " "])


def _one_rank(rank, folder, uneven):
    os.environ.update(OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    first, second = random_pairs(20)
    rows = slice(0, uneven) if rank == 0 else slice(uneven, 20)
    metric = CrossModalRecall("image", "text")
    for part in torch.arange(20)[rows].split(3):
        metric.update(first[part], second[part], part % 12)
    torch.save(metric.compute(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("uneven", [13, 20])  # 20: the second rank has no row
def test_two_uneven_ranks_give_what_one_process_gives(tmp_path, uneven):
    torch.multiprocessing.spawn(_one_rank, (str(tmp_path), uneven), nprocs=2)
    expected = score(*random_pairs(20), torch.arange(20) % 12)
    for rank in (0, 1):
        scores = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert {name: value.item() for name, value in scores.items()} == pytest.approx(expected)
