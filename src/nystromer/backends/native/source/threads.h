// Work cut into phases of tasks, and the threads that share it.
#pragma once
#include <cstdint>

#include "job.h"

struct Stage {
    Phases::Phase run;
    int64_t tasks;
};

// Runs all tasks of a stage, then those of the next, on at most `threads` threads, of which the caller
// is one. Returns whether there was memory enough.
bool run_stages(const Job& job, const Stage* stages, int count, int64_t threads);
