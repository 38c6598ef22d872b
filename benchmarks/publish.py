"""Draws the figures and writes the tables of README and docs from the committed rows.

    python -m benchmarks publish

Nothing is measured here. Tables stand between `<!-- table: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import common
from benchmarks.attention import growth, table1
from benchmarks.attention.everyone import DIRECTIONS, ESTIMATE, OTHERS, SAME
from benchmarks.clustered import tables as clustered_tables
from benchmarks.clustered import tradeoff as clustered_tradeoff
from benchmarks.common import markdown
from benchmarks.common import results as rows
from benchmarks.recipes import classifiers as recipes
from benchmarks.recipes import lra
from nystromer import plots
from nystromer.bench import Row, read_csv
from nystromer.plots import Panel
from nystromer.recipes.shared.curves import curves_figure

DOCS = Path(__file__).parents[1] / "docs"
PAGES = (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md")))


def cpu_table() -> str:
    """Forward and forward + backward of one case side by side."""
    cases: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows("cpu"):
        case = (row["against"], f"{int(row['n']):,}", row["num_landmarks"], row["dtype"])
        cases.setdefault(case, {})[row["direction"]] = time_cell(row)
    lines = [[*case, *(found.get(d, "") for d in DIRECTIONS)] for case, found in cases.items()]
    return markdown(["against", "N", "M", "dtype", *DIRECTIONS], lines)


def time_cell(row: dict[str, str]) -> str:
    other, ours, ratio = (float(row[name]) for name in ("other_ms", "ours_ms", "ratio"))
    return f"**{factor(ratio)}** ({other:,.0f} / {ours:,.0f} ms)"


def factor(ratio: float) -> str:
    return f"{ratio:.1f}×" if ratio >= 1 else f"{ratio:.2f}×"


def differences_table() -> str:
    lines = [[r["implementation"], r["what"], r["figure"]] for r in rows("differences")]
    return markdown(["implementation", "what", "measured"], lines)


def everyone_table(cell: Callable[[dict[str, str]], str]) -> str:
    """A line a case, a column for each of the others."""
    cases: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows("everyone"):
        case = (f"{int(row['n']):,}", row["num_landmarks"], row["dtype"], row["direction"])
        cases.setdefault(case, {})[row["against"]] = marked(row) or cell(row)
    lines = [[*case, *(found.get(name, "–") for name in OTHERS)] for case, found in cases.items()]
    return markdown(["N", "M", "dtype", "", *OTHERS], lines)


def marked(row: dict[str, str]) -> str:
    """What stands in place of a number: "fails" or "disagrees"."""
    return next((word for word in ("fails", "disagrees") if word in row["note"]), "")


def memory_ratio(row: dict[str, str]) -> str:
    return factor(float(row["other_mib"]) / float(row["ours_mib"]))


def everyone_notes_table() -> str:
    """Why there is no number, once for all lengths."""
    notes: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows("everyone"):
        if row["note"]:
            case = (row["against"], row["dtype"], row["direction"], marked(row))
            notes.setdefault(case, []).append(row)
    lines = []
    for (against, dtype, direction, _), found in notes.items():
        lengths = ", ".join(dict.fromkeys(f"{int(row['n']):,}" for row in found))
        lines.append([against, dtype, direction, lengths, found[0]["note"]])
    return markdown(["against", "dtype", "", "N", "at the first of them"], lines)


def everyone_short_table() -> str:
    """Everyone at N = 16,384, M = 64, float32."""
    chosen: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows("everyone"):
        if (row["n"], row["num_landmarks"], row["dtype"]) == ("16384", "64", "float32"):
            chosen.setdefault(row["against"], {})[row["direction"]] = row
    lines = []
    for name in filter(chosen.__contains__, OTHERS):
        found = [chosen[name].get(direction) for direction in DIRECTIONS]
        times, memories = (
            [marked(row) or cell(row) if row else "–" for row in found]
            for cell in (time_cell, memory_ratio)
        )
        error = error_cell(next(row for row in found if row))
        lines.append([name, OTHERS[name][0], *times, " / ".join(memories), error])
    header = ["against", "computes", *DIRECTIONS, "memory", "its error (ours) to exact attention"]
    return markdown(header, lines)


def error_cell(row: dict[str, str]) -> str:
    if not row["other_error"]:
        return "as ours" if OTHERS[row["against"]][0] == SAME else "not comparable"
    theirs = row["other_error"] if OTHERS[row["against"]][0] == ESTIMATE else "0"
    return f"{float(theirs):.2f} ({float(row['ours_error']):.2f})"


def everyone_panels() -> list[Panel]:
    """Forward time of float32 with M = 64, ours in blue in both."""
    colours = dict(zip(OTHERS, [plots.ORANGE, plots.RED, plots.GREEN, plots.BLACK], strict=False))
    colours.update(zip(list(OTHERS)[4:], [plots.ORANGE, plots.GREEN, plots.RED], strict=True))
    panels = []
    for title, same in (("Nyström attention by others", True), ("Other attentions", False)):
        names = [name for name in OTHERS if (OTHERS[name][0] == SAME) == same]
        lines: dict[str, tuple[str, list[tuple[int, float]]]] = {}
        own: dict[int, list[float]] = {}
        for row in rows("everyone"):
            case = (row["num_landmarks"], row["dtype"], row["direction"])
            if row["against"] in names and row["ratio"] and case == ("64", "float32", "forward"):
                n, name = int(row["n"]), row["against"]
                line = lines.setdefault(name, (colours[name], []))
                line[1].append((n, float(row["other_ms"])))
                own.setdefault(n, []).append(float(row["ours_ms"]))
        points = [(n, statistics.median(times)) for n, times in own.items()]
        panels.append(Panel(title, "milliseconds", {**lines, "ours": (plots.BLUE, points)}))
    return panels


def table1_table() -> str:
    """Ours, its saving against both kinds of exact attention, and the paper's saving."""
    lines = []
    for row in rows("table1"):
        n, m = int(row["n"]), int(row["num_landmarks"])
        exact, paper = (table1.PAPER[key][table1.LENGTHS.index(n)] for key in (None, m))
        lines.append([f"{n:,}", str(m)])
        for unit, name, i in (("ms", "ms", 1), ("MiB", "mib", 0)):
            mine = float(row[f"ours_{name}"])
            if name == "ms":
                ratios = [float(row[f"{other}_ratio"]) for other in ("naive", "sdpa")]
            else:
                ratios = [float(row[f"{other}_mib"]) / mine for other in ("naive", "sdpa")]
            saving = [factor(ratio) for ratio in (exact[i] / paper[i], *ratios)]
            lines[-1] += [f"{mine:,.0f} {unit}", *saving]
    per = ["paper", "against naive", "against SDPA"]
    return markdown(["N", "M", "time", *per, "memory", *per], lines)


def growth_table() -> str:
    """Time and memory of every method at every length, notes where there is no number."""
    measured = read_csv(common.RESULTS / "growth.csv")
    methods = list(dict.fromkeys(r.case.method for r in measured))
    cells = {(r.case.backward, r.case.n, r.case.method): r for r in measured}

    def cell(row: Row) -> str:
        if row.seconds is None or row.peak_bytes is None:
            return row.note
        error = f", error {row.error:.2f}" if row.error and row.case.method != "exact" else ""
        return f"{1e3 * row.seconds:,.1f} ms, {row.peak_bytes / 2**20:,.0f} MiB{error}"

    lines = [
        [f"{n:,}", DIRECTIONS[backward], *(cell(cells[backward, n, m]) for m in methods)]
        for backward, n in dict.fromkeys((r.case.backward, r.case.n) for r in measured)
    ]
    return markdown(["N", "", *methods], lines)


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


def distillation_table() -> str:
    """A line a text: from the plain swap to the trained encoder."""
    found: dict[str, list[str]] = {}
    for row in rows("distillation"):
        figure = f"{float(row['cosine']):.3f} ({float(row['worst']):.3f})"
        found.setdefault(row["text"], []).append(figure)
    lines = [[text, x[0], x[-1]] for text, x in found.items()]
    return markdown(["text", "plain swap, mean (worst)", "distilled"], lines)


def growth_panels(backward: bool = False) -> list[Panel]:
    measured = read_csv(common.RESULTS / "growth.csv")
    return plots.scaling_panels([r for r in measured if r.case.backward == backward])


def exponents_table() -> str:
    """Fitted from 4,096 tokens on, and between the two longest."""
    lines = []
    for backward in (False, True):
        time, memory = (panel.lines for panel in growth_panels(backward))
        for name in time:
            points = time[name][1], memory[name][1]
            cells = [cell for p in points for cell in (fitted(p), f"{growth.last_exponent(p):.2f}")]
            lines.append([name, DIRECTIONS[backward], f"{points[0][-1][0]:,}", *cells])
    header = ["", "", "N up to", "time", "last two", "memory", "last two"]
    return markdown(header, lines)


def fitted(points: list[tuple[int, float]]) -> str:
    fit = growth.exponent(points)
    return f"{fit.value:.2f} ± {fit.margin:.2f}" if fit else "–"


def with_exponents(panel: Panel) -> Panel:
    """The fitted growth beside every name: exact, N^2.00."""
    lines = {}
    for name, (colour, points) in panel.lines.items():
        fit = growth.exponent(points)
        lines[f"{name}, $N^{{{fit.value:.2f}}}$" if fit else name] = (colour, points)
    return panel._replace(lines=lines)


def calibration_table() -> str:
    """A line a plan, a column a text."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows("calibration"):
        figure = f"{float(row['cosine']):.4f} ({float(row['worst']):.4f})"
        found.setdefault((row["plan"], row["keys"]), {})[row["text"]] = figure
    texts = list(dict.fromkeys(row["text"] for row in rows("calibration")))
    lines = [[*case, *(x[text] for text in texts)] for case, x in found.items()]
    return markdown(["plan", "keys", *(f"{text}, mean (worst)" for text in texts)], lines)


def calibration_plans_table() -> str:
    """What a plan made of every layer, where layers differ."""
    found = {row["plan"]: row["layers"].split() for row in rows("calibration")}
    lines = [[plan, *layers] for plan, layers in found.items() if len(set(layers)) > 1]
    return markdown(["plan", *(f"layer {i}" for i in range(len(lines[0]) - 1))], lines)


def lra_table(header: list[str], lines: Callable[[lra.Rows], list[list[str]]]) -> str:
    return markdown(header, lines(rows("lra")))


def recipes_table() -> str:
    header = ["task", "metric", "training rows", "rows", "Nyström", "exact twin", "difference"]
    return markdown(header, recipes.lines(rows("recipes")))


def pretraining(attention: str) -> list[dict[str, float]]:
    """Trainer's log of the pretraining in docs/results.md, empty if there is none."""
    path = common.RESULTS / f"pretraining-{attention}.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def pretraining_table() -> str:
    """Held out, at the first evaluation and at the last."""
    lines = []
    for attention in recipes.ATTENTIONS:
        found = [row for row in pretraining(attention) if "eval_loss" in row]
        for row in found[:: max(1, len(found) - 1)]:
            figures = (
                f"{100 * row[f'eval_{task}_accuracy']:.1f} % ({row[f'eval_{task}_loss']:.2f})"
                for task in ("word", "order")
            )
            lines.append([attention, f"{row['step']:,}", *figures])
    return markdown(["attention", "updates", "masked words (loss)", "sentence order (loss)"], lines)


LRA_TASKS = list(lra.NAMES.values())
TABLES = {
    "lra": partial(lra_table, ["attention", "", *LRA_TASKS, "average"], lra.lines),
    "lra-cost": partial(lra_table, ["attention", *LRA_TASKS], lra.cost_lines),
    "lra-budget": partial(
        lra_table,
        ["task", "steps", "batch", "of the schedule", "rate", "rows", "tested on"],
        lra.budget_lines,
    ),
    "recipes": recipes_table,
    "pretraining": pretraining_table,
    "cpu": cpu_table,
    "differences": differences_table,
    "hf_embeddings": hf_embeddings_table,
    "hf_speed": hf_speed_table,
    "everyone": partial(everyone_table, lambda row: factor(float(row["ratio"]))),
    "everyone-memory": partial(everyone_table, memory_ratio),
    "everyone-notes": everyone_notes_table,
    "everyone-short": everyone_short_table,
    "table1": table1_table,
    "growth": growth_table,
    "exponents": exponents_table,
    "calibration": calibration_table,
    "calibration-plans": calibration_plans_table,
    "distillation": distillation_table,
    **clustered_tables.TABLES,
}


def main() -> None:
    figures = DOCS / "figures"
    figures.mkdir(exist_ok=True)
    panels = [with_exponents(panel) for panel in growth_panels()]
    plots.lengths_figure(panels).savefig(figures / "growth.png")
    plots.lengths_figure(everyone_panels(), share_y=True).savefig(figures / "everyone.png")
    clustered_tradeoff.figure(rows("clustered_tradeoff")).savefig(
        figures / "clustered_tradeoff.png"
    )
    curves_figure(pretraining("nystrom")).savefig(figures / "pretraining.png")
    if rows("lra"):
        lra.figure(rows("lra")).savefig(figures / "lra.png")
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


def filled(text: str) -> str:
    """The page with every table made anew."""
    for name, make in TABLES.items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda m, t=make: f"{m[1]}\n{t()}\n\n{m[2]}", text, flags=re.S)
    return text
