"""Tables and the figure of pretraining and of classifiers, from the committed rows."""

from __future__ import annotations

import json
import statistics

from matplotlib.figure import Figure

from benchmarks.common import RESULTS, markdown, results
from benchmarks.recipes.classifiers import ATTENTIONS
from nystromer.recipes.runs.curves import curves_figure


def recipes_table() -> str:
    """Shows the mean over the seeds, and their range, of both attentions for each experiment."""
    rows, found = results("recipes"), []
    for name in dict.fromkeys(row["experiment"] for row in rows):
        metric = "f1" if name.startswith("MRPC") else "accuracy"
        scores = {
            attention: [
                100 * float(row[metric])
                for row in rows
                if (row["experiment"], row["attention"]) == (name, attention)
            ]
            for attention in ATTENTIONS
        }
        row = next(row for row in rows if row["experiment"] == name)
        rows_of = [f"{int(row['train_rows']):,}", f"{int(row['rows']):,} ({row['split']})"]
        line = [name, metric, *rows_of, *(cell(scores[attention]) for attention in ATTENTIONS), ""]
        if all(scores.values()):
            nystrom, exact = (statistics.mean(scores[attention]) for attention in ATTENTIONS)
            line[-1] = f"{nystrom - exact:+.1f}"
        found.append(line)
    header = ["task", "metric", "training rows", "rows", "Nyström", "exact twin", "difference"]
    return markdown(header, found)


def cell(scores: list[float]) -> str:
    if len(scores) < 2:
        return "".join(f"{score:.1f}" for score in scores)
    return f"{statistics.mean(scores):.1f} ({min(scores):.1f}–{max(scores):.1f})"


def pretraining(attention: str) -> list[dict[str, float]]:
    """Returns what Trainer logged of the pretraining in docs/results.md."""
    text = (RESULTS / f"pretraining-{attention}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def pretraining_table() -> str:
    """Shows what is right on held-out rows at the first evaluation and at the last."""
    lines = []
    for attention in ATTENTIONS:
        found = [row for row in pretraining(attention) if "eval_loss" in row]
        for row in found[:: max(1, len(found) - 1)]:
            figures = (
                f"{100 * row[f'eval_{task}_accuracy']:.1f} % ({row[f'eval_{task}_loss']:.2f})"
                for task in ("word", "order")
            )
            lines.append([attention, f"{row['step']:,}", *figures])
    return markdown(["attention", "updates", "masked words (loss)", "sentence order (loss)"], lines)


def pretraining_figure() -> Figure:
    return curves_figure(pretraining("nystrom"))


TABLES = {"recipes": recipes_table, "pretraining": pretraining_table}
FIGURES = {"pretraining": pretraining_figure}
