"""The attentions that are compared, by name: (x [B, N, E], mask [B, N], True at real tokens) ->
[B, N, E].

Those of others come from packages of their own. Padding changes no output, except for Reformer's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nystromer.backends.eager import convolution
from nystromer.modules import NystromAttention
from nystromer.recipes.lra.tasks import Task

EMBED_DIM, NUM_HEADS, HEAD_DIM = 64, 2, 32
CONV_KERNEL_SIZE = 35
RANDOM_FEATURES = 256  # of Performer, and Linformer's mixtures of keys, as in the paper's table
HASHES, BUCKET = 2, 64  # of Reformer

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Projected(nn.Module):
    """Puts projections around attend(query, key, value [B, H, N, D], mask) -> [B, H, N, D]."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        inner_dim = NUM_HEADS * HEAD_DIM
        self.projections = nn.ModuleList(nn.Linear(EMBED_DIM, inner_dim) for _ in range(3))
        self.out_proj = nn.Linear(inner_dim, EMBED_DIM)
        self.attend = attend

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            projection(x).unflatten(2, (NUM_HEADS, HEAD_DIM)).transpose(1, 2)
            for projection in self.projections
        )
        return self.out_proj(self.attend(q, k, v, mask).transpose(1, 2).flatten(2))


def exact(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Returns softmax attention, as torch computes it."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])


class Nystrom(NystromAttention):
    """Is the layer of this package, of the sizes of the others."""

    def __init__(self, num_landmarks: int) -> None:
        super().__init__(
            EMBED_DIM,
            NUM_HEADS,
            head_dim=HEAD_DIM,
            num_landmarks=num_landmarks,
            conv_kernel_size=CONV_KERNEL_SIZE,
        )


class Linear(nn.Module):
    """Computes efficient attention: softmax over the features of q and the tokens of k."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        linear_attn = package("linear_attention_transformer").linear_attn
        return linear_attn(q, k, v, kv_mask=mask)


class Performer(nn.Module):
    """Computes FAVOR+: random features whose products estimate exp(q kᵀ / sqrt(D)); drawn once.

    The package's own mask leaves padding in the sum that normalises; here padded keys have no
    features. They are replaced by a real one before, since the largest of them all is subtracted.
    """

    features: Tensor

    def __init__(self) -> None:
        super().__init__()
        draw = package("performer_pytorch").gaussian_orthogonal_random_matrix
        self.register_buffer("features", draw(RANDOM_FEATURES, HEAD_DIM))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        performer = package("performer_pytorch")
        real = mask[:, None, :, None]
        first = mask.long().argmax(1)[:, None, None, None].expand(-1, k.shape[1], 1, k.shape[3])
        k = torch.where(real, k, k.gather(2, first))
        with torch.autocast(q.device.type, enabled=False):
            q, k = (
                performer.softmax_kernel(
                    x.float(), projection_matrix=self.features, is_query=is_query
                )
                for x, is_query in ((q, True), (k, False))
            )
            return performer.linear_attention(q, k * real, v.float())


class Linformer(nn.Module):
    """Mixes keys and values over positions into 256 by learnt weights, which fix the length.

    The package has no mask: padded inputs are zeroed, and its projections have no bias, so that
    they add nothing to a mixture.
    """

    def __init__(self, max_length: int) -> None:
        super().__init__()
        layer = package("linformer").LinformerSelfAttention
        self.layer = layer(
            EMBED_DIM, max_length, k=RANDOM_FEATURES, heads=NUM_HEADS, dim_head=HEAD_DIM
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.layer(x * mask[..., None])


class Reformer(nn.Module):
    """Lets tokens of like hash attend to one another.

    Padding is not attended to but takes places in the sorted chunks, so that it does change
    outputs, as does the random draw of every call."""

    def __init__(self) -> None:
        super().__init__()
        layer = package("reformer_pytorch").LSHSelfAttention
        self.layer = layer(
            EMBED_DIM, heads=NUM_HEADS, dim_head=HEAD_DIM, n_hashes=HASHES, bucket_size=BUCKET
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n = x.shape[1]
        missing = -n % (2 * BUCKET)
        x, mask = F.pad(x, (0, 0, 0, missing)), F.pad(mask, (0, missing))
        return self.layer(x, input_mask=mask)[:, :n]


class Flare(nn.Module):
    """Computes FLARE: M learnt queries L of each head read all tokens, and all tokens read them.

    softmax(K Lᵀ) softmax(L Kᵀ) V, without a scale (arXiv:2508.12594). The projections of K and V
    are linear as those of the others; the paper's own are deeper.
    """

    def __init__(self, num_latents: int) -> None:
        super().__init__()
        inner_dim = NUM_HEADS * HEAD_DIM
        self.latents = nn.Parameter(0.1 * torch.randn(NUM_HEADS, num_latents, HEAD_DIM))
        self.projections = nn.ModuleList(nn.Linear(EMBED_DIM, inner_dim) for _ in range(2))
        self.out_proj = nn.Linear(inner_dim, EMBED_DIM)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        k, v = (
            projection(x).unflatten(2, (NUM_HEADS, HEAD_DIM)).transpose(1, 2)
            for projection in self.projections
        )
        latents = self.latents.to(k.dtype).expand(len(x), -1, -1, -1)
        read = F.scaled_dot_product_attention(latents, k, v, mask[:, None, None], scale=1.0)
        output = F.scaled_dot_product_attention(k, latents, read, scale=1.0)
        return self.out_proj(output.transpose(1, 2).flatten(2))


class Convolution(nn.Module):
    """Computes no attention, but the convolution that stands beside the Nyström one."""

    def __init__(self) -> None:
        super().__init__()
        inner_dim = NUM_HEADS * HEAD_DIM
        self.v_proj = nn.Linear(EMBED_DIM, inner_dim)
        self.out_proj = nn.Linear(inner_dim, EMBED_DIM)
        bound = CONV_KERNEL_SIZE**-0.5
        taps = torch.empty(NUM_HEADS, CONV_KERNEL_SIZE).uniform_(-bound, bound)
        self.taps = nn.Parameter(taps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        v = (self.v_proj(x) * mask[..., None]).unflatten(2, (NUM_HEADS, HEAD_DIM)).transpose(1, 2)
        output = convolution(v, self.taps.to(v.dtype))
        return self.out_proj(output.transpose(1, 2).flatten(2))


class Nothing(nn.Module):
    """Computes no attention: a token sees itself only, and the mean at the end sees all."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.zeros_like(x)


ATTENTIONS: dict[str, Callable[[Task, int], nn.Module]] = {
    "nystrom": lambda task, m: Nystrom(m),
    "exact": lambda task, m: Projected(exact),
    "linformer": lambda task, m: Linformer(task.max_length),
    "performer": lambda task, m: Projected(Performer()),
    "linear": lambda task, m: Projected(Linear()),
    "reformer": lambda task, m: Reformer(),
    "flare": lambda task, m: Flare(m),
    "convolution": lambda task, m: Convolution(),
    "none": lambda task, m: Nothing(),
}
PACKAGES = {
    "linformer": "linformer",
    "performer": "performer-pytorch",
    "linear": "linear-attention-transformer",
    "reformer": "reformer-pytorch",
}


def make_attention(name: str, task: Task, num_landmarks: int = 64) -> nn.Module:
    """Makes one layer of attention.

    Args:
        name: One of ATTENTIONS.
        num_landmarks: M, of Nyström attention, and of FLARE's latent queries.

    Raises:
        ValueError: If the name is not known.
        ImportError: If the package that it comes from is missing.
    """
    check_name(name)
    return ATTENTIONS[name](task, num_landmarks)


def check_name(name: str) -> None:
    """Checks the name of an attention.

    Raises:
        ValueError: If there is no such attention; it lists the known.
    """
    if name not in ATTENTIONS:
        known = ", ".join(ATTENTIONS)
        raise ValueError(f"`--attention` must be one of {known}, got {name!r}.")


def source(name: str) -> str:
    """Returns the package that an attention comes from, with its version."""
    package_name = PACKAGES.get(name, "torch" if name == "exact" else "nystromer")
    return f"{package_name} {version(package_name)}"


def package(name: str) -> Any:
    """Imports the package of an attention of others.

    Raises:
        ImportError: If it is missing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of distutils, in one of them
            return import_module(f"{name}.{name}")
    except ImportError as error:
        raise ImportError(
            f"This attention needs {name.replace('_', '-')}: pip install {name.replace('_', '-')}."
        ) from error
