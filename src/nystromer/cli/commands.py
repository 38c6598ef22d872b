"""The commands: they read options, call the library and show what it says."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from nystromer.bench import METHODS, Row, read_csv, sweep, write_csv
from nystromer.cli import training
from nystromer.cli.lra import app as lra_app
from nystromer.cli.pretraining import pretrain

if TYPE_CHECKING:
    from nystromer.hf.calibration import Calibration
    from nystromer.hf.fidelity import Fidelity

app = typer.Typer(
    help="Nyström attention: measure it on this machine, and see it at work.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(pretrain)
app.command()(training.train)
app.command()(training.predict)
app.add_typer(lra_app)


@app.command()
def bench(
    lengths: Annotated[str, typer.Option(help="Tokens N.")] = "1024,4096,16384,65536",
    num_landmarks: Annotated[int, typer.Option(help="Landmarks M.")] = 64,
    heads: Annotated[int, typer.Option(help="Heads H.")] = 8,
    head_dim: Annotated[int, typer.Option(help="Features D of a head.")] = 64,
    dtype: Annotated[str, typer.Option(help="float32, float64, float16 or bfloat16.")] = "float32",
    backward: Annotated[bool, typer.Option("--backward", help="Gradients too.")] = False,
    methods: Annotated[str, typer.Option(help="What to compare.")] = ",".join(METHODS),
    repeats: Annotated[int, typer.Option(help="Runs of which the median counts.")] = 5,
    time_limit: Annotated[float, typer.Option(help="Seconds a run may be predicted to take.")] = 20,
    output: Annotated[Path, typer.Option(help="Folder for rows.csv and scaling.png.")] = Path(
        "bench"
    ),
) -> None:
    """Time, memory and error of exact and Nyström attention over N, on this machine.

    Every case runs one sequence in a process of its own.

    "module" and "nystrom-attention" are layers with projections and convolution.
    """
    from nystromer.plots import scaling_figure

    _check_former(output / "rows.csv")
    ns, names = _lengths(lengths), [name.strip() for name in methods.split(",") if name.strip()]
    _check_folder(output)
    err = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
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
            on_case=lambda case: progress.update(bar, description=f"{case.method}, N = {case.n:,}"),
            on_row=lambda _: progress.advance(bar),
        )
    output.mkdir(parents=True, exist_ok=True)
    write_csv(rows, output / "rows.csv")
    scaling_figure(rows).savefig(output / "scaling.png")
    Console().print(_table(rows))
    for row in rows:
        if row.note:
            typer.echo(f"{row.case.method}, N = {row.case.n:,}: {row.note}.")
    typer.echo(f"Written: {output / 'rows.csv'}, {output / 'scaling.png'}")


def _check_former(path: Path) -> None:
    """
    Raises:
        ValueError: If there is a file, and it does not hold rows of a former run.
    """
    try:
        if path.exists() and not read_csv(path):
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError):
        raise ValueError(
            f"{path} is not of a former bench and would be replaced; name another `--output`."
        ) from None


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for report.html.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Of the data, the weights and the batches.")] = 0,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training data.")] = None,
) -> None:
    """The whole story on this machine in a few minutes: measure, train, draw, report."""
    from nystromer.recipes.demo import run_demo

    typer.echo(f"Written: {run_demo(output, seed=seed, epochs=epochs)}")


@app.command()
def convert(
    source: Annotated[
        str, typer.Argument(help="A .model file of mlpen/Nystromformer, or an encoder: see below.")
    ],
    output: Annotated[Path, typer.Option(help="New folder, which from_pretrained will read.")],
    method: Annotated[str, typer.Option(help="nystrom or clustered.")] = "nystrom",
    num_landmarks: Annotated[int, typer.Option(help="Nyström: landmarks M.")] = 64,
    num_query_clusters: Annotated[int, typer.Option(help="Clustered: query clusters G.")] = 64,
    num_key_clusters: Annotated[int, typer.Option(help="Clustered: key clusters M.")] = 16,
    num_exact_keys: Annotated[int, typer.Option(help="Clustered: exact keys T.")] = 48,
    num_heads: Annotated[
        int | None, typer.Option(help="Heads H, for a .model file without convolution.")
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="A plan.json of `nystromer calibrate`.")] = None,
    distill: Annotated[
        bool, typer.Option("--distill", help="Train the converted encoder on --text.")
    ] = False,
    text: Annotated[
        list[Path] | None, typer.Option(help="Text files (.txt, .jsonl; .gz, .xz) to train on.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of the training, 4 passages each.")] = 300,
) -> None:
    """Nyström or clustered attention in an encoder, or a checkpoint of the original repository.

    SOURCE is a .model file of the original Nyströmformer repository, or the folder (or Hub name) of
    a transformers encoder. An encoder is swapped in every layer, or as --plan says.

    With --distill the swapped encoder learns on your text to say what the exact one says. An
    interrupted run goes on when the same command is given again.
    """
    from nystromer.hf.convert import choice_of
    from nystromer.recipes.encoder import convert_encoder, convert_original, distill_encoder

    if text and not distill:
        raise ValueError("`--text` is for a training, got it without --distill; add --distill.")
    if Path(source).is_file() or Path(source).suffix in (".model", ".cp"):
        if distill or plan is not None or method != "nystrom":
            raise ValueError(
                f"`--plan`, `--distill` and `--method` are for encoders with exact attention, got "
                f"{source}, a checkpoint of the original repository; leave them out."
            )
        convert_original(Path(source), output, num_landmarks=num_landmarks, num_heads=num_heads)
        typer.echo(f"Written: {output}")
        return
    if plan is not None and method != "nystrom":
        raise ValueError(
            f"`--plan` says what each layer becomes, got --method {method} beside it; leave one "
            "out."
        )
    choice = choice_of(method, num_landmarks, num_query_clusters, num_key_clusters, num_exact_keys)
    if distill:
        from nystromer.recipes.distill import Settings

        settings = Settings(steps=steps)
        found = distill_encoder(source, text or [], output, choice, plan=plan, settings=settings)
        Console().print(_fidelity_table(found.stages))
    else:
        convert_encoder(source, output, choice, plan=plan)
    typer.echo(f"Written: {output}")


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Folder or Hub name of a transformers encoder.")],
    text: Annotated[
        list[Path] | None, typer.Option(help="Text to look at; Python's own help if none.")
    ] = None,
    num_landmarks: Annotated[int, typer.Option(help="Landmarks M.")] = 64,
    output: Annotated[Path, typer.Option(help="The figure, a new .png file.")] = Path(
        "attention.png"
    ),
) -> None:
    """What a model's attention is like: which layers can be swapped, at what error and saving."""
    from nystromer.recipes.encoder import calibrate_encoder

    _show(calibrate_encoder, model, text, output, num_landmarks=num_landmarks)


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="Folder or Hub name of a transformers encoder.")],
    text: Annotated[list[Path], typer.Option(help="Text like that which the model will read.")],
    output: Annotated[Path, typer.Option(help="The plan, a new .json file; a .png beside it.")],
    num_landmarks: Annotated[int, typer.Option(help="Landmarks M.")] = 64,
    max_exact_layers: Annotated[
        int | None, typer.Option(help="How many layers' worth of heads may stay exact.")
    ] = None,
    max_keys: Annotated[
        float | None, typer.Option(help="Or: scored keys a query, mean of the layers.")
    ] = None,
    max_time: Annotated[
        float | None, typer.Option(help="Or: share of exact attention's time, say 0.5.")
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Tokens for which keys and time are counted.")
    ] = None,
    max_error: Annotated[
        float | None, typer.Option(help="1 - cosine to the exact embedding to stay below.")
    ] = None,
) -> None:
    """Plans another attention for an encoder: Nyström, clustered or exact, layer by layer.

    With a budget of keys or time all three are tried; else Nyström attention, and exact heads.

    Give the plan to `nystromer convert --plan`, or to nystromize(plan=...).
    """
    from nystromer.recipes.encoder import calibrate_encoder

    _new_file("--output", output, ".json")
    found = _show(
        calibrate_encoder,
        model,
        text,
        output.with_suffix(".png"),
        num_landmarks=num_landmarks,
        max_exact_layers=max_exact_layers,
        max_keys=max_keys,
        max_time=max_time,
        length=length,
        max_error=max_error,
    )
    output.write_text(found.plan.to_json(), encoding="utf-8")
    typer.echo(f"Written: {output}")


def _show(
    measure: Callable, model: str, text: list[Path] | None, output: Path, **options: Any
) -> Calibration:
    from nystromer.hf.figures import calibration_figure
    from nystromer.hf.report import summary, table

    _new_file("--output", output, ".png")
    found = measure(model, text or [], **options)
    Console().print(table(found))
    typer.echo(summary(found))
    calibration_figure(found).savefig(output)
    typer.echo(f"Written: {output}")
    return found


def _new_file(option: str, path: Path, suffix: str) -> None:
    if path.exists() or path.suffix != suffix or not path.parent.is_dir():
        raise ValueError(f"`{option}` must be a new {suffix} file in a folder, got {path}.")


def _fidelity_table(stages: dict[str, Fidelity]) -> Table:
    table = Table(caption="against the exact twin, on held-out passages", box=SIMPLE)
    for name in ("", "cosine", "worst", "error of hidden states"):
        table.add_column(name, justify="right" if name else "left")
    for name, x in stages.items():
        table.add_row(name, f"{x.cosine:.4f}", f"{x.worst_cosine:.4f}", f"{x.error:.3f}")
    return table


def _lengths(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise ValueError(
            f"`--lengths` must be whole numbers of at least 1 with commas between, got {text!r}; "
            "write 1024,4096."
        )
    return [int(part) for part in parts]


def _check_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(
            f"`--output` must be a folder that can be written, got {path} ({error.strerror}); "
            "name another."
        ) from error


def _table(rows: Sequence[Row]) -> Table:
    case, row = rows[0].case, rows[0]
    work = "forward and backward" if case.backward else "forward"
    table = Table(
        title=f"{work}, M = {case.num_landmarks}, {case.heads} heads of {case.head_dim}, "
        f"{case.dtype}\n{row.device}, torch {row.torch_version}",
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
