"""Tables and the figure of clustered attention, from the committed rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from matplotlib.figure import Figure

from benchmarks.common import Row, markdown, results
from nystromer import plots


def cosines(row: Row) -> str:
    """Shows the mean cosine and that of the worst passage."""
    return f"{float(row['cosine']):.3f} ({float(row['worst']):.3f})"


def error(name: str, row: Row) -> str:
    return f"{float(row[name]):.2f}"


def crossed(
    rows: Iterable[Row], line: Callable[[Row], tuple[str, ...]], column: str, cell: Callable
) -> tuple[list[str], list[list[str]]]:
    """Returns the names of the columns, and a line for each key with a cell for each column."""
    found: dict[tuple[str, ...], Row] = {}
    for row in rows:
        found.setdefault(line(row), {})[row[column]] = cell(row)
    names = list(dict.fromkeys(name for cells in found.values() for name in cells))
    return names, [[*key, *(cells.get(n, "–") for n in names)] for key, cells in found.items()]


def quality_table() -> str:
    rows = results("clustered_quality") + results("clustered_relatives")
    names, lines = crossed(rows, lambda r: (r["method"],), "text", cosines)
    others = {r["text"]: f"{float(r['two_passages']):.2f}" for r in rows}
    lines.append(["*two passages*", *(others[name] for name in names)])
    return markdown(["128 keys, mean (worst)", *names], lines)


def errors_table() -> str:
    rows = results("clustered_quality") + results("clustered_relatives")
    names, lines = crossed(rows, lambda r: (r["method"],), "text", partial(error, "token_error"))
    return markdown(["128 keys", *names], lines)


def ragged_table() -> str:
    lines = [
        [
            r["method"],
            f"{r['passages']}, of {r['shortest']} to 512 tokens",
            cosines(r),
            f"{float(r['cosine_of_512']):.3f} ({float(r['worst_of_512']):.3f})",
            f"{float(r['batch_or_alone']):.0e}",
        ]
        for r in results("clustered_ragged")
    ]
    header = ["128 keys", "reviews", "mean (worst)", "of those cut at 512", "batch or alone"]
    return markdown(header, lines)


def lengths_table() -> str:
    rows = results("clustered_lengths")
    names = {"128": "128 keys", "rule": "the rule"}

    def line(r: Row) -> tuple[str, ...]:
        return (
            r["text"],
            f"{int(r['tokens']):,}",
            r["positions"],
            f"{float(r['two_passages']):.2f}",
        )

    def cell(r: Row) -> str:
        keys = "" if r["keys"] != "rule" else f", {r['scored_keys']} keys"
        return cosines(r) + keys

    rows = [{**r, "column": f"{r['method']}, {names[r['keys']]}"} for r in rows]
    columns, lines = crossed(rows, line, "column", cell)
    return markdown(["", "tokens", "positions", "two passages", *columns], lines)


def budgets_table() -> str:
    names, lines = crossed(results("clustered_budgets"), lambda r: (r["method"],), "keys", cosines)
    return markdown(["reviews", *(f"{name} keys" for name in names)], lines)


def retrieval_table() -> str:
    def share(value: str) -> str:
        return f"{float(value):.0%}"

    lines = []
    for r in results("clustered_retrieval"):
        figures = (r["exact"], r["both"], r["against_exact"], r["same_answer"])
        lines.append([r["text"], r["method"], *map(share, figures)])
    header = ["", "128 keys", "exact finds", "found", "found among exact", "same answer"]
    return markdown(header, lines)


def gaussian_table() -> str:
    rows = results("clustered_gaussian")
    names, lines = crossed(rows, lambda r: (r["method"],), "logit_std", partial(error, "error"))
    return markdown(["relative error", *(f"logits ± {name}" for name in names)], lines)


def reactions_table() -> str:
    lines = [
        [
            r["method"],
            r["keys"],
            cosines(r),
            f"{float(r['token_error']):.2f}",
            f"{float(r['right']):.1%} ({float(r['right_exact']):.1%})",
            f"{float(r['same_answer']):.1%}",
        ]
        for r in results("clustered_reactions")
    ]
    header = ["", "keys", "cosine", "token error", "right (exact)", "same answer"]
    return markdown(header, lines)


def distillation_table() -> str:
    rows = results("clustered_distillation")
    kinds = [n.removesuffix(" worst") for n in rows[0] if n.endswith(" worst")]
    lines = []
    for r in rows:
        name = f"{r['steps']} updates at {r['rate']}" if float(r["rate"]) else "swapped"
        figures = [
            f"{float(r[k]):.4f} ({float(r[f'{k} worst']):.3f}), {float(r[f'{k} token']):.3f}"
            for k in kinds
        ]
        lines.append([name, *figures])
    return markdown(["mean (worst), token error", *kinds], lines)


def scratch_table() -> str:
    lines = [
        [r["attention"], r["seed"], f"{float(r['accuracy']):.3f}", f"{float(r['macro_f1']):.3f}"]
        for r in results("clustered_scratch")
    ]
    return markdown(["attention", "seed", "accuracy", "macro F1"], lines)


def speed_table() -> str:
    """Shows exact attention's time to ours at every length, forward and with the backward."""
    rows = [r for r in results("clustered_speed") if r["head_dim"] == "64"]
    rows = [{**r, "what": f"{r['direction']}, {r['dtype']}"} for r in rows]
    names, lines = crossed(
        rows,
        lambda r: (f"{int(r['n']):,}",),
        "what",
        lambda r: (
            f"**{float(r['to_exact']):.1f}×** ({float(r['exact_ms']):,.0f} / "
            f"{float(r['ours_ms']):,.0f} ms)"
        ),
    )
    return markdown(["N", *names], lines)


def tradeoff_figure() -> Figure:
    """Draws 1 - cosine against the share of exact attention's time."""
    rows = results("clustered_tradeoff")
    result = Figure(figsize=(6, 3.6), dpi=120, layout="constrained")
    axes = result.subplots()
    for method, colour in (("Nyström", plots.ORANGE), ("clustered", plots.BLUE)):
        mine = [row for row in rows if row["method"] == method]
        x = [1 / float(row["to_exact"]) for row in mine]
        y = [1 - float(row["cosine"]) for row in mine]
        axes.plot(x, y, "o-", color=colour, label=f"{method}, by keys a query")
        for row, *point in zip(mine, x, y, strict=True):
            axes.annotate(row["keys"], point, (5, 5), textcoords="offset points", fontsize=8)
    axes.axvline(1, color=plots.GREY, ls=":", lw=1)
    axes.set(xlabel="time of one attention / exact", ylabel="1 − cosine of the embedding")
    axes.set(xscale="log", yscale="log", title="Reviews of 2,048 tokens, every layer swapped")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return result


TABLES = {
    "clustered-speed": speed_table,
    "clustered-quality": quality_table,
    "clustered-errors": errors_table,
    "clustered-ragged": ragged_table,
    "clustered-lengths": lengths_table,
    "clustered-budgets": budgets_table,
    "clustered-retrieval": retrieval_table,
    "clustered-gaussian": gaussian_table,
    "clustered-reactions": reactions_table,
    "clustered-distillation": distillation_table,
    "clustered-scratch": scratch_table,
}
FIGURES = {"clustered_tradeoff": tradeoff_figure}
