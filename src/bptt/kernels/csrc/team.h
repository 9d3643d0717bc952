// Threads of a call: who does what, and where they wait for each other.
#pragma once
#include <atomic>
#include <cstdint>
#if defined(_WIN32)
#include <windows.h>
#else
#include <sched.h>
#endif

#include "path.h"

namespace {

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

inline void give_way() {
#if defined(_WIN32)
    SwitchToThread();
#else
    sched_yield();
#endif
}

// Spins for some microseconds, then lets others run: a core that something else uses must not
// bring everything to a halt.
class Barrier {
public:
    void wait(int team) {
        if (team == 1) return;
        const unsigned now = round_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == team - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(now + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; round_.load(std::memory_order_acquire) == now; spins++)
            if (spins < 4000) pause();
            else give_way();
    }

private:
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> round_{0};
};

struct Range {
    int64_t begin, end;
    int64_t size() const { return end - begin; }
};

// One thread's view of the call.
struct Member {
    int number, team;
    Barrier *barrier;

    void wait() const { barrier->wait(team); }

    // Its share of n things, in grains that are not divided.
    Range share(int64_t n, int64_t grain = 1) const {
        const int64_t grains = (n + grain - 1) / grain;
        const int64_t begin = grains * number / team * grain;
        const int64_t end = grains * (number + 1) / team * grain;
        return {begin < n ? begin : n, end < n ? end : n};
    }
};

// Run work(member) on so many threads, or on fewer if no more are to be had.
template <class Work> void run(const bptt_threads &threads, int team, Work work) {
    struct Shared {
        const bptt_threads &threads;
        Work &work;
        Barrier barrier;
    } shared{threads, work, {}};
    if (team <= 1 || !threads.parallel) {
        work(Member{0, 1, &shared.barrier});
        return;
    }
    threads.parallel(
        [](void *data) {
            auto &s = *static_cast<Shared *>(data);
            s.work(Member{s.threads.number(), s.threads.count(), &s.barrier});
        },
        &shared, unsigned(team), 0);
}

}  // namespace
