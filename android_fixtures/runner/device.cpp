#include "device.h"

#include "errors.h"

#include <array>
#include <cstdio>
#include <memory>
#include <sstream>

#include <sys/utsname.h>
#include <unistd.h>

static const uint64_t MOST = 1 << 20;
static const char * GETPROP = "/system/bin/getprop";

// Empty where there is no such file: no machine has them all.
static std::string read_some(const std::string & path) {
    try {
        return read_file(path, MOST, "");
    } catch (const UserError &) {
        return "";
    }
}

static std::string without_space(const std::string & text) {
    const size_t begin = text.find_first_not_of(" \t\r\n"), end = text.find_last_not_of(" \t\r\n");
    return begin == std::string::npos ? "" : text.substr(begin, end - begin + 1);
}

uint32_t count_cores() {
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return cores > 0 ? (uint32_t) cores : 1;
}

std::map<std::string, std::string> read_properties(const std::string & text) {
    std::map<std::string, std::string> found;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        const size_t at = line.find('=');
        if (at != std::string::npos && line[0] != '#') {
            found[without_space(line.substr(0, at))] = without_space(line.substr(at + 1));
        }
    }
    return found;
}

// A property that Android's own program tells: a static program has no access to them, and build.prop may be closed to
// the shell. `name` is a constant of ours.
static std::string ask_android(const std::string & name) {
    const std::unique_ptr<FILE, int (*)(FILE *)> answer(popen((GETPROP + (" " + name)).c_str(), "r"), pclose);
    char line[256] = "";
    return answer && fgets(line, sizeof line, answer.get()) ? without_space(line) : "";
}

static void describe_android(Json & device) {
    static const std::array<std::array<const char *, 2>, 8> NAMES = {{
        {"manufacturer", "ro.product.manufacturer"}, {"model", "ro.product.model"},
        {"soc_manufacturer", "ro.soc.manufacturer"}, {"soc", "ro.soc.model"}, {"board", "ro.board.platform"},
        {"android", "ro.build.version.release"}, {"api", "ro.build.version.sdk"}, {"build", "ro.build.fingerprint"},
    }};
    const bool asks = access(GETPROP, X_OK) == 0;
    const auto properties = read_properties(read_some("/system/build.prop"));
    for (const auto & [key, name] : NAMES) {
        std::string value = asks ? ask_android(name) : "";
        const auto found = properties.find(name);
        if (value.empty() && found != properties.end()) {
            value = found->second;
        }
        if (!value.empty()) {
            device[key] = shown(value);
        }
    }
}

// The first value of a key of /proc/cpuinfo; lines are `key : value`.
static std::string cpuinfo(const std::string & text, const std::string & key) {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        const size_t colon = line.find(':');
        if (colon != std::string::npos && without_space(line.substr(0, colon)) == key) {
            return without_space(line.substr(colon + 1));
        }
    }
    return "";
}

static std::string cpu_name(const std::string & info) {
    for (const char * key : {"model name", "Hardware", "Processor"}) {
        const std::string name = cpuinfo(info, key);
        if (!name.empty()) {
            return name;
        }
    }
    const std::string part = cpuinfo(info, "CPU part");
    return part.empty() ? "unknown" : "implementer " + cpuinfo(info, "CPU implementer") + " part " + part;
}

// On x86-64 only the sets of instructions that llama.cpp has code for; a phone's list is short.
static std::string cpu_features(const std::string & info) {
    const std::string features = cpuinfo(info, "Features");
    if (!features.empty()) {
        return features;
    }
    std::istringstream flags(cpuinfo(info, "flags"));
    std::string kept;
    for (std::string flag; flags >> flag;) {
        if (flag.rfind("avx", 0) == 0 || flag.rfind("amx", 0) == 0 || flag == "fma" || flag == "f16c" ||
            flag == "bmi2" || flag == "sse4_2") {
            kept += (kept.empty() ? "" : " ") + flag;
        }
    }
    return kept;
}

Json describe_device() {
    const std::string info = read_some("/proc/cpuinfo");
    Json device = {{"cpu", shown(cpu_name(info))}, {"cores", std::to_string(count_cores())}};
    utsname names;
    if (uname(&names) == 0) {
        device["system"] = shown(std::string(names.sysname) + " " + names.machine);
        device["kernel"] = shown(names.release);
    }
    describe_android(device);
    const std::string features = cpu_features(info);
    if (!features.empty()) {
        device["cpu_features"] = shown(features);
    }
    return device;
}
