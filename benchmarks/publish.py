"""Draws the figures and writes the tables of README and docs from the committed rows.

    python benchmarks/publish.py

Nothing is measured here. Tables stand between `<!-- table: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

from nystromer import plots
from nystromer.bench import read_csv

HERE = Path(__file__).parent
RESULTS, DOCS = HERE / "results", HERE.parent / "docs"
PAGES = (HERE.parent / "README.md", *sorted(DOCS.glob("*.md")))


def rows(name: str) -> list[dict[str, str]]:
    with (RESULTS / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def markdown(header: list[str], lines: list[list[str]]) -> str:
    table = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in table)


def cpu_table() -> str:
    """Forward and forward + backward of one case side by side."""
    cases: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows("cpu"):
        case = (row["against"], f"{int(row['n']):,}", row["num_landmarks"], row["dtype"])
        other, ours, ratio = (float(row[name]) for name in ("other_ms", "ours_ms", "ratio"))
        figure = f"**{ratio:.1f}×** ({other:,.0f} / {ours:,.0f} ms)"
        cases.setdefault(case, {})[row["direction"]] = figure
    lines = [
        [*case, found["forward"], found.get("forward + backward", "")]
        for case, found in cases.items()
    ]
    return markdown(["against", "N", "M", "dtype", "forward", "forward + backward"], lines)


def differences_table() -> str:
    lines = [[r["implementation"], r["what"], r["figure"]] for r in rows("differences")]
    return markdown(["implementation", "what", "measured"], lines)


def scaling_table() -> str:
    """Time and memory of every method at every length, notes where there is no number."""
    measured = read_csv(RESULTS / "scaling.csv")
    methods = list(dict.fromkeys(r.case.method for r in measured))
    cells = {(r.case.n, r.case.method): r for r in measured}

    def cell(n: int, method: str) -> str:
        row = cells[n, method]
        if row.seconds is None or row.peak_bytes is None:
            return row.note
        error = "" if row.error is None or method == "exact" else f", error {row.error:.2f}"
        return f"{1e3 * row.seconds:,.1f} ms, {row.peak_bytes / 2**20:,.0f} MiB{error}"

    lengths = dict.fromkeys(r.case.n for r in measured)
    lines = [[f"{n:,}", *(cell(n, m) for m in methods)] for n in lengths]
    return markdown(["N", *methods], lines)


def hf_embeddings_table() -> str:
    """Mean cosine (and that of the worst passage) by text and number of landmarks."""
    cells: dict[str, dict[str, str]] = {}
    for r in rows("hf_embeddings"):
        figure = f"{float(r['mean_cosine']):.2f} ({float(r['min_cosine']):.2f})"
        where = "" if r["layers"] == "all" else ", layers " + ", ".join(r["layers"].split())
        found = cells.setdefault(r["text"], {})
        found[f"M = {r['num_landmarks']}{where}"] = figure
        found["two passages"] = f"{float(r['cosine_between_passages']):.2f}"
    columns = sorted(next(iter(cells.values())), key="two passages".__eq__)
    return markdown(["text", *columns], [[t, *map(x.get, columns)] for t, x in cells.items()])


def hf_speed_table() -> str:
    lines = [
        [
            f"{int(r['n']):,}",
            f"{float(r['exact_ms']):,.0f} ms",
            f"{float(r['ours_ms']):,.0f} ms",
            f"**{float(r['ratio']):.1f}×**",
        ]
        for r in rows("hf_speed")
    ]
    return markdown(["tokens", "exact", "Nyström, M = 64", "faster"], lines)


def calibration_table() -> str:
    """A line a plan, a column a text."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows("calibration"):
        figure = f"{float(row['cosine']):.3f} ({float(row['worst']):.3f})"
        found.setdefault((row["num_landmarks"], row["plan"]), {})[row["text"]] = figure
    texts = list(dict.fromkeys(row["text"] for row in rows("calibration")))
    lines = [[m, plan, *(x[text] for text in texts)] for (m, plan), x in found.items()]
    return markdown(["M", "plan", *(f"{text}, mean (worst)" for text in texts)], lines)


TABLES = {
    "cpu": cpu_table,
    "differences": differences_table,
    "scaling": scaling_table,
    "hf_embeddings": hf_embeddings_table,
    "hf_speed": hf_speed_table,
    "calibration": calibration_table,
}


def main() -> None:
    (DOCS / "figures").mkdir(exist_ok=True)
    figure = plots.scaling_figure(read_csv(RESULTS / "scaling.csv"))
    figure.savefig(DOCS / "figures" / "scaling.png")
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name, make in TABLES.items():
            pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
            text = re.sub(pattern, lambda m, t=make: f"{m[1]}\n{t()}\n\n{m[2]}", text, flags=re.S)
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
