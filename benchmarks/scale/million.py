"""Shows what 1,048,576 bytes at once take in one process: encoding them, and one training step.

    python -m benchmarks scale.million [--quick] [--fresh] [--output FILE] [--text FILE]

Takes about five minutes, and 14 GiB.

Each byte is a token of a Nyströmformer with random weights, M = 256. "encode" is a model of 4
layers of 256 in inference; "train" one of 4 layers of 128 whose states are computed again in the
backward (gradient checkpointing), one update with AdamW on a masked-language loss. The text is
--text, or the source files of Python's standard library. The memory is all that the process takes,
torch too. Writes results/scale_million.csv.
"""

from __future__ import annotations

import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import common
from nystromer.bench.worker import peak_bytes, reset_peak
from nystromer.hf import NystromformerConfig, NystromformerForMaskedLM, NystromformerModel

MASK = 256  # the token after the 256 bytes


@dataclass(frozen=True)
class Case:
    """Names one row."""

    job: str
    tokens: int
    layers: int
    width: int


CASES = [Case("encode", 2**20, 4, 256), Case("train", 2**20, 4, 128)]
QUICK = [Case("encode", 2048, 1, 64), Case("train", 2048, 1, 64)]


def text_bytes(n: int, file: Path | None) -> Tensor:
    """Returns the first n bytes of the file, or of Python's standard library, as tokens [1, n]."""
    files = [file] if file else sorted(Path(os.__file__).parent.glob("*.py"))
    data = b""
    for path in files:
        if len(data) < n:
            data += path.read_bytes()
    if len(data) < n:
        raise SystemExit(f"--text {file} has {len(data):,} bytes; name a file of at least {n:,}.")
    return torch.frombuffer(bytearray(data[:n]), dtype=torch.uint8)[None].long()


def config(case: Case) -> NystromformerConfig:
    """Returns the config of a model that reads bytes."""
    return NystromformerConfig(
        vocab_size=MASK + 1,
        hidden_size=case.width,
        intermediate_size=4 * case.width,
        num_hidden_layers=case.layers,
        num_attention_heads=case.width // 64,
        num_landmarks=256,
        max_position_embeddings=case.tokens,
        hidden_act="gelu",  # one operation; "gelu_new" keeps several tables of the inner width
        pad_token_id=None,
        chunk_size_feed_forward=min(case.tokens, 2**16),  # else 4 x width states a token at once
    )


def encode(case: Case, ids: Tensor) -> None:
    """Reads the text with a model in inference."""
    model = NystromformerModel(config(case)).eval()
    with torch.inference_mode():
        states = model(ids).last_hidden_state
    assert states.shape == (1, case.tokens, case.width)
    assert bool(states.isfinite().all())


def train(case: Case, ids: Tensor) -> None:
    """Makes one update on a masked-language loss."""
    model = NystromformerForMaskedLM(config(case)).train()
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers 6 has another name
    model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters())
    asked = torch.rand(ids.shape) < 0.15
    loss = model(ids.masked_fill(asked, MASK), labels=ids.masked_fill(~asked, -100)).loss
    loss.backward()
    optimizer.step()
    assert bool(loss.isfinite())


def measured(case: Case, file: Path | None) -> dict[str, Any]:
    """Returns the time and the most memory of this process."""
    torch.manual_seed(0)
    ids = text_bytes(case.tokens, file)
    reset_peak()
    start = time.perf_counter()
    {"encode": encode, "train": train}[case.job](case, ids)
    return {"seconds": time.perf_counter() - start, "peak_gib": peak_bytes() / 2**30}


def main() -> None:
    parser = common.options(__doc__, "scale_million")
    parser.add_argument("--text", type=Path, help="a file of at least 1,048,576 bytes")
    args = parser.parse_args()
    cases = QUICK if args.quick else CASES
    measure = lambda case: common.fresh_process(measured, case, args.text)  # noqa: E731
    for row in common.complete(args.output, cases, measure, args.fresh):
        print(
            f"{row['job']:8}{int(row['tokens']):>10,} bytes, {row['layers']} layers of "
            f"{row['width']}: {float(row['seconds']):.1f} s, {float(row['peak_gib']):.1f} GiB"
        )
