// Scratch memory: pieces taken one after another, all given back at once and kept for the next call.
#pragma once
#include <cstdint>
#include <cstdlib>

struct Arena {
    static constexpr int64_t ALIGNMENT = 64, LEAST = 1 << 20, BLOCKS = 64;

    char* blocks[BLOCKS];
    int64_t sizes[BLOCKS];
    int64_t count, current, used;

    // Room for `number` elements, aligned for every vector; what stands there is not defined.
    template <class T>
    T* take(int64_t number) {
        return reinterpret_cast<T*>(bytes(number * int64_t(sizeof(T))));
    }
    char* bytes(int64_t size);  // throws std::bad_alloc
    void reset() { current = used = 0; }
    int64_t total() const;
    void release();

    // From calls that are over, or new; and back.
    static Arena* borrow();
    static void give_back(Arena* arena);
};

// Gives back, where it ends, what was taken since it began.
class Scratch {
  public:
    explicit Scratch(Arena& arena) : arena_(arena), current_(arena.current), used_(arena.used) {}
    ~Scratch() { arena_.current = current_, arena_.used = used_; }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

  private:
    Arena& arena_;
    int64_t current_, used_;
};
