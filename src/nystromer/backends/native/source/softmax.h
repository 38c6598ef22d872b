// Softmax over the columns of a table, in powers of two: logits are already times log2(e).
#pragma once
#include "products.h"

namespace {

constexpr float LOG2_E = 1.44269504088896340736f;
constexpr float NONE = -3.0e38f;  // below every logit, but finite

// What is beyond the last column counts for nothing.
inline void hide_rest(const Table& logits, int64_t row, float value) {
    for (int64_t c = logits.columns; c % LANES; ++c) *logits.at(row, c) = value;
}

inline void softmax_rows(const Table& x) {
    for (int64_t row = 0; row < x.rows; ++row) {
        hide_rest(x, row, NONE);
        Vec tops = splat(NONE), sums{};
        for_row(x, row, [&](int64_t i) { tops = larger(load(x.data + i), tops); });
        const Vec top = splat(largest(tops));
        for_row(x, row, [&](int64_t i) {
            const Vec weight = exp2(load(x.data + i) - top);
            sums += weight;
            store(x.data + i, weight);
        });
        const Vec share = splat(1 / sum(sums));
        for_row(x, row, [&](int64_t i) { store(x.data + i, load(x.data + i) * share); });
    }
}

// grad = weights * (grad - sum of weights * grad over the row): the gradient of the logits.
inline void softmax_rows_backward(const Table& weights, const Table& grad) {
    for (int64_t row = 0; row < grad.rows; ++row) {
        Vec sums{};
        for_row(grad, row, [&](int64_t i) {
            const Vec product = load(weights.data + i) * load(grad.data + i);
            sums += product;
            store(grad.data + i, product);
        });
        const Vec total = splat(sum(sums));
        for_row(grad, row, [&](int64_t i) {
            store(grad.data + i, load(grad.data + i) - total * load(weights.data + i));
        });
    }
}

}  // namespace
