"""Inputs and tolerances that the tests of every backend share."""

import importlib.util
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

import oracle
from nystromer.backends import native

BACKENDS = ("eager", "blocked")
if native.unsupported(*[torch.empty(1, 1, 1, 1)] * 3, 1) is None:  # its library was built
    BACKENDS += ("native",)
if importlib.util.find_spec("triton"):  # under its interpreter, see conftest.py
    BACKENDS += ("triton",)

# Relative error of an output against the float64 oracle; gradients get three times as much.
# float32: a few hundred roundings of 6e-8; half precision: inputs and output rounded once, the
# rest in float32.
TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 1e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 2e-2,
}

# What two computations of the same differ by: some roundings.
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-6}


def dtypes(backend):
    """What a backend takes, the most digits first."""
    return native.DTYPES if backend == "native" else tuple(TOLERANCE)


def widest(backend):
    return dtypes(backend)[0]


@dataclass(frozen=True)
class Case:
    """Sizes of one call; `masks` is None, "right", "left", "holes" or "short" (some L <= M)."""

    n: int
    m: int
    n_k: int | None = None
    batch: int = 2
    heads: int = 2
    dim: int = 16
    value_dim: int = 16
    kernel: int | None = None
    masks: str | None = None
    own_query_mask: bool = False
    given_landmarks: bool = False
    settings: dict = field(default_factory=dict)

    def __str__(self):
        parts = [f"N{self.n}", f"M{self.m}"]
        parts += [f"Nk{self.n_k}"] if self.n_k else []
        parts += [f"K{self.kernel}"] if self.kernel else []
        parts += [self.masks] if self.masks else []
        parts += ["own-query-mask"] if self.own_query_mask else []
        parts += ["landmarks"] if self.given_landmarks else []
        return "-".join(parts + [f"{k}={v}" for k, v in self.settings.items()])


CASES = [
    Case(n=1, m=1),
    Case(n=63, m=1, kernel=3),
    Case(n=64, m=16, kernel=33, dim=7, value_dim=5),
    Case(n=100, m=64, kernel=65),
    Case(n=111, m=13, kernel=1, heads=1, dim=1),
    Case(n=40, m=40, kernel=5),
    Case(n=30, m=64, kernel=5),
    Case(n=1000, m=32, kernel=33, batch=1, dim=24, value_dim=40),
    Case(n=131, m=16, kernel=7, batch=4, masks="right"),
    Case(n=131, m=16, kernel=33, batch=4, masks="left"),
    Case(n=131, m=16, kernel=7, batch=4, masks="holes"),
    Case(n=70, m=32, kernel=7, batch=5, masks="short"),
    Case(n=131, m=16, batch=3, masks="holes", settings={"pinv_init": "sequence"}),
    Case(
        n=131, m=16, batch=3, masks="short", settings={"pinv_init": "batch", "pinv_iterations": 1}
    ),
    Case(n=90, m=16, settings={"pinv_iterations": 2, "scale": 0.7}),
    Case(n=131, m=16, batch=3, kernel=7, masks="holes", settings={"pinv_ridge": 1e-2}),
    Case(n=131, n_k=70, m=16),
    Case(n=70, n_k=131, m=16, batch=5, masks="short"),
    Case(n=131, n_k=70, m=16, batch=5, masks="holes"),
    Case(n=70, m=16, batch=5, kernel=7, masks="short", own_query_mask=True),
    Case(n=10, n_k=131, m=16),
    Case(n=131, n_k=10, m=16),
    Case(n=131, m=16, kernel=7, given_landmarks=True),
    Case(n=70, m=24, batch=5, masks="short", given_landmarks=True),
]

# Triton's interpreter takes a second or more for each: all of them in float64, these in all dtypes.
FEW_CASES = [
    Case(n=64, m=16, kernel=33, dim=7, value_dim=5),
    Case(n=70, m=32, kernel=7, batch=5, masks="short"),
    Case(n=70, n_k=50, m=40, dim=20, heads=1, masks="holes"),
]


def combinations():
    """(backend, dtype, case) of the tests against float64."""
    for backend in BACKENDS:
        for dtype in dtypes(backend):
            few = backend == "triton" and dtype != torch.float64
            for case in FEW_CASES if few else CASES:
                yield backend, dtype, case


def make_mask(kind, batch, n, m, generator):
    if kind is None:
        return None
    position = torch.arange(n)
    length = torch.randint(m + 1, n + 1, (batch, 1), generator=generator)
    if kind == "right":
        return position < length
    if kind == "left":
        return position >= n - length
    if kind == "short":  # L = N, 0, 1, M and M + 1, with holes
        lengths = torch.tensor([n, 0, 1, m, m + 1])[:batch]
        ranks = torch.rand(batch, n, generator=generator).argsort(1).argsort(1)
        return ranks < lengths[:, None]
    mask = torch.rand(batch, n, generator=generator) < 0.7
    mask[:, 0] = mask[0] = True
    return mask


def make_inputs(case, dtype=torch.float64, seed=0):
    """(query, key, value) and the keyword arguments of one call."""
    g = torch.Generator().manual_seed(seed)
    n_k = case.n_k or case.n
    own_query_mask = n_k != case.n or case.own_query_mask

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    tensors = (
        draw(case.batch, case.heads, case.n, case.dim),
        draw(case.batch, case.heads, n_k, case.dim),
        draw(case.batch, case.heads, n_k, case.value_dim),
    )
    mask = make_mask(case.masks, case.batch, n_k, case.m, g)
    query_mask = make_mask(case.masks, case.batch, case.n, case.m, g) if own_query_mask else None
    given = None
    if case.given_landmarks:
        shape = (case.batch, case.heads, case.m, case.dim)
        given = (draw(*shape), draw(*shape))
    return tensors, {
        "num_landmarks": case.m,
        "mask": mask,
        "query_mask": query_mask.roll(2, 0) if query_mask is not None else None,
        "conv_weight": draw(case.heads, case.kernel) / 4 if case.kernel else None,
        "landmarks": given,
        **case.settings,
    }


def from_oracle(tensors, options):
    """The oracle's float64 output for what `make_inputs` gave."""

    def array(x):
        return None if x is None else x.detach().cpu().to(torch.float64).numpy()

    def flag(x):
        return None if x is None else x.numpy()

    given = options["landmarks"]
    expected = oracle.nystrom_attention(
        *map(array, tensors),
        options["num_landmarks"],
        options.get("scale", tensors[0].shape[-1] ** -0.5),
        options.get("pinv_iterations", 6),
        options.get("pinv_init", "matrix"),
        options.get("pinv_ridge"),
        mask=flag(options["mask"]),
        query_mask=flag(options["query_mask"]),
        conv_weight=array(options["conv_weight"]),
        landmarks=None if given is None else [array(x) for x in given],
    )
    return torch.from_numpy(np.asarray(expected))


def relative_error(got, expected):
    got, expected = got.detach().double(), expected.detach().double()
    return float((got - expected).norm() / expected.norm().clamp(min=1e-300))


def assert_close(got, expected, tolerance, what="output"):
    assert got.shape == expected.shape
    assert torch.isfinite(got).all(), f"{what} is not finite"
    if expected.norm() == 0:
        assert got.abs().max() <= tolerance, what
    else:
        error = relative_error(got, expected)
        assert error <= tolerance, f"{what}: relative error {error:.1e}"


backends = pytest.mark.parametrize("backend", BACKENDS)


def backends_with(*chosen):
    """Every backend with those of the dtypes that it takes."""
    found = [(b, dtype) for b in BACKENDS for dtype in chosen if dtype in dtypes(b)]
    return pytest.mark.parametrize(("backend", "dtype"), found, ids=str)
