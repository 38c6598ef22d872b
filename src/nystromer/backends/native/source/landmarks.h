// Landmarks: means of M contiguous segments of a sequence's real tokens (eq. 16), and their gradient.
//
// With L tokens and s = L / M, the first (s + 1) M - L segments hold s tokens, the others s + 1. Where
// a sequence has at most M tokens, they are their own landmarks.
#pragma once
#include "tokens.h"

namespace {

struct Segments {
    int64_t size, shorts;

    Segments(int64_t length, int64_t m) : size(length / m), shorts((size + 1) * m - length) {}
    int64_t first(int64_t m) const {
        return m < shorts ? m * size : shorts * size + (m - shorts) * (size + 1);
    }
    int64_t count(int64_t m) const { return m < shorts ? size : size + 1; }
    int64_t of(int64_t rank) const {
        return rank < shorts * size ? rank / size : shorts + (rank - shorts * size) / (size + 1);
    }
};

// The sum of all rows of a tile, added to a row.
inline void add_rows(const Table& tile, const Table& total) {
    for (int64_t c = 0; c < tile.columns; c += LANES) {
        Vec even{}, odd{};
        const float* from = tile.at(0, c);
        int64_t r = 0;
        for (; r + 1 < tile.rows; r += 2) {
            even += load(from + r * PANEL);
            odd += load(from + (r + 1) * PANEL);
        }
        if (r < tile.rows) even += load(from + r * PANEL);
        store(total.at(0, c), load(total.at(0, c)) + (even + odd));
    }
}

inline void copy_tokens(const Head& x, const Sequence& sequence, int64_t first, int64_t stop,
                        float* to, Arena& arena) {
    const Table tokens = make_table(arena, stop - first, x.dim);
    read(x, sequence, first, tokens);
    write_matrix(tokens, to + first * x.dim);
}

// Summed a tile at a time, so that no float sum has many terms.
inline void segment_means(const Head& x, const Sequence& sequence, int64_t m, int64_t first,
                          int64_t stop, float* to, Arena& arena) {
    const Segments segments(sequence.length, m);
    const Table total = make_table(arena, 1, x.dim), room = make_table(arena, TILE, x.dim);
    for (int64_t i = first; i < stop; ++i) {
        const int64_t start = segments.first(i), count = segments.count(i);
        fill(total, 0);
        for (int64_t done = 0; done < count; done += TILE) {
            const Table tile{room.data, smaller(TILE, count - done), x.dim};
            read(x, sequence, start + done, tile);
            add_rows(tile, total);
        }
        write_matrix(total, to + i * x.dim, 1 / float(count));
    }
}

// A task a group of landmarks.
void landmarks(const Job& job, int64_t task, Arena& arena) {
    const Call& call = job.call;
    const int64_t groups = (call.landmarks + GROUP - 1) / GROUP;
    const int64_t bh = task / groups, m = call.landmarks;
    const Pair& pair = job.pairs[bh / call.heads];
    if (pair.empty()) return;
    const int64_t first = smaller(task % groups * GROUP, pair.width());
    const int64_t stop = smaller(first + GROUP, pair.width());
    const Head query = head_of(job, call.query, call.dim, call.queries, bh);
    const Head key = head_of(job, call.key, call.dim, call.keys, bh);
    const Head value = head_of(job, call.value, call.value_dim, call.keys, bh);
    float* q_tilde = call.q_tilde + bh * m * call.dim;
    float* k_tilde = call.k_tilde + bh * m * call.dim;
    float* context = call.context + bh * m * call.value_dim;
    if (pair.few_keys()) {
        copy_tokens(key, pair.keys, first, stop, k_tilde, arena);
        copy_tokens(value, pair.keys, first, stop, context, arena);
    } else if (pair.few_queries()) {
        if (call.landmarks_given == QUERIES) return;
        copy_tokens(query, pair.queries, first, stop, q_tilde, arena);
    } else if (!call.landmarks_given) {
        segment_means(query, pair.queries, m, first, stop, q_tilde, arena);
        segment_means(key, pair.keys, m, first, stop, k_tilde, arena);
    }
}

// Adds to the gradients of tokens first ... their shares of the gradient of the means.
inline void add_shares(const Table& tokens, int64_t first, const Segments& segments,
                       const float* grad_means) {
    for (int64_t r = 0; r < tokens.rows; ++r) {
        const int64_t m = segments.of(first + r);
        const Vec share = splat(1 / float(segments.count(m)));
        const float* grad = grad_means + m * tokens.columns;
        for (int64_t c = 0; c < tokens.columns; c += LANES) {
            const Vec part = share * load_some(grad + c, tokens.columns - c);
            store(tokens.at(r, c), load(tokens.at(r, c)) + part);
        }
    }
}

// A task a group of landmarks: the gradient of its Q~ is summed over chunks of keys, and added to
// that of the queries.
void landmarks_backward(const Job& job, int64_t task, Arena& arena) {
    const Call& call = job.call;
    const int64_t groups = (call.landmarks + GROUP - 1) / GROUP;
    const int64_t bh = task / groups, m = call.landmarks, dim = call.dim;
    const Pair& pair = job.pairs[bh / call.heads];
    float* grad_q_tilde = call.grad_q_tilde + bh * m * dim;
    const Head grad_query = head_of(job, call.grad_query, dim, call.queries, bh);
    if (pair.empty() || pair.few_keys()) return;
    const int64_t first = smaller(task % groups * GROUP, pair.width());
    const int64_t stop = smaller(first + GROUP, pair.width());
    for (int64_t chunk = 0; chunk < pair.keys.chunks(); ++chunk) {
        const float* part = job.of_keys[bh * job.key_chunks + chunk].landmarks;
        for (int64_t i = first * dim; i < stop * dim; ++i) grad_q_tilde[i] += part[i];
    }
    if (pair.few_queries()) {
        if (call.landmarks_given == QUERIES) return;
        if (stop > first) {
            const Table rows = as_table(arena, grad_q_tilde + first * dim, stop - first, dim);
            write(grad_query, pair.queries, first, rows);
        }
        std::memset(grad_q_tilde + first * dim, 0, size_t((stop - first) * dim) * sizeof(float));
    } else if (!call.landmarks_given) {
        const Segments segments(pair.queries.length, m);
        const Table room = make_table(arena, TILE, dim);
        const int64_t end = segments.first(stop);
        for (int64_t i = segments.first(first); i < end; i += TILE) {
            const Table tile{room.data, smaller(TILE, end - i), dim};
            read(grad_query, pair.queries, i, tile);
            add_shares(tile, i, segments, grad_q_tilde);
            for (int64_t r = 0; r < tile.rows; ++r) {
                write_row(grad_query, pair.queries.position(i + r), tile, r);
            }
        }
    }
}

}  // namespace
