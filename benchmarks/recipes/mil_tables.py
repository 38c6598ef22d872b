"""The table of the classic sets of multiple-instance learning, from the committed rows."""

from __future__ import annotations

import statistics

from benchmarks.common import markdown, results

PUBLISHED = {  # accuracy: gated attention (arXiv:1802.04712), DSMIL (arXiv:2011.08939)
    "musk1": ("0.892", "0.932"),
    "musk2": ("0.858", "0.930"),
    "elephant": ("0.868", "0.925"),
}
NAMES = {"ucsb_breast_cancer": "UCSB breast cancer"}


def sets_table() -> str:
    """Shows accuracy of every model on every set, its deviation over repetitions, and its AUC."""
    rows = results("mil_sets")
    models = list(dict.fromkeys(row["model"] for row in rows))
    lines = []
    for name in dict.fromkeys(row["set"] for row in rows):
        cells = []
        for model in models:
            found = [row for row in rows if (row["set"], row["model"]) == (name, model)]
            accuracy, auc = ([float(row[x]) for row in found] for x in ("accuracy", "auc"))
            spread = f" ± {statistics.stdev(accuracy):.3f}" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(accuracy):.3f}{spread} ({statistics.mean(auc):.3f})")
        lines.append([NAMES.get(name, name), *cells, *PUBLISHED.get(name, ("–", "–"))])
    return markdown(["set", *models, "ABMIL, published", "DSMIL, published"], lines)


TABLES = {"mil-sets": sets_table}
