#include "numbers.h"

#include <algorithm>
#include <cmath>

size_t argmax(const float * values, size_t n) {
    size_t best = 0;
    for (size_t i = 0; i < n; i++) {
        if (std::isnan(values[i])) {
            return i;
        }
        if (values[i] > values[best]) {
            best = i;
        }
    }
    return best;
}

std::vector<std::pair<int32_t, float>> greatest(const float * values, size_t n, size_t count) {
    std::vector<std::pair<int32_t, float>> result(n);
    for (size_t i = 0; i < n; i++) {
        result[i] = {(int32_t) i, values[i]};
    }
    const auto before = [](const auto & a, const auto & b) {
        if (std::isnan(a.second) != std::isnan(b.second)) {
            return std::isnan(b.second);
        }
        return a.second != b.second && !std::isnan(a.second) ? a.second > b.second : a.first < b.first;
    };
    count = std::min(count, n);
    std::partial_sort(result.begin(), result.begin() + count, result.end(), before);
    result.resize(count);
    return result;
}

// numpy's sum of neighbours in memory (numpy/_core/src/umath/loops_utils.h.src, DOUBLE_pairwise_sum): the order in which
// doubles are added decides the last bits.
static double pairwise_sum(const double * values, size_t n) {
    if (n < 8) {
        double sum = -0.0;
        for (size_t i = 0; i < n; i++) {
            sum += values[i];
        }
        return sum;
    }
    if (n > 128) {
        const size_t half = n / 2 - n / 2 % 8;
        return pairwise_sum(values, half) + pairwise_sum(values + half, n - half);
    }
    double part[8];
    std::copy_n(values, 8, part);
    size_t i = 8;
    for (; i < n - n % 8; i += 8) {
        for (size_t k = 0; k < 8; k++) {
            part[k] += values[i + k];
        }
    }
    double sum = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
    for (; i < n; i++) {
        sum += values[i];
    }
    return sum;
}

// float32, as numpy's max: NaN if one is.
static float largest(const float * values, size_t n) {
    return values[argmax(values, n)];
}

LogSoftmax::LogSoftmax(const float * logits, size_t n) : top(largest(logits, n)) {
    std::vector<double> powers(n);
    for (size_t i = 0; i < n; i++) {
        powers[i] = std::exp((double) logits[i] - top);
    }
    log_sum = std::log(pairwise_sum(powers.data(), n));
}
