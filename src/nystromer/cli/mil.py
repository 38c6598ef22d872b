"""The commands for bags of patches, as whole slides are learnt from: `nystromer mil ...`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

if TYPE_CHECKING:
    from nystromer.mil import Bag, Cohort

Item = TypeVar("Item")
mil = typer.Typer(no_args_is_help=True)


@mil.callback()
def _group() -> None:
    """Whole slides: bags of patches, from feature files to predictions."""


@mil.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="Feature files, or one table with a row a patch.")],
    labels: Annotated[
        Path | None,
        typer.Option(help="Table of slides and classes or survival; torchmil's folder labels."),
    ] = None,
    slides: Annotated[
        Path | None, typer.Option(help="STAMP: the slide table, if --labels is the clinical one.")
    ] = None,
    splits: Annotated[
        Path | None, typer.Option(help="File, or folder with splits_0.csv, fold0.csv, ...")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Of the class, if it is not called label or the like.")
    ] = None,
    time_column: Annotated[
        str | None, typer.Option(help="Of the survival time, if there are several.")
    ] = None,
    bag: Annotated[
        str, typer.Option(help="slide, or patient: one bag of all slides of a patient.")
    ] = "slide",
    all_values: Annotated[
        bool, typer.Option("--all-values", help="Read every feature too, and look for NaN.")
    ] = False,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Slides without features or label are fine.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="A new .png file: how many patches the bags have.")
    ] = None,
) -> None:
    """Shows what is in a folder of patch features, and whether one can learn from it.

    FOLDER is what CLAM, TRIDENT, STAMP, slideflow, HistoSSL or torchmil wrote,
    or npy, npz, pt or safetensors files, one a bag. The format is seen in the
    files. Nothing is changed.

    Exit code 0: one can learn from it. 2: one cannot; a sentence says why.
    """
    from nystromer.mil import gather, read_labels, read_splits
    from nystromer.mil.features.folders import scan
    from nystromer.mil.inspection import how_many, lines_of_bags, lines_of_labels, lines_of_split

    if output is not None and (
        output.exists() or output.suffix != ".png" or not output.parent.is_dir()
    ):
        raise ValueError(f"`--output` must be a new .png file in a folder, got {output}.")
    said = None
    if labels is not None:
        options = {"label_column": label_column, "time_column": time_column}
        said = read_labels(labels, slides=slides, **options)
    every_split = [] if splits is None else read_splits(splits)
    found = list(scan(folder, track=lambda files: watched(files, "Looking at files")))
    broken = [x for x in found if isinstance(x, ValueError)]
    bags = sorted((x for x in found if not isinstance(x, ValueError)), key=lambda x: x.id)
    cohort = gather(bags, said, by=bag)
    if all_values:
        broken += list(_unreadable(cohort.bags))

    shown = cohort.bags or bags
    lines = lines_of_bags(shown) if shown else []
    lines += [] if said is None else lines_of_labels(cohort, said)
    lines += [("names of several files", how_many(cohort.duplicates))]
    lines += [("files that cannot be read", str(len(broken)))]
    for split in every_split:
        lines += lines_of_split(split, cohort, said)
    table = Table(box=SIMPLE, show_header=False)
    for line in lines:
        table.add_row(*map(escape, line))
    Console().print(table)
    if output is not None and cohort.bags:
        _draw(cohort, output)
    for error in broken:
        raise ValueError(f"{error} ({len(broken)} such files)" if len(broken) > 1 else str(error))
    cohort.check(skip_missing=skip_missing)
    for split in every_split:
        split.check({} if said is None else said.patients())


def watched(items: Sequence[Item], what: str) -> Iterable[Item]:
    """A progress bar on a terminal; it goes away when it is done."""
    console = Console(stderr=True)
    return track(items, what, console=console, transient=True, disable=not console.is_terminal)


def _unreadable(bags: Sequence[Bag]) -> Iterable[ValueError]:
    for bag in watched(bags, "Reading features"):
        try:
            bag.features()
        except ValueError as error:
            yield error


def _draw(cohort: Cohort, output: Path) -> None:
    from nystromer.mil.figures import sizes_figure

    sizes: dict[str, list[int]] = {}
    for bag in cohort.bags:
        case = cohort.cases.get(bag.id)
        sizes.setdefault((case.label if case else None) or "", []).append(bag.num_patches)
    sizes_figure(dict(sorted(sizes.items()))).savefig(output)
    typer.echo(f"Written: {output}")
