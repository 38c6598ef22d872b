// What queries read: kernel_1 context with kernel_1 = softmax(s Q K~^T) [N, M], plus the convolution
// of the values, and the gradients of kernel_1 context.
#pragma once
#include "convolution.h"
#include "landmarks.h"
#include "softmax.h"

namespace {

// A task a chunk of queries.
void scatter(const Job& job, int64_t task, Arena& arena) {
    const Call& call = job.call;
    const int64_t bh = task / job.query_chunks, dim = call.dim, value_dim = call.value_dim;
    const Pair& pair = job.pairs[bh / call.heads];
    const Chunk chunk = chunk_of(task, job.query_chunks, pair.queries, bh);
    const Head query = head_of(job, call.query, dim, call.queries, bh);
    const Head output = head_of(job, call.output, value_dim, call.queries, bh);
    if (pair.empty() && chunk.index == 0) write_only_zeros(output);
    if (pair.empty() || chunk.first == chunk.stop) return;
    const int64_t m = pair.width(), at = bh * call.landmarks;
    const float* k_tilde = call.k_tilde + at * dim;
    const float* gathered = call.gathered + at * value_dim;
    const Table exponents = as_transposed_table(arena, k_tilde, m, dim, float(call.scale) * LOG2_E);
    const Table context = as_table(arena, call.context + at * value_dim, m, value_dim);
    const Convolution convolution = make_convolution(
        job, head_of(job, call.value, value_dim, call.keys, bh), pair.keys, bh, false, arena);
    const Table q_room = make_table(arena, TILE, dim), weights_room = make_table(arena, TILE, m);
    const Table out_room = make_table(arena, TILE, value_dim);
    for (int64_t i = chunk.first; i < chunk.stop; i += TILE) {
        const int64_t rows = smaller(TILE, chunk.stop - i);
        const Table q{q_room.data, rows, dim}, weights{weights_room.data, rows, m};
        const Table out{out_room.data, rows, value_dim};
        if (pair.few_queries()) {
            read_matrix(gathered + i * value_dim, out);
        } else {
            read(query, pair.queries, i, q);
            multiply(as_is(q), exponents, weights);
            softmax_rows(weights);
            multiply(as_is(weights), context, out);
        }
        if (call.taps) convolve(convolution, pair.queries, i, out);
        write(output, pair.queries, i, out);
    }
}

// A task a chunk of queries: their gradients, but for their part in Q~, and those of K~ and context.
void scatter_backward(const Job& job, int64_t task, Arena& arena) {
    const Call& call = job.call;
    const int64_t bh = task / job.query_chunks, dim = call.dim, value_dim = call.value_dim;
    const Pair& pair = job.pairs[bh / call.heads];
    const Chunk chunk = chunk_of(task, job.query_chunks, pair.queries, bh);
    const Head query = head_of(job, call.query, dim, call.queries, bh);
    const Head grad_query = head_of(job, call.grad_query, dim, call.queries, bh);
    const Head grad_output = head_of(job, call.output, value_dim, call.queries, bh);
    if (pair.empty() && chunk.index == 0) write_only_zeros(grad_query);
    if (pair.empty() || chunk.first == chunk.stop) return;
    const int64_t m = pair.width(), at = bh * call.landmarks;
    if (pair.few_queries()) {
        float* to = job.grad_gathered + at * value_dim;
        copy_tokens(grad_output, pair.queries, chunk.first, chunk.stop, to, arena);
        return;
    }
    const float* k_tilde = call.k_tilde + at * dim;
    const float* context = call.context + at * value_dim;
    const float scale = float(call.scale);
    const Table exponents = as_transposed_table(arena, k_tilde, m, dim, scale * LOG2_E);
    const Table landmarks = as_table(arena, k_tilde, m, dim, scale);
    const Table context_t = as_transposed_table(arena, context, m, value_dim);
    const Table grad_landmarks = make_table(arena, m, dim);
    const Table grad_context = make_table(arena, m, value_dim);
    fill(grad_landmarks, 0);
    fill(grad_context, 0);
    const Table q_room = make_table(arena, TILE, dim), g_room = make_table(arena, TILE, value_dim);
    const Table weights_room = make_table(arena, TILE, m), logits_room = make_table(arena, TILE, m);
    const Table gq_room = make_table(arena, TILE, dim);
    for (int64_t i = chunk.first; i < chunk.stop; i += TILE) {
        const int64_t rows = smaller(TILE, chunk.stop - i);
        const Table q{q_room.data, rows, dim}, g{g_room.data, rows, value_dim};
        const Table weights{weights_room.data, rows, m}, grad_logits{logits_room.data, rows, m};
        const Table grad_q{gq_room.data, rows, dim};
        read(query, pair.queries, i, q);
        read(grad_output, pair.queries, i, g);
        multiply(as_is(q), exponents, weights);
        softmax_rows(weights);
        add_product(transposed(weights), g, grad_context);
        multiply(as_is(g), context_t, grad_logits);
        softmax_rows_backward(weights, grad_logits);
        add_product(transposed(grad_logits), q, grad_landmarks);
        multiply(as_is(grad_logits), landmarks, grad_q);
        write(grad_query, pair.queries, i, grad_q);
    }
    write_matrix(grad_landmarks, job.of_queries[task].landmarks, scale);
    write_matrix(grad_context, job.of_queries[task].context);
}

// The gradients of context and K~ of a head, summed over its chunks of queries.
inline void merge_backward(const Job& job, int64_t bh) {
    const Call& call = job.call;
    const Pair& pair = job.pairs[bh / call.heads];
    const int64_t at = bh * call.landmarks;
    float* grad_context = job.grad_context + at * call.value_dim;
    float* grad_k_tilde = call.grad_k_tilde + at * call.dim;
    std::memset(grad_context, 0, size_t(pair.width() * call.value_dim) * sizeof(float));
    for (int64_t chunk = 0; chunk < pair.queries.chunks(); ++chunk) {
        const Partial& part = job.of_queries[bh * job.query_chunks + chunk];
        for (int64_t i = 0; i < pair.width() * call.value_dim; ++i) grad_context[i] += part.context[i];
        for (int64_t i = 0; i < pair.width() * call.dim; ++i) grad_k_tilde[i] += part.landmarks[i];
    }
}

}  // namespace
