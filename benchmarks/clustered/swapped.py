"""all-MiniLM-L6-v2 with another attention in every layer, and passages for it to read."""

from __future__ import annotations

import copy
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.clustered.methods import Attention
from benchmarks.encoders.minilm import documents, minilm
from nystromer.hf import resize_positions
from nystromer.hf.conversion.layers import intercepted
from nystromer.hf.masks import key_mask

FILES = {
    "Python's help": None,
    "WikiText-2": "wikitext2/valid.txt.xz",
    "reviews": "imdb/test.jsonl.xz",
    "prose": "brown/all.jsonl.xz",
}


@cache
def encoder(tokens: int = 512, positions: str = "copied") -> Any:
    """Returns the exact model and its tokenizer, with positions copied or stretched for longer."""
    model, tokenizer = minilm()
    if tokens > 512:
        table = model.embeddings.position_embeddings.weight.detach()
        model = resize_positions(copy.deepcopy(model), tokens)
        if positions == "stretched":
            longer = F.interpolate(table.T[None], size=tokens, mode="linear", align_corners=True)
            model.embeddings.position_embeddings = nn.Embedding.from_pretrained(longer[0].T)
    return model.requires_grad_(False), tokenizer


@cache
def texts(kind: str) -> list[str]:
    """Returns the documents of a kind of text: one of FILES, or "source code", that of Python."""
    if kind != "source code":
        return documents(FILES[kind])
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-z]*.py"))
    return [path.read_text(encoding="utf-8", errors="replace") for path in paths]


@cache
def passages(kind: str, tokens: int, count: int) -> Tensor:
    """Returns passages of a kind of text as token ids, [count, tokens].

    Every passage is from a document of its own if enough of them are that long, else all are cut
    out of the documents joined.
    """
    _, tokenizer = encoder()
    cut = {"max_length": tokens, "truncation": True}
    long = [x for x in texts(kind) if len(x) > 5 * tokens]
    long = long[:: max(1, len(long) // (2 * count))]
    ids = [x for x in tokenizer(long, **cut)["input_ids"] if len(x) == tokens] if long else []
    if len(ids) < count:
        text = "\n".join(texts(kind))[: 8 * tokens * count]
        ids = tokenizer(text, **cut, return_overflowing_tokens=True)["input_ids"]
    return torch.tensor(ids[:count])


def called_by_layers(attention: Attention) -> Callable[..., tuple[Tensor, None]]:
    """Returns the attention as a function with the arguments of transformers' layers."""

    def forward(
        module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **kw: Any
    ) -> tuple[Tensor, None]:
        output = attention(q, k, v, key_mask(mask, len(q)), scaling)
        return output.transpose(1, 2).contiguous(), None

    return forward


@torch.no_grad()
def hidden_states(
    model: Any, ids: Tensor, attention: Attention | None, mask: Tensor | None = None
) -> Any:
    """Returns the last hidden states, [passages, N, E], with that attention in every layer.

    None stands for the model as it is, with exact attention.
    """
    size = max(1, 4096 // ids.shape[1])
    masks = torch.ones_like(ids) if mask is None else mask.long()
    pairs = list(zip(ids.split(size), masks.split(size), strict=True))
    if attention is None:
        return torch.cat([model(x, attention_mask=m)[0] for x, m in pairs])
    with intercepted(model, called_by_layers(attention)):
        return torch.cat([model(x, attention_mask=m)[0] for x, m in pairs])


@cache
def exact(kind: str, tokens: int, count: int, positions: str) -> Tensor:
    """Returns the hidden states of the exact model on such passages."""
    model, _ = encoder(tokens, positions)
    return hidden_states(model, passages(kind, tokens, count), None)


def embeddings(states: Tensor) -> Tensor:
    """Returns the mean over the tokens of every passage, of length one: [passages, E]."""
    return F.normalize(states.mean(1), dim=-1)
