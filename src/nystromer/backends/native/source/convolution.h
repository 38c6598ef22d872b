// The depthwise convolution of the values, sum_t taps[t] value[i + t - K / 2], and its gradients.
//
// Outputs of ROWS tokens in a row are a product: a band of taps [ROWS, ROWS + K - 1] times the window
// of values around them. The band is never built: its rows are the taps, each read one place later.
#pragma once
#include "tokens.h"

namespace {

constexpr int TOGETHER = 12;  // taps whose gradients are summed at a time

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
    return {x, sequence, band, count, make_table(arena, 2 * TILE + count + TOGETHER, x.dim)};
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

// As many positions of x as the window has rows, from `first` on; zero at padding and beyond the ends.
inline void read_window(const Convolution& conv, int64_t first, int64_t rows) {
    const Table& window = conv.window;
    int64_t row = 0;
    const auto zero_until = [&](int64_t stop) {
        for (; row < stop; ++row) {
            for_row(window, row, [&](int64_t i) { store(window.data + i, Vec{}); });
        }
    };
    for (int64_t rank = rank_from(conv.sequence, first); rank < conv.sequence.length; ++rank) {
        const int64_t position = conv.sequence.position(rank);
        if (position >= first + rows) break;
        zero_until(position - first);
        read_row(conv.x, position, window, row++);
    }
    zero_until(rows);
}

// taps_sums[t] += sum over rows first ... stop of <tokens[r], window[offset + r - first + t]>; rows of
// the window that stand for no tap are read too, and forgotten.
inline void add_taps_gradient(const Table& tokens, int64_t first, int64_t stop, const Table& window,
                              int64_t offset, int64_t taps, float* taps_sums) {
    for (int64_t t = 0; t < taps; t += TOGETHER) {
        Vec sums[TOGETHER] = {};
        for (int64_t column = 0; column < tokens.columns; column += LANES) {
            const float* x = tokens.at(first, column);
            const float* y = window.at(offset + t, column);
            for (int64_t r = first; r < stop; ++r, x += PANEL, y += PANEL) {
                const Vec token = load(x);
#pragma GCC unroll 16
                for (int i = 0; i < TOGETHER; ++i) sums[i] += token * load(y + i * PANEL);
            }
        }
        for (int i = 0; i < smaller(TOGETHER, taps - t); ++i) taps_sums[t + i] += sum(sums[i]);
    }
}

// Adds the convolution at tokens first ... of `at`, the rows of `to`; if `tokens` [rows, columns] are
// given, the gradient of the taps, last first, is the sum of their products with what was read.
inline void convolve(const Convolution& conv, const Sequence& at, int64_t first, const Table& to,
                     const Table* tokens = nullptr, float* taps_sums = nullptr) {
    const Left band{conv.band, -1, 1, PANEL, 0};
    int64_t origin = 0, end = 0, run = 0;  // positions whose outputs the window is enough for
    for (int64_t r = 0; r < to.rows; r = run) {  // runs of neighbours, of which many share a window
        const int64_t position = at.position(first + r);
        run = r + 1;
        while (run < to.rows && at.position(first + run) == position + run - r) ++run;
        if (position + run - r > end) {
            int64_t last = run;
            while (last < to.rows && at.position(first + last) < position + 2 * TILE) ++last;
            origin = position, end = at.position(first + last - 1) + 1;
            read_window(conv, origin - conv.taps / 2, end - origin + conv.taps - 1);
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
