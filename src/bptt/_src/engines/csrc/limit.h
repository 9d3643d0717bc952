// How many threads a call takes, of those that it may. Their number changes no result.
#pragma once
#include <algorithm>
#include <climits>
#include <cstdint>

namespace {

// Learns from the calls of one thread whether others use the processors too. The work is divided
// evenly, so a thread that has to share its processor holds up all others. Where they wait for
// longer than the work would take longer on one thread less, and not just once, as where the system
// has something to do for a moment, the next calls take one less. After some time in such calls,
// each time a longer one, they try one more again.
class Limit {
public:
    // How many of so many threads to take now.
    int team(int asked) {
        if (most_ < asked && rested_ >= pause_) {
            trial_ = ++most_;
            rested_ = 0;
        }
        return std::min(asked, most_);
    }

    // Take note of a call: how many took part of how many, how long it took, and how long of it
    // they waited for who was late, in nanoseconds.
    void took(int team, int asked, int64_t wall, int64_t waited) {
        if (team < asked) rested_ += wall;
        if (team != team_) wall_ = waited_ = windows_ = held_up_ = waits_ = 0;
        team_ = team;
        wall_ += wall;
        waited_ += waited;
        if (wall_ < WINDOW || team == 1) return;
        if (waited_ * team * 5 > wall_ * 4) {  // a team is hardly ever as fast as all its threads
            held_up_ += wall_;
            waits_ += waited_;
            if (++windows_ >= 3 && held_up_ >= MOMENT) {
                most_ = team - 1;
                trial_ = 0;
                rested_ = 0;
                pause_ = std::max(next_, std::min(COSTS * waits_, LONGEST));
                next_ = std::min(2 * next_, LONG);
            }
        } else {
            windows_ = held_up_ = waits_ = 0;
            if (team == trial_) {  // it is right again
                pause_ = 0;
                next_ = std::max(next_ / 2, SHORTEST);
            }
        }
        wall_ = waited_ = 0;
    }

private:
    static constexpr int64_t MS = 1000000;
    static constexpr int64_t WINDOW = 10 * MS;  // some time slices of the system's
    static constexpr int64_t MOMENT = 40 * MS;  // in which another program does what it has to do
    static constexpr int64_t SHORTEST = 100 * MS, LONG = 2000 * MS;
    // What is lost in vain is a small part of the time; but once it was lost because everything
    // stood still, for as long as that may have been.
    static constexpr int64_t COSTS = 20, LONGEST = 10000 * MS;

    int most_ = INT_MAX, team_ = 0, trial_ = 0;
    int64_t wall_ = 0, waited_ = 0;
    int64_t windows_ = 0, held_up_ = 0, waits_ = 0;  // of windows in a row in which they waited
    int64_t rested_ = 0, pause_ = 0, next_ = SHORTEST;
};

}  // namespace
