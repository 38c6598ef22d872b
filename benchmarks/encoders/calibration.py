"""Shows how much closer a converted encoder comes by calibration alone.

    python -m benchmarks encoders.calibration [M]

Takes about six minutes on two cores.

Calibrates all-MiniLM-L6-v2 on 12 passages of WikiText-2 (valid), reports on 16 passages of 512
tokens each of IMDB (test), Brown and Python's help, and writes results/calibration.csv. M, the
number of landmarks, is 64 if left out. minilm.py says where weights and texts come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from benchmarks import common
from benchmarks.encoders.minilm import documents, minilm
from nystromer.hf.calibration.allocate import Price, allocations, options
from nystromer.hf.calibration.calibrate import exact_layers, price_in, uniform
from nystromer.hf.calibration.fidelity import exact_states, fidelity
from nystromer.hf.calibration.survey import LayerSurvey, exact_choice, survey
from nystromer.hf.conversion.plan import LayerChoice
from nystromer.recipes.inputs.text import passages

SEEN = "wikitext2/valid.txt.xz"
UNSEEN = {"IMDB": "imdb/test.jsonl.xz", "Brown": "brown/all.jsonl.xz", "Python help": None}
COLUMNS = ("num_landmarks", "text", "plan", "keys", "cosine", "worst", "error", "layers")
Choices = Sequence[LayerChoice]


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("m", metavar="M", type=int, nargs="?", default=64, help="default: 64")
    m = parser.parse_args().m
    model, tokenizer = minilm()

    def batches(name: str | None, count: int) -> list[dict]:
        text = "\n".join(documents(name))
        return [{"input_ids": x} for x in passages(tokenizer, [text], count).split(4)]

    layers = survey(model, batches(SEEN, 12), m)
    keys = price_in("keys", layers, 512, model.device)
    rows = []
    for kind, name in UNSEEN.items():
        held_out = batches(name, 16)
        exact = exact_states(model, held_out)
        for plan, choices in plans(layers, keys).items():
            x = fidelity(model, held_out, choices, exact)
            cost = sum(keys(layer, choice) for layer, choice in zip(layers, choices, strict=True))
            figures = (f"{cost:.0f}", f"{x.cosine:.4f}", f"{x.worst_cosine:.4f}", f"{x.error:.3f}")
            row = (m, kind, plan, *figures, " ".join(map(shown, choices)))
            rows.append(dict(zip(COLUMNS, row, strict=True)))
            print(*row, sep=", ", flush=True)
    common.write(rows, common.RESULTS / "calibration.csv")


def plans(layers: Sequence[LayerSurvey], keys: Price) -> dict[str, Choices]:
    """Returns what is compared: Nyström with exact heads, then clustered attention, then all."""
    plain, best, *clustered = uniform(layers)

    def allocated(attentions: Sequence[str], price: Price, budget: float) -> Choices:
        found = allocations([options(layer, attentions, price) for layer in layers], budget)[-1]
        return [option.choice for option in found]

    nystrom = partial(allocated, ("nystrom",), exact_layers)
    mixed = partial(allocated, ("nystrom", "clustered"), keys)
    return {
        "Nyström, plain swap": plain,
        "Nyström, calibrated, no exact head": best,
        "Nyström, calibrated, 1.5 layers' worth of exact heads": nystrom(1.5),
        "Nyström, calibrated, 3 layers' worth of exact heads": nystrom(3),
        "Nyström, calibrated, layers 0, 1, 2 exact": [*map(exact_choice, layers[:3]), *best[3:]],
        **{f"clustered, {choices[0].keys} keys in every layer": choices for choices in clustered},
        **{f"calibrated, at most {n} keys": mixed(n) for n in (96, 128, 160, 192)},
    }


def shown(choice: LayerChoice) -> str:
    """Returns a layer's choice in short: "N128-2" is Nyström, 128 keys, two heads exact."""
    if choice.attention == "exact":
        return "exact"
    kept = f"-{len(choice.exact_heads)}" if choice.exact_heads else ""
    return f"{choice.attention[0].upper()}{choice.keys}{kept}"
