// Bad input. The message is one sentence: what is wrong, where, and what to do about it.
#pragma once

#include <stdexcept>
#include <string>

struct UserError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Stopped by a signal; what was written stays.
struct Interrupted {};
