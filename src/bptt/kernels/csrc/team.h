// Threads of a call: who does what, and where they wait for each other.
#pragma once
#include "barrier.h"
#include "limit.h"
#include "path.h"

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
    const bool several = asked > 1 && threads.parallel;
    const int64_t begun = several ? nanoseconds() : 0;
    const int team = several ? limit.team(asked, begun) : 1;
    if (team == 1) {
        work(Member{0, 1, &shared.barrier});
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
    if (shared.team == 1) return;
    // OpenMP too waits, for who is late to begin or to leave.
    constexpr int64_t USUAL = 50000;
    const int64_t ended = nanoseconds();
    const int64_t around = std::max<int64_t>(0, shared.entered - begun + ended - shared.left - USUAL);
    const int64_t within = shared.barrier.waited() / (shared.team - 1);  // all but who was late
    limit.took(shared.team, ended - begun, around + within, ended);
}

}  // namespace
