// Tables in scratch memory and their products: C = A B, a few rows of C in registers at a time.
//
// A table of any number of columns lies in panels of PANEL columns, one after another: a product reads
// one panel of B from beginning to end, so that it stays in cache and no two of its rows compete for
// the same place there. Columns are padded to a multiple of LANES; what stands there is finite and
// counts for nothing.
#pragma once
#include "arena.h"
#include "vectors.h"

namespace {

constexpr int64_t PANEL = 64;  // a power of two
constexpr int64_t DEPTH = 256;  // rows of a panel of B that are read at a time

struct Table {  // [rows, columns]
    float* data;
    int64_t rows, columns;

    float* panel(int64_t column) const { return data + uint64_t(column) / PANEL * rows * PANEL; }
    float* at(int64_t row, int64_t column) const {
        return panel(column) + row * PANEL + uint64_t(column) % PANEL;
    }
    int64_t size() const { return rows * up_to(PANEL, columns); }
};

inline Table make_table(Arena& arena, int64_t rows, int64_t columns) {
    Table table{nullptr, rows, columns};
    table.data = arena.take<float>(table.size());
    return table;
}

// Calls f(pointer offset) for every vector of a row of a table: the same for all tables of its shape.
template <class F>
inline void for_row(const Table& x, int64_t row, F f) {
    for (int64_t first = 0; first < x.columns; first += PANEL) {
        const int64_t offset = first * x.rows + row * PANEL;
        const int64_t width = smaller(PANEL, x.columns - first);
        for (int64_t c = 0; c < width; c += LANES) f(offset + c);
    }
}
template <class F>
inline void for_all(const Table& x, F f) {
    for (int64_t row = 0; row < x.rows; ++row) for_row(x, row, f);
}

inline void fill(const Table& x, float value) {
    for_all(x, [&](int64_t i) { store(x.data + i, splat(value)); });
}
inline void add_to_diagonal(const Table& x, float value) {
    for (int64_t i = 0; i < x.rows; ++i) *x.at(i, i) += value;
}
// The block of LANES x LANES of x from there on, turned, at its place in `to`; zero where x ends.
inline void copy_transposed(const Table& x, int64_t row, int64_t column, const Table& to,
                            float factor = 1) {
    Vec block[LANES];
    for (int64_t r = 0; r < LANES; ++r) {
        block[r] = row + r < x.rows ? factor * load(x.at(row + r, column)) : Vec{};
    }
    transpose(block);
    const int64_t count = smaller(LANES, x.columns - column);
    for (int64_t r = 0; r < count; ++r) store(to.at(column + r, row), block[r]);
}
inline void transpose(const Table& x, const Table& to, float factor = 1) {
    for (int64_t row = 0; row < x.rows; row += LANES) {
        for (int64_t column = 0; column < x.columns; column += LANES) {
            copy_transposed(x, row, column, to, factor);
        }
    }
}

// The left factor of a product, where element (i, k) of a block of rows is at
// block(i)[row * i + column * k], and a panel later from column PANEL on.
struct Left {
    const float* data;
    int64_t row, column, panel;
    int64_t block;  // distance of two blocks of PANEL rows

    const float* at(int64_t i) const { return data + i / PANEL * block + i % PANEL * row; }
};
inline Left as_is(const Table& x) { return {x.data, PANEL, 1, x.rows * PANEL, PANEL * PANEL}; }
inline Left transposed(const Table& x) { return {x.data, 1, PANEL, PANEL * PANEL, x.rows * PANEL}; }

// c[R, V * LANES] = factor * (a[R, depth] b[depth, V * LANES]) [+ c], the sums in registers.
template <int R, int V>
void micro_product(int64_t depth, const float* a, const Left& left, const float* b, float* c,
                   float factor, bool add) {
    Vec sums[R][V] = {};
    for (int64_t done = 0; done < depth; done += PANEL, a += left.panel) {
        const int64_t width = smaller(PANEL, depth - done);
        const float* column = a;
        for (int64_t k = 0; k < width; ++k, b += PANEL, column += left.column) {
            Vec row[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) row[v] = load(b + v * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const Vec x = splat(column[r * left.row]);
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) sums[r][v] += x * row[v];
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            float* to = c + r * PANEL + v * LANES;
            store(to, add ? factor * sums[r][v] + load(to) : factor * sums[r][v]);
        }
    }
}

using Micro = void (*)(int64_t, const float*, const Left&, const float*, float*, float, bool);
template <int R>
constexpr Micro with_rows(int64_t vectors) {
    return vectors == 1   ? micro_product<R, 1>
           : vectors == 2 ? micro_product<R, 2>
           : vectors == 3 ? micro_product<R, VECTORS < 3 ? VECTORS : 3>
                          : micro_product<R, VECTORS>;
}
inline Micro micro(int64_t rows, int64_t vectors) {
    switch (rows) {
        case 1: return with_rows<1>(vectors);
        case 2: return with_rows<2>(vectors);
        case 3: return with_rows<3>(vectors);
        case 4: return with_rows<4>(vectors);
        case 5: return with_rows<5>(vectors);
        default: return with_rows<6>(vectors);
    }
}

// One panel's worth of columns: c = factor * (a b) [+ c], for `rows` rows of a that lie regularly. Row
// i needs columns up to `reach` + i only.
inline void multiply_rows(int64_t rows, int64_t depth, const float* a, const Left& left,
                          const float* b, float* c, int64_t columns, float factor, bool add,
                          int64_t reach = PANEL) {
    for (int64_t i = 0; i < rows; i += ROWS) {
        const int64_t count = smaller(ROWS, rows - i), width = smaller(columns, reach + i + count);
        for (int64_t first = 0; first < width; first += VECTORS * LANES) {
            const int64_t vectors = (smaller(VECTORS * LANES, width - first) + LANES - 1) / LANES;
            micro(count, vectors)(depth, a + i * left.row, left, b + first, c + i * PANEL + first,
                                  factor, add);
        }
    }
}

// c = factor * (a b) [+ c]. a: [rows of c, rows of b]. lower: only up to c's diagonal, and what is
// beside it in a register.
inline void multiply(const Left& a, const Table& b, const Table& c, float factor = 1,
                     bool add = false, bool lower = false) {
    if (b.rows == 0 && !add) fill(c, 0);
    // The inverse multiplies square tables many times in a row: shorter sums keep its gradients' digits.
    const int64_t most = b.rows == b.columns ? DEPTH / 2 : DEPTH;
    for (int64_t first = 0; first < c.columns; first += PANEL) {
        const int64_t columns = smaller(PANEL, c.columns - first);
        for (int64_t k = 0; k < b.rows; k += most) {
            const int64_t depth = smaller(most, b.rows - k);
            const int64_t skip = k / PANEL * a.panel;
            for (int64_t i = 0; i < c.rows; i += PANEL) {
                multiply_rows(smaller(PANEL, c.rows - i), depth, a.at(i) + skip, a,
                              b.panel(first) + k * PANEL, c.panel(first) + i * PANEL, columns,
                              factor, add || k > 0, lower ? i - first : PANEL);
            }
        }
    }
}
inline void add_product(const Left& a, const Table& b, const Table& c, float factor = 1) {
    multiply(a, b, c, factor, true);
}

// The same for a result that is symmetric: half of it, and its mirror image.
inline void multiply_symmetric(const Left& a, const Table& b, const Table& c, float factor = 1,
                               bool add = false) {
    multiply(a, b, c, factor, add, true);
    for (int64_t row = LANES; row < c.rows; row += LANES) {
        for (int64_t column = 0; column < row; column += LANES) copy_transposed(c, row, column, c);
    }
}
inline void add_symmetric_product(const Left& a, const Table& b, const Table& c, float factor) {
    multiply_symmetric(a, b, c, factor, true);
}

}  // namespace
