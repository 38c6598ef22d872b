"""Shows how close clustered attention comes to exact attention, beside others.

    python -m benchmarks clustered.quality [--part NAME] [--fresh]      # all parts if left out

Takes about an hour on two cores.

Every layer of all-MiniLM-L6-v2 is swapped, nothing is trained, and its embeddings (the mean of the
last hidden states) are compared with those of exact attention. Budgets and rules were chosen on
Python's help and WikiText-2 (valid); reviews (IMDB test), prose (Brown) and Python's own source
were only reported. encoders/minilm.py says where weights and texts come from. Writes
results/clustered_NAME.csv after every case, and keeps the rows that it has; --fresh measures them
again.

quality: methods at 128 keys. relatives: more of them, on reviews alone. budgets: 64 to 256 keys.
lengths: 512 to 8,192 tokens. retrieval: the second half of a text found by its first. ragged:
lengths mixed in a batch. gaussian: made-up inputs without clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import common
from benchmarks.clustered.methods import BUDGETS, Attention, clustered, methods, nystrom
from benchmarks.clustered.swapped import (
    embeddings,
    encoder,
    exact,
    hidden_states,
    passages,
    texts,
)

TUNED_ON = ("Python's help", "WikiText-2")
REPORTED = ("reviews", "prose", "source code")
LENGTHS = {512: 12, 1024: 6, 2048: 6, 4096: 3, 8192: 2}  # tokens: passages
LOGIT_STDS = (0.3, 1.0, 2.0, 5.0)


@dataclass(frozen=True)
class Case:
    """Passages of one kind, swapped in every layer."""

    text: str
    tokens: int
    positions: str
    method: str
    keys: str


def fidelity(case: Case, attention: Attention, count: int) -> dict[str, Any]:
    """Returns the mean and the least cosine of the embeddings, and the error of the hidden states.

    `two_passages`, the mean cosine of the exact embeddings of two passages, is to compare with.
    """
    model, _ = encoder(case.tokens, case.positions)
    wanted = exact(case.text, case.tokens, count, case.positions)
    got = hidden_states(model, passages(case.text, case.tokens, count), attention)
    cosines = (embeddings(got) * embeddings(wanted)).sum(-1)
    between = embeddings(wanted) @ embeddings(wanted).T
    return {
        "passages": count,
        "cosine": float(cosines.mean()),
        "worst": float(cosines.min()),
        "token_error": float((got - wanted).norm() / wanted.norm()),
        "two_passages": float((between.sum() - count) / (count * (count - 1))),
    }


def quality(case: Case) -> dict[str, Any]:
    return fidelity(case, methods(int(case.keys))[case.method], LENGTHS[case.tokens])


def quality_cases(texts: tuple[str, ...], keys: tuple[int, ...], names: list[str]) -> list[Case]:
    return [Case(t, 512, "learnt", n, str(x)) for t in texts for x in keys for n in names]


def grown(tokens: int) -> tuple[int, ...]:
    """Returns the budget by the rule: it doubles at 1,024 tokens, then at each fourfold."""
    times = 2 ** max(0, (tokens // 512).bit_length() // 2)
    return tuple(times * count for count in BUDGETS[128])


def lengths(case: Case) -> dict[str, Any]:
    budget = grown(case.tokens) if case.keys == "rule" else BUDGETS[128]
    ours = partial(clustered, budget=budget)
    attention = ours if case.method == "ours" else partial(nystrom, m=int(case.keys) // 2)
    found = fidelity(case, attention, LENGTHS[case.tokens])
    return {**found, "scored_keys": sum(budget)}


def lengths_cases() -> list[Case]:
    rows = [("Nyström", "128"), ("ours", "128"), ("ours", "rule")]
    texts = (*TUNED_ON[:1], *REPORTED[:1])
    cases = [Case(t, n, "copied", *row) for n in LENGTHS for t in texts for row in rows]
    stretched = [Case(t, 2048, "stretched", *row) for t in texts for row in rows]
    return [x for x in cases if x.tokens > 512 or x.keys != "rule"] + stretched


def retrieval(case: Case) -> dict[str, Any]:
    """Returns how often the second half nearest to a first half is its own, among 32 texts.

    Halves have 512 tokens. In turn with exact embeddings on both sides, with those of the method on
    both, and with those of the method looked up among exact ones.
    """
    model, _ = encoder()
    attention = methods(int(case.keys))[case.method]
    wanted = exact_halves(case.text)
    got = [embeddings(hidden_states(model, half, attention)) for half in halves(case.text)]
    nearest = {name: (a @ b.T).argmax(1) for name, a, b in sides(got, wanted)}
    own = torch.arange(32)
    found = {name: float((x == own).float().mean()) for name, x in nearest.items()}
    return {**found, "same_answer": float((nearest["both"] == nearest["exact"]).float().mean())}


def sides(got: list[Tensor], wanted: list[Tensor]) -> list[tuple[str, Tensor, Tensor]]:
    return [("exact", *wanted), ("both", *got), ("against_exact", got[0], wanted[1])]


@cache
def exact_halves(kind: str) -> list[Tensor]:
    model, _ = encoder()
    return [embeddings(hidden_states(model, half, None)) for half in halves(kind)]


def halves(kind: str) -> list[Tensor]:
    """Returns the first and the second halves of 32 texts, [32, 512] each."""
    ids = passages(kind, 1022, 32)
    parts = ids[:, 1:-1].split(510, 1)
    return [torch.cat([ids[:, :1], part, ids[:, -1:]], 1) for part in parts]


def ragged(case: Case) -> dict[str, Any]:
    """Compares 48 reviews, every other one long, cut at 512 tokens, in batches with padding."""
    model, tokenizer = encoder()
    every = texts(case.text)[:: len(texts(case.text)) // 480]
    long = [text for text in every if len(text) > 2600][:24]
    mixed = [text for pair in zip(every, long, strict=False) for text in pair]
    attention = methods(int(case.keys))[case.method]
    cosines, lengths, differences = [], [], []
    for i in range(0, 48, 8):
        cut = {"max_length": 512, "truncation": True, "padding": True, "return_tensors": "pt"}
        batch = tokenizer(mixed[i : i + 8], **cut)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        got, wanted = (pooled(hidden_states(model, ids, x, mask), mask) for x in (attention, None))
        cosines.append((got * wanted).sum(-1))
        lengths += mask.sum(1).tolist()
        alone = [
            hidden_states(model, x[None, m.bool()], attention)
            for x, m in zip(ids, mask, strict=True)
        ]
        differences.append((got - torch.cat([embeddings(x) for x in alone])).abs().max())
    cosine, real = torch.cat(cosines), torch.tensor(lengths)
    cut = cosine[real == 512]
    return {
        "passages": len(real),
        "shortest": int(real.min()),
        "median": int(real.median()),
        "cosine": float(cosine.mean()),
        "worst": float(cosine.min()),
        "of_512": len(cut),
        "cosine_of_512": float(cut.mean()),
        "worst_of_512": float(cut.min()),
        "batch_or_alone": float(torch.stack(differences).max()),
    }


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """Returns embeddings as `embeddings`, over the real tokens only."""
    return F.normalize((states * mask[..., None]).sum(1), dim=-1)


@dataclass(frozen=True)
class MadeUp:
    """Gaussian queries, keys and values whose logits have that standard deviation."""

    logit_std: float
    method: str
    keys: str


@torch.no_grad()
def gaussian(case: MadeUp) -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 8, 1024, 32, generator=g)
    scale = case.logit_std * 32**-0.5
    wanted = F.scaled_dot_product_attention(q, k, v, scale=scale)
    got = methods(int(case.keys))[case.method](q, k, v, None, scale)
    return {"error": float((got - wanted).norm() / wanted.norm())}


NAMES = list(methods(128))
SLOW = ["MuSe", "MuSe, dipole", "improved clustered, our clusters", "ours, k-means clusters"]
FAST = [name for name in NAMES if name not in SLOW]
MAIN = ["Nyström", "Nyström, k-means, ridge", "improved clustered", "ours"]
PARTS: dict[str, tuple[list[Any], Callable[[Any], dict[str, Any]]]] = {
    "quality": (quality_cases((*TUNED_ON[:1], *REPORTED), (128,), FAST), quality),
    "relatives": (quality_cases(REPORTED[:1], (128,), SLOW), quality),
    "ragged": ([Case("reviews", 512, "learnt", x, "128") for x in ("Nyström", "ours")], ragged),
    "lengths": (lengths_cases(), lengths),
    "budgets": (quality_cases(REPORTED[:1], tuple(BUDGETS), MAIN), quality),
    "retrieval": (quality_cases(REPORTED[:1], (128,), MAIN), retrieval),
    "gaussian": ([MadeUp(std, name, "128") for std in LOGIT_STDS for name in NAMES], gaussian),
}


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("--part", choices=PARTS, help="all if left out")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    arguments = parser.parse_args()
    for part in [arguments.part] if arguments.part else PARTS:
        cases, measure = PARTS[part]
        path = common.RESULTS / f"clustered_{part}.csv"
        for row in common.complete(path, cases, measure, arguments.fresh):
            print(*list(row.values())[:-3], sep=", ")
