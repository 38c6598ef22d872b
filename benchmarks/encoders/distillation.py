"""Shows how much closer a converted encoder comes by a short training.

    python -m benchmarks encoders.distillation [--steps 600] [--output distilled]

Takes about 15 minutes on two cores.

Swaps all six layers of all-MiniLM-L6-v2 with M = 32, trains it on passages of 512 tokens of IMDB
(unsup), Brown and news to give what it gave with exact attention, as `nystromer convert --distill`
does, and reports on 24 passages each of kinds of text that were in none of it. Goes on where it
stopped if the folder has checkpoints. Writes results/distillation.csv. minilm.py says where weights
and texts come from.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path

from benchmarks import common
from benchmarks.encoders.minilm import DATA, documents, minilm, minilm_folder
from nystromer.hf import nystromize
from nystromer.hf.calibration.fidelity import exact_states, last_hidden, measure
from nystromer.hf.conversion.plan import LayerChoice
from nystromer.recipes.convert.distill import Settings
from nystromer.recipes.convert.encoder import distill_encoder
from nystromer.recipes.inputs.text import passages

LANDMARKS, PASSAGES = 32, 24
TRAINED_ON = ("imdb/unsup8k.jsonl.xz", "brown/all.jsonl.xz", "hyperpartisan/train.jsonl.xz")
UNSEEN = {
    "WikiText-2": "wikitext2/test.txt.xz",
    "e-mail": "spamassassin/dev.jsonl.xz",
    "Python's help": None,
}


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("--steps", type=int, default=600, help="updates, 600 if left out")
    parser.add_argument("--output", type=Path, default=Path("distilled"), help="the run's folder")
    arguments = parser.parse_args()
    start = time.perf_counter()
    result = distill_encoder(
        minilm_folder(),
        [DATA / file for file in TRAINED_ON],
        arguments.output,
        LayerChoice("nystrom", num_landmarks=LANDMARKS),
        settings=Settings(steps=arguments.steps),
    )
    minutes = (time.perf_counter() - start) / 60
    model, tokenizer = minilm()
    plain = nystromize(copy.deepcopy(model), LANDMARKS)
    found = [("held out, of the same kinds", stage, x) for stage, x in result.stages.items()]
    for kind, file in UNSEEN.items():
        ids = passages(tokenizer, ["\n".join(documents(file))], PASSAGES)
        batches = [{"input_ids": x} for x in ids.split(4)]
        exact = exact_states(model, batches)
        for stage, student in (("plain swap", plain), ("distilled", result.student.eval())):
            found.append((kind, stage, measure([last_hidden(student, x) for x in batches], exact)))
    rows = [
        {
            "text": kind,
            "stage": stage,
            "cosine": f"{x.cosine:.4f}",
            "worst": f"{x.worst_cosine:.4f}",
            "token_error": f"{x.error:.3f}",
            "steps": result.steps,
            "minutes": f"{minutes:.1f}",
        }
        for kind, stage, x in found
    ]
    common.write(rows, common.RESULTS / "distillation.csv")
    for row in rows:
        print(*row.values(), sep=", ")
