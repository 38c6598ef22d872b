// Clustered attention: queries of a cluster read some exact keys and a slot for every key cluster.
//
// Letters: G query clusters, M key clusters of at most C keys, T exact keys. Logits are times log2(e).
#pragma once
#include "clusters.h"
#include "softmax.h"

namespace {

constexpr float HIDDEN = -2 * LARGE;  // a score that weighs nothing beside any in -LARGE ... LARGE

// softmax(s Q keys^T + bias) values, for the queries of a tile.
struct Reader {
    const Job& job;
    const Head query, output;
    const Sequence& sequence;
    const Table keys, values;  // [W, D] and [W, Dv]
    const Table q, q_t, logits, out;  // room for a tile

    Reader(const Job& job_, int64_t bh, int64_t width, Arena& arena)
        : job(job_),
          query(head_of(job, job.call.query, job.call.dim, job.call.keys, bh)),
          output(head_of(job, job.call.output, job.call.value_dim, job.call.keys, bh)),
          sequence(job.pairs[bh / job.call.heads].keys),
          keys(make_table(arena, width, job.call.dim)),
          values(make_table(arena, width, job.call.value_dim)),
          q(make_table(arena, TILE, job.call.dim)),
          q_t(make_table(arena, job.call.dim, TILE)),
          logits(make_table(arena, width, TILE)),
          out(make_table(arena, TILE, job.call.value_dim)) {}

    // token(r): the rank of the query in row r. bias: of the first keys, [slots].
    template <class Token>
    void read(int64_t rows, Token token, const float* bias, int64_t slots) const {
        const Table tile{q.data, rows, q.columns}, turned{q_t.data, q_t.rows, rows};
        const Table weights{logits.data, logits.rows, rows}, result{out.data, rows, out.columns};
        for (int64_t r = 0; r < rows; ++r) read_row(query, sequence.position(token(r)), tile, r);
        transpose(tile, turned, float(job.call.scale) * LOG2_E);
        multiply(as_is(keys), turned, weights);
        for (int64_t m = 0; m < slots; ++m) {
            for_row(weights, m, [&](int64_t i) {
                store(weights.data + i, load(weights.data + i) + bias[m]);
            });
        }
        softmax_columns(weights);
        multiply(transposed(weights), values, result);
        for (int64_t r = 0; r < rows; ++r) write_row(output, sequence.position(token(r)), result, r);
    }

    static void softmax_columns(const Table& x) {
        for (int64_t first = 0; first < x.columns; first += LANES) {
            float* column = x.at(0, first);
            Vec top = splat(NONE), total{};
            for (int64_t r = 0; r < x.rows; ++r) top = larger(load(column + r * PANEL), top);
            for (int64_t r = 0; r < x.rows; ++r) {
                const Vec weight = exp2(load(column + r * PANEL) - top);
                total += weight;
                store(column + r * PANEL, weight);
            }
            const Vec share = 1 / total;
            for (int64_t r = 0; r < x.rows; ++r) {
                store(column + r * PANEL, load(column + r * PANEL) * share);
            }
        }
    }
};

// A row of scores for every query cluster, of the keys as they stand in their tiles. What is behind a
// cluster's last key is HIDDEN.
struct Scores {
    int64_t columns, stride;
    float* data;

    Scores(const Tiles& keys, int64_t rows, Arena& arena)
        : columns(keys.column(keys.clusters.count(), 0)),
          stride(columns + LANES),  // not a power of two, which would crowd one place in cache
          data(arena.take<float>(rows * stride)) {}
    float* row(int64_t g) const { return data + g * stride; }
    Left from(int64_t column) const { return {data + column, stride, 1, PANEL, PANEL * stride}; }

    // A tile of scores [keys, query clusters] is turned into `count` columns from `column` on.
    void put(const Table& tile, int64_t column, int64_t count) const {
        for (int64_t r = 0; r < count; r += LANES) {
            for (int64_t g = 0; g < tile.columns; g += LANES) {
                Vec block[LANES];
                for (int64_t i = 0; i < LANES; ++i) {
                    block[i] = splat(HIDDEN);
                    if (r + i >= tile.rows) continue;
                    const Vec x = load(tile.at(r + i, g));  // NaN is kept by the means, not here
                    block[i] = -larger(splat(-LARGE), -larger(x, splat(-LARGE)));
                }
                transpose(block);
                const int64_t rows = smaller(LANES, tile.columns - g);
                for (int64_t i = 0; i < rows; ++i) store(row(g + i) + column + r, block[i]);
            }
        }
    }
};

// Finds the columns of the largest scores, as many as told, and hides them.
inline void choose_exact(float* scores, int64_t columns, int64_t count, int64_t* chosen) {
    const float border = ranked(scores, columns, columns - count);
    int64_t found = 0;
    for (const bool equals : {false, true}) {
        for (int64_t i = 0; i < columns && found < count; i += LANES) {
            if (!(largest(load(scores + i)) >= border)) continue;
            for (int64_t c = i; c < i + LANES && found < count; ++c) {
                if (equals ? scores[c] != border : scores[c] <= border) continue;
                scores[c] = HIDDEN;
                chosen[found++] = c;
            }
        }
    }
}

// scores -> weights = 2^(scores - top); returns their sum, and top.
inline std::pair<float, float> weigh(float* scores, int64_t count) {
    Vec tops = splat(-LARGE), sums{};
    for (int64_t i = 0; i < count; i += LANES) tops = larger(load(scores + i), tops);
    const float top = largest(tops);
    for (int64_t i = 0; i < count; i += LANES) {
        const Vec weight = exp2(load(scores + i) - splat(top));
        sums += weight;
        store(scores + i, weight);
    }
    return {sum(sums), top};
}

// Exact attention, for a sequence of at most M + T tokens.
inline void read_all(const Job& job, int64_t bh, Arena& arena) {
    const Call& call = job.call;
    const Sequence& sequence = job.pairs[bh / call.heads].keys;
    const Reader reader(job, bh, sequence.length, arena);
    read(head_of(job, call.key, call.dim, call.keys, bh), sequence, 0, reader.keys);
    read(head_of(job, call.value, call.value_dim, call.keys, bh), sequence, 0, reader.values);
    for (int64_t i = 0; i < sequence.length; i += TILE) {
        const auto token = [&](int64_t r) { return i + r; };
        reader.read(smaller(TILE, sequence.length - i), token, nullptr, 0);
    }
}

inline void write_padding(const Head& x, const Sequence& sequence) {
    int64_t next = 0;
    for (int64_t i = 0; i <= sequence.length; ++i) {
        const int64_t stop = i < sequence.length ? sequence.position(i) : x.n;
        for (; next < stop; ++next) write_zeros(x, next);
        ++next;
    }
}

// A task a group of query clusters.
void read_clusters(const Job& job, int64_t task, Arena& arena) {
    const Call& call = job.call;
    const int64_t groups = (call.query_clusters + CLUSTERS - 1) / CLUSTERS;
    const int64_t bh = task / groups, dim = call.dim, value_dim = call.value_dim;
    const Pair& pair = job.pairs[bh / call.heads];
    const Sequence& sequence = pair.keys;
    if (task % groups == 0) {
        write_padding(head_of(job, call.output, value_dim, call.keys, bh), sequence);
        if (pair.few_queries()) read_all(job, bh, arena);
    }
    if (pair.empty() || pair.few_queries()) return;
    const Clusters queries(sequence.length, call.query_clusters);
    const Clusters clusters(sequence.length, call.key_clusters);
    const int64_t first = smaller(task % groups * CLUSTERS, queries.count());
    const int64_t group = smaller(CLUSTERS, queries.count() - first);
    if (group == 0) return;
    const int64_t slots = clusters.count(), exact = call.exact_keys;
    const Order &query_order = job.query_order[bh], &key_order = job.key_order[bh];
    const Tiles keys(clusters, dim, key_order.keys), values(clusters, value_dim, key_order.values);

    // All scores of q~, and the logits q~ · k~.
    const Table q_tilde = as_transposed_table(arena, query_order.means + first * dim, group, dim,
                                              float(call.scale) * LOG2_E);
    const Table k_tilde = as_table(arena, key_order.means, slots, dim);
    const Table middle = make_table(arena, slots, group), room = make_table(arena, TILE, group);
    multiply(as_is(k_tilde), q_tilde, middle);
    const Scores scores(keys, group, arena);
    for (int64_t m = 0; m < slots; ++m) {
        for (int64_t i = 0; i * TILE < keys.width; ++i) {
            const Table k = keys.tile(m, i), tile{room.data, k.rows, group};
            multiply(as_is(k), q_tilde, tile);
            scores.put(tile, keys.column(m, i), smaller(TILE, keys.width - i * TILE));
        }
    }

    // The exact keys; what the others of each cluster weigh; their mean values, the slots'.
    int64_t* chosen = arena.take<int64_t>(group * exact);
    float *bias = arena.take<float>(group * slots), *shares = arena.take<float>(group * slots);
    for (int64_t g = 0; g < group; ++g) {
        choose_exact(scores.row(g), scores.columns, exact, chosen + g * exact);
        int64_t* places = call.exact + (bh * call.query_clusters + first + g) * exact;
        for (int64_t t = 0; t < exact; ++t) {
            const int64_t column = chosen[g * exact + t];
            places[t] = column / keys.width * clusters.size() + column % keys.width;
        }
        for (int64_t m = 0; m < slots; ++m) {
            const auto [mass, top] = weigh(scores.row(g) + m * keys.width, keys.width);
            const bool some = mass > 0 || mass != mass;
            bias[g * slots + m] = some ? top + std::log2(mass) - *middle.at(m, g) : HIDDEN;
            shares[g * slots + m] = some ? 1 / mass : 0;
        }
    }
    const Table far = make_table(arena, slots * group, value_dim);
    for (int64_t m = 0; m < slots; ++m) {
        const Table total = make_table(arena, group, value_dim);
        fill(total, 0);
        for (int64_t i = 0; i < values.count(m); ++i) {
            add_product(scores.from(values.column(m, i)), values.tile(m, i), total);
        }
        for (int64_t g = 0; g < group; ++g) copy_row(total, g, far, m * group + g);
    }

    const Reader reader(job, bh, slots + exact, arena);
    for (int64_t m = 0; m < slots; ++m) copy_row(k_tilde, m, reader.keys, m);
    for (int64_t g = 0; g < group; ++g) {
        for (int64_t m = 0; m < slots; ++m) {
            const Vec share = splat(shares[g * slots + m]);
            for (int64_t c = 0; c < value_dim; c += LANES) {
                store(reader.values.at(m, c), share * load(far.at(m * group + g, c)));
            }
        }
        for (int64_t t = 0; t < exact; ++t) {
            const int64_t m = chosen[g * exact + t] / keys.width, i = chosen[g * exact + t] % keys.width;
            copy_row(keys.tile(m, i / TILE), i % TILE, reader.keys, slots + t);
            copy_row(values.tile(m, i / TILE), i % TILE, reader.values, slots + t);
        }
        const Part part = queries.cluster(first + g);
        for (int64_t i = 0; i < part.count; i += TILE) {
            const int64_t* tokens = query_order.tokens + part.first + i;
            reader.read(smaller(TILE, part.count - i), [&](int64_t r) { return tokens[r]; },
                        bias + g * slots, slots);
        }
    }
}

}  // namespace
