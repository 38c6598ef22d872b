"""The list of all commands of `nystromer`."""

from __future__ import annotations

import typer

from nystromer.cli.encoders import calibrate, convert, inspect
from nystromer.cli.lra import lra, lra_data
from nystromer.cli.measuring import bench, demo
from nystromer.cli.mil import mil
from nystromer.cli.pretraining import pretrain
from nystromer.cli.training import predict, train

COMMANDS = (demo, bench, train, predict, pretrain, convert, calibrate, inspect, lra, lra_data)
app = typer.Typer(
    help="Nyström attention: measure it on this machine, train with it, convert encoders to it.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(mil, name="mil")
