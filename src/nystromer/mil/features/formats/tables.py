"""One table for all bags, a row a patch: bag, label and feature columns, CSV, TSV or Parquet.

The form of the classic sets. Columns that are no numbers are left out.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nystromer.mil.columns import BAG, KNOWN, column, read_table
from nystromer.mil.features.bags import Bag
from nystromer.mil.ids import slide_id


def bags_of(path: Path) -> list[Bag]:
    """Returns the bags of a table, in the order in which they begin.

    Raises:
        ValueError: If the table cannot be read, or has no column of bags or of features.
    """
    table = read_table(path, text=False)
    bag = column(table, BAG, path, "a bag's name")
    numbers = [
        name
        for name in table.columns
        if name != bag and str(name).lower() not in KNOWN and table[name].dtype.kind in "iuf"
    ]
    if not numbers:
        raise ValueError(f"{path} has no columns of features, only {', '.join(table.columns)}.")
    wide = all(table[name].dtype == np.float64 for name in numbers)
    features = table[numbers].to_numpy(np.float32 if wide else None)
    features = features.astype(np.float32, copy=False)
    places = {"x", "y"} <= set(table.columns)
    coords = table[["x", "y"]].to_numpy() if places else None
    return [
        Bag(
            slide_id(name),
            path,
            "table",
            len(rows),
            len(numbers),
            torch.float32,
            partial(_rows, features, rows),
            None if coords is None else partial(_rows, coords, rows),
        )
        for name, rows in table.groupby(table[bag].astype(str), sort=False).indices.items()
    ]


def _rows(table: Any, rows: Any) -> Tensor:
    return torch.from_numpy(table[rows])
