// What Python hands over for one call: pointers, sizes and strides. Mirrored in ../operation.py.
//
// Letters: B sequences, H heads, N tokens, L of them real, D features, Dv of a value, M landmarks.
// Every number that counts elements has 64 bits.
#pragma once
#include <cstdint>

struct Tensor {  // [B, H, N, D], float or bfloat16, in any memory order
    char* data;
    int64_t strides[4];  // in elements
};

struct Mask {  // bool [B, N]; data is null where every token is real
    const uint8_t* data;
    int64_t strides[2];
};

enum Given : int64_t {  // landmarks_given
    NO_LANDMARKS,
    LANDMARKS,  // in q_tilde and k_tilde
    QUERIES,    // in q_tilde, and they are all queries: only what they gather is wanted
};

enum Norms : int64_t { OF_A_MATRIX, OF_A_SEQUENCE, OF_THE_BATCH };  // pinv_init

struct Call {
    int64_t batch, heads, queries, keys, dim, value_dim, landmarks, taps;
    int64_t threads, bfloat16, landmarks_given, pinv_iterations, pinv_init;
    double scale, pinv_ridge;  // a negative ridge: none, but the iteration
    Mask key_mask, query_mask;
    Tensor query, key, value;
    Tensor output;             // forward: to be written; backward: its gradient
    const float* conv_weight;  // [H, K], K = taps, 0 if there is no convolution
    // Between forward and backward, [B, H, M, .], contiguous; log2 of the row sums of kernel_3, [B, H, M].
    float *q_tilde, *k_tilde, *gathered, *context, *log2_mass;
    // Clustered attention instead (landmarks: the keys of a query, M + T): how many clusters and exact
    // keys; where queries and keys stand in the order of their clusters, [B, H, N], and the places of
    // the exact keys, [B, H, G, T].
    int64_t query_clusters, key_clusters, exact_keys;
    int64_t *query_places, *key_places, *exact;
    // The backward's results.
    Tensor grad_query, grad_key, grad_value;
    float *grad_conv_weight, *grad_q_tilde, *grad_k_tilde;
};
