// What the runner runs on, as far as the machine tells: for the header's `device`.
#pragma once

#include "inputs.h"

#include <map>

// cpu, cores, system; on Android also model, soc, android, api, build; cpu_features; compiled_for.
Json describe_device();

// Raises UserError where this program has instructions that the CPU lacks, which would end it without a word.
void check_cpu();

// Lines of `name=value`, as in Android's /system/build.prop; others are passed over.
std::map<std::string, std::string> read_properties(const std::string & text);

// Cores that are on line; on Android all there are. The app's rule for threads is of this number.
uint32_t count_cores();
