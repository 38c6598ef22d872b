"""Shows how well a converted encoder finds long documents, beside exact attention and chunks.

    python -m benchmarks encoders.retrieval [--encoders FOLDER] [--only METHOD] [--tokens 512]

Takes about two hours on two cores.

The encoder is all-MiniLM-L6-v2, whose positions are copied end to end beyond 512 tokens; nothing is
trained but the row that says so. Two tasks, each with 200 documents that fill all tokens, and one
query for each of them:

passage: documents are texts of Brown, of one category each, joined and cut. The query is 32 tokens
    out of the document, from anywhere in it.
movie: a document joins reviews of one movie (IMDB). The query is the first 128 tokens of another
    review of it.

A query is read by the same model as the documents. "first 512 tokens" cuts the documents, and
"chunks" reads each 510 or 126 tokens by themselves and takes the mean of their vectors, a shorter
rest counting less; both use exact attention. The plan of the calibrated rows and the trained
encoder are made once, on other texts, and kept in --encoders. Writes results/retrieval.csv after
every case.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import common
from benchmarks.clustered.methods import Attention
from benchmarks.clustered.swapped import embeddings, hidden_states
from benchmarks.clustered.training_free import fast_nystrom, muse
from benchmarks.encoders.minilm import DATA, minilm, minilm_folder
from nystromer.hf import nystromize, resize_positions
from nystromer.hf.calibration.calibrate import calibration
from nystromer.hf.conversion.plan import LayerChoice, Plan
from nystromer.recipes.convert.distill import Settings
from nystromer.recipes.convert.encoder import distill_encoder
from nystromer.recipes.inputs.rows import read_rows
from nystromer.recipes.inputs.text import passages, read_text

TASKS = ("passage", "movie")
LENGTHS = (512, 2048, 4096)
COUNT = 200
WORDS = {"passage": 32, "movie": 128}  # tokens of a query, special ones included
TRAINED_ON = ("imdb/unsup8k.jsonl.xz", "hyperpartisan/train.jsonl.xz")
CALIBRATED_ON = "wikitext2/valid.txt.xz"
Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """Names one row."""

    task: str
    tokens: int
    method: str


class Task(NamedTuple):
    """Holds documents [COUNT, N] and their queries [COUNT, n] as token ids; row i finds row i."""

    documents: Tensor
    queries: Tensor


@cache
def corpus(task: str, tokens: int) -> Task:
    """Returns the documents and queries of a task."""
    _, tokenizer = minilm()
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    size, asked = tokens - 2, WORDS[task] - 2

    def whole(ids: list[list[int]]) -> Tensor:
        return torch.tensor([[first, *x, last] for x in ids])

    def ids_of(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    if task == "movie":
        found = list(movies(ids_of, asked))
        return Task(whole([x[:size] for x, _ in found]), whole([x for _, x in found]))
    every = []
    for texts in grouped("brown/all.jsonl.xz", "label").values():
        ids = [x for text in ids_of(texts) for x in text]
        every += [ids[i : i + size] for i in range(0, len(ids) - size + 1, size)]
    chosen = random.Random(0)
    documents = chosen.sample(every, COUNT)
    starts = [chosen.randrange(size - asked + 1) for _ in documents]
    queries = [x[i : i + asked] for x, i in zip(documents, starts, strict=True)]
    return Task(whole(documents), whole(queries))


def movies(ids_of: Callable[..., Any], asked: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yields the reviews of a movie, joined, and the start of another one, for COUNT movies.

    Whatever the length of the documents, the movies and the queries are the same.
    """
    size, found = max(LENGTHS) - 2, 0
    for texts in grouped("imdb/test.jsonl.xz", "movie").values():
        if sum(map(len, texts)) < 4 * size:
            continue
        reviews = ids_of(texts)
        long = next((i for i, x in enumerate(reviews) if len(x) >= asked), None)
        if long is None:
            continue
        query = reviews.pop(long)[:asked]
        joined = [x for review in reviews for x in review]
        if len(joined) >= size:
            yield joined, query
            found += 1
        if found == COUNT:
            return
    raise SystemExit(f"There are only {found} movies with {size} tokens of reviews.")


def grouped(file: str, by: str) -> dict[str, list[str]]:
    """Returns the texts of a file by what a column says."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in read_rows(DATA / file, [by, "text"]):
        found[row[by]].append(row["text"])
    return found


def exact(tokens: int) -> Any:
    """Returns the encoder with that many positions."""
    model, _ = minilm()
    return resize_positions(model, tokens).eval() if tokens > 512 else model.eval()


def by_layers(model: Any, attention: Attention | None = None) -> Encode:
    """Returns what embeds rows of ids, with another attention in every layer.

    That attention is for documents; a query of up to 128 tokens keeps exact attention, as short
    sequences do in a converted encoder.
    """

    def encode(ids: Tensor) -> Tensor:
        used = attention if ids.shape[1] > max(WORDS.values()) else None
        rows = ids.split(max(1, 4096 // ids.shape[1]))
        return torch.cat([embeddings(hidden_states(model, x, used)) for x in rows])

    return encode


def chunks(model: Any, size: int) -> Encode:
    """Returns what embeds rows of ids by the mean of the vectors of their chunks."""
    whole = by_layers(model)

    def encode(ids: Tensor) -> Tensor:
        first, last, inner = ids[:, :1], ids[:, -1:], ids[:, 1:-1]
        parts = [torch.cat([first, x, last], 1) for x in inner.split(size - 2, 1)]
        return F.normalize(torch.stack([x.shape[1] * whole(x) for x in parts]).sum(0), dim=-1)

    return encode


def cut(model: Any) -> Encode:
    """Returns what embeds the first 512 tokens of rows of ids."""
    whole = by_layers(model)
    return lambda ids: whole(
        torch.cat([ids[:, :511], ids[:, -1:]], 1) if ids.shape[1] > 512 else ids
    )


def swapped(tokens: int, **options: Any) -> Encode:
    return by_layers(nystromize(exact(tokens), **options))


def other(tokens: int, attention: Attention) -> Encode:
    return by_layers(exact(tokens), attention)


def calibrated(tokens: int, encoders: Path, keys: int) -> Encode:
    """Returns the encoder by the plan for a mean of `keys` keys a query."""
    file = encoders / f"calibrated-{keys}.json"
    if not file.exists():
        model, tokenizer = minilm()
        batches = passages(tokenizer, [read_text(DATA / CALIBRATED_ON)], 12).split(4)
        plan = calibration(model, [{"input_ids": x} for x in batches], max_keys=keys).plan
        file.write_text(plan.to_json(), encoding="utf-8")
    return swapped(tokens, plan=Plan.from_json(file.read_text(encoding="utf-8")))


def distilled(tokens: int, encoders: Path) -> Encode:
    """Returns the encoder that was trained with Nyström attention, at 512 tokens."""
    from transformers import AutoModel

    folder = encoders / "distilled"
    if not (folder / "config.json").exists():
        choice = LayerChoice("nystrom", num_landmarks=64)
        files = [DATA / file for file in TRAINED_ON]
        distill_encoder(minilm_folder(), files, folder, choice, settings=Settings(steps=300))
    model = AutoModel.from_pretrained(folder)
    return by_layers((resize_positions(model, tokens) if tokens > 512 else model).eval())


def methods(tokens: int, encoders: Path) -> dict[str, Callable[[], Encode]]:
    """Returns what makes each method for documents of that many tokens."""
    muses = partial(muse, groups=64, slots=32), partial(muse, groups=64, slots=16, exact_keys=48)
    return {
        "exact": lambda: by_layers(exact(tokens)),
        "first 512 tokens": lambda: cut(exact(512)),
        "chunks of 512": lambda: chunks(exact(512), 512),
        "chunks of 128": lambda: chunks(exact(512), 128),
        "Nyström, M = 64": lambda: swapped(tokens, num_landmarks=64),
        "Nyström, M = 128": lambda: swapped(tokens, num_landmarks=128),
        "Nyström, M = 64, layers 3, 4, 5": lambda: swapped(tokens, layers=(3, 4, 5)),
        "Nyström, M = 64, distilled": lambda: distilled(tokens, encoders),
        "calibrated, at most 128 keys": lambda: calibrated(tokens, encoders, 128),
        "clustered, 128 keys": lambda: swapped(tokens, method="clustered"),
        "Fast Nyström, M = 64": lambda: other(tokens, partial(fast_nystrom, m=64)),
        "MuSe, 128 keys": lambda: other(tokens, muses[0]),
        "MuSe, 128 keys, some exact": lambda: other(tokens, muses[1]),
    }


@torch.no_grad()
def scores(documents: Tensor, queries: Tensor) -> dict[str, float]:
    """Returns nDCG@10 and recall@100 of vectors [n, E] where query i asks for document i alone."""
    found = queries @ documents.T
    ranks = (found > found.diagonal()[:, None]).sum(1)  # 0 is the first place
    gains = torch.where(ranks < 10, 1 / torch.log2(ranks + 2.0), 0.0)
    return {"ndcg_10": float(gains.mean()), "recall_100": float((ranks < 100).float().mean())}


def measure(case: Case, encoders: Path) -> dict[str, Any]:
    task = corpus(case.task, case.tokens)
    encode = methods(case.tokens, encoders)[case.method]()
    documents = encode(task.documents)
    cosines = (documents[:16] * reference(case.task, case.tokens)).sum(-1)
    found = scores(documents, encode(task.queries))
    return {**found, "documents": len(documents), "cosine": float(cosines.mean())}


@cache
def reference(task: str, tokens: int) -> Tensor:
    """Returns the vectors of 16 documents with exact attention."""
    return by_layers(exact(tokens))(corpus(task, tokens).documents[:16])


def main() -> None:
    parser = common.command_line(__doc__)
    parser.add_argument("--encoders", type=Path, default=Path("encoders"), help="what is made once")
    parser.add_argument("--only", help='one method, "clustered, 128 keys"')
    parser.add_argument("--tokens", type=int, choices=LENGTHS, help="one length; all if left out")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    args = parser.parse_args()
    args.encoders.mkdir(parents=True, exist_ok=True)
    names = list(methods(512, args.encoders))
    if args.only not in (None, *names):
        parser.error(f"--only must be one of {', '.join(names)}, got {args.only}")
    lengths = LENGTHS if args.tokens is None else (args.tokens,)
    cases = [
        Case(task, tokens, name)
        for tokens in lengths
        for task in TASKS
        for name in names
        if args.only in (None, name)
        and not (tokens == 512 and name in ("first 512 tokens", "chunks of 512"))
    ]
    path = common.RESULTS / "retrieval.csv"
    for row in common.complete(path, cases, partial(measure, encoders=args.encoders), args.fresh):
        print(*list(row.values())[:-3], sep=", ")
