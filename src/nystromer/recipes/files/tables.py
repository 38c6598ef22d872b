"""Writing rows as a table: JSON lines, and CSV with a column for every name."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def write_json_lines(rows: Sequence[Row], path: Path) -> None:
    """Writes a row a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Writes a table with all columns of all rows."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, names)
        table.writeheader()
        table.writerows(rows)


WRITERS = {".jsonl": write_json_lines, ".csv": write_csv}
