// The depthwise convolution of the values, sum_t taps[t] value[i + t - K / 2], and its gradients.
//
// Outputs of ROWS tokens in a row are a product: a band of taps [ROWS, ROWS + K - 1] times the window
// of values around them. The band is never built: its rows are the taps, each read one place later.
#pragma once
#include "tokens.h"

namespace {

struct Convolution {
    Head x;                    // what is convolved
    const Sequence& sequence;  // of it: zero elsewhere
    const float* band;         // taps between ROWS - 1 zeros
    int64_t taps;
    Table window;
};

// flip: the gradient of the input is the convolution of the output's with flipped taps.
inline Convolution make_convolution(const Job& job, const Head& x, const Sequence& sequence,
                                    int64_t bh, bool flip, Arena& arena) {
    const int64_t count = job.call.taps, size = count + 2 * (ROWS - 1);
    float* band = arena.take<float>(size);
    const float* taps = job.call.conv_weight + bh % job.call.heads * count;
    for (int64_t i = 0; i < size; ++i) band[i] = 0;
    for (int64_t t = 0; t < count; ++t) band[ROWS - 1 + t] = taps[flip ? count - 1 - t : t];
    return {x, sequence, band, count, make_table(arena, 2 * TILE + count - 1, x.dim)};
}

// Rank of the first real token at `position` or after it.
inline int64_t rank_from(const Sequence& sequence, int64_t position) {
    int64_t low = 0, high = sequence.length;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (sequence.position(middle) < position) low = middle + 1;
        else high = middle;
    }
    return low;
}

// Positions first ... of x, zero at padding and beyond the ends.
inline void read_window(const Convolution& conv, int64_t first) {
    fill(conv.window, 0);
    const int64_t stop = first + conv.window.rows;
    for (int64_t rank = rank_from(conv.sequence, first); rank < conv.sequence.length; ++rank) {
        const int64_t position = conv.sequence.position(rank);
        if (position >= stop) break;
        read_row(conv.x, position, conv.window, position - first);
    }
}

// taps_sums[t] += sum over tokens of <tokens[r], window[offset + r - first + t]>.
inline void add_taps_gradient(const Table& tokens, int64_t first, int64_t stop, const Table& window,
                              int64_t offset, int64_t taps, float* taps_sums) {
    constexpr int TOGETHER = 8;
    for (int64_t t = 0; t < taps; t += TOGETHER) {
        const int64_t count = smaller(TOGETHER, taps - t);
        Vec sums[TOGETHER] = {};
        for (int64_t column = 0; column < tokens.columns; column += LANES) {
            const float* x = tokens.at(first, column);
            const float* y = window.at(offset + t, column);
            for (int64_t r = first; r < stop; ++r, x += PANEL, y += PANEL) {
                const Vec token = load(x);
                if (count == TOGETHER) {
#pragma GCC unroll 8
                    for (int i = 0; i < TOGETHER; ++i) sums[i] += token * load(y + i * PANEL);
                } else {
                    for (int i = 0; i < count; ++i) sums[i] += token * load(y + i * PANEL);
                }
            }
        }
        for (int i = 0; i < count; ++i) taps_sums[t + i] += sum(sums[i]);
    }
}

// Adds the convolution at tokens first ... of `at`, the rows of `to`; if `tokens` [rows, columns] are
// given, the gradient of the taps, last first, is the sum of their products with what was read.
inline void convolve(const Convolution& conv, const Sequence& at, int64_t first, const Table& to,
                     const Table* tokens = nullptr, float* taps_sums = nullptr) {
    const Left band{conv.band, -1, 1, PANEL, 0};
    int64_t origin = 0, run = 0;
    for (int64_t r = 0; r < to.rows; r = run) {  // runs of neighbours, of which many share a window
        const int64_t position = at.position(first + r);
        run = r + 1;
        while (run < to.rows && at.position(first + run) == position + run - r) ++run;
        if (r == 0 || position + run - r > origin + 2 * TILE) {
            origin = position;
            read_window(conv, origin - conv.taps / 2);
        }
        const int64_t offset = position - origin;
        for (int64_t i = r; i < run; i += ROWS) {
            const int64_t count = smaller(ROWS, run - i);
            for (int64_t column = 0; column < to.columns; column += PANEL) {
                multiply_rows(count, count + conv.taps - 1, conv.band + ROWS - 1, band,
                              conv.window.at(offset + i - r, column), to.at(i, column),
                              smaller(PANEL, to.columns - column), 1, true);
            }
        }
        if (tokens) add_taps_gradient(*tokens, r, run, conv.window, offset, conv.taps, taps_sums);
    }
}

}  // namespace
