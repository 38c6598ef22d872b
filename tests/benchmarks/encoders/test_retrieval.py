import pytest
import torch
from torch.nn import functional as F

from benchmarks.encoders import retrieval


def vectors(*rows):
    return F.normalize(torch.tensor(rows, dtype=torch.float64), dim=-1)


def test_scores_count_the_place_of_the_right_document():
    """Query 0 finds its document first, query 1 second, query 2 third."""
    documents = vectors([1, 0, 0], [0, 1, 0], [0, 0, 1])
    queries = vectors([3, 1, 1], [1, 2, 3], [3, 2, 1])
    found = retrieval.scores(documents, queries)
    assert found["ndcg_10"] == pytest.approx((1 + 1 / 1.584963 + 1 / 2) / 3)
    assert found["recall_100"] == 1


def test_scores_of_a_document_behind_a_hundred_others_are_zero():
    documents = vectors([0, 1], *[[1, 0.1]] * 101)
    queries = vectors([1, 0], *[[1, 0.1]] * 101)
    found = retrieval.scores(documents, queries)
    assert found["recall_100"] == pytest.approx(101 / 102)
    assert retrieval.scores(documents[:11], queries[:11])["ndcg_10"] == pytest.approx(10 / 11)


def counts(ids):
    """Stands for an encoder: the share of every token id below ten, of length one."""
    return F.normalize(F.one_hot(ids, 10).double().mean(1), dim=-1)


def test_chunks_are_weighed_by_their_tokens(monkeypatch):
    seen = []

    def encoder(model):
        return lambda ids: seen.append(ids.tolist()) or counts(ids)

    monkeypatch.setattr(retrieval, "by_layers", encoder)
    ids = torch.tensor([[8, 1, 1, 1, 1, 2, 9]])
    found = retrieval.chunks(None, 6)(ids)
    assert seen == [[[8, 1, 1, 1, 1, 9]], [[8, 2, 9]]]
    parts = [counts(torch.tensor(x)) for x in seen]
    torch.testing.assert_close(found, F.normalize(6 * parts[0] + 3 * parts[1], dim=-1))


def test_a_cut_document_ends_like_a_whole_one(monkeypatch):
    monkeypatch.setattr(retrieval, "by_layers", lambda model: lambda ids: ids)
    ids = torch.arange(600)[None]
    assert retrieval.cut(None)(ids)[0].tolist() == [*range(511), 599]
    assert retrieval.cut(None)(ids[:, :40]).tolist() == ids[:, :40].tolist()


def test_a_movie_is_asked_for_by_a_review_that_is_not_in_its_document(monkeypatch):
    monkeypatch.setattr(retrieval, "LENGTHS", (12,))
    monkeypatch.setattr(retrieval, "COUNT", 1)
    texts = {"short": ["a" * 9], "long": ["1" * 3, "2" * 20, "3" * 20]}
    monkeypatch.setattr(retrieval, "grouped", lambda file, by: texts)
    found = list(retrieval.movies(lambda texts: [[int(x) for x in text] for text in texts], 5))
    assert found == [([1] * 3 + [3] * 20, [2] * 5)]
