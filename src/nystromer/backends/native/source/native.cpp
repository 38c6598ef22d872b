// The calls that Python makes, each a few phases with one meeting between: forward and backward of
// Nyström attention, forward of clustered attention.
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "threads.h"

namespace {

// For this processor; NYSTROMER_ONLY names one kind, for its tests.
const Phases& phases() {
#if defined(NYSTROMER_ONLY)
    return NYSTROMER_ONLY;
#elif defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
        return PHASES_AVX512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return PHASES_AVX2;
#endif
    return PHASES_PORTABLE;
}

// Where the real tokens of every sequence are; lists of positions stand in `room`.
std::vector<Sequence> sequences(const Mask& mask, int64_t batch, int64_t n, Arena& room) {
    std::vector<Sequence> found(size_t(batch), Sequence{0, n, nullptr});
    for (int64_t b = 0; mask.data && b < batch; ++b) {
        const uint8_t* row = mask.data + b * mask.strides[0];
        Sequence& sequence = found[size_t(b)];
        int64_t first = -1, last = -1, length = 0;
        for (int64_t i = 0; i < n; ++i) {
            if (!row[i * mask.strides[1]]) continue;
            if (length++ == 0) first = i;
            last = i;
        }
        sequence = {length ? first : 0, length, nullptr};
        if (length == 0 || last - first + 1 == length) continue;
        int64_t *positions = room.take<int64_t>(length), *next = positions;
        for (int64_t i = first; i <= last; ++i) {
            if (row[i * mask.strides[1]]) *next++ = i;
        }
        sequence.positions = positions;
    }
    return found;
}

int64_t most_chunks(const std::vector<Pair>& pairs, Sequence Pair::*side) {
    int64_t most = 1;
    for (const Pair& pair : pairs) {
        const int64_t chunks = (pair.*side).chunks();
        most = chunks > most ? chunks : most;
    }
    return most;
}

Partial* make_partials(const Call& call, int64_t count, Arena& arena) {
    Partial* partials = arena.take<Partial>(count);
    for (int64_t i = 0; i < count; ++i) {
        partials[i].context = arena.take<float>(call.landmarks * call.value_dim);
        partials[i].landmarks = arena.take<float>(call.landmarks * call.dim);
        partials[i].top = arena.take<float>(call.landmarks);
        partials[i].mass = arena.take<float>(call.landmarks);
        partials[i].taps = arena.take<float>(call.taps);
    }
    return partials;
}

// Large results that are new to the process cost a fault for every page that is touched first.
void want_large_pages(const Tensor& x, int64_t tokens, int64_t dim, const Call& call) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr int64_t PAGE = 2 << 20;
    const int64_t bytes = call.batch * call.heads * tokens * dim * (call.bfloat16 ? 2 : 4);
    const int64_t first = (int64_t(x.data) + PAGE - 1) / PAGE * PAGE;
    const int64_t stop = (int64_t(x.data) + bytes) / PAGE * PAGE;
    if (stop > first) madvise(reinterpret_cast<void*>(first), size_t(stop - first), MADV_HUGEPAGE);
#else
    (void)x, (void)tokens, (void)dim, (void)call;
#endif
}

// All of torch's threads, or one: a pool that changes its size starts threads anew.
int64_t threads_for(const Call& call) {
    constexpr double WORTH_IT = 1e6;  // multiplications a thread: some microseconds
    const double heads = double(call.batch) * double(call.heads), m = double(call.landmarks);
    const double a_token = m * double(call.dim + call.value_dim);
    const double work = heads * (double(call.queries + call.keys) * a_token + 20 * m * m * m);
    return work > WORTH_IT * double(call.threads) ? call.threads : 1;
}

// Zeros where no phase writes: landmarks of sequences that do not need them, and sums to begin with.
void set_zeros(const Call& call, const std::vector<Pair>& pairs, bool backward) {
    const auto clear = [&](float* x, int64_t first, int64_t count, int64_t dim) {
        for (int64_t i = first * dim; i < (first + count) * dim; ++i) x[i] = 0;  // x null if empty
    };
    const int64_t a_sequence = call.heads * call.landmarks, all = call.batch * a_sequence;
    if (backward) {
        clear(call.grad_q_tilde, 0, all, call.dim);
        clear(call.grad_k_tilde, 0, all, call.dim);
        clear(call.grad_conv_weight, 0, call.heads, call.taps);
        return;
    }
    for (int64_t b = 0; b < call.batch; ++b) {
        if (pairs[size_t(b)].nystrom()) continue;
        clear(call.k_tilde, b * a_sequence, a_sequence, call.dim);
        if (call.landmarks_given != QUERIES) clear(call.q_tilde, b * a_sequence, a_sequence, call.dim);
        for (float* x : {call.gathered, call.context}) {
            clear(x, b * a_sequence, a_sequence, call.value_dim);
        }
        clear(call.log2_mass, b * a_sequence, a_sequence, 1);
    }
}

int run(const Call& call, bool backward) {
    Arena* arena = Arena::borrow();
    bool done = false;
    try {
        const std::vector<Sequence> keys = sequences(call.key_mask, call.batch, call.keys, *arena);
        const std::vector<Sequence> queries =
            sequences(call.query_mask, call.batch, call.queries, *arena);
        std::vector<Pair> pairs;
        for (size_t b = 0; b < keys.size(); ++b) pairs.push_back({queries[b], keys[b], call.landmarks});
        set_zeros(call, pairs, backward);
        const int64_t heads = call.batch * call.heads;
        const int64_t query_chunks = most_chunks(pairs, &Pair::queries);
        const int64_t key_chunks = most_chunks(pairs, &Pair::keys);
        const int64_t groups = (call.landmarks + GROUP - 1) / GROUP;
        const int64_t small = backward ? heads * call.landmarks * call.value_dim : 0;
        const Job job{call,
                      pairs.data(),
                      query_chunks,
                      key_chunks,
                      backward ? make_partials(call, heads * query_chunks, *arena) : nullptr,
                      make_partials(call, heads * key_chunks, *arena),
                      arena->take<float>(heads),
                      arena->take<float>(heads),
                      arena->take<float>(heads),
                      arena->take<float>(small),
                      arena->take<float>(small)};
        const Phases& p = phases();
        const int64_t common = call.pinv_ridge < 0 && call.pinv_init != OF_A_MATRIX ? heads : 0;
        if (backward) {
            want_large_pages(call.grad_query, call.queries, call.dim, call);
            want_large_pages(call.grad_key, call.keys, call.dim, call);
            want_large_pages(call.grad_value, call.keys, call.value_dim, call);
            const Stage stages[] = {{p.scatter_backward, heads * query_chunks, query_chunks},
                                    {p.norms, common},
                                    {p.solve_backward, heads},
                                    {p.norms_backward, common},
                                    {p.gather_backward, heads * key_chunks, key_chunks},
                                    {p.landmarks_backward, heads * groups, groups},
                                    {p.sum_taps, call.taps ? call.heads : 0}};
            done = run_stages(job, stages, 7, threads_for(call));
        } else {
            want_large_pages(call.output, call.queries, call.value_dim, call);
            const Stage stages[] = {{p.landmarks, heads * groups, groups},
                                    {p.norms, common},
                                    {p.gather, heads * key_chunks, key_chunks},
                                    {p.solve, heads},
                                    {p.scatter, heads * query_chunks, query_chunks}};
            done = run_stages(job, stages, 5, threads_for(call));
        }
    } catch (const std::bad_alloc&) {
    }
    Arena::give_back(arena);
    return done ? 0 : 1;
}

constexpr int64_t MOST_LANES = 16;

// Room for the order of every head's tokens; for keys and values too, if they are to be sorted.
Order* make_orders(const Call& call, int64_t clusters, bool sorted, Arena& arena) {
    const int64_t heads = call.batch * call.heads;
    const int64_t rows = sorted ? call.keys + clusters * MOST_LANES : 0;
    const auto padded = [](int64_t dim) { return (dim + 63) / 64 * 64; };  // a table's columns
    Order* orders = arena.take<Order>(heads);
    for (int64_t i = 0; i < heads; ++i) {
        orders[i].tokens = arena.take<int64_t>(call.keys);
        orders[i].means = arena.take<float>(clusters * call.dim);
        orders[i].keys = arena.take<float>(rows * padded(call.dim));
        orders[i].values = arena.take<float>(rows * padded(call.value_dim));
    }
    return orders;
}

int run_clustered(const Call& call) {
    Arena* arena = Arena::borrow();
    bool done = false;
    try {
        std::vector<Pair> pairs;
        for (const Sequence& x : sequences(call.key_mask, call.batch, call.keys, *arena)) {
            pairs.push_back({x, x, call.landmarks});
        }
        const int64_t heads = call.batch * call.heads;
        const int64_t groups = (call.query_clusters + CLUSTERS - 1) / CLUSTERS;
        Job job{call, pairs.data()};
        job.query_order = make_orders(call, call.query_clusters, false, *arena);
        job.key_order = make_orders(call, call.key_clusters, true, *arena);
        want_large_pages(call.output, call.queries, call.value_dim, call);
        const Phases& p = phases();
        const Stage stages[] = {{p.find_clusters, 2 * heads}, {p.read_clusters, heads * groups}};
        done = run_stages(job, stages, 2, threads_for(call));
    } catch (const std::bad_alloc&) {
    }
    Arena::give_back(arena);
    return done ? 0 : 1;
}

}  // namespace

#define SEEN_BY_PYTHON extern "C" __attribute__((visibility("default")))

// All return 0, or 1 where there was not memory enough.
SEEN_BY_PYTHON int nystromer_forward(const Call* call) { return run(*call, false); }
SEEN_BY_PYTHON int nystromer_backward(const Call* call) { return run(*call, true); }
SEEN_BY_PYTHON int nystromer_clustered_forward(const Call* call) { return run_clustered(*call); }
SEEN_BY_PYTHON int64_t nystromer_size_of_call() { return int64_t(sizeof(Call)); }
SEEN_BY_PYTHON const char* nystromer_processor() {
    const Phases* chosen = &phases();
#if defined(__x86_64__)
    if (chosen == &PHASES_AVX512) return "AVX-512";
    if (chosen == &PHASES_AVX2) return "AVX2";
#endif
    return chosen == &PHASES_PORTABLE ? "portable" : "unknown";
}
