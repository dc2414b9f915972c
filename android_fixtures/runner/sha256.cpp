#include "sha256.h"

#include <algorithm>
#include <cstring>

static const uint32_t ROUND[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotated(uint32_t value, int bits) {
    return value >> bits | value << (32 - bits);
}

void Sha256::block(const unsigned char * bytes) {
    uint32_t words[64];
    for (int i = 0; i < 16; i++) {
        words[i] = uint32_t(bytes[4 * i]) << 24 | uint32_t(bytes[4 * i + 1]) << 16 | uint32_t(bytes[4 * i + 2]) << 8 |
                   uint32_t(bytes[4 * i + 3]);
    }
    for (int i = 16; i < 64; i++) {
        const uint32_t a = words[i - 15], b = words[i - 2];
        words[i] = words[i - 16] + words[i - 7] + (rotated(a, 7) ^ rotated(a, 18) ^ a >> 3) +
                   (rotated(b, 17) ^ rotated(b, 19) ^ b >> 10);
    }
    auto [a, b, c, d, e, f, g, h] = state;
    for (int i = 0; i < 64; i++) {
        const uint32_t first =
            h + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + ((e & f) ^ (~e & g)) + ROUND[i] + words[i];
        const uint32_t second =
            (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
    }
    const uint32_t mixed[8] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; i++) {
        state[i] += mixed[i];
    }
}

void Sha256::update(const void * data, size_t size) {
    const auto * bytes = static_cast<const unsigned char *>(data);
    while (size > 0) {
        const size_t filled = length % 64;
        if (filled == 0 && size >= 64) {
            block(bytes);
            length += 64, bytes += 64, size -= 64;
            continue;
        }
        const size_t count = std::min(size, 64 - filled);
        std::memcpy(waiting.data() + filled, bytes, count);
        length += count, bytes += count, size -= count;
        if (length % 64 == 0) {
            block(waiting.data());
        }
    }
}

std::string Sha256::hex() const {
    Sha256 last = *this;
    const uint64_t bits = length * 8;
    const unsigned char one = 0x80, zero = 0;
    last.update(&one, 1);
    while (last.length % 64 != 56) {
        last.update(&zero, 1);
    }
    unsigned char big_endian[8];
    for (int i = 0; i < 8; i++) {
        big_endian[i] = (unsigned char) (bits >> (56 - 8 * i));
    }
    last.update(big_endian, 8);
    std::string text;
    for (const uint32_t word : last.state) {
        for (int shift = 28; shift >= 0; shift -= 4) {
            text += "0123456789abcdef"[word >> shift & 15];
        }
    }
    return text;
}

std::string sha256_hex(const void * data, size_t size) {
    Sha256 hash;
    hash.update(data, size);
    return hash.hex();
}

bool is_sha256(const std::string & text) {
    return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}
