// What landmarks gather: kernel_3 V with kernel_3 = softmax(s Q~ K^T) [M, N], and its gradients.
//
// A tile of keys has a row of logits for every token and a column for every landmark; each landmark
// keeps its largest logit, the mass (sum of weights) and the weighted sum of values up to it.
#pragma once
#include <cmath>

#include "convolution.h"
#include "landmarks.h"
#include "softmax.h"

namespace {

// logits -> weights = 2^(logits - top), with top, mass and total brought up to this tile.
inline void add_tile(const Table& logits, float* top, float* mass, const Table& total) {
    for (int64_t m = 0; m < logits.columns; m += LANES) {
        float* column = logits.at(0, m);
        const Vec before = load(top + m);
        Vec now = before, sums{};
        for (int64_t r = 0; r < logits.rows; ++r) now = larger(load(column + r * PANEL), now);
        for (int64_t r = 0; r < logits.rows; ++r) {
            const Vec weight = exp2(load(column + r * PANEL) - now);
            sums += weight;
            store(column + r * PANEL, weight);
        }
        const Vec shrink = exp2(before - now);
        store(top + m, now);
        store(mass + m, load(mass + m) * shrink + sums);
        for (int64_t i = m; i < smaller(m + LANES, logits.columns); ++i) {
            const float factor = shrink[i - m];
            if (factor == 1) continue;
            for_row(total, i, [&](int64_t o) { store(total.data + o, factor * load(total.data + o)); });
        }
    }
}

// A task a chunk of keys.
void gather(const Job& job, int64_t task, Arena& arena) {
    const Call& call = job.call;
    const int64_t bh = task / job.key_chunks, dim = call.dim, value_dim = call.value_dim;
    const Pair& pair = job.pairs[bh / call.heads];
    const Chunk chunk = chunk_of(task, job.key_chunks, pair.keys, bh);
    if (pair.empty() || pair.few_keys() || chunk.first == chunk.stop) return;
    const int64_t m = pair.width(), lanes = up_to(LANES, m);
    const Head key = head_of(job, call.key, dim, call.keys, bh);
    const Head value = head_of(job, call.value, value_dim, call.keys, bh);
    const float* q_tilde = call.q_tilde + bh * call.landmarks * dim;
    const Table exponents =
        as_transposed_table(arena, q_tilde, m, dim, float(call.scale) * LOG2_E);
    const Table k_room = make_table(arena, TILE, dim), v_room = make_table(arena, TILE, value_dim);
    const Table logits_room = make_table(arena, TILE, m), total = make_table(arena, m, value_dim);
    float *top = arena.take<float>(lanes), *mass = arena.take<float>(lanes);
    for (int64_t i = 0; i < lanes; ++i) top[i] = NONE, mass[i] = 0;
    fill(total, 0);
    for (int64_t i = chunk.first; i < chunk.stop; i += TILE) {
        const int64_t rows = smaller(TILE, chunk.stop - i);
        const Table k{k_room.data, rows, dim}, v{v_room.data, rows, value_dim};
        const Table logits{logits_room.data, rows, m};
        read(key, pair.keys, i, k);
        read(value, pair.keys, i, v);
        multiply(as_is(k), exponents, logits);
        add_tile(logits, top, mass, total);
        add_product(transposed(logits), v, total);
    }
    const Partial& part = job.of_keys[task];
    write_matrix(total, part.context);
    std::memcpy(part.top, top, size_t(m) * sizeof(float));
    std::memcpy(part.mass, mass, size_t(m) * sizeof(float));
}

// gathered and log2_mass of a head, of what its chunks found.
inline void merge(const Job& job, int64_t bh) {
    const Call& call = job.call;
    const Pair& pair = job.pairs[bh / call.heads];
    const Partial* parts = job.of_keys + bh * job.key_chunks;
    const int64_t chunks = pair.keys.chunks(), dim = call.value_dim;
    for (int64_t m = 0; m < pair.width(); ++m) {
        float top = NONE, mass = 0;
        for (int64_t c = 0; c < chunks; ++c) top = parts[c].top[m] > top ? parts[c].top[m] : top;
        float* gathered = call.gathered + (bh * call.landmarks + m) * dim;
        for (int64_t i = 0; i < dim; ++i) gathered[i] = 0;
        for (int64_t c = 0; c < chunks; ++c) {
            const float factor = std::exp2(parts[c].top[m] - top);
            mass += factor * parts[c].mass[m];
            for (int64_t i = 0; i < dim; ++i) gathered[i] += factor * parts[c].context[m * dim + i];
        }
        for (int64_t i = 0; i < dim; ++i) gathered[i] /= mass;
        call.log2_mass[bh * call.landmarks + m] = top + std::log2(mass);
    }
}

// weights = 2^(logits - log2_mass); grad = weights * (grad - bias), the gradient of the logits.
inline void weights_and_gradient(const Table& logits, const float* log2_mass, const Table& grad,
                                 const float* bias) {
    for (int64_t m = 0; m < logits.columns; m += LANES) {
        float *column = logits.at(0, m), *grad_column = grad.at(0, m);
        const Vec mass = load(log2_mass + m), shift = load(bias + m);
        for (int64_t r = 0; r < logits.rows * PANEL; r += PANEL) {
            const Vec weight = exp2(load(column + r) - mass);
            store(column + r, weight);
            store(grad_column + r, weight * (load(grad_column + r) - shift));
        }
    }
}

// Keys and values that are their own landmarks.
inline void copy_landmark_gradients(const Job& job, const Chunk& chunk, int64_t first,
                                    const Table& grad_k, const Table& grad_v) {
    const int64_t at = chunk.bh * job.call.landmarks + first;
    float* grad_k_tilde = job.call.grad_k_tilde + at * grad_k.columns;
    read_matrix(grad_k_tilde, grad_k);
    read_matrix(job.grad_context + at * grad_v.columns, grad_v);
    std::memset(grad_k_tilde, 0, size_t(grad_k.rows * grad_k.columns) * sizeof(float));
}

// A task a chunk of keys: gradients of keys and values, with the convolution's, and of Q~ and taps.
void gather_backward(const Job& job, int64_t task, Arena& arena) {
    const Call& call = job.call;
    const int64_t bh = task / job.key_chunks, dim = call.dim, value_dim = call.value_dim;
    const Pair& pair = job.pairs[bh / call.heads];
    const Chunk chunk = chunk_of(task, job.key_chunks, pair.keys, bh);
    const Head key = head_of(job, call.key, dim, call.keys, bh);
    const Head value = head_of(job, call.value, value_dim, call.keys, bh);
    const Head grad_key = head_of(job, call.grad_key, dim, call.keys, bh);
    const Head grad_value = head_of(job, call.grad_value, value_dim, call.keys, bh);
    if (pair.empty() && chunk.index == 0) {
        write_only_zeros(grad_key);
        write_only_zeros(grad_value);
    }
    if (pair.empty() || chunk.first == chunk.stop) return;
    const Partial& part = job.of_keys[task];
    const int64_t m = pair.width(), at = bh * call.landmarks, lanes = up_to(LANES, m);
    const float* q_tilde = call.q_tilde + at * dim;
    const float* gathered = call.gathered + at * value_dim;
    const float* grad = job.grad_gathered + at * value_dim;
    const float scale = float(call.scale);

    const Table exponents = as_transposed_table(arena, q_tilde, m, dim, scale * LOG2_E);
    const Table landmarks = as_table(arena, q_tilde, m, dim, scale);
    const Table grad_gathered = as_table(arena, grad, m, value_dim);
    const Table grad_gathered_t = as_transposed_table(arena, grad, m, value_dim);
    const Table grad_landmarks = make_table(arena, m, dim);
    fill(grad_landmarks, 0);
    float *bias = arena.take<float>(lanes), *log2_mass = arena.take<float>(lanes);
    for (int64_t i = 0; i < lanes; ++i) {
        bias[i] = 0;
        for (int64_t c = 0; i < m && c < value_dim; ++c) {
            bias[i] += grad[i * value_dim + c] * gathered[i * value_dim + c];
        }
        log2_mass[i] = i < m ? call.log2_mass[at + i] : 0;
    }
    const Convolution convolution = make_convolution(
        job, head_of(job, call.output, value_dim, call.queries, bh), pair.queries, bh, true, arena);
    for (int64_t t = 0; t < call.taps; ++t) part.taps[t] = 0;

    const Table k_room = make_table(arena, TILE, dim), v_room = make_table(arena, TILE, value_dim);
    const Table gk_room = make_table(arena, TILE, dim), gv_room = make_table(arena, TILE, value_dim);
    const Table weights_room = make_table(arena, TILE, m), logits_room = make_table(arena, TILE, m);
    for (int64_t i = chunk.first; i < chunk.stop; i += TILE) {
        const int64_t rows = smaller(TILE, chunk.stop - i);
        const Table k{k_room.data, rows, dim}, v{v_room.data, rows, value_dim};
        const Table grad_k{gk_room.data, rows, dim}, grad_v{gv_room.data, rows, value_dim};
        const Table weights{weights_room.data, rows, m}, grad_logits{logits_room.data, rows, m};
        read(value, pair.keys, i, v);
        if (pair.few_keys()) {
            copy_landmark_gradients(job, chunk, i, grad_k, grad_v);
        } else {
            read(key, pair.keys, i, k);
            multiply(as_is(k), exponents, weights);
            multiply(as_is(v), grad_gathered_t, grad_logits);
            weights_and_gradient(weights, log2_mass, grad_logits, bias);
            add_product(transposed(grad_logits), k, grad_landmarks);
            multiply(as_is(grad_logits), landmarks, grad_k);
            multiply(as_is(weights), grad_gathered, grad_v);
        }
        if (call.taps) convolve(convolution, pair.keys, i, grad_v, &v, part.taps);
        if (pair.nystrom() && !call.landmarks_given) {
            add_shares(grad_k, i, Segments(pair.keys.length, m), call.grad_k_tilde + at * dim);
        }
        write(grad_key, pair.keys, i, grad_k);
        write(grad_value, pair.keys, i, grad_v);
    }
    write_matrix(grad_landmarks, part.landmarks, scale);
}

// A task a head: the gradient of its taps, summed over sequences and chunks.
void sum_taps(const Job& job, int64_t h, Arena&) {
    const Call& call = job.call;
    float* grad = call.grad_conv_weight + h * call.taps;
    for (int64_t b = 0; b < call.batch; ++b) {
        if (job.pairs[b].empty()) continue;
        for (int64_t chunk = 0; chunk < job.pairs[b].keys.chunks(); ++chunk) {
            const int64_t task = (b * call.heads + h) * job.key_chunks + chunk;
            const float* last_first = job.of_keys[task].taps;
            for (int64_t t = 0; t < call.taps; ++t) grad[t] += last_first[call.taps - 1 - t];
        }
    }
}

}  // namespace
