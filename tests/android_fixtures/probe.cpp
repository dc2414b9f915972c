// The runner's parts that need no model, asked one by one: probe sha256|fold|strip|label|numbers|properties < input
#include "answer.h"
#include "numbers.h"
#include "sha256.h"

#include <cstdio>
#include <cstring>
#include <iostream>
#include <iterator>
#include <sstream>

int main(int argc, char ** argv) {
    const std::string what = argc > 1 ? argv[1] : "";
    const std::string input((std::istreambuf_iterator<char>(std::cin)), std::istreambuf_iterator<char>());
    if (what == "sha256") {
        // In pieces of every length, as files are read.
        Sha256 hash;
        for (size_t at = 0, size = 1; at < input.size(); at += size, size = size % 131 + 1) {
            hash.update(input.data() + at, std::min(size, input.size() - at));
        }
        std::cout << hash.hex() << "\n" << sha256_hex(input.data(), input.size()) << "\n";
    } else if (what == "fold") {
        std::cout << casefolded(input);
    } else if (what == "strip") {
        std::cout << stripped(input);
    } else if (what == "label" && argc > 3) {
        const auto label = read_label(input, {argv + 3, argv + argc}, std::strcmp(argv[2], "contains") == 0);
        std::cout << (label ? "label " + *label : "none");
    } else if (what == "numbers") {
        std::vector<float> values(input.size() / sizeof(float));
        std::memcpy(values.data(), input.data(), values.size() * sizeof(float));
        const LogSoftmax log_softmax(values.data(), values.size());
        printf("%zu\n", argmax(values.data(), values.size()));
        for (const auto & [index, value] : greatest(values.data(), values.size(), 8)) {
            printf("%d %a\n", index, (double) value);
        }
        printf("%a %a\n", log_softmax.top, log_softmax.log_sum);
    } else {
        return 2;
    }
    return 0;
}
