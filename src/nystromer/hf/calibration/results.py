"""Holds what a calibration measured and chose, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from nystromer.hf.calibration import costs
from nystromer.hf.calibration.fidelity import Fidelity
from nystromer.hf.calibration.survey import LayerSurvey
from nystromer.hf.conversion.plan import LayerChoice, Plan


@dataclass(frozen=True)
class Trial:
    """Says how well the model did with one choice for every layer.

    Args:
        cost: Keys a query of a layer that can be swapped, on average, or the time of these layers'
            attention as a share of exact attention's; see `Calibration.unit`.
    """

    name: str
    cost: float
    fidelity: Fidelity


@dataclass(frozen=True)
class Calibration:
    """Holds what a calibration measured and chose.

    Args:
        plan: For `nystromize(plan=...)`.
        layers: The survey of every layer.
        length: Tokens at which costs are counted.
        unit: Of costs: "keys" or "time".
        plain: All layers Nyström with segment means and six steps.
        swapped: All layers Nyström by their best schemes, no head exact.
        clustered: All layers clustered, a trial for each count of keys.
        path: Plans of other budgets, the cheapest first; none unless keys or time are the budget.
        planned: The plan.
        max_error: What was asked for, if anything.
    """

    plan: Plan
    layers: tuple[LayerSurvey, ...]
    length: int
    unit: str
    plain: Trial
    swapped: Trial
    clustered: tuple[Trial, ...]
    path: tuple[Trial, ...]
    planned: Trial
    max_error: float | None = None

    @property
    def exact_heads(self) -> int:
        """How many heads stay exact in the layers that could be swapped."""
        pairs = zip(self.layers, self.plan.layers, strict=True)
        kept = (costs.exact_share(x) * layer.num_heads for layer, x in pairs if not layer.reason)
        return round(sum(kept))

    @property
    def keys(self) -> int:
        """The scores that a query costs in Nyström attention, 2 M."""
        return next(layer.best().choice.keys for layer in self.layers if layer.reason is None)

    @property
    def heads(self) -> int:
        return sum(layer.num_heads for layer in self.layers)

    def multiplications(self, n: int) -> tuple[int, int]:
        """Returns the multiplications of all attention over n tokens: under the plan, and if every
        layer were exact."""
        ours = exact = 0.0
        for layer, choice in zip(self.layers, self.plan.layers, strict=True):
            ours += layer.num_heads * costs.multiplications(choice, n, layer.head_dim)
            full = LayerChoice(layer.name, "exact", num_heads=layer.num_heads)
            exact += layer.num_heads * costs.multiplications(full, n, layer.head_dim)
        return round(ours), round(exact)
