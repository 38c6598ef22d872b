"""The list of all commands of `nystromer`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import typer

from nystromer.cli.encoders import calibrate, convert, inspect
from nystromer.cli.exporting import export
from nystromer.cli.lra import lra, lra_data
from nystromer.cli.measuring import bench, demo
from nystromer.cli.mil import mil
from nystromer.cli.mil_maps import faithfulness, heatmap
from nystromer.cli.mil_training import predict as predict_bags
from nystromer.cli.mil_training import train as train_bags
from nystromer.cli.pretraining import pretrain
from nystromer.cli.training import predict, train


def finite(command: Callable[..., None]) -> Callable[..., None]:
    """Makes a command refuse options that are nan or infinite, whatever it does with them."""

    @functools.wraps(command)
    def call(**options: Any) -> None:
        for name, value in options.items():
            if isinstance(value, float) and not math.isfinite(value):
                option = f"--{name.replace('_', '-')}"
                raise ValueError(f"`{option}` must be a finite number, got {value}.")
        command(**options)

    return call


COMMANDS = (
    demo,
    bench,
    train,
    predict,
    pretrain,
    convert,
    calibrate,
    inspect,
    export,
    lra,
    lra_data,
)
app = typer.Typer(
    help="Nyström attention: measure it on this machine, train with it, convert encoders to it.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in COMMANDS:
    app.command()(finite(command))
mil.command("train")(finite(train_bags))
mil.command("predict")(finite(predict_bags))
mil.command()(finite(heatmap))
mil.command()(finite(faithfulness))
app.add_typer(mil, name="mil")
