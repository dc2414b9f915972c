// From a PNG file to the bytes that libmtmd is given, with the faults of an app that can be planted on the way.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

using Bytes = std::vector<unsigned char>;

enum class Resampling { none, nearest, bilinear };

struct Faults {
    bool bgr = false;  // of the order of channels handed over, not compared with the contract's
    int shift_x = 0, shift_y = 0;  // the canvas moved so far right and down, black where nothing is
    Resampling resampling = Resampling::none;  // the canvas scaled to half its side and back
};

// A canvas, RGB row by row: a PNG file of size x size pixels with 8 bits a channel. Raises UserError.
Bytes read_canvas(const std::string & path, uint32_t size);

// The bytes handed over for a canvas.
Bytes fed_bytes(const Bytes & canvas, uint32_t size, const Faults & faults);
