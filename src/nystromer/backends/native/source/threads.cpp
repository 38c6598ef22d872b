// Threads take tasks from a counter until a stage has none left, then wait for those still at work.
//
// There are two ways to get threads. Torch's, of the OpenMP that it has loaded, still spin on the cores
// after one of its products and begin at once, where a new thread would share a core with one of them.
// But OpenMP waits at the end for all of them: beside a busy process, milliseconds for a thread that
// has nothing to do. So where that was seen, the next calls start threads of their own, for which
// nobody waits unless they hold a task; and a forked child, which has none of its parent's threads and
// would wait for ever, does so always.
#include "threads.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <new>
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
        for (int64_t turn; (turn = next[s].fetch_add(1)) < stage.tasks;) {
            arena.reset();
            try {
                if (!failed) stage.run(*job, stage.in_turn(turn, job->call.heads), arena);
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

constexpr int RESPITE = 30;  // calls with threads of their own before OpenMP is tried again
constexpr double LATE = 1e-4;  // seconds that OpenMP may wait at the end, beside a tenth of the call
std::atomic<int> own_calls{0};
std::atomic<bool> forked{false};

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// GNU's entry of a parallel region: (work, data, threads, 0); null without that library.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
Parallel torch_threads() {
#if defined(__GLIBC__)
    static const Parallel found = [] {
        pthread_atfork(nullptr, nullptr, [] { forked = true; });
        void* library = dlopen("libgomp.so.1", RTLD_LAZY | RTLD_NOLOAD);
        return library ? reinterpret_cast<Parallel>(dlsym(library, "GOMP_parallel")) : nullptr;
    }();
    return forked ? nullptr : found;
#else
    return nullptr;
#endif
}

void run_by_openmp(Parallel parallel, Shared& shared, int64_t threads) {
    struct Region {
        Shared& shared;
        std::thread::id caller;
        double done;
    } region{shared, std::this_thread::get_id(), 0};
    const auto work = [](void* data) {
        Region& region = *static_cast<Region*>(data);
        region.shared.run();
        if (std::this_thread::get_id() == region.caller) region.done = now();
    };
    const double start = now();
    parallel(work, &region, unsigned(threads), 0);
    if (now() - region.done > LATE + (region.done - start) / 10) own_calls = RESPITE;
}

// Attributes of a thread that runs beside the caller: on another core, where Linux lets us say so. It
// may leave a new thread behind its caller for a whole tick, four milliseconds, while a core is idle.
struct Beside {
    pthread_attr_t attributes;
    Beside() {
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
#if defined(__linux__) && defined(__GLIBC__)
        cpu_set_t cores;
        const int own = sched_getcpu();
        if (own < 0 || sched_getaffinity(0, sizeof cores, &cores) != 0) return;
        CPU_CLR(own, &cores);
        if (CPU_COUNT(&cores)) pthread_attr_setaffinity_np(&attributes, sizeof cores, &cores);
#endif
    }
    ~Beside() { pthread_attr_destroy(&attributes); }
};

void* help(void* data) {
    const std::unique_ptr<std::shared_ptr<Shared>> shared(static_cast<std::shared_ptr<Shared>*>(data));
    if ((*shared)->has_tasks()) (*shared)->run();
    return nullptr;
}

void run_by_own_threads(const std::shared_ptr<Shared>& shared, int64_t threads) {
    const Beside beside;
    for (int64_t i = 1; i < threads; ++i) {
        auto data = std::make_unique<std::shared_ptr<Shared>>(shared);
        pthread_t thread;
        if (pthread_create(&thread, &beside.attributes, help, data.get()) != 0) break;
        data.release();
    }
    shared->run();
}

}  // namespace

bool run_stages(const Job& job, const Stage* stages, int count, int64_t threads) {
    auto shared = std::make_shared<Shared>();
    shared->job = &job;
    for (int i = 0; i < count; ++i) {
        if (stages[i].tasks > 0) shared->stages[shared->count++] = stages[i];
    }
    if (shared->count == 0) return true;
    const Parallel parallel = threads > 1 ? torch_threads() : nullptr;
    if (parallel && own_calls <= 0) {
        run_by_openmp(parallel, *shared, threads);
    } else {
        if (parallel) --own_calls;
        run_by_own_threads(shared, threads);
    }
    return !shared->failed;
}
