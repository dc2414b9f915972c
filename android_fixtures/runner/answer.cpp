#include "answer.h"

#include <algorithm>
#include <cstdint>
#include <iterator>

struct Range {
    uint32_t first, last, step;
    int32_t delta;
};

struct Special {
    uint32_t letter;
    const char * folded;
};

#include "casefold.inc"

// The code point that begins at `at`, which then stands behind it. A byte that is none is taken as it is.
static uint32_t next_letter(const std::string & text, size_t & at) {
    const auto byte = [&](size_t i) { return i < text.size() ? (unsigned char) text[i] : 0u; };
    const uint32_t lead = byte(at);
    const int more = lead >= 0xf0 && lead < 0xf8 ? 3 : lead >= 0xe0 ? 2 : lead >= 0xc0 ? 1 : 0;
    uint32_t letter = more == 0 ? lead : lead & (0x3fu >> more);
    for (int i = 1; i <= more; i++) {
        if ((byte(at + i) & 0xc0) != 0x80) {
            at++;
            return lead;
        }
        letter = letter << 6 | (byte(at + i) & 0x3f);
    }
    at += 1 + more;
    return letter;
}

static void append(std::string & text, uint32_t letter) {
    if (letter < 0x80) {
        text += (char) letter;
        return;
    }
    const int more = letter < 0x800 ? 1 : letter < 0x10000 ? 2 : 3;
    text += (char) ((0xff00u >> (more + 1) & 0xff) | letter >> (6 * more));
    for (int i = more - 1; i >= 0; i--) {
        text += (char) (0x80 | (letter >> (6 * i) & 0x3f));
    }
}

static uint32_t folded(uint32_t letter) {
    const auto * range = std::lower_bound(
        std::begin(RANGES), std::end(RANGES), letter, [](const Range & one, uint32_t wanted) { return one.last < wanted; });
    const bool inside = range != std::end(RANGES) && letter >= range->first && (letter - range->first) % range->step == 0;
    return inside ? letter + range->delta : letter;
}

std::string casefolded(const std::string & text) {
    std::string result;
    for (size_t at = 0; at < text.size();) {
        const uint32_t letter = next_letter(text, at);
        const auto * special = std::lower_bound(
            std::begin(SPECIALS), std::end(SPECIALS), letter,
            [](const Special & one, uint32_t wanted) { return one.letter < wanted; });
        if (special != std::end(SPECIALS) && special->letter == letter) {
            result += special->folded;
        } else {
            append(result, folded(letter));
        }
    }
    return result;
}

std::string stripped(const std::string & text) {
    size_t begin = text.size(), end = 0;
    for (size_t at = 0; at < text.size();) {
        const size_t here = at;
        const uint32_t letter = next_letter(text, at);
        if (!std::binary_search(std::begin(SPACES), std::end(SPACES), letter)) {
            begin = std::min(begin, here);
            end = at;
        }
    }
    return begin < end ? text.substr(begin, end - begin) : "";
}

std::optional<std::string> read_label(
    const std::string & text, const std::vector<std::string> & labels, bool contains) {
    const std::string whole = casefolded(text), bare = stripped(whole);
    for (const std::string & label : labels) {
        const std::string key = casefolded(label);
        if (bare == key || (contains && whole.find(key) != std::string::npos)) {
            return label;
        }
    }
    return std::nullopt;
}
