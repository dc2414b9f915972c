// The contract's answer rule, as pipeline/contract.py (read_label) has it.
#pragma once

#include <optional>
#include <string>
#include <vector>

// Unicode's full case folding of UTF-8 text: str.casefold of Python.
std::string casefolded(const std::string & text);

// UTF-8 text without the white space around it: str.strip of Python.
std::string stripped(const std::string & text);

// The first of `labels` that a generated text gives. `contains`: a label within the text counts, too; else it must be
// all of it.
std::optional<std::string> read_label(
    const std::string & text, const std::vector<std::string> & labels, bool contains);
