#include "device.h"

#include "errors.h"

#include <array>
#include <cstdio>
#include <memory>
#include <sstream>

#include <llama.h>
#include <sys/utsname.h>
#include <unistd.h>

#if defined(__aarch64__)
#include <ggml-cpu.h>
#include <sys/auxv.h>
#endif

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
    // A phone switches cores off and on while it runs; a run that goes on must find the same number.
    const bool android = access(GETPROP, X_OK) == 0;
    const long cores = sysconf(android ? _SC_NPROCESSORS_CONF : _SC_NPROCESSORS_ONLN);
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

#if defined(__aarch64__)

// The kernel's own words for what this process may use; /proc/cpuinfo has the machine's under an emulator.
// Bits: Linux, arch/arm64/include/uapi/asm/hwcap.h.
static std::string cpu_features(const std::string &) {
    static const std::array<std::pair<int, const char *>, 7> FIRST = {{
        {1, "asimd"}, {4, "pmull"}, {8, "atomics"}, {9, "fphp"}, {10, "asimdhp"}, {20, "asimddp"}, {22, "sve"},
    }};
    static const std::array<std::pair<int, const char *>, 4> SECOND = {{
        {1, "sve2"}, {13, "i8mm"}, {14, "bf16"}, {23, "sme"},
    }};
    std::string features;
    const auto add = [&](unsigned long bits, const auto & names) {
        for (const auto & [bit, name] : names) {
            if (bits >> bit & 1) {
                features += (features.empty() ? "" : " ") + std::string(name);
            }
        }
    };
    add(getauxval(AT_HWCAP), FIRST);
    add(getauxval(AT_HWCAP2), SECOND);
    return features;
}

void check_cpu() {
    const std::string has = " " + cpu_features("") + " ";
    const std::array<std::pair<bool, const char *>, 4> needs = {{
        {ggml_cpu_has_dotprod(), "asimddp"},
        {ggml_cpu_has_fp16_va(), "asimdhp"},
        {ggml_cpu_has_matmul_int8(), "i8mm"},
        {ggml_cpu_has_sve(), "sve"},
    }};
    for (const auto & [needed, name] : needs) {
        if (needed && has.find(std::string(" ") + name + " ") == std::string::npos) {
            throw UserError(
                std::string("this CPU has no ") + name + ", which this program was compiled for: compile it without, by"
                " GGML_CPU_ARM_ARCH");
        }
    }
}

#else

// Only the sets of instructions that llama.cpp has code for.
static std::string cpu_features(const std::string & info) {
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

// A build for this machine alone: it is not carried to another.
void check_cpu() {}

#endif

// The sets of instructions that llama.cpp was compiled for, of its line `CPU : SSE3 = 1 | AVX = 1 | ... |`.
static std::string compiled_for() {
    std::istringstream words(llama_print_system_info());
    std::string kept, before, name;
    for (std::string word; words >> word; before = word) {
        if (word == "=") {
            name = before;
        } else if (before == "=" && word == "1") {
            kept += (kept.empty() ? "" : " ") + name;
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
    device["compiled_for"] = shown(compiled_for());
    return device;
}
