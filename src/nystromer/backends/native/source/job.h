// A call and what it needs besides: where real tokens are, how work is cut, and sums on their way.
//
// Work is cut into chunks of tokens by a rule that knows nothing of threads or neighbours, and sums
// over chunks are added in order: results are the same bits for any number of threads, any padding
// and any batch.
#pragma once
#include "arena.h"
#include "call.h"

constexpr int64_t CHUNK = 512;       // tokens, at least
constexpr int64_t MOST_CHUNKS = 32;  // of a sequence
constexpr int64_t GROUP = 16;        // landmarks whose means are one task
constexpr int64_t CLUSTERS = 32;     // of queries, that are one task

// The real tokens of one sequence: `length` positions from `start` on, or those listed.
struct Sequence {
    int64_t start, length;
    const int64_t* positions;

    int64_t position(int64_t rank) const { return positions ? positions[rank] : start + rank; }
    int64_t chunk() const {
        const int64_t share = (length + MOST_CHUNKS - 1) / MOST_CHUNKS;
        return share <= CHUNK ? CHUNK : (share + 63) / 64 * 64;
    }
    int64_t chunks() const { return (length + chunk() - 1) / chunk(); }
};

// The queries and keys of one sequence. With few queries, at most M, they are their own landmarks and
// `gather` alone is exact attention; with few keys `scatter` alone is (Lemma 2); else Nyström.
struct Pair {
    Sequence queries, keys;
    int64_t most;  // M

    bool empty() const { return queries.length == 0 || keys.length == 0; }
    bool few_queries() const { return !empty() && queries.length <= most; }
    bool few_keys() const { return !empty() && !few_queries() && keys.length <= most; }
    bool nystrom() const { return queries.length > most && keys.length > most; }
    int64_t width() const {  // landmarks in use
        return nystrom() ? most : few_queries() ? queries.length : keys.length;
    }
};

// Sums over a chunk: what landmarks gathered up to their masses, or gradients of two kinds.
struct Partial {
    float *context, *landmarks;  // [M, Dv] and [M, D], contiguous
    float *top, *mass;           // [M]
    float* taps;                 // [K]
};

// The tokens of a head in the order of their clusters, and the mean of each, [G, D]; keys and values in
// that order.
struct Order {
    int64_t* tokens;
    float *means, *keys, *values;
};

struct Job {
    const Call& call;
    const Pair* pairs;              // [B]
    int64_t query_chunks, key_chunks;  // the most of any sequence, at least one
    Partial* of_queries;            // [B * H, query_chunks], backward
    Partial* of_keys;               // [B * H, key_chunks]
    float *norms, *maxima;          // of kernel_2, [B * H]: largest column sum; how many are so large
    float* grad_norms;              // [B * H]
    float *grad_context, *grad_gathered;  // [B * H, M, Dv]
    Order *query_order = nullptr, *key_order = nullptr;  // [B * H], of clustered attention
};

// The parts of the work, each with one task a (sequence, head, chunk) or (sequence, head); compiled
// once for every kind of processor.
struct Phases {
    using Phase = void (*)(const Job&, int64_t task, Arena&);
    Phase landmarks, norms, gather, solve, scatter, sum_taps;
    Phase scatter_backward, solve_backward, norms_backward, gather_backward, landmarks_backward;
    Phase find_clusters, read_clusters;
};

extern const Phases PHASES_PORTABLE, PHASES_AVX2, PHASES_AVX512;
