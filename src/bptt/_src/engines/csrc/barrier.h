// Where the threads of a call wait for each other.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <condition_variable>
#include <mutex>
#endif

namespace {

inline int64_t nanoseconds() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Sleeps until a number has changed.
class Sleep {
public:
#if defined(__linux__)
    void until_not(std::atomic<uint32_t> &number, uint32_t now) {
        while (number.load(std::memory_order_acquire) == now)
            syscall(SYS_futex, &number, FUTEX_WAIT_PRIVATE, now, nullptr, nullptr, 0);
    }
    void end(std::atomic<uint32_t> &number) {
        syscall(SYS_futex, &number, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
    }
#else
    void until_not(std::atomic<uint32_t> &number, uint32_t now) {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return number.load(std::memory_order_acquire) != now; });
    }
    void end(std::atomic<uint32_t> &) {
        mutex_.lock();  // a sleeper has looked at the number and sleeps, or will look at it
        mutex_.unlock();
        changed_.notify_all();
    }

private:
    std::mutex mutex_;
    std::condition_variable changed_;
#endif
};

// Spins for longer than threads that all run are apart, then sleeps: whoever is late has lost its
// processor, and may be waiting for this one. Sleeping sooner would cost more than it brings, as
// others take a processor that is left to them for some milliseconds.
class Barrier {
public:
    void wait(int team) {
        if (team == 1) return;
        const uint32_t now = round_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == team - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(now + 1);  // before the look for sleepers, who do both the other way round
            if (sleepers_.load() > 0) sleep_.end(round_);
            return;
        }
        if (!spin(now)) wait_long(now);
    }

    // Nanoseconds of those waits that were long, of all threads together.
    int64_t waited() const { return waited_.load(std::memory_order_relaxed); }

private:
    static constexpr int SPINS = 200;            // before a look at the clock
    static constexpr int64_t LONG = 500000;  // nanoseconds

    // Whether the round has ended.
    bool spin(uint32_t now) const {
        for (int spins = 0; spins < SPINS; spins++, pause())
            if (round_.load(std::memory_order_acquire) != now) return true;
        return false;
    }

    void wait_long(uint32_t now) {
        const int64_t begun = nanoseconds();
        while (nanoseconds() - begun < LONG)
            if (spin(now)) return;
        sleepers_.fetch_add(1);
        sleep_.until_not(round_, now);
        sleepers_.fetch_sub(1);
        waited_.fetch_add(nanoseconds() - begun, std::memory_order_relaxed);
    }

    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> round_{0};
    std::atomic<int> sleepers_{0};
    std::atomic<int64_t> waited_{0};
    Sleep sleep_;
};

}  // namespace
