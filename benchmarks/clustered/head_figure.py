"""Draws what clustered attention does in one head of a real encoder.

    python -m benchmarks clustered.head_figure [--layer 2] [--head 3] [--query 200]

Takes less than half a minute.

Writes docs/figures/clustered.png: the keys of one head of all-MiniLM-L6-v2, their clusters, the
exact keys of one query's cluster, and the logits of that query. The review is of IMDB;
encoders/minilm.py says where weights and texts come from.
"""

from __future__ import annotations

from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks import common
from benchmarks.clustered.methods import BUDGETS
from benchmarks.clustered.rivals import balanced, clustered, top
from benchmarks.clustered.swapped import encoder, passages
from nystromer.hf.conversion.interface import exact_attention_forward
from nystromer.hf.conversion.layers import intercepted
from nystromer.plots import BLACK, BLUE, GREY, ORANGE


@torch.no_grad()
def queries_and_keys(layer: int, head: int) -> tuple[Tensor, Tensor]:
    """Returns queries times the scale and keys, [1, 512, 32] each, of the first review."""
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any) -> Any:
        seen.append((kwargs["scaling"] * q[:, head], k[:, head]))
        return exact_attention_forward(module, q, k, v, mask, **kwargs)

    model, _ = encoder()
    with intercepted(model, keep):
        model(passages("reviews", 512, 1))
    return seen[layer]


def figure(q: Tensor, k: Tensor, query: int) -> Figure:
    """Draws the keys in their plane on the left, and the logits of the query on the right."""
    groups, slots, exact_keys = BUDGETS[128]
    queries, keys = balanced(q, groups), balanced(k, slots)
    exact = top(queries, k, exact_keys)[0, query]
    true = (q @ k.mT)[0, query]
    far = queries.near @ k.mT + q @ keys.near.mT - queries.near @ keys.near.mT
    plane = torch.linalg.svd(k[0] - k[0].mean(0), full_matrices=False).Vh[:2]
    points, centres = (k[0] @ plane.T, keys.means[0] @ plane.T)
    shades = colormaps["tab20"](keys.ids[0] % 20)

    drawing = Figure(figsize=(12.5, 5.6), dpi=150, layout="constrained")
    left, right = drawing.subplots(1, 2)
    left.scatter(*points[~exact].T, s=16, c=shades[~exact], label="far keys, by cluster")
    left.scatter(*centres.T, s=150, facecolors="none", edgecolors=GREY, label="slots ($\\tilde k$)")
    left.scatter(*points[exact].T, s=34, c=BLACK, marker="x", label="exact keys")
    left.set_title(f"Keys: {slots} far slots, {exact_keys} exact keys", loc="left", size=13)
    left.set_xlabel("first direction of the keys")
    left.set_ylabel("second direction of the keys")
    reach = [float(true.min()), float(true.max())]
    right.plot(reach, reach, color=GREY, linewidth=1)
    mean = (queries.near @ k.mT)[0, query]
    right.scatter(true[~exact], mean[~exact], s=12, c=ORANGE, label="far, $\\tilde q k$ alone")
    right.scatter(
        true[~exact],
        far[0, query][~exact],
        s=12,
        c=BLUE,
        label="far, $\\tilde q k + q \\tilde k - \\tilde q \\tilde k$",
    )
    right.scatter(true[exact], true[exact], s=34, c=BLACK, marker="x", label="exact keys")
    weights = clustered(q, k, groups, slots, exact_keys)[0, query]
    share = float(true.softmax(0)[exact].sum())
    title = f"Logits of one query, with {share:.0%} of its attention on exact keys"
    right.set_title(title, loc="left", size=13)
    right.set_xlabel("logit, exact")
    right.set_ylabel("logit, as clustered attention has it")
    off = float((weights - true.softmax(0)).abs().sum()) / 2
    right.annotate(
        f"{off:.1%} of the attention misplaced", (0.97, 0.04), xycoords="axes fraction", ha="right"
    )
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        below = {"loc": "upper left", "bbox_to_anchor": (-0.03, -0.1), "ncols": 3}
        axes.legend(frameon=False, fontsize=11, columnspacing=1, handletextpad=0.2, **below)
    return drawing


def main() -> None:
    parser = common.command_line(__doc__)
    for name, default in (("layer", 2), ("head", 3), ("query", 200)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    arguments = parser.parse_args()
    q, k = queries_and_keys(arguments.layer, arguments.head)
    figure(q, k, arguments.query).savefig(common.FIGURES / "clustered.png")
