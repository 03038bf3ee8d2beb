"""k-NN: worked by hand, equal to a plain loop, the same in any chunks, and never a silent wrong answer."""

import math

import pytest
import torch

from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation import neighbours
from dinov2_zoo.evaluation.classification.knn import knn_accuracy, knn_leave_one_out


def on_circle(*degrees):
    """Points at these angles, of assorted lengths: length must not matter."""
    angles = torch.tensor(degrees) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], 1) * torch.arange(1.0, len(degrees) + 1)[:, None]


def test_by_hand_near_vote_outweighs_two_far_ones():
    # From 0 degrees: class 1 at 10; class 0 at 50 and 60. Cosines .985, .643, .5; at T = .07 the near one weighs
    # exp(.342 / .07) = 132 times the second, so it wins at k = 3; at T = 10 two votes beat one.
    bank, labels = on_circle(10.0, 50.0, 60.0), torch.tensor([1, 0, 0])
    query, truth = on_circle(0.0), torch.tensor([1])
    assert knn_accuracy(bank, labels, query, truth, k=(1, 3)) == {1: 1.0, 3: 1.0}
    assert knn_accuracy(bank, labels, query, truth, k=(1, 3), temperature=10) == {1: 1.0, 3: 0.0}


def test_by_hand_leave_one_out_does_not_see_itself():
    # Two pairs of neighbours with labels crossed inside the first pair: itself would be right, its neighbour is not.
    features, labels = on_circle(0.0, 5.0, 90.0, 95.0), torch.tensor([0, 1, 1, 1])
    assert knn_leave_one_out(features, labels, k=[1]) == {1: 0.5}
    assert knn_accuracy(features, labels, features, labels, k=[1]) == {1: 1.0}


def naive(bank, labels, queries, truth, ks, temperature, own=False):
    """The protocol in plain Python."""
    right = dict.fromkeys(ks, 0)
    for i, query in enumerate(queries):
        similar = [
            (float(torch.cosine_similarity(query, b, dim=0)), j) for j, b in enumerate(bank) if not own or i != j
        ]
        similar.sort(reverse=True)
        for k in ks:
            votes = {}
            for cosine, j in similar[:k]:
                votes[int(labels[j])] = votes.get(int(labels[j]), 0) + math.exp(cosine / temperature)
            right[k] += max(votes, key=votes.get) == int(truth[i])
    return {k: right[k] / len(queries) for k in ks}


@pytest.fixture
def random_set():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 8, generator=generator)
    labels = torch.randint(4, (90,), generator=generator)
    features = centres[labels] + 1.5 * torch.randn(90, 8, generator=generator)
    return features, labels


@pytest.mark.parametrize("chunk,bank_chunk", [(1024, 65536), (7, 13)])
def test_equals_a_plain_loop_in_any_chunks(random_set, monkeypatch, chunk, bank_chunk):
    monkeypatch.setattr(neighbours, "TILE", bank_chunk)
    features, labels = random_set
    bank, queries, truth = features[:60], features[60:], labels[60:]
    ks = (1, 5, 20)
    found = knn_accuracy(bank, labels[:60], queries, truth, k=ks, chunk=chunk)
    assert found == naive(bank, labels[:60], queries, truth, ks, 0.07)
    assert len(set(found.values())) > 1 and all(0.3 < accuracy < 1 for accuracy in found.values())
    assert knn_leave_one_out(features, labels, k=ks, chunk=chunk) == naive(
        features, labels, features, labels, ks, 0.07, own=True
    )


def test_k_above_the_bank_is_lowered_and_said(random_set):
    features, labels = random_set
    with pytest.warns(UserWarning, match=r"k = \[100, 200\] lowered to 60"):
        found = knn_accuracy(features[:60], labels[:60], features[60:], labels[60:], k=(10, 100, 200))
    assert list(found) == [10, 60]
    with pytest.warns(UserWarning, match="lowered to 89"):
        assert list(knn_leave_one_out(features, labels, k=[90])) == [89]


def test_bad_labels_are_named():
    features, labels = torch.eye(3), torch.tensor([0, 1, 1])
    with pytest.raises(DataError, match="2 labels do not fit 3 training features"):
        knn_accuracy(features, labels[:2], features, labels, k=[1])
    with pytest.raises(DataError, match=r"Classes \[2\] have test images but no training image"):
        knn_accuracy(features, labels, features, torch.tensor([0, 1, 2]), k=[1])
    with pytest.raises(DataError, match="no test images"):
        knn_accuracy(features, labels, features[:0], labels[:0], k=[1])
    with pytest.raises(DataError, match="number classes from 0"):
        knn_leave_one_out(features, labels - 1, k=[1])
    with pytest.raises(DataError, match="at least 1"):
        knn_leave_one_out(features, labels, k=[0])
