"""Plans for encoders, from files that somebody may have edited."""

from __future__ import annotations

import math
from pathlib import Path

from nystromer.hf.conversion.plan import LayerChoice, Plan
from nystromer.recipes.files.errors import reason

WIDEST = 4095  # taps of a convolution, each a parameter of every head


def read_plan(path: Path) -> Plan:
    """Reads a plan.json of `nystromer calibrate`.

    Raises:
        ValueError: If it cannot be read, is no plan, or as `check_plan`.
    """
    try:
        plan = Plan.from_json(path.read_text(encoding="utf-8"))
        check_plan(plan)
    except OSError as error:
        raise ValueError(f"The plan {path} cannot be read: {reason(error)}.") from error
    except Exception as error:  # whatever a value that is none of a plan's raises
        raise ValueError(f"The plan {path} is none: {reason(error)}.") from error
    return plan


def check_plan(plan: Plan) -> None:
    """Checks what JSON can hold and no model can use.

    Raises:
        ValueError: If a layer or a head stands twice, a number is not finite, or a kernel is huge.
    """
    names = [choice.name for choice in plan.layers]
    for choice in plan.layers:
        if names.count(choice.name) > 1:
            raise ValueError(f"the layer {choice.name} stands twice")
        if wrong := wrong_in(choice):
            raise ValueError(f"{wrong} in the layer {choice.name}")


def wrong_in(choice: LayerChoice) -> str:
    """Says what is wrong with the choice for one layer, or ""."""
    taps = [tap for head in choice.conv_taps or () for tap in head]
    if len(set(choice.exact_heads)) != len(choice.exact_heads):
        return "an exact head stands twice"
    if not all(math.isfinite(x) for x in [*taps, choice.ridge or 0.0]):
        return "conv_taps or ridge are not finite"
    if (choice.conv_kernel_size or 0) > WIDEST:
        return f"conv_kernel_size is {choice.conv_kernel_size:,}, above {WIDEST:,},"
    return ""
