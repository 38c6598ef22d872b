"""The forward of clustered attention as one call into the C++ library; the backward is blocked's.

backends/native/source/clusters.h and clustered.h hold the work. It computes in float32, for
bfloat16 inputs too.
"""

# No `from __future__ import annotations` here: torch reads the signature of the operation.
import torch
from torch import Tensor

from nystromer.backends.native import library
from nystromer.clustered.budget import Budget
from nystromer.clustered.operation import backward_of, results_of
from nystromer.registration import operation


def forward(
    query: Tensor, key: Tensor, value: Tensor, *, budget: Budget, mask: Tensor | None, scale: float
) -> Tensor:
    return native_clustered_forward(query, key, value, mask, *budget, scale)[0]


@operation("native_clustered_forward")
def native_clustered_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    query_clusters: int,
    key_clusters: int,
    exact_keys: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Computes what `clustered_forward` does."""
    results = results_of(query, value, query_clusters, key_clusters, exact_keys)
    output, query_places, key_places, exact = results
    call = library.Call()
    call.batch, call.heads, call.queries, call.dim = query.shape
    call.keys, call.value_dim = value.shape[2:]
    call.landmarks = key_clusters + exact_keys
    call.query_clusters, call.exact_keys = exact.shape[2:]
    call.key_clusters = min(key_clusters, query.shape[2])
    call.threads, call.scale = torch.get_num_threads(), scale
    call.bfloat16 = query.dtype == torch.bfloat16
    call.key_mask = library.mask(mask)
    call.query, call.key, call.value, call.output = map(library.tensor, (query, key, value, output))
    call.query_places, call.key_places, call.exact = (
        x.data_ptr() for x in (query_places, key_places, exact)
    )
    library.run("clustered_forward", call)
    return results


backward_of("native_clustered_forward")
