// context = kernel_2^+ gathered, with kernel_2 = softmax(s Q~ K~^T) [M, M], and its gradients.
//
// The pseudo-inverse is eq. 14, Z <- 1/4 Z (13 I - A Z (15 I - A Z (7 I - A Z))) from Z = A^T / c, of
// which the last steps are not formed but applied to what was gathered:
// Z_n x = Z_s p(T_s) ... p(T_{n-1}) x with T_j = A Z_j, T_{j+1} = T_j p(T_j) and
// p(t) = 1/4 (13 - 15 t + 7 t^2 - t^3). See docs/method.md for why only the last ones.
#pragma once
#include <utility>

#include "gather.h"
#include "ridge.h"
#include "scatter.h"

namespace {

constexpr int64_t CHAIN = 4;  // steps that are applied, unless x is about as wide as A

inline Table kernel_2(const Job& job, int64_t bh, Arena& arena) {
    const Call& call = job.call;
    const int64_t m = call.landmarks, dim = call.dim, at = bh * m * dim;
    const Table kernel = make_table(arena, m, m);
    const float scale = float(call.scale) * LOG2_E;
    multiply(as_is(as_table(arena, call.q_tilde + at, m, dim)),
             as_transposed_table(arena, call.k_tilde + at, m, dim, scale), kernel);
    softmax_rows(kernel);
    return kernel;
}

// Of a softmax the largest row sum is one; c is the largest column sum.
inline const float* column_sums(const Table& kernel, Arena& arena) {
    float* result = arena.take<float>(up_to(LANES, kernel.columns));
    for (int64_t c = 0; c < kernel.columns; c += LANES) {
        Vec total{};
        for (int64_t r = 0; r < kernel.rows; ++r) total += load(kernel.at(r, c));
        store(result + c, total);
    }
    return result;
}

inline void set_norm(const Job& job, int64_t bh, const Table& kernel, Arena& arena) {
    const float* sums = column_sums(kernel, arena);
    float norm = sums[0], count = 0;
    for (int64_t c = 1; c < kernel.columns; ++c) norm = sums[c] > norm ? sums[c] : norm;
    for (int64_t c = 0; c < kernel.columns; ++c) count += sums[c] == norm;
    job.norms[bh] = norm;
    job.maxima[bh] = count;
}

// The heads over which pinv_init takes its norm, and that norm.
struct Group {
    int64_t first, stop;
    float norm;
};
inline Group group_of(const Job& job, int64_t bh) {
    const Call& call = job.call;
    Group group{bh, bh + 1, 0};
    if (call.pinv_init == OF_A_SEQUENCE) {
        group.first = bh / call.heads * call.heads;
        group.stop = group.first + call.heads;
    } else if (call.pinv_init == OF_THE_BATCH) {
        group.first = 0, group.stop = call.batch * call.heads;
    }
    for (int64_t i = group.first; i < group.stop; ++i) {
        if (!job.pairs[i / call.heads].nystrom()) continue;
        const float norm = job.norms[i];
        if (norm > group.norm || norm != norm) group.norm = norm;  // NaN stays
    }
    return group;
}

// A task a head, before the others unless each matrix has its own norm.
void norms(const Job& job, int64_t bh, Arena& arena) {
    if (job.pairs[bh / job.call.heads].nystrom()) set_norm(job, bh, kernel_2(job, bh, arena), arena);
}

struct Step {
    Table z, w, q;
};

// Eq. 14: W = A Z, P = 15 I - 7 W + W^2, Q = 1/4 (13 I - W P), Z' = Z Q.
// halves: of W^2 and Q only half is computed, for both are symmetric. The backward must not: where
// kernel_2 is nearly of rank one, its gradients would lose most of a digit.
inline Step step_from(const Table& a, const Table& z, bool halves, Arena& arena) {
    const auto add = halves ? add_symmetric_product : add_product;
    const int64_t m = a.rows;
    const Table w = make_table(arena, m, m), q = make_table(arena, m, m);
    const Scratch scratch(arena);
    const Table p = make_table(arena, m, m);
    multiply(as_is(a), z, w);
    for_all(p, [&](int64_t i) { store(p.data + i, 1.75f * load(w.data + i)); });
    add_to_diagonal(p, -3.75f);
    add(as_is(w), w, p, -0.25f);  // -P / 4
    fill(q, 0);
    add_to_diagonal(q, 3.25f);
    add(as_is(w), p, q, 1);
    return {z, w, q};
}
inline Table start(const Table& a, float norm, Arena& arena) {
    const Table z = make_table(arena, a.rows, a.rows);
    transpose(a, z, 1 / norm);
    return z;
}

// T' = T p(T) = 1/4 (13 T - 2.75 T^2 - Y^2) with Y = T^2 - 3.5 T.
inline Table next_of_chain(const Table& t, Arena& arena) {
    const int64_t m = t.rows;
    const Table result = make_table(arena, m, m);
    const Scratch scratch(arena);
    const Table square = make_table(arena, m, m), y = make_table(arena, m, m);
    multiply_symmetric(as_is(t), t, square);
    for_all(t, [&](int64_t i) {
        const Vec s = load(square.data + i), x = load(t.data + i);
        store(y.data + i, s - 3.5f * x);
        store(result.data + i, 3.25f * x - 0.6875f * s);
    });
    add_symmetric_product(as_is(y), y, result, -0.25f);
    return result;
}

// p(T) x = 1/4 (13 x - 15 u + T v) with u = T x, w = 7 x - u, v = T w.
struct Polynomial {
    Table x, w, v, result;
};
inline Polynomial apply_polynomial(const Table& t, const Table& x, Arena& arena) {
    const int64_t m = x.rows, dim = x.columns;
    const Table w = make_table(arena, m, dim), v = make_table(arena, m, dim);
    const Table result = make_table(arena, m, dim);
    multiply(as_is(t), x, w);
    for_all(x, [&](int64_t i) {
        const Vec u = load(w.data + i), from = load(x.data + i);
        store(w.data + i, 7.0f * from - u);
        store(result.data + i, 3.25f * from - 3.75f * u);
    });
    multiply(as_is(t), w, v);
    add_product(as_is(t), v, result, 0.25f);
    return {x, w, v, result};
}

inline Table apply_inverse(const Table& a, float norm, Table x, int64_t iterations, Arena& arena) {
    const bool wide = 3 * x.columns >= 2 * a.columns;
    const int64_t applied = wide ? 1 : smaller(CHAIN, iterations);
    Table z = start(a, norm, arena), next = make_table(arena, a.rows, a.rows);
    for (int64_t i = applied; i < iterations; ++i) {
        const Scratch scratch(arena);
        multiply(as_is(z), step_from(a, z, true, arena).q, next);
        std::swap(z, next);
    }
    Table chain[CHAIN];
    chain[0] = make_table(arena, a.rows, a.rows);
    multiply(as_is(a), z, chain[0]);
    for (int64_t i = 1; i < applied; ++i) chain[i] = next_of_chain(chain[i - 1], arena);
    for (int64_t i = applied; i-- > 0;) x = apply_polynomial(chain[i], x, arena).result;
    const Table result = make_table(arena, x.rows, x.columns);
    multiply(as_is(z), x, result);
    return result;
}

// A task a head: gathered of its chunks, then the context.
void solve(const Job& job, int64_t bh, Arena& arena) {
    const Call& call = job.call;
    const Pair& pair = job.pairs[bh / call.heads];
    if (pair.empty() || pair.few_keys()) return;
    merge(job, bh);
    if (!pair.nystrom()) return;
    const int64_t at = bh * call.landmarks * call.value_dim;
    const Table kernel = kernel_2(job, bh, arena);
    const Table gathered = as_table(arena, call.gathered + at, call.landmarks, call.value_dim);
    Table context = gathered;
    if (call.pinv_ridge >= 0) {
        context = apply_ridge_inverse(kernel, gathered, call.pinv_ridge, arena);
    } else {
        if (call.pinv_init == OF_A_MATRIX) set_norm(job, bh, kernel, arena);
        const float norm = group_of(job, bh).norm;
        context = apply_inverse(kernel, norm, gathered, call.pinv_iterations, arena);
    }
    write_matrix(context, call.context + at);
}

// Gradients of x and A from that of kernel_2^+ x; and of c.
struct InverseGradients {
    Table x, matrix;
    float norm;
};

// Gradient of p(T) x: of x, and added to that of T.
inline Table polynomial_backward(const Table& t, const Polynomial& p, const Table& grad,
                                 const Table& grad_t, Arena& arena) {
    const int64_t m = t.rows, dim = grad.columns;
    const Table grad_v = make_table(arena, m, dim), grad_w = make_table(arena, m, dim);
    const Table grad_u = make_table(arena, m, dim), grad_x = make_table(arena, m, dim);
    multiply(transposed(t), grad, grad_v, 0.25f);
    multiply(transposed(t), grad_v, grad_w);
    for_all(grad, [&](int64_t i) {
        const Vec g = load(grad.data + i), w = load(grad_w.data + i);
        store(grad_u.data + i, -3.75f * g - w);
        store(grad_x.data + i, 3.25f * g + 7.0f * w);
    });
    add_product(transposed(t), grad_u, grad_x);
    const Table side = make_table(arena, dim, m);
    transpose(p.v, side, 0.25f);
    multiply(as_is(grad), side, grad_t);
    transpose(p.w, side);
    add_product(as_is(grad_v), side, grad_t);
    transpose(p.x, side);
    add_product(as_is(grad_u), side, grad_t);
    return grad_x;
}

// to = a x + b x^T.
inline void add_transposed(const Table& x, float a, float b, const Table& to, Arena& arena) {
    const Scratch scratch(arena);
    const Table turned = make_table(arena, x.columns, x.rows);
    transpose(x, turned, b);
    for_all(x, [&](int64_t i) {
        store(to.data + i, a * load(x.data + i) + load(turned.data + i));
    });
}

// Gradients of Z (result) and of A (added), both transposed, from that of Z' = Z Q.
//
// W is symmetric whatever A is, so only the symmetric part of its gradient counts, and of Q's.
// Everything is kept transposed: then no factor but three has to be turned.
inline void step_backward(const Table& a, const Step& step, const Table& grad_zt,
                          const Table& grad_at, const Table& result, Arena& arena) {
    const Scratch scratch(arena);
    const int64_t m = a.rows;
    const Table grad_q = make_table(arena, m, m), x = make_table(arena, m, m);
    const Table inner = make_table(arena, m, m), grad_w = make_table(arena, m, m);
    multiply(as_is(grad_zt), step.z, x);
    add_transposed(x, 0.5f, 0.5f, grad_q, arena);
    multiply(as_is(step.w), grad_q, x);
    add_transposed(x, -0.25f, -0.125f, inner, arena);
    for_all(grad_q, [&](int64_t i) {
        const Vec g = load(grad_q.data + i);
        store(inner.data + i, load(inner.data + i) + 1.75f * g);
        store(x.data + i, -1.875f * g);
    });
    add_product(as_is(step.w), inner, x);
    add_transposed(x, 1, 1, grad_w, arena);
    add_product(as_is(step.z), grad_w, grad_at);
    multiply(as_is(step.q), grad_zt, result);
    add_product(as_is(grad_w), a, result);
}

// Of eq. 14 as it stands, its last step applied to x: Z p(W) x with W = A Z. The chain's gradients
// would not be accurate where kernel_2 is nearly of rank one.
inline InverseGradients apply_inverse_backward(const Table& a, float norm, const Table& x,
                                               int64_t iterations, const Table& grad,
                                               Arena& arena) {
    const int64_t m = a.rows, dim = x.columns;
    Step* steps = arena.take<Step>(iterations);
    Table z = start(a, norm, arena);
    for (int64_t i = 0; i + 1 < iterations; ++i) {
        steps[i] = step_from(a, z, false, arena);
        z = make_table(arena, m, m);
        multiply(as_is(steps[i].z), steps[i].q, z);
    }
    const Table w = make_table(arena, m, m), grad_w = make_table(arena, m, m);
    multiply(as_is(a), z, w);
    const Polynomial polynomial = apply_polynomial(w, x, arena);
    const Table back = make_table(arena, m, dim);
    multiply(transposed(z), grad, back);
    const Table grad_x = polynomial_backward(w, polynomial, back, grad_w, arena);

    const Table grad_at = make_table(arena, m, m), turned = make_table(arena, m, m);
    Table grad_zt = make_table(arena, m, m), before = make_table(arena, m, m);
    const Table grad_t = make_table(arena, dim, m);
    transpose(grad_w, turned);
    multiply(as_is(z), turned, grad_at);
    transpose(grad, grad_t);
    multiply(as_is(polynomial.result), grad_t, grad_zt);
    add_product(as_is(turned), a, grad_zt);
    for (int64_t i = iterations - 1; i-- > 0;) {
        step_backward(a, steps[i], grad_zt, grad_at, before, arena);
        std::swap(grad_zt, before);
    }
    Vec sums{};
    for_all(a, [&](int64_t i) { sums += load(grad_zt.data + i) * load(a.data + i); });
    const float grad_norm = -sum(sums) / (norm * norm);
    const Table grad_a = make_table(arena, m, m);
    transpose(grad_at, grad_a);
    const float share = 1 / norm;
    for_all(a, [&](int64_t i) {
        store(grad_a.data + i, load(grad_a.data + i) + share * load(grad_zt.data + i));
    });
    return {grad_x, grad_a, grad_norm};
}

// Adds to the gradients of Q~ and K~ what comes by kernel_2; `grad` becomes that of its logits.
inline void kernel_2_backward(const Job& job, int64_t bh, const Table& kernel, const Table& grad,
                              Arena& arena) {
    const Call& call = job.call;
    const int64_t m = call.landmarks, dim = call.dim, at = bh * m * dim;
    const float scale = float(call.scale);
    softmax_rows_backward(kernel, grad);
    const Table product = make_table(arena, m, dim);
    multiply(as_is(grad), as_table(arena, call.k_tilde + at, m, dim), product);
    write_matrix(product, call.grad_q_tilde + at, scale, true);
    multiply(transposed(grad), as_table(arena, call.q_tilde + at, m, dim), product);
    write_matrix(product, call.grad_k_tilde + at, scale, true);
}

// A task a head: what comes by the norm, to the largest columns in equal shares.
void norms_backward(const Job& job, int64_t bh, Arena& arena) {
    if (!job.pairs[bh / job.call.heads].nystrom()) return;
    const Group group = group_of(job, bh);
    if (job.norms[bh] != group.norm) return;
    float grad = 0, count = 0;
    for (int64_t i = group.first; i < group.stop; ++i) {
        if (!job.pairs[i / job.call.heads].nystrom()) continue;
        grad += job.grad_norms[i];
        if (job.norms[i] == group.norm) count += job.maxima[i];
    }
    const Table kernel = kernel_2(job, bh, arena);
    const float* sums = column_sums(kernel, arena);
    const Table grad_kernel = make_table(arena, kernel.rows, kernel.columns);
    fill(grad_kernel, 0);
    for (int64_t r = 0; r < kernel.rows; ++r) {
        for (int64_t c = 0; c < kernel.columns; ++c) {
            if (sums[c] == group.norm) *grad_kernel.at(r, c) = grad / count;
        }
    }
    kernel_2_backward(job, bh, kernel, grad_kernel, arena);
}

// A task a head: gradients of gathered, Q~ and K~ from those of context and K~ of its chunks.
void solve_backward(const Job& job, int64_t bh, Arena& arena) {
    const Call& call = job.call;
    const Pair& pair = job.pairs[bh / call.heads];
    if (pair.empty() || pair.few_queries()) return;
    merge_backward(job, bh);
    if (!pair.nystrom()) return;
    const int64_t m = call.landmarks, dim = call.value_dim, at = bh * m * dim;
    const Table kernel = kernel_2(job, bh, arena);
    const Table gathered = as_table(arena, call.gathered + at, m, dim);
    const Table grad_context = as_table(arena, job.grad_context + at, m, dim);
    InverseGradients grads{};
    const bool ridge = call.pinv_ridge >= 0;
    if (ridge) {
        grads.x = make_table(arena, m, dim), grads.matrix = make_table(arena, m, m);
        ridge_inverse_backward(kernel, gathered, grad_context, call.pinv_ridge, grads.x,
                               grads.matrix, arena);
    } else {
        if (call.pinv_init == OF_A_MATRIX) set_norm(job, bh, kernel, arena);
        const float norm = group_of(job, bh).norm;
        grads = apply_inverse_backward(kernel, norm, gathered, call.pinv_iterations, grad_context,
                                       arena);
    }
    write_matrix(grads.x, job.grad_gathered + at);
    job.grad_norms[bh] = grads.norm;
    kernel_2_backward(job, bh, kernel, grads.matrix, arena);
    if (!ridge && call.pinv_init == OF_A_MATRIX) norms_backward(job, bh, arena);
}

}  // namespace
