"""Bags of patches, as whole slides are learnt from: reading feature files, labels, models.

    from nystromer.mil import find_bags, read_labels, gather
    cohort = gather(find_bags("features"), read_labels("labels.csv"))

bags.py        one bag, read when it is asked for
folders.py     all bags in a folder; formats/ has a module a format
labels.py      classes, survival and patients of slides; splits.py what is for training
cohort.py      both together
models/        TransMIL, gated ABMIL, mean, max
"""

from nystromer.mil.bags import Bag
from nystromer.mil.cohort import Cohort, gather
from nystromer.mil.folders import find_bags
from nystromer.mil.labels import Case, Labels, read_labels
from nystromer.mil.models import build_model, load_transmil, pad_bags
from nystromer.mil.splits import Split, read_splits

__all__ = [
    "Bag",
    "Case",
    "Cohort",
    "Labels",
    "Split",
    "build_model",
    "find_bags",
    "gather",
    "load_transmil",
    "pad_bags",
    "read_labels",
    "read_splits",
]
