#include "picture.h"

#include "errors.h"
#include "inputs.h"

#include <algorithm>
#include <cstring>
#include <memory>

// The decoder that libmtmd has, from the same tree, for PNG alone. Not libmtmd's own helper
// (mtmd_helper_bitmap_init_from_buf): what it cannot decode it hands to ffmpeg, another process.
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_PNG
#define STBI_NO_STDIO
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#endif
#include <stb/stb_image.h>
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

static const uint64_t MOST_BYTES = 1 << 27;  // more than the largest canvas, 4096 x 4096, takes without compression

static uint32_t big_endian(const std::string & file, size_t at) {
    uint32_t value = 0;
    for (size_t i = 0; i < 4; i++) {
        value = value << 8 | (unsigned char) file[at + i];
    }
    return value;
}

// The size is checked before anything is decoded: a file of some bytes can claim billions of pixels.
static void check_header(const std::string & file, const std::string & path, uint32_t size) {
    static const char BEGIN[] = "\x89PNG\r\n\x1a\n\0\0\0\rIHDR";
    if (file.size() < 33 || std::memcmp(file.data(), BEGIN, 16) != 0) {
        throw UserError(shown(path) + " is not a PNG file: give the dataset's canvases");
    }
    const uint32_t width = big_endian(file, 16), height = big_endian(file, 20), depth = (unsigned char) file[24];
    if (width != size || height != size || depth != 8) {
        throw UserError(
            shown(path) + " is a PNG of " + std::to_string(width) + "x" + std::to_string(height) + " pixels of " +
            std::to_string(depth) + " bits, and the contract's canvas is " + std::to_string(size) + "x" +
            std::to_string(size) + " of 8: give the dataset's canvases");
    }
}

Bytes read_canvas(const std::string & path, uint32_t size) {
    const std::string file = read_file(path, MOST_BYTES, "give the dataset's canvases");
    check_header(file, path, size);
    int width = 0, height = 0, channels = 0;
    const std::unique_ptr<stbi_uc, void (*)(void *)> pixels(
        stbi_load_from_memory(
            reinterpret_cast<const stbi_uc *>(file.data()), (int) file.size(), &width, &height, &channels, 3),
        stbi_image_free);
    if (!pixels || width != (int) size || height != (int) size) {
        throw UserError(shown(path) + " is a damaged PNG file: copy it again");
    }
    return Bytes(pixels.get(), pixels.get() + size_t(size) * size * 3);
}

static Bytes shifted(const Bytes & canvas, int size, int x, int y) {
    Bytes result(canvas.size());
    for (int row = std::max(0, y); row < std::min(size, size + y); row++) {
        const int begin = std::max(0, x), end = std::min(size, size + x);
        if (begin < end) {
            const size_t from = (size_t(row - y) * size + (begin - x)) * 3;
            std::copy_n(canvas.begin() + from, size_t(end - begin) * 3, result.begin() + (size_t(row) * size + begin) * 3);
        }
    }
    return result;
}

// A square picture scaled to another side, pixel centres upon pixel centres.
static Bytes scaled(const Bytes & picture, int from, int to, bool smooth) {
    Bytes result(size_t(to) * to * 3);
    const auto at = [&](int x, int y, int channel) {
        x = std::clamp(x, 0, from - 1), y = std::clamp(y, 0, from - 1);
        return (float) picture[(size_t(y) * from + x) * 3 + channel];
    };
    const float ratio = (float) from / to;
    for (int row = 0; row < to; row++) {
        for (int column = 0; column < to; column++) {
            const float y = (row + 0.5f) * ratio, x = (column + 0.5f) * ratio;
            const int top = (int) (y + 0.5f) - 1, left = (int) (x + 0.5f) - 1;
            const float down = y - 0.5f - top, right = x - 0.5f - left;
            for (int channel = 0; channel < 3; channel++) {
                const float upper = at(left, top, channel) * (1 - right) + at(left + 1, top, channel) * right;
                const float lower = at(left, top + 1, channel) * (1 - right) + at(left + 1, top + 1, channel) * right;
                const float value =
                    smooth ? upper * (1 - down) + lower * down : at((int) x, (int) y, channel);
                result[(size_t(row) * to + column) * 3 + channel] = (unsigned char) (value + 0.5f);
            }
        }
    }
    return result;
}

Bytes fed_bytes(const Bytes & canvas, uint32_t size, const Faults & faults) {
    const int side = (int) size;
    Bytes fed = canvas;
    if (faults.resampling != Resampling::none) {
        const bool smooth = faults.resampling == Resampling::bilinear;
        fed = scaled(scaled(fed, side, side / 2, smooth), side / 2, side, smooth);
    }
    if (faults.shift_x != 0 || faults.shift_y != 0) {
        fed = shifted(fed, side, faults.shift_x, faults.shift_y);
    }
    for (size_t i = 0; faults.bgr && i + 2 < fed.size(); i += 3) {
        std::swap(fed[i], fed[i + 2]);
    }
    return fed;
}
