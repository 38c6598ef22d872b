"""Measures on real batches what another attention does to each layer and head of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from nystromer.hf.calibration.fidelity import Batch, fidelity, last_hidden, running
from nystromer.hf.calibration.observe import Observed, Scheme
from nystromer.hf.conversion.interface import exact_attention_forward
from nystromer.hf.conversion.layers import FoundLayer, attention_layers, base_name
from nystromer.hf.conversion.plan import LayerChoice


@dataclass(frozen=True)
class LayerSurvey:
    """Holds what was measured of one attention layer.

    Args:
        name: Its module's name in the base model.
        reason: Why it cannot be swapped; then there is nothing else.
        head_dim: D.
        power: ‖exact output‖² of every head.
        plain: Error of the plain Nyström swap: segment means and six steps, no convolution.
        schemes: What it could be, Nyström and clustered.
    """

    name: str
    num_heads: int
    reason: str | None = None
    head_dim: int = 0
    power: tuple[float, ...] = ()
    plain: float = 0.0
    schemes: tuple[Scheme, ...] = ()

    def of(self, attention: str) -> list[Scheme]:
        return [scheme for scheme in self.schemes if scheme.choice.attention == attention]

    def best(self, exact_heads: Sequence[int] = ()) -> Scheme:
        """Returns the Nyström scheme with the least error in the heads that are not exact."""
        others = [h for h in range(self.num_heads) if h not in exact_heads]
        return min(self.of("nystrom"), key=lambda x: sum(x.squares[h] for h in others))

    def typical(self, attention: str) -> Scheme | None:
        """Returns the best Nyström scheme, or clustered attention with as many keys as that has."""
        nystrom = self.best()
        if attention == "nystrom":
            return nystrom
        keys = nystrom.choice.keys
        return min(self.of(attention), key=lambda x: abs(x.choice.keys - keys), default=None)

    def error(self, scheme: Scheme) -> float:
        """Returns ‖output - exact output‖ / ‖exact output‖ over all heads."""
        return (sum(scheme.squares) / sum(self.power)) ** 0.5


def exact_choice(layer: LayerSurvey) -> LayerChoice:
    return LayerChoice(layer.name, "exact", num_heads=layer.num_heads, note=layer.reason)


def survey(
    model: PreTrainedModel, batches: Sequence[Batch], num_landmarks: int = 64
) -> list[LayerSurvey]:
    r"""Measures every attention layer's error under each scheme.

    The model runs twice for each batch and layer. The schemes are Nyström attention with several
    landmarks and inverses, each with the convolution that leaves the least error, and clustered
    attention with M, 2 M, 3 M and 4 M keys a query, where Nyström attention has 2 M. With
    r = exact - Nyström output and the shifted values S [.., K] of a head, the taps of its
    convolution are w = (Σ SᵀS + εI)⁻¹ Σ Sᵀr over all tokens and features.

    Args:
        model: An encoder with exact attention. It is not changed.
        batches: Inputs of the model, some with at least 4 M real tokens; shorter ones do not count.
        num_landmarks: M.

    Raises:
        ValueError: If no sequence is long enough, no layer can be swapped, there are no batches, or
            the model ignores transformers' interface or is converted already.
    """
    if not batches:
        raise ValueError("`batches` must hold at least one batch of inputs, got none.")
    if getattr(model.config, "nystrom", None) is not None:
        raise ValueError("`model` was converted already; load the exact model again.")
    found = attention_layers(model, {key: x[:1] for key, x in batches[0].items()})
    sums = {
        layer.name: Observed(layer.name, layer.num_heads, num_landmarks)
        for layer in found
        if layer.reason is None
    }
    if not sums:
        raise ValueError(f"No layer can be swapped: {found[0].name}: {found[0].reason}.")
    names = {module: base_name(model, name) for name, module in model.named_modules()}

    def observe(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any
    ) -> tuple[Tensor, Tensor | None]:
        output, _ = exact_attention_forward(module, query, key, value, *args, **kw)
        if names[module] in sums:
            sums[names[module]].add(query, key, value, output.transpose(1, 2), args[0], kw)
        return output, None

    with running(model, observe):
        exact = [last_hidden(model, x) for x in tqdm(batches, "Observing exact attention")]
    longest = max(s.longest for s in sums.values())
    if not all(s.count for s in sums.values()):
        raise ValueError(
            f"`batches` must hold sequences of at least 4 M = {4 * num_landmarks} tokens, below "
            f"which attention stays exact, got at most {longest}."
        )
    layers = [_summed(layer, sums.get(layer.name)) for layer in found]
    return [_alone(model, batches, x, exact) for x in tqdm(layers, "Swapping one layer at a time")]


def _summed(layer: FoundLayer, sums: Observed | None) -> LayerSurvey:
    if sums is None:
        return LayerSurvey(layer.name, layer.num_heads, layer.reason)
    sizes = (layer.name, layer.num_heads, None, sums.head_dim)
    return LayerSurvey(*sizes, tuple(sums.power.tolist()), sums.plain, sums.schemes())


def _alone(
    model: PreTrainedModel, batches: Sequence[Batch], layer: LayerSurvey, exact: Sequence[Tensor]
) -> LayerSurvey:
    """Returns the layer with what each attention's typical scheme does to the model when this layer
    alone is swapped."""
    if layer.reason is not None:
        return layer
    typical = [layer.typical(x) for x in ("nystrom", "clustered")]
    schemes = [
        replace(x, alone=fidelity(model, batches, [x.choice], exact)) if x in typical else x
        for x in layer.schemes
    ]
    return replace(layer, schemes=tuple(schemes))
