// (A^T A + r I)^-1 A^T x and its gradients, in double: A^T A squares the condition of A.
//
// Matrices here are row by row, without padding.
#pragma once
#include <cmath>

#include "tokens.h"

namespace {

inline double* as_doubles(const Table& x, Arena& arena) {
    double* result = arena.take<double>(x.rows * x.columns);
    for (int64_t r = 0; r < x.rows; ++r) {
        for (int64_t c = 0; c < x.columns; ++c) result[r * x.columns + c] = *x.at(r, c);
    }
    return result;
}

// a b, or a^T b, for a square a. b: [m, n].
inline double* product(const double* a, bool turned, const double* b, int64_t m, int64_t n,
                       Arena& arena) {
    double* result = arena.take<double>(m * n);
    for (int64_t i = 0; i < m; ++i) {
        double* to = result + i * n;
        for (int64_t c = 0; c < n; ++c) to[c] = 0;
        for (int64_t k = 0; k < m; ++k) {
            const double factor = turned ? a[k * m + i] : a[i * m + k];
            const double* from = b + k * n;
            for (int64_t c = 0; c < n; ++c) to[c] += factor * from[c];
        }
    }
    return result;
}

// The lower Cholesky factor of A^T A + r I; NaN from where it is not positive.
inline double* cholesky_factor(const double* a, int64_t m, double ridge, Arena& arena) {
    double* s = product(a, true, a, m, m, arena);
    for (int64_t j = 0; j < m; ++j) s[j * m + j] += ridge;
    for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j <= i; ++j) {
            double rest = s[i * m + j];
            for (int64_t k = 0; k < j; ++k) rest -= s[i * m + k] * s[j * m + k];
            s[i * m + j] = i == j ? std::sqrt(rest) : rest / s[j * m + j];
        }
    }
    return s;
}

// x = (L L^T)^-1 x, in place. x: [m, n].
inline void solve_by(const double* factor, double* x, int64_t m, int64_t n) {
    const auto subtract = [&](int64_t i, int64_t k, double times) {
        for (int64_t c = 0; c < n; ++c) x[i * n + c] -= times * x[k * n + c];
    };
    const auto divide = [&](int64_t i) {
        for (int64_t c = 0; c < n; ++c) x[i * n + c] /= factor[i * m + i];
    };
    for (int64_t i = 0; i < m; ++i) {
        for (int64_t k = 0; k < i; ++k) subtract(i, k, factor[i * m + k]);
        divide(i);
    }
    for (int64_t i = m; i-- > 0;) {
        for (int64_t k = i + 1; k < m; ++k) subtract(i, k, factor[k * m + i]);
        divide(i);
    }
}

inline void to_table(const double* from, const Table& to) {
    fill(to, 0);
    for (int64_t r = 0; r < to.rows; ++r) {
        for (int64_t c = 0; c < to.columns; ++c) *to.at(r, c) = float(from[r * to.columns + c]);
    }
}

inline Table apply_ridge_inverse(const Table& kernel, const Table& x, double ridge, Arena& arena) {
    const int64_t m = kernel.rows, n = x.columns;
    const double* a = as_doubles(kernel, arena);
    double* context = product(a, true, as_doubles(x, arena), m, n, arena);
    solve_by(cholesky_factor(a, m, ridge, arena), context, m, n);
    const Table result = make_table(arena, m, n);
    to_table(context, result);
    return result;
}

// With S = (A^T A + r I)^-1, c = S A^T x and Y = S g for the gradient g of c: the gradient of x is
// A Y, that of A is (x - A c) Y^T - (A Y) c^T.
inline void ridge_inverse_backward(const Table& kernel, const Table& gathered, const Table& grad,
                                   double ridge, const Table& grad_x, const Table& grad_a,
                                   Arena& arena) {
    const int64_t m = kernel.rows, n = gathered.columns;
    const double *a = as_doubles(kernel, arena), *x = as_doubles(gathered, arena);
    const double* factor = cholesky_factor(a, m, ridge, arena);
    double *context = product(a, true, x, m, n, arena), *y = as_doubles(grad, arena);
    solve_by(factor, context, m, n);
    solve_by(factor, y, m, n);
    const double *read = product(a, false, context, m, n, arena), *ay = product(a, false, y, m, n, arena);
    to_table(ay, grad_x);
    fill(grad_a, 0);
    for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < m; ++j) {
            double sum = 0;
            for (int64_t c = 0; c < n; ++c) {
                sum += (x[i * n + c] - read[i * n + c]) * y[j * n + c] - ay[i * n + c] * context[j * n + c];
            }
            *grad_a.at(i, j) = float(sum);
        }
    }
}

}  // namespace
