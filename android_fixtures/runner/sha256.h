// SHA-256 (FIPS 180-4), of its own so that the runner needs no cryptographic library on a phone.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

class Sha256 {
public:
    void update(const void * data, size_t size);
    // The digest of all bytes so far, in lower-case hex. More bytes may follow.
    std::string hex() const;

private:
    void block(const unsigned char * bytes);

    std::array<uint32_t, 8> state = {
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
    };
    std::array<unsigned char, 64> waiting{};
    uint64_t length = 0;
};

std::string sha256_hex(const void * data, size_t size);

// Whether a text is a digest as it stands in our files: 64 lower-case hex digits.
bool is_sha256(const std::string & text);
