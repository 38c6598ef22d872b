"""Shows time and memory of an encoder in the runtimes of servers, exact and converted.

    python -m benchmarks encoders.deploy [--models FOLDER] [--only "onnx nystrom"] [--repeats 3]

Takes about an hour on two cores.

The encoder is all-MiniLM-L6-v2 with its positions extended. It reads one text of as many tokens as
a row says. "as exported" is what torch.onnx.export writes for a batch with padding. "fused" is ONNX
Runtime's own MultiHeadAttention in its place, with the mask of a batch and without any mask. Each
row is measured in a process of its own: the median time, and the most memory beyond that after
loading. A row without a time was not run: its tables would need more memory than --memory allows.
Half of the time goes into exporting; a folder of --models is used again. Writes results/deploy.csv.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from benchmarks import common
from benchmarks.encoders.minilm import minilm
from nystromer.bench.worker import peak_bytes, reset_peak
from nystromer.export import Embedder, export_onnx
from nystromer.export.graphs import export_openvino, quantize_int8
from nystromer.hf import nystromize, resize_positions
from nystromer.recipes.inputs.sentences import SentenceHead

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
EXACT = ("exact", "fused", "fused, mask")
MODELS = {  # runtime: attentions
    "onnx": (*EXACT, "nystrom", "clustered", "nystrom int8"),
    "openvino": ("exact", "nystrom", "clustered"),
    "torch": ("exact", "nystrom", "clustered"),
}
TABLES_OF = {  # copies of N x N numbers of all heads, seen at a time
    ("onnx", "exact"): 4,
    ("onnx", "fused, mask"): 2,
    ("openvino", "exact"): 8,
}
FUSED = "fused"


@dataclass(frozen=True)
class Case:
    """Names one row."""

    runtime: str
    attention: str
    tokens: int


def cases(quick: bool, only: str | None) -> list[Case]:
    """Returns all cases, the cheap ones first."""
    lengths = (32, 64) if quick else LENGTHS
    return [
        Case(runtime, attention, n)
        for n in lengths
        for runtime, attentions in MODELS.items()
        for attention in attentions
        if only in (None, f"{runtime} {attention}")
    ]


def encoder(quick: bool) -> PreTrainedModel:
    """Returns the exact encoder."""
    torch.manual_seed(0)  # the same weights in every process
    if quick:
        sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 99}
        return BertModel(BertConfig(num_attention_heads=4, intermediate_size=48, **sizes)).eval()
    return resize_positions(minilm()[0], LENGTHS[-1])


def embedder(quick: bool, attention: str) -> Embedder:
    """Returns the encoder with that attention, and the mean of its states."""
    model = encoder(quick)
    method = attention.split()[0]
    if method in ("nystrom", "clustered"):
        small = {"num_query_clusters": 4, "num_key_clusters": 2, "num_exact_keys": 4}
        options: dict[str, Any] = {"num_landmarks": 4} if method == "nystrom" else small
        nystromize(model, method=method, **(options if quick else {}))
    elif attention.startswith("fused"):
        model.set_attn_implementation(FUSED)
    names = ("input_ids",) if attention == "fused" else ("input_ids", "attention_mask")
    made = Embedder(model, SentenceHead(("mean",), True), ("input_ids", "attention_mask"))
    made.inputs = names
    return made


def fused_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Stands for ONNX Runtime's fused operator in an exported graph."""
    batch, heads, n, dim = query.shape
    q, k, v = (x.transpose(1, 2).reshape(batch, n, heads * dim) for x in (query, key, value))
    inputs: list[Tensor | None] = [q, k, v]
    if attention_mask is not None:
        inputs += [None, attention_mask.to(torch.int32)]
    output = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        inputs,
        {"num_heads": heads, **({} if scaling is None else {"scale": scaling})},
        dtype=query.dtype,
        shape=q.shape,
        version=1,
    )
    return output.unflatten(2, (heads, dim)), None


def only_padding(*, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Returns the mask as the fused operator takes it, [B, N]."""
    return attention_mask


AttentionInterface.register(FUSED, fused_attention)
AttentionMaskInterface.register(FUSED, only_padding)


def written(models: Path, quick: bool, runtime: str, attention: str) -> Path:
    """Exports a model if the folder has none yet, and returns its file."""
    suffix = {"onnx": ".onnx", "openvino": ".xml"}[runtime]
    file = models / f"{attention.replace(', ', '-').replace(' ', '-')}{suffix}"
    if not file.exists():
        made = embedder(quick, attention)
        if runtime == "openvino":
            export_openvino(made, file)
        else:
            export_onnx(made, file)
        if attention.endswith("int8"):
            quantize_int8(file)
    return file


def loaded(case: Case, file: Path | None, quick: bool) -> Callable[[dict[str, Any]], Any]:
    """Returns what runs the model, on as many threads as torch has."""
    threads = torch.get_num_threads()
    if case.runtime == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        names = {x.name for x in session.get_inputs()}
        return lambda x: session.run(None, {k: v for k, v in x.items() if k in names})[0]
    if case.runtime == "openvino":
        import openvino

        hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        model = openvino.Core().compile_model(file, "CPU", hints)
        return lambda x: np.array(model(x)[0])
    made = embedder(quick, case.attention)

    def run(x: dict[str, Any]) -> Any:
        with torch.inference_mode():
            return made(*(torch.from_numpy(x[name]) for name in made.inputs)).numpy()

    return run


def measure(case: Case, file: Path | None, quick: bool, repeats: int) -> dict[str, Any]:
    """Returns time, memory, and the distance to torch's output, of one process."""
    run = loaded(case, file, quick)
    generator = np.random.default_rng(0)
    ids = generator.integers(50, 99 if quick else 30000, (1, case.tokens))
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    run({name: x[:, :32] for name, x in inputs.items()})
    reset_peak()
    before, times = peak_bytes(), []
    for _ in range(repeats):
        start = time.perf_counter()
        output = run(inputs)
        times.append(time.perf_counter() - start)
        if sum(times) > 120:
            break
    megabytes = (peak_bytes() - before) / 2**20
    attention = "exact" if case.attention in EXACT else case.attention.split()[0]
    with torch.inference_mode():
        reference = embedder(quick, attention)
        wanted = reference(*(torch.from_numpy(x) for x in inputs.values())).numpy()
    return {
        "seconds": statistics.median(times),
        "peak_mib": megabytes,
        "difference": float(np.abs(output - wanted).max()),
    }


def row(case: Case, models: Path, quick: bool, repeats: int, memory: float) -> dict[str, Any]:
    """Measures a case in a process of its own, or says why not."""
    tables = 12 * 4 * case.tokens**2 * TABLES_OF.get((case.runtime, case.attention), 0) / 2**30
    if tables > memory:
        return {"seconds": None, "peak_mib": None, "difference": None}
    file = None
    if case.runtime != "torch":
        file = written(models, quick, case.runtime, case.attention)
    return common.fresh_process(measure, case, file, quick, repeats)


def main() -> None:
    parser = common.options(__doc__, "deploy")
    parser.add_argument("--models", type=Path, help="a folder for the exported models")
    parser.add_argument("--only", help='runtime and attention, "onnx nystrom"')
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=float, default=14, help="GiB for the tables of one run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        models = args.models or Path(temporary)
        models.mkdir(parents=True, exist_ok=True)
        options = {"quick": args.quick, "repeats": args.repeats, "memory": args.memory}
        measured = partial(row, models=models, **options)
        for found in common.complete(
            args.output, cases(args.quick, args.only), measured, args.fresh
        ):
            if found["seconds"]:
                print(
                    f"{found['runtime']:9}{found['attention']:14}{int(found['tokens']):>7,} tokens"
                    f"{float(found['seconds']):>9.3f} s{float(found['peak_mib']):>9,.0f} MiB"
                    f"   {found['difference']} to torch"
                )
