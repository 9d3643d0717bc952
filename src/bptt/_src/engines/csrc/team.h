// Threads of a call: who does what, and where they wait for each other.
#pragma once
#include "barrier.h"
#include "limit.h"
#include "isa.h"

namespace {

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

thread_local Limit limit;

// Run work(member) on so many threads, or on fewer if no more are to be had or worth it.
template <class Work> void run(const bptt_threads &threads, int asked, Work work) {
    struct Shared {
        const bptt_threads &threads;
        Work &work;
        Barrier barrier;
        int team;
        int64_t entered, left;  // when the caller did
    } shared{threads, work, {}, 1, 0, 0};
    if (asked <= 1 || !threads.parallel) {
        work(Member{0, 1, &shared.barrier});
        return;
    }
    const int64_t begun = nanoseconds();
    const int team = limit.team(asked);
    if (team == 1) {
        work(Member{0, 1, &shared.barrier});
        limit.took(1, asked, nanoseconds() - begun, 0);
        return;
    }
    threads.parallel(
        [](void *data) {
            auto &s = *static_cast<Shared *>(data);
            const Member me{s.threads.number(), s.threads.count(), &s.barrier};
            if (me.number == 0) s.team = me.team, s.entered = nanoseconds();
            s.work(me);
            me.wait();  // here, as OpenMP spins for long
            if (me.number == 0) s.left = nanoseconds();
        },
        &shared, unsigned(team), 0);
    const int64_t wall = nanoseconds() - begun;
    // OpenMP too waits, for who is late to begin or to leave.
    constexpr int64_t USUAL = 50000;
    const int64_t around = wall - (shared.left - shared.entered) - USUAL;
    const int64_t within = shared.barrier.waited() / std::max(1, shared.team - 1);  // all but one
    limit.took(shared.team, asked, wall, std::max<int64_t>(0, around) + within);
}

}  // namespace
