"""The two attentions of Nyström attention, and their gradients, a block of tokens at a time.

Both are softmax attention between a few landmarks and the many tokens of one sequence:
`gather` has M landmark queries over all keys (kernel_3 · V), `scatter` has all queries over M
landmark keys (kernel_1 · context). Tokens are [H, N, D], read through their `Sequence`; landmarks
are [H, M, D], already times the softmax scale. Probabilities live in scratch memory, and the
backward computes them again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nystromer.backends.blocked.convolution import Convolution, ConvolutionBackward
from nystromer.backends.blocked.sequences import Sequence, Workspace


def gather(
    landmarks: Tensor, key: Tensor, value: Tensor, sequence: Sequence, work: Workspace
) -> tuple[Tensor, Tensor]:
    """softmax(Q~ Kᵀ) V by a running maximum: ([H, M, Dv], the log of its row sums [H, M, 1])."""
    heads, m, _ = landmarks.shape
    total = landmarks.new_zeros(heads, m, value.shape[-1])
    mass = landmarks.new_zeros(heads, m, 1)
    top = landmarks.new_full((heads, m, 1), -torch.inf)
    for i, j in sequence.blocks(work.block):
        k = sequence.read(key, i, j, work, "key")
        v = sequence.read(value, i, j, work, "value")
        logits = torch.bmm(landmarks, k.mT, out=work("logits", heads, m, j - i))
        _hide(logits, sequence.holes(i, j), -torch.inf)
        new_top = torch.maximum(top, logits.amax(-1, keepdim=True))
        weights = logits.sub_(new_top).exp_()  # kernel_3, up to its row sums
        shrink = (top - new_top).exp_()
        mass.mul_(shrink).add_(weights.sum(-1, keepdim=True))
        total.mul_(shrink).baddbmm_(weights, v)
        top = new_top
    return total.div_(mass), top + mass.log()


def gather_backward(
    landmarks: Tensor,
    key: Tensor,
    value: Tensor,
    sequence: Sequence,
    gathered: Tensor,
    log_mass: Tensor,
    grad_gathered: Tensor,
    grad_key: Tensor,
    grad_value: Tensor,
    convolution: ConvolutionBackward | None,
    work: Workspace,
) -> Tensor:
    """Writes the gradients of key and value [with the convolution's]; returns the landmarks'."""
    heads, m, _ = landmarks.shape
    bias = (grad_gathered * gathered).sum(-1, keepdim=True)  # [H, M, 1]
    grad_landmarks = torch.zeros_like(landmarks)
    for i, j in sequence.blocks(work.block):
        k = sequence.read(key, i, j, work, "key")
        v = sequence.read(value, i, j, work, "value")
        weights = torch.bmm(landmarks, k.mT, out=work("logits", heads, m, j - i))
        weights.sub_(log_mass).exp_()  # kernel_3
        _hide(weights, sequence.holes(i, j), 0.0)
        grad_logits = torch.bmm(grad_gathered, v.mT, out=work("grad logits", heads, m, j - i))
        grad_logits.sub_(bias).mul_(weights)
        grad_landmarks.baddbmm_(grad_logits, k)
        grad_k = torch.bmm(grad_logits.mT, landmarks, out=work("grad key", *k.shape))
        sequence.write(grad_key, i, j, grad_k)
        if convolution is None:
            grad_v = torch.bmm(weights.mT, grad_gathered, out=work("grad value", *v.shape))
        else:
            grad_v = convolution.block(v, i, j).baddbmm_(weights.mT, grad_gathered)
        sequence.write(grad_value, i, j, grad_v)
    return grad_landmarks


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
    for i, j in sequence.blocks(work.block):
        q = sequence.read(query, i, j, work, "query")
        weights = _kernel_1(q, landmarks, work)
        if convolution is None:
            shape = (len(q), j - i, output.shape[-1])
            block = torch.bmm(weights, context, out=work("output", *shape))
        else:
            block = convolution.block(i, j).baddbmm_(weights, context)
        sequence.write(output, i, j, block)


def scatter_backward(
    query: Tensor,
    landmarks: Tensor,
    context: Tensor,
    sequence: Sequence,
    grad_output: Tensor,
    grad_query: Tensor,
    work: Workspace,
) -> tuple[Tensor, Tensor]:
    """Writes the gradient of query; returns those of the landmarks and of the context."""
    grad_landmarks, grad_context = torch.zeros_like(landmarks), torch.zeros_like(context)
    for i, j in sequence.blocks(work.block):
        q = sequence.read(query, i, j, work, "query")
        g = sequence.read(grad_output, i, j, work, "grad output")
        weights = _kernel_1(q, landmarks, work)
        grad_context.baddbmm_(weights.mT, g)
        grad_logits = torch.bmm(g, context.mT, out=work("grad logits", *weights.shape))
        grad_logits.mul_(weights)
        grad_logits.sub_(weights.mul_(grad_logits.sum(-1, keepdim=True)))
        grad_landmarks.baddbmm_(grad_logits.mT, q)
        grad_q = torch.bmm(grad_logits, landmarks, out=work("grad query", *q.shape))
        sequence.write(grad_query, i, j, grad_q)
    return grad_landmarks, grad_context


def _kernel_1(q: Tensor, landmarks: Tensor, work: Workspace) -> Tensor:
    shape = (*q.shape[:2], landmarks.shape[1])
    logits = torch.bmm(q, landmarks.mT, out=work("logits", *shape))
    return torch.softmax(logits, -1, out=work("weights", *shape))


def _hide(table: Tensor, hole: Tensor | None, value: float) -> None:
    if hole is not None:
        table.masked_fill_(hole, value)
