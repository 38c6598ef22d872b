"""Shows how fast Nyström attention is on this CPU, beside others, idle and busy.

    python -m benchmarks attention.cpu [--busy] [--only exact] [--quick] [--fresh] [--output FILE]

Takes about a quarter of an hour on two cores.

The others: our own fallback `blocked`, the same equations in plain PyTorch, the layer of the
package nystrom-attention, exact attention, and three other attentions of linear cost. Every case is
first checked against the equations in float64, gradients too; then ours and the other run in turn,
each in a process of its own, and the median of the paired ratios is reported. (In one process, what
one leaves of the allocator decides how many fresh pages the other must take: the time of plain
PyTorch changes by a factor of three with them.) With M = 256 landmarks that are almost alike,
float32 itself is not accurate enough for the gradients: there ours may be off by as much as the
equations as written are in float32.

With --busy, which takes four minutes, another process keeps as many threads as there are cores in
matrix products all the time, as a second job would. Writes results/cpu.csv or results/cpu_busy.csv
after every case, and keeps the rows that it has; --fresh measures them again.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection

import nystrom_attention as old
import torch
from torch import Tensor, nn

from benchmarks import common
from benchmarks.attention import others
from benchmarks.attention.others import DIM, HEADS, TAPS
from benchmarks.common import DIRECTIONS, TOLERANCES, error_of
from nystromer import NystromAttention
from nystromer.bench import worker
from nystromer.compat import lucidrains

LAYER = "nystrom-attention"
LINEAR = ("linear-attention", "linformer", "flare")
OTHERS = ("blocked", "plain PyTorch", LAYER, "exact", *LINEAR)
FORWARD, BOTH, STEP = *DIRECTIONS, "training step"
SINGLE, HALF = "float32", "bfloat16"
DOCUMENTS, REPEATS = 4, 5  # of a training step; turns of which the median counts
SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Case:
    """One of the others at one size."""

    against: str
    n: int
    num_landmarks: int = 64
    dtype: str = SINGLE
    direction: str = FORWARD


def cases(busy: bool) -> Iterator[Case]:
    """Yields what is measured; beside a busy process, the lengths that people have."""
    if not busy:
        for direction in (FORWARD, BOTH):
            for dtype in (SINGLE, HALF):
                for n in (1024, 4096, 16384, 65536):
                    yield Case("plain PyTorch", n, 64, dtype, direction)
            yield Case("plain PyTorch", 16384, 256, direction=direction)
            for n in (1025, 10001):
                yield Case(LAYER, n, 256, direction=direction)
            yield Case("exact", 512, direction=direction)
            for name in LINEAR:
                for n in (1024, 4096, 16384):
                    yield Case(name, n, direction=direction)
    for n in (1024, 4096):
        for direction in (FORWARD, BOTH):
            yield Case("blocked", n, direction=direction)
        for direction in (FORWARD, BOTH, STEP):
            yield Case("exact", n, direction=direction)


class Documents(nn.Module):
    """Classifies DOCUMENTS of N tokens, as a training on the Long Range Arena does."""

    def __init__(self, case: Case, attention: str, backend: str = "auto") -> None:
        super().__init__()
        from nystromer.recipes.lra.model import Classifier
        from nystromer.recipes.lra.tasks import Task

        task = Task(10, 16, case.n, batch_size=DOCUMENTS, steps=1, warmup_steps=1)
        self.model = Classifier(task, attention, case.num_landmarks).eval()
        for module in self.modules():
            if isinstance(module, NystromAttention):
                module.backend = backend
        self.register_buffer("ids", torch.randint(16, (DOCUMENTS, case.n)))

    def forward(self) -> Tensor:
        return self.model(self.ids, torch.ones_like(self.ids, dtype=torch.bool))["logits"]


def contestants(case: Case, backend: str = "auto") -> dict[str, nn.Module]:
    """Returns "other" and "ours", the same every time. They take and give tokens [1, N, E]."""
    torch.manual_seed(0)
    if case.direction == STEP:
        return {"other": Documents(case, "exact"), "ours": Documents(case, "nystrom", backend)}
    if case.against == LAYER:
        sizes = {"heads": HEADS, "dim_head": DIM, "num_landmarks": case.num_landmarks}
        theirs = old.NystromAttention(HEADS * DIM, **sizes).eval()
        own = lucidrains.NystromAttention(HEADS * DIM, **sizes, backend=backend).eval()
        own.load_state_dict(theirs.state_dict())
        return {"other": theirs, "ours": own}
    taps = torch.randn(HEADS, TAPS) / 6
    against = "plain PyTorch" if case.against == "blocked" else case.against
    sizes = (case.n, case.num_landmarks, case.dtype, case.direction)
    problem = others.Case(against, *sizes)
    blocked = partial(others.ours, backend="blocked")
    make_other = blocked if case.against == "blocked" else others.other
    return {"other": make_other(problem, taps), "ours": others.ours(problem, taps, backend)}


def problem_of(case: Case) -> tuple[list[Tensor], Tensor | None]:
    """Returns the tokens as projections leave them, and the gradient of the output."""
    torch.manual_seed(1)
    if case.direction == STEP:
        return [], torch.randn(DOCUMENTS, 10)
    count = 1 if case.against == LAYER else 3
    tokens = [torch.randn(1, case.n, HEADS * DIM) for _ in range(count)]
    grad = None if case.direction == FORWARD else torch.randn_like(tokens[0])
    return tokens, grad


def run(
    attend: nn.Module, case: Case, dtype: torch.dtype | None = None
) -> Callable[[], tuple[Tensor, ...]]:
    """Returns a call that gives the output and, but for a forward, all gradients."""
    dtype = dtype or getattr(torch, case.dtype)
    tokens, grad = problem_of(case)
    tokens = [x.to(dtype).requires_grad_(grad is not None) for x in tokens]
    grad = None if grad is None else grad.to(dtype)
    return partial(worker.results, attend.to(dtype), tokens, grad)


def compared(attend: nn.Module, case: Case, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Returns the results of a run; the gradients of all parameters as one, for some are zero."""
    output, *grads = run(attend, case, dtype)()
    count = len(problem_of(case)[0])
    parameters = [x.flatten() for x in grads[count:]]
    return [output, *grads[:count], *([torch.cat(parameters)] if parameters else [])]


def check(case: Case) -> float:
    """Returns the error of ours; exits if it is too large for its time to count."""
    expected = compared(contestants(case, "eager")["ours"], case, torch.float64)
    error = error_of(compared(contestants(case)["ours"], case), expected)
    allowed = TOLERANCES[case.dtype]
    if error > allowed:  # is it the arithmetic?
        as_written = compared(contestants(case, "eager")["ours"], case)
        allowed = max(allowed, 1.5 * error_of(as_written, expected))
    if not error <= allowed:
        raise SystemExit(f"{case}: error {error:.1e}, no speed.")
    return error


def measured(case: Case, repeats: int) -> dict[str, float]:
    """Returns the columns of a case."""
    return {"error": check(case), **paired(case, repeats)}


def paired(case: Case, repeats: int) -> dict[str, float]:
    """Returns the median milliseconds of other and ours, and the median of their ratios by turn."""
    ends = {}
    for name in ("other", "ours"):
        ends[name], end = SPAWN.Pipe()
        SPAWN.Process(target=contestant, args=(case, name, end), daemon=True).start()
    times: dict[str, list[float]] = {name: [] for name in ends}
    for go_on in [True] * repeats + [False]:
        for name, end in ends.items():
            end.send(go_on)
            if go_on:
                times[name].append(end.recv())
    ratios = [a / b for a, b in zip(*times.values(), strict=True)]
    return {
        "other_ms": statistics.median(times["other"]),
        "ours_ms": statistics.median(times["ours"]),
        "ratio": statistics.median(ratios),
    }


def contestant(case: Case, name: str, end: Connection) -> None:
    """Runs its call, in a process of its own, whenever told to, and answers with milliseconds."""
    warnings.filterwarnings("ignore")
    call = run(contestants(case)[name], case)
    while end.recv():
        time.sleep(0.1)  # the other's second thread waits busily at first
        call()  # caches are the other's still
        end.send(common.median_ms(common.in_turn([call], 3, float("inf")), 0))


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """Keeps all cores in matrix products, in a process of its own."""
    process = SPAWN.Process(target=multiply_for_ever, daemon=True)
    process.start()
    time.sleep(5)  # it imports torch
    yield
    process.kill()


def multiply_for_ever() -> None:
    a, b = torch.randn(2, 1024, 1024)
    while True:
        a @ b


def main() -> None:
    parser = common.options(__doc__, "cpu")
    parser.add_argument("--busy", action="store_true", help="beside a process that takes all cores")
    parser.add_argument("--only", choices=OTHERS, help="measure against this one")
    arguments = parser.parse_args()
    output = arguments.output
    if arguments.busy and output == common.RESULTS / "cpu.csv":
        output = common.RESULTS / "cpu_busy.csv"
    chosen = [c for c in cases(arguments.busy) if arguments.only in (None, c.against)]
    if arguments.quick:
        firsts = {c.against: c for c in reversed(chosen)}.values()
        chosen = [replace(c, n=256, num_landmarks=16, direction=BOTH) for c in firsts]
    repeats = 1 if arguments.quick else REPEATS
    with busy_process() if arguments.busy else contextlib.nullcontext():
        measure = partial(measured, repeats=repeats)
        rows = common.complete(output, chosen, measure, arguments.fresh)
    for row in rows:
        print(
            *(row[name] for name in ("against", "n", "num_landmarks", "dtype", "direction")),
            end=": ",
        )
        print(f"{row['ratio']}x ({row['other_ms']} / {row['ours_ms']} ms)")
