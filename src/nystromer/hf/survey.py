"""What Nyström attention does to each layer and head of a model, measured on real batches.

Shapes: B sequences, H heads, N tokens, D features of a head, K taps of the convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from nystromer.functional import nystrom_attention
from nystromer.hf.attend import attend, landmarks_of, repeated
from nystromer.hf.attention import exact_attention_forward
from nystromer.hf.layers import attention_layers, base_name, intercepted
from nystromer.hf.masks import key_mask
from nystromer.hf.plan import LayerChoice

KERNEL = 33  # K
SCHEMES: tuple[tuple[str, float | None], ...] = (
    ("segment_means", None),
    ("kmeans", None),
    ("kmeans", 1e-3),
    ("kmeans", 1e-2),
    ("kmeans", 1e-1),
)
Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Scheme:
    """One way to do a layer, with the convolution that leaves the least error.

    Args:
        choice: Landmarks, inverse and the fitted taps.
        squares: ‖output - exact output‖² of every head over all real tokens.
    """

    choice: LayerChoice
    squares: tuple[float, ...]


@dataclass(frozen=True)
class LayerSurvey:
    """One attention layer.

    Args:
        name: Its module's name in the base model.
        reason: Why it cannot be swapped; then there is nothing else.
        head_dim: D.
        power: ‖exact output‖² of every head.
        plain: Error of the plain swap: segment means and six steps, no convolution.
        schemes: What else it could be.
        swapped: The model's output when this layer alone is swapped, by its best scheme.
    """

    name: str
    num_heads: int
    reason: str | None = None
    head_dim: int = 0
    power: tuple[float, ...] = ()
    plain: float = 0.0
    schemes: tuple[Scheme, ...] = ()
    swapped: Fidelity | None = None

    def best(self, exact_heads: Sequence[int] = ()) -> Scheme:
        """The scheme with the least error in the other heads."""
        others = [h for h in range(self.num_heads) if h not in exact_heads]
        return min(self.schemes, key=lambda scheme: sum(scheme.squares[h] for h in others))

    def error(self, scheme: Scheme) -> float:
        """‖output - exact output‖ / ‖exact output‖ over all heads."""
        return (sum(scheme.squares) / sum(self.power)) ** 0.5


@dataclass(frozen=True)
class Fidelity:
    """How close a model's last hidden states are to those under exact attention.

    Args:
        cosine, worst_cosine: Of the mean over a sequence's real tokens (an embedding): mean and
            least over the sequences.
        error: ‖h - h*‖ / ‖h*‖ over all real tokens.
    """

    cosine: float
    worst_cosine: float
    error: float


def survey(
    model: PreTrainedModel, batches: Sequence[Batch], num_landmarks: int = 64
) -> list[LayerSurvey]:
    r"""Every attention layer's error under each scheme, one run of the model a batch and layer.

    The convolution is fitted in closed form. With r = exact - Nyström output and the shifted values
    S [.., K] of a head, its taps are w = (Σ SᵀS + εI)⁻¹ Σ Sᵀr over all tokens and features.

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
        raise ValueError("`model` has Nyström attention already; load the exact model again.")
    found = attention_layers(model, {key: x[:1] for key, x in batches[0].items()})
    sums = {
        layer.name: _Sums(layer.name, layer.num_heads, num_landmarks)
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

    with _running(model, observe):
        exact = [last_hidden(model, x) for x in tqdm(batches, "Observing exact attention")]
    longest = max(s.longest for s in sums.values())
    if not all(s.count for s in sums.values()):
        raise ValueError(
            f"`batches` must hold sequences of at least 4 M = {4 * num_landmarks} tokens, below "
            f"which attention stays exact, got at most {longest}."
        )
    layers = [
        sums[x.name].survey() if x.reason is None else LayerSurvey(x.name, x.num_heads, x.reason)
        for x in found
    ]
    return [
        replace(layer, swapped=fidelity(model, batches, [layer.best().choice], exact))
        if layer.reason is None
        else layer
        for layer in tqdm(layers, "Swapping one layer at a time")
    ]


def exact_states(model: PreTrainedModel, batches: Sequence[Batch]) -> list[Tensor]:
    """The last hidden states for each batch under exact attention."""
    with _running(model, exact_attention_forward):
        return [last_hidden(model, batch) for batch in batches]


def fidelity(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    choices: Sequence[LayerChoice],
    exact: Sequence[Tensor],
) -> Fidelity:
    """The model with these layers swapped, the others exact, against `exact`, its last hidden
    states for each batch under exact attention. The model is not changed."""
    names = {module: base_name(model, name) for name, module in model.named_modules()}
    by_name = {choice.name: choice for choice in choices if choice.attention != "exact"}

    def planned(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any
    ) -> tuple[Tensor, Tensor | None]:
        choice = by_name.get(names[module])
        if choice is None:
            return exact_attention_forward(module, query, key, value, *args, **kw)
        key, value = repeated(query, key), repeated(query, value)
        mask, scaling = key_mask(args[0], len(query)), kw.get("scaling")
        taps = None if choice.conv_taps is None else query.new_tensor(choice.conv_taps)
        output = attend(choice, query, key, value, mask, scaling, taps)
        return output.transpose(1, 2).contiguous(), None

    with _running(model, planned):
        return measure([last_hidden(model, batch) for batch in batches], exact)


def measure(hidden: Sequence[Tensor], exact: Sequence[Tensor]) -> Fidelity:
    """Last hidden states [B, N, E], zero at padding, against those under exact attention."""
    pairs = list(zip(hidden, exact, strict=True))
    off = sum(float((h - w).square().sum()) for h, w in pairs)
    total = sum(float(w.square().sum()) for _, w in pairs)
    cosines = torch.cat([F.cosine_similarity(h.sum(1), w.sum(1)) for h, w in pairs])
    return Fidelity(float(cosines.mean()), float(cosines.min()), (off / total) ** 0.5)


@torch.no_grad()
def last_hidden(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The base model's last hidden states, float32 [B, N, E], zero at padding."""
    inputs = {key: x for key, x in batch.items() if key != "labels"}
    hidden = model.base_model(**inputs)[0].float()
    mask = batch.get("attention_mask")
    if mask is None or mask.shape != hidden.shape[:2]:
        return hidden
    return hidden * mask[..., None]


@contextmanager
def _running(model: PreTrainedModel, function: Callable) -> Iterator[None]:
    """The model in evaluation mode with `function` for its attention."""
    training = model.training
    try:
        with intercepted(model.eval(), function):
            yield
    finally:
        model.train(training)


class _Sums:
    """Of one layer over all batches: what its errors and its best taps can be computed from."""

    def __init__(self, name: str, num_heads: int, num_landmarks: int) -> None:
        plain = LayerChoice(name, num_landmarks=num_landmarks, num_heads=num_heads)
        self.choices = [replace(plain, landmarks=x, ridge=ridge) for x, ridge in SCHEMES]
        self.by_landmarks = {choice.landmarks: choice for choice in self.choices}
        self.num_heads, self.count, self.longest, self.head_dim = num_heads, 0, 0, 0
        zeros = torch.zeros(num_heads, KERNEL, KERNEL, dtype=torch.float64)
        self.gram, self.power = zeros, zeros[:, 0, 0]  # Σ SᵀS, Σ ‖exact‖²
        self.cross = [zeros[:, 0] for _ in SCHEMES]  # Σ Sᵀr
        self.squares = [self.power for _ in SCHEMES]  # Σ ‖r‖²

    @torch.no_grad()
    def add(
        self, query: Tensor, key: Tensor, value: Tensor, output: Tensor, mask: Any, kwargs: Any
    ) -> None:
        batch, _, n, self.head_dim = query.shape
        real = key_mask(mask, batch)
        real = torch.ones(batch, n, dtype=torch.bool, device=query.device) if real is None else real
        lengths = real.sum(1)
        self.longest = max(self.longest, int(lengths.max()))
        key, value = repeated(query, key), repeated(query, value)
        for i in (lengths >= self.choices[0].exact_below).nonzero()[:, 0].tolist():
            used = real[i]
            q, k, v, y = (x[i : i + 1][:, :, used].float() for x in (query, key, value, output))
            self.count += 1
            self.power = self.power + y.double().square().sum((0, 2, 3)).cpu()
            shifted = F.pad(v, (0, 0, KERNEL // 2, KERNEL // 2)).unfold(2, KERNEL, 1)[0]
            shifted = shifted.flatten(1, 2)  # [H, N D, K]
            self.gram = self.gram + (shifted.mT @ shifted).double().cpu()
            landmarks = {x: landmarks_of(c, q, k, None) for x, c in self.by_landmarks.items()}
            for j, choice in enumerate(self.choices):
                nystrom = nystrom_attention(
                    q,
                    k,
                    v,
                    num_landmarks=choice.num_landmarks,
                    scale=kwargs.get("scaling"),
                    landmarks=landmarks[choice.landmarks],
                    pinv_ridge=choice.ridge,
                )
                r = (y - nystrom)[0].flatten(1)
                self.cross[j] = self.cross[j] + (r[:, None] @ shifted)[:, 0].double().cpu()
                self.squares[j] = self.squares[j] + r.double().square().sum(1).cpu()

    def survey(self) -> LayerSurvey:
        diagonal = self.gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        gram = self.gram + 1e-3 * diagonal * torch.eye(KERNEL, dtype=torch.float64)
        schemes = []
        for choice, cross, squares in zip(self.choices, self.cross, self.squares, strict=True):
            taps = torch.linalg.solve(gram, cross)
            left = squares - 2 * (taps * cross).sum(1)
            left = left + (taps * (self.gram @ taps[..., None])[..., 0]).sum(1)
            rounded = tuple(tuple(float(f"{x:.4g}") for x in row) for row in taps.tolist())
            fitted = replace(choice, conv_kernel_size=KERNEL, conv_taps=rounded)
            schemes.append(Scheme(fitted, tuple(left.clamp(min=0).tolist())))
        plain = float((self.squares[0].sum() / self.power.sum()).sqrt())
        name = self.choices[0].name
        sizes = (name, self.num_heads, None, self.head_dim)
        return LayerSurvey(*sizes, tuple(self.power.tolist()), plain, tuple(schemes))
