"""Bags of patches, as whole slides are learnt from: reading feature files, labels, models.

    from nystromer.mil import find_bags, read_labels, gather
    cohort = gather(find_bags("features"), read_labels("labels.csv"))

features/      bags.py: one bag, read when it is asked for; folders.py: all of a folder; formats/
tables/        labels.py: classes, survival and patients of slides; splits.py: what is for training
cohort.py      bags and labels together
models/        TransMIL, gated ABMIL, mean, max
losses.py      of classes and of survival
ensemble.py    the trained models of a run as one
maps/          which patches made a model say what it says, and how far such maps can be trusted
slides.py      the slide itself
"""

from nystromer.mil.cohort import Cohort, gather
from nystromer.mil.ensemble import Ensemble, load_ensemble
from nystromer.mil.features.bags import Bag
from nystromer.mil.features.folders import find_bags
from nystromer.mil.models import build_model, load_transmil, pad_bags
from nystromer.mil.tables.labels import Case, Labels, read_labels
from nystromer.mil.tables.splits import Split, read_splits

__all__ = [
    "Bag",
    "Case",
    "Cohort",
    "Ensemble",
    "Labels",
    "Split",
    "build_model",
    "find_bags",
    "gather",
    "load_ensemble",
    "load_transmil",
    "pad_bags",
    "read_labels",
    "read_splits",
]
