"""The two attentions of Nyström attention, and their gradients, a block of tokens at a time.

Both are softmax attention between a few landmarks and the many tokens of one sequence:
`gather` has M landmark queries over all keys (kernel_3 · V), `scatter` has all queries over M
landmark keys (kernel_1 · context). Tokens are [H, N, D], read through their `Sequence`; landmarks
are [H, M, D], already times the softmax scale. Probabilities live in scratch memory, and the
backward computes them again. They are powers of two, of logits times log2(e): exp2 takes a fifth
of the time of exp on a CPU, and a fifteenth where results underflow.

For bfloat16 inputs all factors of products are bfloat16, landmarks included; logits, probabilities
and sums are float32 all the same.
"""

from __future__ import annotations

from math import e, log2

import torch
from torch import Tensor

from nystromer.backends.blocked.convolution import Convolution, ConvolutionBackward
from nystromer.backends.blocked.sequences import Sequence, Workspace
from nystromer.precision import centred

LOG2_E = log2(e)


def gather(
    landmarks: Tensor, key: Tensor, value: Tensor, sequence: Sequence, work: Workspace
) -> tuple[Tensor, Tensor]:
    """softmax(Q~ Kᵀ) V by a running maximum: ([H, M, Dv], log2 of its row sums [H, M, 1])."""
    heads, m, _ = landmarks.shape
    exponents = (landmarks * LOG2_E).to(work.factor_dtype)
    total = landmarks.new_zeros(heads, m, value.shape[-1])
    mass = landmarks.new_zeros(heads, m, 1)
    top = landmarks.new_full((heads, m, 1), -torch.inf)
    mean = sequence.rough_mean(value, work)
    for i, j in sequence.blocks(work.block):
        k = sequence.read(key, i, j, work, "key")
        v = sequence.read(value, i, j, work, "value")
        logits = work.logits(exponents, k.mT, "logits")
        _hide(logits, sequence.holes(i, j), -torch.inf)
        new_top = torch.maximum(top, logits.amax(-1, keepdim=True))
        weights = logits.sub_(new_top).exp2_()  # kernel_3, up to its row sums
        shrink = (top - new_top).exp2_()
        row_sums = weights.sum(-1, keepdim=True)
        mass.mul_(shrink).add_(row_sums)
        work.add_product(total.mul_(shrink), work.factor(weights, "weights"), v, row_sums * mean)
        top = new_top
    return total.div_(mass), top + mass.log2()


def gather_backward(
    landmarks: Tensor,
    key: Tensor,
    value: Tensor,
    sequence: Sequence,
    gathered: Tensor,
    log2_mass: Tensor,
    grad_gathered: Tensor,
    grad_key: Tensor,
    grad_value: Tensor,
    convolution: ConvolutionBackward | None,
    work: Workspace,
    mean: Tensor | None = None,
) -> Tensor:
    """Writes the gradients of key and value [with the convolution's]; returns the landmarks'.

    mean: roughly that of all keys, [H, 1, D], where `key` is only a part of them.
    """
    bias = (grad_gathered * gathered).sum(-1)[:, None]  # [H, 1, M]
    grad_landmarks = torch.zeros_like(landmarks)
    excess = landmarks.new_zeros(*landmarks.shape[:2], 1)  # of rounding, over a sum of zero
    mean = sequence.rough_mean(key, work) if mean is None else mean
    factors = (landmarks * LOG2_E, landmarks, grad_gathered)
    exponents, landmarks, grad_gathered = (x.to(work.factor_dtype) for x in factors)
    for i, j in sequence.blocks(work.block):
        k = sequence.read(key, i, j, work, "key")
        v = sequence.read(value, i, j, work, "value")
        logits = work.logits(k, exponents.mT, "logits", minus=log2_mass.mT)  # a row for every token
        weights = logits.exp2_()  # kernel_3, transposed
        _hide(weights.mT, sequence.holes(i, j), 0.0)
        grad_logits = work.grad_logits(v, grad_gathered.mT, bias, weights)
        work.add_product(grad_landmarks, grad_logits.mT, k)
        excess += grad_logits.sum(1, dtype=excess.dtype)[..., None]
        sequence.write(grad_key, i, j, work.product(grad_logits, landmarks, "grad key"))
        grad_v = work.product(work.factor(weights, "weights"), grad_gathered, "grad value")
        convolved = None if convolution is None else convolution.block(v, i, j)
        sequence.write(grad_value, i, j, grad_v, convolved)
    return grad_landmarks.sub_(excess * mean)


def scatter(
    query: Tensor,
    landmarks: Tensor,
    context: Tensor,
    sequence: Sequence,
    output: Tensor,
    convolution: Convolution | None,
    work: Workspace,
) -> None:
    """Writes softmax(Q K~ᵀ) · context [+ the convolution] to output. context: [H, M, Dv]."""
    factors = (centred(landmarks), context)
    landmarks, context = (x.to(work.factor_dtype) for x in factors)
    for i, j in sequence.blocks(work.block):
        q = sequence.read(query, i, j, work, "query")
        weights = work.factor(_kernel_1(q, landmarks, work), "weights factor")
        block = work.product(weights, context, "output")
        convolved = None if convolution is None else convolution.block(i, j)
        sequence.write(output, i, j, block, convolved)


def scatter_backward(
    query: Tensor,
    landmarks: Tensor,
    context: Tensor,
    sequence: Sequence,
    grad_output: Tensor,
    grad_query: Tensor,
    work: Workspace,
) -> tuple[Tensor, Tensor]:
    """Writes the gradient of query; returns those of the landmarks and of the context.

    What all contexts share changes this gradient no more than what all landmarks share.
    """
    grad_landmarks, grad_context = torch.zeros_like(landmarks), torch.zeros_like(context)
    factors = (centred(landmarks), centred(context))
    landmarks, context = (x.to(work.factor_dtype) for x in factors)
    for i, j in sequence.blocks(work.block):
        q = sequence.read(query, i, j, work, "query")
        g = sequence.read(grad_output, i, j, work, "grad output")
        weights = _kernel_1(q, landmarks, work)
        work.add_product(grad_context, work.factor(weights, "weights factor").mT, g)
        grad_weights = work.table(work.product(g, context.mT, "grad weights"), "grad weights table")
        grad_logits = work("logits", *weights.shape)
        torch.ops.aten._softmax_backward_data.out(
            grad_weights, weights, -1, weights.dtype, grad_input=grad_logits
        )
        grad_logits = work.factor(grad_logits, "grad logits")
        work.add_product(grad_landmarks, grad_logits.mT, q)
        sequence.write(grad_query, i, j, work.product(grad_logits, landmarks, "grad query"))
    return grad_landmarks, grad_context


def _kernel_1(q: Tensor, landmarks: Tensor, work: Workspace) -> Tensor:
    logits = work.logits(q, landmarks.mT, "logits")
    return torch.softmax(logits, -1, out=work("weights", *logits.shape))


def _hide(table: Tensor, hole: Tensor | None, value: float) -> None:
    if hole is not None:
        table.masked_fill_(hole, value)
