"""How close clustered attention comes to exact attention, beside Nyström attention and others.

    python -m benchmarks clustered.quality [--part NAME]      # all parts if left out; about an hour

Every layer of all-MiniLM-L6-v2 is swapped, nothing is trained, and its embeddings (the mean of the
last hidden states) are compared with those of exact attention. Budgets and rules were chosen on
Python's help and WikiText-2 (valid); reviews (IMDB test), prose (Brown) and Python's own source
were only reported. Texts: folder NYSTROMER_DATA, or ../shared/data beside the repository. Goes on
where it stopped; writes benchmarks/results/clustered_*.csv.

quality: methods at 128 keys. relatives: more of them, on reviews alone. budgets: 64 to 256 keys.
lengths: 512 to 8,192 tokens. retrieval: the second half of a text found by its first. ragged:
lengths mixed in a batch. gaussian: made-up inputs without clusters.
"""

from __future__ import annotations

import argparse
import copy
import json
import lzma
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import common
from benchmarks.clustered import rivals
from benchmarks.common import DATA
from benchmarks.encoders.huggingface import minilm
from nystromer import clustered_attention, nystrom_attention
from nystromer.hf import resize_positions
from nystromer.hf.conversion.layers import intercepted
from nystromer.hf.masks import key_mask
from nystromer.landmarks import kmeans
from nystromer.recipes.shared.text import standard_text

Attention = Callable[[Tensor, Tensor, Tensor, "Tensor | None", float], Tensor]
FILES = {
    "WikiText-2": "wikitext2/valid.txt.xz",
    "reviews": "imdb/test.jsonl.xz",
    "prose": "brown/all.jsonl.xz",
}
TUNED_ON = ("Python's help", "WikiText-2")
REPORTED = ("reviews", "prose", "source code")
BUDGETS = {  # keys a query scores: G query clusters, M key clusters, T exact keys
    64: (32, 8, 24),
    128: (64, 16, 48),
    192: (64, 32, 96),
    256: (128, 32, 96),
}
LENGTHS = {512: 12, 1024: 6, 2048: 6, 4096: 3, 8192: 2}  # tokens: passages
LOGIT_STDS = (0.3, 1.0, 2.0, 5.0)


# The methods


def clustered(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, *, budget: tuple[int, ...]
) -> Tensor:
    names = ("num_query_clusters", "num_key_clusters", "num_exact_keys")
    counts = dict(zip(names, budget, strict=True))
    return clustered_attention(q, k, v, **counts, mask=mask, scale=scale)


def nystrom(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, *, m: int
) -> Tensor:
    return nystrom_attention(q, k, v, num_landmarks=m, mask=mask, scale=scale)


def nystrom_kmeans(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, *, m: int
) -> Tensor:
    """k-means over each token's query and key; a ridge, near the best, instead of the six steps."""
    centres, _ = kmeans(torch.cat([q, k], -1), m, mask)
    landmarks = (centres[..., : q.shape[3]], centres[..., q.shape[3] :])
    options: dict[str, Any] = {"num_landmarks": m, "landmarks": landmarks, "pinv_ridge": 1e-2}
    return nystrom_attention(q, k, v, mask=mask, scale=scale, **options)


def mapped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    *,
    make: Callable[..., Tensor],
    **counts: Any,
) -> Tensor:
    """A map of `rivals` for every sequence, one head at a time."""
    output = torch.zeros_like(v)
    for b in range(len(q)):
        real = slice(None) if mask is None else mask[b]
        for h in range(q.shape[1]):
            weights = make(scale * q[b, h : h + 1, real], k[b, h : h + 1, real], **counts)
            output[b, h, real] = weights[0] @ v[b, h, real]
    return output


def methods(keys: int) -> dict[str, Attention]:
    """All at the same number of keys: of products of a query's size a query, scores and values
    together counting as one. The clustering of each, and Nyström's inverse, do not count."""
    groups = BUDGETS[keys][0]
    counts = {"groups": groups, "exact_keys": keys - groups}
    tilted = {"groups": keys // 2, "slots": keys // 4}  # G / 2 more, to average the keys as well
    return {
        "Nyström": partial(nystrom, m=keys // 2),
        "Nyström, k-means, ridge": partial(nystrom_kmeans, m=keys // 2),
        "MuSe": partial(mapped, make=rivals.multipole, **tilted),
        "MuSe, dipole": partial(mapped, make=rivals.multipole, **tilted, dipole=True),
        "ClusterAttention": partial(
            mapped, make=rivals.blocks, groups=keys // 2, slots=keys // 2, exact_keys=keys // 2
        ),
        "improved clustered": partial(mapped, make=rivals.improved_clustered, **counts),
        "improved clustered, our clusters": partial(
            mapped, make=rivals.improved_clustered, **counts, cut=rivals.balanced
        ),
        "ours, k-means clusters": partial(
            mapped,
            make=rivals.clustered,
            **dict(zip(("groups", "slots", "exact_keys"), BUDGETS[keys], strict=True)),
            cut=rivals.lloyd,
        ),
        "ours": partial(clustered, budget=BUDGETS[keys]),
    }


# The encoder and its texts


@cache
def encoder(tokens: int = 512, positions: str = "copied") -> Any:
    model, tokenizer = minilm()
    if tokens > 512:
        table = model.embeddings.position_embeddings.weight.detach()
        model = resize_positions(copy.deepcopy(model), tokens)
        if positions == "stretched":
            longer = F.interpolate(table.T[None], size=tokens, mode="linear", align_corners=True)
            model.embeddings.position_embeddings = nn.Embedding.from_pretrained(longer[0].T)
    return model.requires_grad_(False), tokenizer


@cache
def documents(kind: str) -> list[str]:
    if kind == "Python's help":
        return [standard_text()]
    if kind == "source code":
        paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-z]*.py"))
        return [path.read_text(encoding="utf-8", errors="replace") for path in paths]
    with lzma.open(DATA / FILES[kind], "rt", encoding="utf-8") as file:
        return [json.loads(x)["text"] for x in file] if ".json" in FILES[kind] else [file.read()]


@cache
def passages(kind: str, tokens: int, count: int) -> Tensor:
    """[count, tokens]: every passage from a document of its own, if there are enough of that size,
    else cut out of all of them joined."""
    _, tokenizer = encoder()
    cut = {"max_length": tokens, "truncation": True}
    long = [x for x in documents(kind) if len(x) > 5 * tokens]
    long = long[:: max(1, len(long) // (2 * count))]
    ids = [x for x in tokenizer(long, **cut)["input_ids"] if len(x) == tokens] if long else []
    if len(ids) < count:
        text = "\n".join(documents(kind))[: 8 * tokens * count]
        ids = tokenizer(text, **cut, return_overflowing_tokens=True)["input_ids"]
    return torch.tensor(ids[:count])


@torch.no_grad()
def hidden_states(
    model: Any, ids: Tensor, attention: Attention | None, mask: Tensor | None = None
) -> Any:
    """The last hidden states, [passages, N, E], with that attention in every layer."""

    def swapped(
        module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **kw: Any
    ) -> tuple[Tensor, None]:
        output = attention(q, k, v, key_mask(mask, len(q)), scaling)
        return output.transpose(1, 2).contiguous(), None

    size = max(1, 4096 // ids.shape[1])
    masks = torch.ones_like(ids) if mask is None else mask.long()
    pairs = list(zip(ids.split(size), masks.split(size), strict=True))
    if attention is None:
        return torch.cat([model(x, attention_mask=m)[0] for x, m in pairs])
    with intercepted(model, swapped):
        return torch.cat([model(x, attention_mask=m)[0] for x, m in pairs])


@cache
def exact(kind: str, tokens: int, count: int, positions: str) -> Tensor:
    model, _ = encoder(tokens, positions)
    return hidden_states(model, passages(kind, tokens, count), None)


def embeddings(states: Tensor) -> Tensor:
    return F.normalize(states.mean(1), dim=-1)


# What is measured


@dataclass(frozen=True)
class Case:
    """Passages of one kind, swapped in every layer."""

    text: str
    tokens: int
    positions: str
    method: str
    keys: str


def fidelity(case: Case, attention: Attention, count: int) -> dict[str, Any]:
    """Cosine of the embeddings, mean and least; error of the hidden states; of the exact
    embeddings of two passages the mean cosine, to compare with."""
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
    """The rule: all counts double at 1,024 tokens, and whenever there are four times as many."""
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
    """Two halves of the same text, 512 tokens each, among those of 32 texts: how often a first
    half's nearest second half is its own. In turn with exact embeddings on both sides, with these
    on both, and with these looked up among exact ones."""
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
    """The first and the second halves of 32 texts, [32, 512] each."""
    ids = passages(kind, 1022, 32)
    parts = ids[:, 1:-1].split(510, 1)
    return [torch.cat([ids[:, :1], part, ids[:, -1:]], 1) for part in parts]


def ragged(case: Case) -> dict[str, Any]:
    """48 reviews, every other one long, cut at 512 tokens, in batches of eight with padding."""
    model, tokenizer = encoder()
    every = documents(case.text)[:: len(documents(case.text)) // 480]
    long = [text for text in every if len(text) > 2600][:24]
    texts = [text for pair in zip(every, long, strict=False) for text in pair]
    attention = methods(int(case.keys))[case.method]
    cosines, lengths, differences = [], [], []
    for i in range(0, 48, 8):
        cut = {"max_length": 512, "truncation": True, "padding": True, "return_tensors": "pt"}
        batch = tokenizer(texts[i : i + 8], **cut)
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
    return F.normalize((states * mask[..., None]).sum(1), dim=-1)


@dataclass(frozen=True)
class MadeUp:
    """Gaussian queries, keys and values, [1, 8, 1024, 32], logits of that standard deviation."""

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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, help="all if left out")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    arguments = parser.parse_args()
    for part in [arguments.part] if arguments.part else PARTS:
        cases, measure = PARTS[part]
        path = common.RESULTS / f"clustered_{part}.csv"
        for row in common.complete(path, cases, measure, arguments.fresh):
            print(*list(row.values())[:-3], sep=", ")
