"""How good answers are: scores of classes and of survival."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NAMES = {  # in the order of every table
    "auc": "macro AUC",
    "balanced_accuracy": "balanced accuracy",
    "f1": "macro F1",
    "accuracy": "accuracy",
    "c_index": "C-index",
}


def classification_scores(
    labels: Sequence[int] | np.ndarray, probabilities: np.ndarray
) -> dict[str, float]:
    """Returns scores of probabilities [n, C] against the numbers of the classes [n].

    The AUC of two classes is that of the second; of more it is the mean over classes, each against
    the others.
    """
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score

    found = probabilities.argmax(1)
    if probabilities.shape[1] == 2:
        auc = roc_auc_score(labels, probabilities[:, 1])
    else:
        every = np.arange(probabilities.shape[1])[None] == np.asarray(labels)[:, None]
        auc = roc_auc_score(every, probabilities, average="macro")
    return {
        "auc": float(auc),
        "balanced_accuracy": float(balanced_accuracy_score(labels, found)),
        "f1": float(f1_score(labels, found, average="macro", zero_division=0.0)),
        "accuracy": float(accuracy_score(labels, found)),
    }


def concordance(times: Sequence[float], events: Sequence[bool], risks: Sequence[float]) -> float:
    """Returns Harrell's C-index: of all pairs of which one is known to have lived longer, the share
    in which that one has the lower risk; equal risks count half.

    Raises:
        ValueError: If there is no such pair.
    """
    pairs = earlier(times, events)
    r = np.asarray(risks, float)
    right = (r[:, None] > r[None]) + 0.5 * (r[:, None] == r[None])
    if not pairs.any():
        raise ValueError("A C-index needs two bags of which one is known to have lived longer.")
    return float(right[pairs].mean())


def num_pairs(times: Sequence[float], events: Sequence[bool]) -> int:
    """Returns the number of pairs that a C-index is made from."""
    return int(earlier(times, events).sum())


def earlier(times: Sequence[float], events: Sequence[bool]) -> np.ndarray:
    """Says of which pairs (i, j) i is known to have had its event before that of j, [n, n].

    An event at the time at which another was censored was before.
    """
    t, seen = np.asarray(times, float), np.asarray(events, bool)
    before = t[:, None] < t[None]
    return seen[:, None] & (before | ((t[:, None] == t[None]) & ~seen[None]))
