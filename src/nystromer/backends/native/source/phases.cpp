// All phases of a call, compiled once for every kind of processor. NYSTROMER_PHASES names the result;
// everything else here has no name outside this file, so that no kind can call another's functions.
#include "clustered.h"
#include "gather.h"
#include "inverse.h"
#include "landmarks.h"
#include "scatter.h"

extern const Phases NYSTROMER_PHASES = {
    landmarks,        norms,          gather,         solve,           scatter, sum_taps,
    scatter_backward, solve_backward, norms_backward, gather_backward, landmarks_backward,
    find_clusters,    read_clusters,
};
