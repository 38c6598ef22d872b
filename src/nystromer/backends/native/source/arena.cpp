// Scratch memory that calls hand on to one another, without a lock: a fork must not find it locked.
#include "arena.h"

#include <atomic>
#include <new>

namespace {

constexpr int KEPT = 64;
constexpr int64_t LARGEST_KEPT = 32 << 20;  // bytes; larger arenas are freed
std::atomic<Arena*> kept[KEPT];

}  // namespace

char* Arena::bytes(int64_t size) {
    size = (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    while (current < count && used + size > sizes[current]) ++current, used = 0;
    if (current == count) {
        int64_t room = total() > LEAST ? total() : LEAST;
        if (room < size) room = (size + 4095) / 4096 * 4096;
        void* block = count < BLOCKS ? std::aligned_alloc(ALIGNMENT, size_t(room)) : nullptr;
        if (block == nullptr) throw std::bad_alloc();
        blocks[count] = static_cast<char*>(block);
        sizes[count++] = room;
    }
    used += size;
    return blocks[current] + used - size;
}

int64_t Arena::total() const {
    int64_t total = 0;
    for (int64_t i = 0; i < count; ++i) total += sizes[i];
    return total;
}

void Arena::release() {
    for (int64_t i = 0; i < count; ++i) std::free(blocks[i]);
    count = current = used = 0;
}

Arena* Arena::borrow() {
    for (auto& place : kept) {
        if (Arena* arena = place.exchange(nullptr)) {
            arena->reset();
            return arena;
        }
    }
    return new Arena{};
}

void Arena::give_back(Arena* arena) {
    if (arena->total() <= LARGEST_KEPT) {
        for (auto& place : kept) {
            Arena* nothing = nullptr;
            if (place.compare_exchange_strong(nothing, arena)) return;
        }
    }
    arena->release();
    delete arena;
}
