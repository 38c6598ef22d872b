// Clusters of a head's tokens: all are cut into halves, those again, and so on. Their order and means.
//
// A part is cut at the median of its tokens' projections on a direction: the leading one of those of
// its tokens that are in a sample, by power steps on their covariance. No order is random, and equal
// projections keep theirs.
#pragma once
#include <cmath>

#include "landmarks.h"

namespace {

constexpr int64_t SAMPLE = 1024;  // tokens that directions are found from
constexpr int POWER_STEPS = 16;
constexpr float TINY = 1e-30f, LARGE = 1e38f;  // what is beyond counts as that

struct Part {
    int64_t first, count;  // of the tokens in their order
};

// The clusters of a sequence: a power of two of them, whose sizes differ by at most one.
struct Clusters {
    int64_t length, levels;

    Clusters(int64_t length_, int64_t wanted) : length(length_), levels(0) {
        while (int64_t(2) << levels <= smaller(length, wanted)) ++levels;
    }
    int64_t count() const { return int64_t(1) << levels; }
    int64_t size() const { return (length + count() - 1) >> levels; }  // of the largest
    // One of the 2^level parts; of two halves the first is never the smaller.
    Part part(int64_t level, int64_t index) const {
        Part found{0, length};
        for (int64_t slots = size() << levels; level-- > 0;) {
            slots /= 2;
            const int64_t left = slots - (2 * slots - found.count) / 2;
            const bool second = index >> level & 1;
            found = second ? Part{found.first + left, found.count - left} : Part{found.first, left};
        }
        return found;
    }
    Part cluster(int64_t index) const { return part(levels, index); }
};

// How many numbers are below a value. There is room for whole registers, filled with numbers above.
inline int64_t below(const float* x, int64_t count, float value) {
    Of<LANES>::Integers found{};
    for (int64_t i = 0; i < count; i += LANES) found += load(x + i) < splat(value);  // -1 where true
    int64_t total = 0;
    for (int i = 0; i < LANES; ++i) total -= found[i];
    return total;
}
inline void fill_register(float* x, int64_t count, float value) {
    for (; count % LANES; ++count) x[count] = value;
}

// A value with `rank` numbers below it, or the one with that rank if it has equals: the largest value
// with no more below it, found bit by bit.
inline float ranked(const float* x, int64_t count, int64_t rank) {
    uint32_t found = 0;  // in the order of the floats
    const auto value = [](uint32_t word) { return bits_as<float>(word >> 31 ? word ^ 1u << 31 : ~word); };
    for (uint32_t bit = 1u << 31; bit; bit >>= 1) {
        const int64_t less = below(x, count, value(found | bit));
        if (less <= rank) found |= bit;
        if (less == rank) break;
    }
    return value(found);
}

// Moves the tokens with the smallest values to the front, as many as told.
inline void cut(float* values, int64_t count, int64_t left, int64_t* tokens, Arena& arena) {
    const Scratch scratch(arena);
    int64_t *others = arena.take<int64_t>(count), seconds = 0, firsts = 0;
    fill_register(values, count, 2 * LARGE);
    const float border = ranked(values, count, left);
    int64_t equals = left - below(values, count, border);
    for (int64_t i = 0; i < count; ++i) {
        const bool equal = values[i] == border, first = values[i] < border || (equal && equals > 0);
        equals -= equal;
        others[seconds] = tokens[firsts] = tokens[i];  // never before i is read
        firsts += first, seconds += !first;
    }
    std::memcpy(tokens + left, others, size_t(seconds) * sizeof(int64_t));
}

inline void copy_row(const Table& from, int64_t row, const Table& to, int64_t to_row) {
    for (int64_t first = 0; first < to.columns; first += PANEL) {
        const float* source = from.at(row, first);
        float* target = to.at(to_row, first);
        const int64_t width = smaller(PANEL, to.columns - first);
        for (int64_t c = 0; c < width; c += LANES) store(target + c, load(source + c));
    }
}

// values[i] = x[row(i)] · direction, finite. Each row leaves a register of sums; they are turned.
template <class Row>
inline void project(const Table& x, Row row, int64_t count, const Table& direction, float* values) {
    for (int64_t i = 0; i < count; i += LANES) {
        Vec sums[LANES] = {};
        for (int64_t r = 0; r < smaller(LANES, count - i); ++r) {
            const int64_t from = row(i + r);
            for (int64_t first = 0; first < x.columns; first += PANEL) {
                const float *a = x.at(from, first), *b = direction.at(0, first);
                const int64_t width = smaller(PANEL, x.columns - first);
                for (int64_t c = 0; c < width; c += LANES) sums[r] += load(a + c) * load(b + c);
            }
        }
        transpose(sums);
        Vec total{};
        for (const Vec& part : sums) total += part;
        total = total == total ? total : Vec{};
        total = larger(splat(-LARGE), -larger(splat(-LARGE), -total));
        store(values + i, total);
    }
}

inline void normalise(const Table& x, float factor) {
    Vec squares{};
    for_row(x, 0, [&](int64_t i) { squares += load(x.data + i) * load(x.data + i); });
    const float norm = std::sqrt(sum(squares));
    factor /= norm > TINY ? norm : TINY;
    for_row(x, 0, [&](int64_t i) { store(x.data + i, factor * load(x.data + i)); });
}

// Nearly the leading right singular vector of x, of length one (or zero), its sum not negative.
inline void find_leading(const Table& x, const Table& direction, Arena& arena) {
    const Scratch scratch(arena);
    const int64_t dim = x.columns;
    const Table square = make_table(arena, dim, dim), next = make_table(arena, 1, dim);
    multiply_symmetric(transposed(x), x, square);
    int64_t row = 0;
    float trace = 0;
    for (int64_t i = 0; i < dim; ++i) {
        trace += *square.at(i, i);
        row = *square.at(i, i) > *square.at(row, row) ? i : row;
    }
    copy_row(square, row, direction, 0);
    const float factor = 1 / (trace > TINY ? trace : TINY);  // no step makes it longer
    for (int step = 0; step < POWER_STEPS; step += 2) {
        if (step % 4 == 0) normalise(direction, 1);
        multiply(as_is(direction), square, next, factor);
        multiply(as_is(next), square, direction, factor);
    }
    Vec sums{};
    for_row(direction, 0, [&](int64_t i) { sums += load(direction.data + i); });
    normalise(direction, sum(sums) < 0 ? -1.0f : 1.0f);
}

// The direction of a part, from those of its tokens that are in the sample; cuts those too. share: what
// makes the largest number one, or squares might overflow.
inline void cut_sample(const Table& x, float share, int64_t* tokens, int64_t count,
                       const Table& direction, Arena& arena) {
    const Scratch scratch(arena);
    const Table part = make_table(arena, count, x.columns), mean = make_table(arena, 1, x.columns);
    float* values = arena.take<float>(up_to(LANES, count));
    for (int64_t i = 0; i < count; ++i) copy_row(x, tokens[i], part, i);
    fill(mean, 0);
    add_rows(part, mean);
    for (int64_t c = 0; c < x.columns; c += LANES) {
        const Vec centre = load(mean.at(0, c)) * (1 / float(count));
        float* column = part.at(0, c);
        for (int64_t i = 0; i < count * PANEL; i += PANEL) {
            store(column + i, share * (load(column + i) - centre));
        }
    }
    find_leading(part, direction, arena);
    project(part, [](int64_t i) { return i; }, count, direction, values);
    cut(values, count, count / 2, tokens, arena);
}

// Puts the tokens, the rows of x, in the order of their clusters.
inline void bisect(const Table& x, const Clusters& clusters, int64_t* order, Arena& arena) {
    const Scratch scratch(arena);
    const int64_t length = clusters.length, levels = clusters.levels, least = clusters.count();
    const int64_t sampled = smaller(length, least > SAMPLE ? least : SAMPLE) >> levels << levels;
    int64_t* sample = arena.take<int64_t>(sampled);
    const Table direction = make_table(arena, 1, x.columns);
    float* values = arena.take<float>(up_to(LANES, length));
    Vec tops = splat(TINY);
    for_all(x, [&](int64_t i) { tops = larger(larger(load(x.data + i), -load(x.data + i)), tops); });
    for (int64_t i = 0; i < length; ++i) order[i] = i;
    for (int64_t i = 0; i < sampled; ++i) sample[i] = i * length / sampled;
    for (int64_t level = 0; level < levels; ++level) {
        for (int64_t p = 0; p < int64_t(1) << level; ++p) {
            const Part part = clusters.part(level, p);
            int64_t* tokens = order + part.first;
            const int64_t in_sample = sampled >> level;
            cut_sample(x, 1 / largest(tops), sample + p * in_sample, in_sample, direction, arena);
            project(x, [&](int64_t i) { return tokens[i]; }, part.count, direction, values);
            cut(values, part.count, clusters.part(level + 1, 2 * p).count, tokens, arena);
        }
    }
}

// Tokens in the order of their clusters, in tables of at most TILE of them, one behind the other. Each
// cluster has room for `width`, whole registers of tokens.
struct Tiles {
    const Clusters& clusters;
    int64_t dim, width;
    float* data;

    Tiles(const Clusters& clusters_, int64_t dim_, float* data_)
        : clusters(clusters_), dim(dim_), width(up_to(LANES, clusters.size())), data(data_) {}
    int64_t count(int64_t c) const { return (clusters.cluster(c).count + TILE - 1) / TILE; }
    int64_t column(int64_t c, int64_t i) const { return c * width + i * TILE; }  // of a tile's first
    Table tile(int64_t c, int64_t i) const {
        const int64_t rows = smaller(TILE, clusters.cluster(c).count - i * TILE);
        return {data + column(c, i) * up_to(PANEL, dim), rows, dim};
    }
};

// A task a head of the queries, then one of the keys: their order, their places and their means; keys
// and values are sorted.
void find_clusters(const Job& job, int64_t task, Arena& arena) {
    const Call& call = job.call;
    const bool of_keys = task % 2 != 0;
    const int64_t bh = task / 2, dim = call.dim;
    const Sequence& sequence = job.pairs[bh / call.heads].keys;
    if (sequence.length == 0 || job.pairs[bh / call.heads].few_queries()) return;
    const Clusters clusters(sequence.length, of_keys ? call.key_clusters : call.query_clusters);
    const Order& found = of_keys ? job.key_order[bh] : job.query_order[bh];
    const Table x = make_table(arena, sequence.length, dim);
    read(head_of(job, of_keys ? call.key : call.query, dim, call.keys, bh), sequence, 0, x);
    bisect(x, clusters, found.tokens, arena);
    const Head value = head_of(job, call.value, call.value_dim, call.keys, bh);
    int64_t* places = (of_keys ? call.key_places : call.query_places) + bh * call.keys;
    const Tiles keys(clusters, dim, found.keys), values(clusters, call.value_dim, found.values);
    const Table total = make_table(arena, 1, dim), room = make_table(arena, TILE, dim);
    for (int64_t c = 0; c < clusters.count(); ++c) {
        const Part part = clusters.cluster(c);
        fill(total, 0);
        for (int64_t i = 0; i * TILE < part.count; ++i) {
            const int64_t* tokens = found.tokens + part.first + i * TILE;
            const int64_t rows = smaller(TILE, part.count - i * TILE);
            const Table tile = of_keys ? keys.tile(c, i) : Table{room.data, rows, dim};
            for (int64_t r = 0; r < rows; ++r) {
                places[tokens[r]] = c * clusters.size() + i * TILE + r;
                copy_row(x, tokens[r], tile, r);
                if (of_keys) read_row(value, sequence.position(tokens[r]), values.tile(c, i), r);
            }
            add_rows(tile, total);
        }
        write_matrix(total, found.means + c * dim, 1 / float(part.count));
    }
}

}  // namespace
