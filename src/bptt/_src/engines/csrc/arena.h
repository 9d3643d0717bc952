// Work space that is used again by the next call of the same thread: memory fresh from the system
// costs more than the arithmetic on it.
#pragma once
#include <cstdint>
#include <cstdlib>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

class Arena {
public:
    Arena() = default;
    Arena(const Arena &) = delete;
    ~Arena() { std::free(memory_); }

    // Make room for so many bytes, which take() then gives out; false if there are none.
    bool reserve(int64_t bytes) {
        used_ = 0;
        if (bytes <= size_) return true;
        std::free(memory_);
        size_ = 0;
        memory_ = static_cast<char *>(allocate(size_t(bytes) + ALIGNMENT));
        if (!memory_) return false;
        size_ = bytes;
        return true;
    }

    template <class T> T *take(int64_t n) {
        char *base = memory_ + (ALIGNMENT - reinterpret_cast<uintptr_t>(memory_) % ALIGNMENT);
        T *p = reinterpret_cast<T *>(base + used_);
        used_ += size_of<T>(n);
        return p;
    }

    template <class T> static int64_t size_of(int64_t n) {
        return (n * int64_t(sizeof(T)) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }

    // The same for several arrays.
    template <class T, int N> static int64_t size_of(const int64_t (&sizes)[N], T **const (&)[N]) {
        int64_t bytes = 0;
        for (int64_t n : sizes) bytes += size_of<T>(n);
        return bytes;
    }
    template <class T, int N> void take(const int64_t (&sizes)[N], T **const (&places)[N]) {
        for (int i = 0; i < N; i++) *places[i] = take<T>(sizes[i]);
    }

private:
    // Large pages, where the system has them for the asking: panels are read all over.
    static void *allocate(size_t bytes) {
#if defined(__linux__)
        constexpr size_t LARGE = size_t(1) << 21;
        if (bytes >= LARGE) {
            bytes = (bytes + LARGE - 1) / LARGE * LARGE;
            void *const p = std::aligned_alloc(LARGE, bytes);
            if (p) madvise(p, bytes, MADV_HUGEPAGE);
            return p;
        }
#endif
        return std::malloc(bytes);
    }

    static constexpr int64_t ALIGNMENT = 64;
    char *memory_ = nullptr;
    int64_t size_ = 0, used_ = 0;
};

}  // namespace
