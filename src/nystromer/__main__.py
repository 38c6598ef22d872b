"""python -m nystromer: the command line, also for launchers such as torchrun."""

from nystromer.cli import main

main()
