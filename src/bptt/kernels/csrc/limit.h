// How many threads a call takes, of those that it may. Their number changes no result.
#pragma once
#include <algorithm>
#include <climits>
#include <cstdint>

namespace {

// Learns from the calls of one thread whether others use the processors too. The work is divided
// evenly, so a thread that has to share its processor holds up all others. Where they wait for
// longer than the work would take longer on one thread less, the next calls take one less. After
// some time, each time a longer one, they try one more again.
class Limit {
public:
    // How many of so many threads to take now; times are in nanoseconds.
    int team(int asked, int64_t now) {
        if (most_ < asked && now >= retry_at_) most_++;
        return std::min(asked, most_);
    }

    // Take note of a call: how many took part, how long it took, and how long of it they waited for
    // who was late.
    void took(int team, int64_t wall, int64_t waited, int64_t now) {
        if (team != team_) wall_ = waited_ = 0;
        team_ = team;
        wall_ += wall;
        waited_ += waited;
        if (wall_ < WINDOW) return;
        if (waited_ * team * 5 > wall_ * 4) {  // a team is hardly ever as fast as all its threads
            most_ = team - 1;
            retry_at_ = now + std::max(pause_, COSTS * waited_);
            pause_ = std::min(2 * pause_, LONGEST);
        } else if (team == most_) {  // it was tried, and is right again
            retry_at_ = now;
            pause_ = std::max(pause_ / 2, SHORTEST);
        }
        wall_ = waited_ = 0;
    }

private:
    static constexpr int64_t MS = 1000000;
    static constexpr int64_t WINDOW = 10 * MS;  // some time slices of the system's
    static constexpr int64_t SHORTEST = 100 * MS, LONGEST = 2000 * MS;
    static constexpr int64_t COSTS = 20;  // what was lost in vain is at most a part of the time

    int most_ = INT_MAX, team_ = 0;
    int64_t wall_ = 0, waited_ = 0, retry_at_ = 0, pause_ = SHORTEST;
};

}  // namespace
