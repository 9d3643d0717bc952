// What has no cell: programs over the steps, products and scans, on sizes that fill vectors and
// tiles and on such that do not.
#pragma once
#include <cstring>
#include <random>
#include <vector>

#include "bptt_kernels.h"

namespace {

int64_t instruction(const char *name) {
    for (int64_t i = 0; const char *found = bptt_instruction_name(i); i++)
        if (std::strcmp(found, name) == 0) return i;
    return -1;
}

// h_t = tanh(W h_{t-1} + x_t), less what is normalised away: its mean, and its largest number.
template <class T> std::vector<T> run_program(int64_t T_, int64_t B, int64_t H, int threads) {
    std::mt19937 random(3);
    auto draw = [&](int64_t n) { return normal<T>(random, n); };
    auto x = draw(T_ * B * H), w = draw(H * H), before = draw(B * H);
    std::vector<T> after(size_t(T_ * B * H)), last(size_t(B * H)), factors = draw(T_ * B);
    std::vector<int64_t> sizes(size_t(T_), B);
    for (int64_t t = T_ / 2; t < T_; t++) sizes[size_t(t)] = B - B / 2;  // as packed
    std::vector<uint8_t> zero(size_t(T_ * B));
    for (uint8_t &z : zero) z = random() % 5 == 0;
    std::vector<double> norms(size_t(T_ * B));
    std::vector<T> turned(static_cast<size_t>(H));  // and one place that is not there
    for (int64_t u = 0; u < H; u++) turned[size_t(u)] = T(u ? H - 1 - u : H);
    const bptt_place places[] = {
        {BPTT_STATE, H, 0, 0, 0, before.data(), last.data()},
        {BPTT_ROWS, H, H, 0, 0, x.data(), nullptr},
        {BPTT_BETWEEN, H, 0, 0, 0, nullptr, nullptr},
        {BPTT_TEMPORARY, H, 0, 0, 0, nullptr, nullptr},
        {BPTT_ROWS, H, H, 0, 0, after.data(), nullptr},
        {BPTT_TEMPORARY, 1, 0, 0, 0, nullptr, nullptr},
        {BPTT_PART, (H + 1) / 2, 0, 3, 0, nullptr, nullptr},
        {BPTT_ROWS, H, 0, 0, 0, turned.data(), nullptr},
        {BPTT_TEMPORARY, H, 0, 0, 0, nullptr, nullptr},
    };
    const auto op = instruction;
    const bptt_instruction code[] = {
        {op("product"), 2, 0, 0, 0}, {op("add"), 3, 2, 1, -1},    {op("sum"), 5, 6, -1, -1},
        {op("amax"), 5, 6, -1, -1},  {op("spread"), 6, 5, -1, -1}, {op("scatter"), 8, 3, 7, -1},
        {op("tanh"), 4, 8, -1, -1},  {op("gather"), 8, 4, 7, -1},  {op("scatter"), 0, 8, 7, -1},
    };
    const bptt_weight weight = {H, H, H, 1, w.data()};
    const int64_t type = sizeof(T) == 8 ? BPTT_DOUBLE : BPTT_FLOAT;
    const bptt_loop q = {type, threads, 0, T_, B, sizes.data(), 1, 9, places, 9, code, 1, &weight,
                         zero.data(), factors.data(), nullptr, norms.data()};
    if (as_first([&] { return bptt_run_loop(&q); }) != 0) return {};
    after.insert(after.end(), last.begin(), last.end());
    after.insert(after.end(), norms.begin(), norms.end());
    return after;
}

// h_t = a_t h_{t-1} + x_t: units that do not see each other.
template <class T> std::vector<T> run_units(int64_t T_, int64_t B, int64_t H, int threads) {
    std::mt19937 random(6);
    auto draw = [&](int64_t n) { return normal<T>(random, n); };
    auto x = draw(T_ * B * 2 * H), before = draw(B * H);
    std::vector<T> after(size_t(T_ * B * H)), last(size_t(B * H));
    const std::vector<int64_t> sizes(size_t(T_), B);
    const bptt_place places[] = {
        {BPTT_STATE, H, 0, 0, 0, before.data(), last.data()},
        {BPTT_ROWS, H, 2 * H, 0, 0, x.data(), nullptr},
        {BPTT_ROWS, H, 2 * H, 0, 0, x.data() + H, nullptr},
        {BPTT_TEMPORARY, H, 0, 0, 0, nullptr, nullptr},
        {BPTT_ROWS, H, H, 0, 0, after.data(), nullptr},
    };
    const auto op = instruction;
    const bptt_instruction code[] = {{op("sigmoid"), 3, 1, -1, -1},
                                     {op("muladd"), 4, 3, 0, 2},
                                     {op("copy"), 0, 4, -1, -1}};
    const int64_t type = sizeof(T) == 8 ? BPTT_DOUBLE : BPTT_FLOAT;
    const bptt_loop q = {type, threads, 0, T_, B, sizes.data(), 1, 5, places, 3, code, 0, nullptr,
                         nullptr, nullptr, nullptr, nullptr};
    if (as_first([&] { return bptt_run_loop(&q); }) != 0) return {};
    after.insert(after.end(), last.begin(), last.end());
    return after;
}

template <class T>
std::vector<T> run_product(int64_t M, int64_t K, int64_t N, int kind, int threads) {
    std::mt19937 random(4);
    auto draw = [&](int64_t n) { return normal<T>(random, n); };
    const auto a = draw(M * K), b = draw(K * N), bias = draw(N);
    std::vector<T> c(size_t(M * N));
    const int64_t type = sizeof(T) == 8 ? BPTT_DOUBLE : BPTT_FLOAT;
    const bptt_product q = {type, threads, M, K, N, kind & 1, kind >> 1 & 1, a.data(), b.data(),
                            kind & 4 ? bias.data() : nullptr, c.data()};
    return as_first([&] { return bptt_multiply(&q); }) == 0 ? c : std::vector<T>();
}

template <class T> std::vector<T> run_scan(int64_t T_, int64_t C, int kind, int threads) {
    std::mt19937 random(5);
    const int64_t n = T_ * C * (kind & 1 ? 2 : 1);
    auto a = normal<T>(random, n), b = normal<T>(random, n), first = normal<T>(random, n / T_);
    for (T &e : a) e /= 8;
    std::vector<T> to(static_cast<size_t>(n));
    const int64_t type = sizeof(T) == 8 ? BPTT_DOUBLE : BPTT_FLOAT;
    const bptt_scan q = {type, kind & 1, threads, kind >> 1 & 1, T_, C, a.data(), b.data(),
                         kind & 2 ? nullptr : first.data(), to.data()};
    return as_first([&] { return bptt_run_scan(&q); }) == 0 ? to : std::vector<T>();
}

template <class T> bool check_programs() {
    bool same = true;
    const int64_t sizes[][3] = {{1, 1, 1}, {3, 5, 7}, {9, 2, 33}, {4, 37, 16}, {2, 130, 65}};
    for (const auto &[a, b, c] : sizes) {
        const int64_t x = a, y = b, z = c;
        same = same && all_isas_agree<T>([=](int n) {
            return run_program<T>(x, y, z, n);
        });
        same = same && all_isas_agree<T>([=](int n) { return run_units<T>(400 * x, y % 3 + 1, 3 * z, n); });
        for (int kind = 0; kind < 8; kind++)
            same = same && all_isas_agree<T>([=](int n) {
                return run_product<T>(x, y, z, kind, n);
            });
    }
    const int64_t scans[][2] = {{1, 1}, {7, 3}, {5000, 1}, {4100, 2}, {100, 65}};
    for (const auto &[a, b] : scans) {
        const int64_t steps = a, columns = b;
        for (int kind = 0; kind < 4; kind++)
            same = same && all_isas_agree<T>([=](int n) {
                return run_scan<T>(steps, columns, kind, n);
            });
    }
    std::printf("programs, products and scans of %s %s\n", sizeof(T) == 8 ? "double" : "float",
                same ? "agree" : "DIFFER");
    return same;
}

}  // namespace
