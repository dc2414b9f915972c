// Arithmetic on logits, as pipeline/models/prediction.py does it with numpy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

// The index of the greatest; the first of equal ones. The first NaN is greater than anything, as in numpy.argmax.
size_t argmax(const float * values, size_t n);

// (index, value) of the `count` greatest, greatest first; equal ones in the order of their indices, NaN last.
std::vector<std::pair<int32_t, float>> greatest(const float * values, size_t n, size_t count);

// What turns logits into natural-log probabilities.
struct LogSoftmax {
    LogSoftmax(const float * logits, size_t n);
    double operator()(float logit) const { return (double) logit - top - log_sum; }

    double top, log_sum;
};
