// Tokens into tables and back: a tile of TILE tokens of one head is read, converted to float, worked
// on and written. Padding is never read, and written as zero.
#pragma once
#include "job.h"
#include "products.h"

namespace {

constexpr int64_t TILE = 64;

// One head of a tensor.
struct Head {
    char* data;
    int64_t token, feature;  // strides, in elements
    int64_t size, dim, n;
    bool half;

    char* at(int64_t position) const { return data + position * token * size; }
};
inline Head head_of(const Job& job, const Tensor& x, int64_t dim, int64_t n, int64_t bh) {
    const int64_t b = bh / job.call.heads, h = bh % job.call.heads;
    const bool half = job.call.bfloat16 != 0;
    const int64_t size = half ? 2 : 4;
    return {x.data + (b * x.strides[0] + h * x.strides[1]) * size, x.strides[2], x.strides[3], size,
            dim, n, half};
}

template <class T>
inline void read_row(const T* from, int64_t stride, const Table& to, int64_t row) {
    for (int64_t c = 0; c < to.columns; c += LANES) {
        store(to.at(row, c), load_some(from + c * stride, to.columns - c, stride));
    }
}
template <class T>
inline void write_row(T* to, int64_t stride, const Table& from, int64_t row) {
    for (int64_t c = 0; c < from.columns; c += LANES) {
        store_some(to + c * stride, load(from.at(row, c)), from.columns - c, stride);
    }
}
inline void read_row(const Head& x, int64_t position, const Table& to, int64_t row) {
    const char* from = x.at(position);
    if (x.half) read_row(reinterpret_cast<const uint16_t*>(from), x.feature, to, row);
    else read_row(reinterpret_cast<const float*>(from), x.feature, to, row);
}
inline void write_row(const Head& x, int64_t position, const Table& from, int64_t row) {
    char* to = x.at(position);
    if (x.half) write_row(reinterpret_cast<uint16_t*>(to), x.feature, from, row);
    else write_row(reinterpret_cast<float*>(to), x.feature, from, row);
}

inline void write_zeros(const Head& x, int64_t position) {
    char* to = x.at(position);
    if (x.feature == 1) {
        std::memset(to, 0, size_t(x.dim * x.size));
    } else {
        for (int64_t c = 0; c < x.dim; ++c) std::memset(to + c * x.feature * x.size, 0, x.size);
    }
}

// Asks for a row that will be read a tile later: the next one may lie on another page.
inline void fetch_row(const Head& x, int64_t position) {
    if (x.feature != 1) return;
    const char* row = x.at(position);
    for (int64_t i = 0; i < x.dim * x.size; i += 64) __builtin_prefetch(row + i, 0, 2);
}

// Tokens number first ... of a sequence, as many as the table has rows.
inline void read(const Head& x, const Sequence& sequence, int64_t first, const Table& to) {
    for (int64_t r = 0; r < to.rows; ++r) {
        const int64_t rank = first + r, later = rank + TILE;
        if (later < sequence.length) fetch_row(x, sequence.position(later));
        read_row(x, sequence.position(rank), to, r);
    }
}

// Writes them, and zeros to the padding before each; after the last, to what is left.
inline void write(const Head& x, const Sequence& sequence, int64_t first, const Table& from) {
    for (int64_t r = 0; r < from.rows; ++r) {
        const int64_t rank = first + r, position = sequence.position(rank);
        int64_t padding = rank ? sequence.position(rank - 1) + 1 : 0;
        for (; padding < position; ++padding) write_zeros(x, padding);
        write_row(x, position, from, r);
        if (rank + 1 < sequence.length) continue;
        for (padding = position + 1; padding < x.n; ++padding) write_zeros(x, padding);
    }
}
inline void write_only_zeros(const Head& x) {
    for (int64_t position = 0; position < x.n; ++position) write_zeros(x, position);
}

// A contiguous [rows, columns] of floats, as a table and back, times a factor.
inline void read_matrix(const float* from, const Table& to, float factor = 1) {
    for (int64_t r = 0; r < to.rows; ++r, from += to.columns) {
        for (int64_t c = 0; c < to.columns; c += LANES) {
            store(to.at(r, c), factor * load_some(from + c, to.columns - c));
        }
    }
}
inline void write_matrix(const Table& from, float* to, float factor = 1, bool add = false) {
    for (int64_t r = 0; r < from.rows; ++r, to += from.columns) {
        for (int64_t c = 0; c < from.columns; c += LANES) {
            const int64_t count = from.columns - c;
            const Vec before = add ? load_some(to + c, count) : Vec{};
            store_some(to + c, before + factor * load(from.at(r, c)), count);
        }
    }
}

inline Table as_table(Arena& arena, const float* matrix, int64_t rows, int64_t columns,
                      float factor = 1) {
    const Table table = make_table(arena, rows, columns);
    read_matrix(matrix, table, factor);
    return table;
}
inline Table as_transposed_table(Arena& arena, const float* matrix, int64_t rows, int64_t columns,
                                 float factor = 1) {
    const Table table = make_table(arena, columns, rows);
    transpose(as_table(arena, matrix, rows, columns), table, factor);
    return table;
}

// A task of a phase that has one for every chunk of a sequence's tokens.
struct Chunk {
    int64_t bh, index, first, stop;  // index of head and of chunk; ranks of tokens
};
inline Chunk chunk_of(int64_t task, int64_t chunks, const Sequence& sequence, int64_t bh) {
    const int64_t index = task % chunks, size = sequence.chunk();
    const int64_t first = smaller(index * size, sequence.length);
    return {bh, index, first, smaller(first + size, sequence.length)};
}

}  // namespace
