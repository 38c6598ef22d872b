"""The commands that measure and show: `nystromer bench` and `nystromer demo`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from nystromer.backends.native.library import in_use
from nystromer.bench import METHODS, Row, sweep, write_csv


def bench(
    lengths: Annotated[
        str, typer.Option(help="The numbers of tokens N.")
    ] = "1024,4096,16384,65536",
    num_landmarks: Annotated[int, typer.Option(help="The landmarks M.")] = 64,
    heads: Annotated[int, typer.Option(help="The heads H.")] = 8,
    head_dim: Annotated[int, typer.Option(help="The features D of a head.")] = 64,
    dtype: Annotated[
        str, typer.Option(help="The type: float32, float64, float16 or bfloat16.")
    ] = "float32",
    backward: Annotated[
        bool, typer.Option("--backward", help="Measures the gradients too.")
    ] = False,
    methods: Annotated[str, typer.Option(help="The methods to compare.")] = ",".join(METHODS),
    repeats: Annotated[
        int, typer.Option(help="The number of runs of which the median counts.")
    ] = 5,
    time_limit: Annotated[
        float, typer.Option(help="The most seconds that a run may be predicted to take.")
    ] = 20,
    output: Annotated[
        Path, typer.Option(help="The new folder for rows.csv and scaling.png, or a former one.")
    ] = Path("bench"),
) -> None:
    """Measures time, memory and error of exact and Nyström attention over N, on this machine.

    Every case runs one sequence in a process of its own.

    "module" and "nystrom-attention" are layers with projections and convolution.
    """
    from nystromer.plots import scaling_figure
    from nystromer.recipes.files.outputs import new_folder

    ns, names = _lengths(lengths), [name.strip() for name in methods.split(",") if name.strip()]
    err = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with new_folder(output, made_by="nystromer bench") as partial:
        with Progress(*columns, TimeElapsedColumn(), console=err, transient=True) as progress:
            bar = progress.add_task("starting", total=len(ns) * len(names))
            rows = sweep(
                ns,
                names,
                num_landmarks=num_landmarks,
                heads=heads,
                head_dim=head_dim,
                dtype=dtype,
                backward=backward,
                repeats=repeats,
                time_limit=time_limit,
                on_case=lambda case: progress.update(
                    bar, description=f"{case.method}, N = {case.n:,}"
                ),
                on_row=lambda _: progress.advance(bar),
            )
        write_csv(rows, partial / "rows.csv")
        scaling_figure(rows).savefig(partial / "scaling.png")
    Console().print(_table(rows))
    for row in rows:
        if row.note:
            typer.echo(f"{row.case.method}, N = {row.case.n:,}: {row.note}.")
    typer.echo(f"Written: {output / 'rows.csv'}, {output / 'scaling.png'}")


def demo(
    output: Annotated[
        Path, typer.Option(help="The new folder for report.html, or a former one.")
    ] = Path("demo"),
    seed: Annotated[
        int, typer.Option(help="The seed of the data, the weights and the batches.")
    ] = 0,
    epochs: Annotated[int | None, typer.Option(help="The passes over the training data.")] = None,
) -> None:
    """Tells the whole story on this machine in a few minutes: it measures, trains and draws."""
    from nystromer.recipes.demo import run_demo

    typer.echo(f"Written: {run_demo(output, seed=seed, epochs=epochs)}")


def _lengths(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise ValueError(
            f"`--lengths` must be whole numbers of at least 1 with commas between, got {text!r}; "
            "write 1024,4096."
        )
    return [int(part) for part in parts]


def _table(rows: Sequence[Row]) -> Table:
    case, row = rows[0].case, rows[0]
    work = "forward and backward" if case.backward else "forward"
    table = Table(
        title=f"{work}, M = {case.num_landmarks}, {case.heads} heads of {case.head_dim}, "
        f"{case.dtype}\n{row.device}, torch {row.torch_version}\n{in_use()}",
        caption="memory: on top of the inputs; error: to exact attention",
        box=SIMPLE,
    )
    for name in ("N", "method", "time", "memory", "error"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for i, row in enumerate(rows):
        table.add_row(
            f"{row.case.n:,}",
            row.case.method,
            _seconds(row.seconds),
            "–" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.0f} MiB",
            "–" if row.error is None else f"{row.error:.2g}",
            end_section=i + 1 < len(rows) and rows[i + 1].case.n != row.case.n,
        )
    return table


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
