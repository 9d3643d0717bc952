// Work space that is used again by the next call of the same thread: memory fresh from the system
// costs more than the arithmetic on it.
#pragma once
#include <cstdint>
#include <cstdlib>

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
        memory_ = static_cast<char *>(std::malloc(size_t(bytes) + ALIGNMENT));
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

private:
    static constexpr int64_t ALIGNMENT = 64;
    char *memory_ = nullptr;
    int64_t size_ = 0, used_ = 0;
};

}  // namespace
