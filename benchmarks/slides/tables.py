"""Tables of maps on toy tasks and on the real slide, from the committed rows."""

from __future__ import annotations

from statistics import mean

from benchmarks.common import markdown, results

METHODS = ("single", "gradient", "ig", "attention", "rollout", "random")


def toy_table() -> str:
    """Shows the mean AUC and area of every method over the seeds, by task and model."""
    rows, lines = results("toy_tasks"), []
    for task, model in dict.fromkeys((row["task"], row["model"]) for row in rows):
        here = [row for row in rows if (row["task"], row["model"]) == (task, model)]
        cells = [_cell([row for row in here if row["method"] == method]) for method in METHODS]
        accuracy = mean(float(row["accuracy"]) for row in here)
        lines.append([task, model, f"{accuracy:.2f}", *cells])
    return markdown(["task", "model", "accuracy", *METHODS], lines)


def _cell(rows: list[dict[str, str]]) -> str:
    if not rows:
        return "–"
    auc, area = (mean(float(row[name]) for row in rows) for name in ("auc", "area"))
    return f"{auc:.2f} ({area:+.2f})"


def slide_table() -> str:
    """Shows how well every method finds the stained tiles of the real slide."""
    rows = results("real_slide")
    lines = [[x["method"], f"{float(x['auc']):.3f}", f"{float(x['area']):+.3f}"] for x in rows]
    return markdown(["method", "AUC of tiles", "area of flipping"], lines)


def large_table() -> str:
    """Shows what the map of 200,000 patches costs by every method."""
    lines = [
        [
            row["method"],
            f"{float(row['seconds']):.0f} s",
            f"{float(row['cpu_seconds']):.0f} s",
            f"{float(row['peak_mib']) / 1024:.1f} GiB",
        ]
        for row in results("large_maps")
    ]
    return markdown(["method", "time", "time of all cores", "most memory"], lines)


TABLES = {"toy maps": toy_table, "slide map": slide_table, "large maps": large_table}
