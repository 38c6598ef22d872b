"""Shows how close clustered attention comes in an encoder of chemistry.

    python -m benchmarks clustered.reactions

Takes about five minutes on two cores.

RXNMapper (pip install --no-deps rxnmapper) is an ALBERT of 12 layers with 8 heads of 32,
trained on a million reactions written as text (SMILES) to fill in hidden tokens; its heads find one
atom of the product among the precursors, so they are peaked where MiniLM's are not. Its package has
no long reactions: here two random peptides are joined, valid chemistry that no one reported, cut to
480 tokens. All layers are swapped. Measured: the hidden tokens (15 %) that are filled in right, and
as exact attention does; the error of the last hidden states. Writes results/clustered_reactions.csv
after every case, and keeps the rows that it has.
"""

from __future__ import annotations

import random
import re
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import AlbertForMaskedLM

from benchmarks import common
from benchmarks.clustered.methods import BUDGETS, methods
from benchmarks.clustered.quality import Case
from benchmarks.clustered.swapped import hidden_states
from benchmarks.encoders.minilm import package_folder

COUNT = 12
TOKEN = re.compile(r"\[[^]]+]|Br|Cl|>>|[A-Za-z]|[0-9]|[().=#+-]")
SIDE_CHAINS = [
    *("C", "C(C)C", "CC(C)C", "[C@@H](C)CC", "Cc1ccccc1", "Cc1ccc(O)cc1", "CO", "[C@H](O)C", "CS"),
    *("Cc1c[nH]c2ccccc12", "Cc1cnc[nH]1", "CCSC", "CCCCN", "CCCNC(=N)N", "CC(=O)O", "CCC(=O)O"),
    *("CC(=O)N", "CCC(=O)N"),
]


def reaction(rng: random.Random) -> list[str]:
    """Returns the tokens of two peptides and the one they become, the first with a Boc group."""
    chain = rng.choices(SIDE_CHAINS, k=18)
    first, second = (peptide(part) for part in (chain[:9], chain[9:]))
    boc = "CC(C)(C)OC(=O)"
    return TOKEN.findall(f"{boc}{first}O.{second}O>>{boc}{first}{second}O")


def peptide(residues: list[str]) -> str:
    """Returns a chain of amino acids as SMILES, from their side chains."""
    return "".join(f"N[C@@H]({chain})C(=O)" for chain in residues)


@cache
def model() -> tuple[Any, dict[str, int]]:
    """Returns RXNMapper and the number of every token."""
    folder = next((package_folder("rxnmapper") / "models/transformers").iterdir())
    words = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    return AlbertForMaskedLM.from_pretrained(folder).eval(), {w: i for i, w in enumerate(words)}


@cache
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Returns token ids with 15 % hidden, all ids, and which are hidden, each [COUNT, 480].

    Reactions of 480 to 512 tokens are cut to 480, so that nothing is padded.
    """
    _, ids = model()
    rng = random.Random(0)
    found: list[list[int]] = []
    while len(found) < COUNT:
        tokens = ["[CLS]", *reaction(rng), "[SEP]"]
        if 480 <= len(tokens) <= 512:
            found.append([ids[x] for x in tokens][:480])
    whole = torch.tensor(found)
    hidden = torch.rand(whole.shape, generator=torch.Generator().manual_seed(0)) < 0.15
    return whole.masked_fill(hidden, ids["[MASK]"]), whole, hidden


@cache
def exact() -> Tensor:
    return hidden_states(model()[0].albert, inputs()[0], None)


@torch.no_grad()
def measure(case: Case) -> dict[str, Any]:
    """Returns the columns of a method: how close it is to exact attention, and what it fills in."""
    network, _ = model()
    masked, whole, hidden = inputs()
    attention = methods(int(case.keys))[case.method]
    got, wanted = hidden_states(network.albert, masked, attention), exact()
    guesses, theirs = (network.predictions(x)[hidden].argmax(-1) for x in (got, wanted))
    cosines = torch.cosine_similarity(got.mean(1), wanted.mean(1))
    return {
        "passages": COUNT,
        "cosine": float(cosines.mean()),
        "worst": float(cosines.min()),
        "token_error": float((got - wanted).norm() / wanted.norm()),
        "right": float((guesses == whole[hidden]).float().mean()),
        "right_exact": float((theirs == whole[hidden]).float().mean()),
        "same_answer": float((guesses == theirs).float().mean()),
    }


def main() -> None:
    common.command_line(__doc__).parse_args()
    names = [name for name in methods(128) if "MuSe" not in name]
    cases = [Case("reactions", 480, "learnt", name, "128") for name in names]
    cases += [Case("reactions", 480, "learnt", "ours", str(keys)) for keys in list(BUDGETS)[2:]]
    for row in common.complete(common.RESULTS / "clustered_reactions.csv", cases, measure):
        print(*list(row.values())[:-3], sep=", ")
