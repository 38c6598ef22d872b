// Threads take tasks from a counter until a stage has none left, then wait for those still at work.
//
// The caller never waits for a thread that holds no task: beside a busy process a new thread may start
// late, or when all is done. Such a thread finds no task and ends; it touches only what is shared.
#include "threads.h"

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

namespace {

constexpr int MOST_STAGES = 8;
constexpr int SPINS = 2000;  // some microseconds; then a thread sleeps

struct Shared {
    const Job* job;
    int count = 0;
    Stage stages[MOST_STAGES];
    std::atomic<int64_t> next[MOST_STAGES] = {}, done[MOST_STAGES] = {};
    std::atomic<bool> failed{false};
    std::mutex mutex;
    std::condition_variable finished;

    void work(int s, Arena& arena) {
        const Stage& stage = stages[s];
        for (int64_t task; (task = next[s].fetch_add(1)) < stage.tasks;) {
            arena.reset();
            try {
                if (!failed) stage.run(*job, task, arena);
            } catch (const std::bad_alloc&) {
                failed = true;
            }
            if (done[s].fetch_add(1) + 1 == stage.tasks) {
                std::lock_guard<std::mutex> lock(mutex);
                finished.notify_all();
            }
        }
    }
    void wait_for(int s) {
        const auto over = [&] { return done[s] == stages[s].tasks; };
        for (int i = 0; i < SPINS; ++i) {
            if (over()) return;
        }
        std::unique_lock<std::mutex> lock(mutex);
        finished.wait(lock, over);
    }
    bool has_tasks() const { return next[count - 1] < stages[count - 1].tasks; }
    void run() {
        Arena* arena = Arena::borrow();
        for (int s = 0; s < count; ++s) {
            work(s, *arena);
            wait_for(s);
        }
        Arena::give_back(arena);
    }
};

}  // namespace

bool run_stages(const Job& job, const Stage* stages, int count, int64_t threads) {
    auto shared = std::make_shared<Shared>();
    shared->job = &job;
    for (int i = 0; i < count; ++i) {
        if (stages[i].tasks > 0) shared->stages[shared->count++] = stages[i];
    }
    if (shared->count == 0) return true;
    try {
        for (int64_t i = 1; i < threads; ++i) {
            std::thread([shared] {
                if (shared->has_tasks()) shared->run();
            }).detach();
        }
    } catch (const std::system_error&) {  // no more threads to be had: those that are, do
    }
    shared->run();
    return !shared->failed;
}
