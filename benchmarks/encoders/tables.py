"""Tables of converted encoders, from the committed rows."""

from __future__ import annotations

from benchmarks.common import markdown, results


def hf_embeddings_table() -> str:
    """Shows the mean cosine (and that of the worst passage) by text and number of landmarks."""
    cells: dict[str, dict[str, str]] = {}
    for r in results("hf_embeddings"):
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
        for r in results("hf_speed")
    ]
    return markdown(["tokens", "exact", "Nyström, M = 64", "faster"], lines)


def distillation_table() -> str:
    """Shows the plain swap and the trained encoder, a line for each text."""
    found: dict[str, list[str]] = {}
    for row in results("distillation"):
        figure = f"{float(row['cosine']):.3f} ({float(row['worst']):.3f})"
        found.setdefault(row["text"], []).append(figure)
    lines = [[text, x[0], x[-1]] for text, x in found.items()]
    return markdown(["text", "plain swap, mean (worst)", "distilled"], lines)


def calibration_table() -> str:
    """Shows a line for each plan and a column for each text."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in results("calibration"):
        figure = f"{float(row['cosine']):.4f} ({float(row['worst']):.4f})"
        found.setdefault((row["plan"], row["keys"]), {})[row["text"]] = figure
    texts = list(dict.fromkeys(row["text"] for row in results("calibration")))
    lines = [[*case, *(x[text] for text in texts)] for case, x in found.items()]
    return markdown(["plan", "keys", *(f"{text}, mean (worst)" for text in texts)], lines)


def calibration_plans_table() -> str:
    """Shows what a plan made of every layer, for plans in which layers differ."""
    found = {row["plan"]: row["layers"].split() for row in results("calibration")}
    lines = [[plan, *layers] for plan, layers in found.items() if len(set(layers)) > 1]
    return markdown(["plan", *(f"layer {i}" for i in range(len(lines[0]) - 1))], lines)


def deploy_table() -> str:
    """Shows time and memory, a line for each runtime and attention and a column for each length."""
    found: dict[str, dict[str, str]] = {}
    lengths = list(dict.fromkeys(row["tokens"] for row in results("deploy")))
    for row in results("deploy"):
        cells = found.setdefault(f"{row['runtime']}, {DEPLOYED[row['attention']]}", {})
        if row["seconds"]:
            cells[row["tokens"]] = (
                f"{float(row['seconds']):.2f} s, {float(row['peak_mib']):,.0f} MiB"
            )
    lines = [[name, *(cells.get(n, "") for n in lengths)] for name, cells in found.items()]
    return markdown(["", *(f"{int(n):,}" for n in lengths)], lines)


DEPLOYED = {
    "exact": "exact, as exported",
    "fused": "exact, fused, no mask",
    "fused, mask": "exact, fused, with a mask",
    "nystrom": "Nyström",
    "nystrom int8": "Nyström, int8",
    "clustered": "clustered",
}
TABLES = {
    "hf_embeddings": hf_embeddings_table,
    "hf_speed": hf_speed_table,
    "calibration": calibration_table,
    "calibration-plans": calibration_plans_table,
    "distillation": distillation_table,
    "deploy": deploy_table,
}
