// Work cut into phases of tasks, and the threads that share it.
#pragma once
#include <cstdint>

#include "job.h"

// Tasks are numbered head by head: the pieces of the first head of a sequence, then of the next. They are
// taken up in another order: a piece of all its heads, then the next piece. Heads lie side by side in
// memory as a rule, and so share its pages.
struct Stage {
    Phases::Phase run;
    int64_t tasks, pieces = 1;

    int64_t in_turn(int64_t turn, int64_t heads) const {
        const int64_t sequence = turn / (heads * pieces), rest = turn % (heads * pieces);
        return (sequence * heads + rest % heads) * pieces + rest / heads;
    }
};

// Runs all tasks of a stage, then those of the next, on at most `threads` threads, of which the caller
// is one. Returns whether there was memory enough.
bool run_stages(const Job& job, const Stage* stages, int count, int64_t threads);
