// What the runner is given: a bundle's contract and manifest, and a list of pictures. Everything is checked before use.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

using Json = nlohmann::ordered_json;

// The contract as far as it says what the runner does (pipeline/contract.py has all of it).
struct Contract {
    std::vector<std::string> labels;
    std::string prompt, marker, answer_prefix, channel_order, type_k, type_v;
    bool contains = true;  // answer_rule
    bool add_bos = false, flash_attn = true;
    uint32_t size = 0, tiles = 0, max_new_tokens = 0, n_ctx = 0, n_batch = 0;
    std::optional<uint32_t> n_threads;
};

struct Bundle {
    Contract contract;
    std::string contract_sha256;
    std::string model, mmproj;  // paths
    std::string model_sha256, mmproj_sha256;  // as the manifest states them
};

struct Picture {
    std::string key, image_id, path;
    std::optional<std::string> truth;
};

struct PictureList {
    std::string dataset_sha256;
    std::optional<std::string> split, plan_sha256;
    std::vector<Picture> pictures;
};

// Raises UserError: a file that is missing, damaged or of another contract.
Bundle read_bundle(const std::string & folder);

// Raises UserError: not such a list, a line that is none (with its number), a picture that is there twice.
PictureList read_pictures(const std::string & path);

// A whole regular file of at most `most` bytes. Raises UserError; `advice` says what to do.
std::string read_file(const std::string & path, uint64_t most, const std::string & advice);

// SHA-256 of a regular file. Raises UserError.
std::string hash_file(const std::string & path);

// A value of a file of ours; `about` names the file for the message. Raises UserError.
Json parse_json(const std::string & text, const std::string & about, const std::string & advice);

// A name or value that anybody may have chosen, on one line.
std::string shown(const std::string & text);
