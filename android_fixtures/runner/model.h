// A GGUF pair under libllama and libmtmd, as parity/engines/llamacpp.py runs it, one picture at a time.
#pragma once

#include "inputs.h"
#include "picture.h"

#include <array>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <llama.h>
#include <mtmd.h>

// How llama.cpp is set up: the contract's profile, or what was asked for in its place.
struct Setup {
    std::string type_k, type_v;
    uint32_t n_threads = 0;
};

// A part of the prompt: the ids of a text, or how many positions a picture takes.
struct Part {
    std::vector<llama_token> ids;
    size_t positions = 0;  // of a picture; 0 for a text

    bool operator==(const Part & other) const { return ids == other.ids && positions == other.positions; }
};

struct Answer {
    std::string text;
    std::vector<llama_token> ids;
    bool ended = false;  // by an end token, else by the contract's max_new_tokens
    std::vector<std::pair<std::string, double>> label_logprobs;
    std::vector<std::pair<int32_t, float>> top_logits;
    double encode_ms = 0, prefill_ms = 0, generate_ms = 0;
};

class Model {
public:
    // Raises UserError: a file that llama.cpp cannot load, or not under this profile, with its own reason.
    Model(const Bundle & bundle, const Setup & setup);

    // The model's answer to a canvas as it is handed over. Raises UserError where libmtmd or llama.cpp fails.
    Answer answer(const Bytes & fed);

    const std::vector<Part> & prompt() const { return parts; }

    // What llama.cpp says of its own set-up: n_ctx, n_batch, type_k, type_v, flash_attn, n_threads.
    Json runtime() const;

private:
    struct Free {
        void operator()(llama_model * model) const { llama_model_free(model); }
        void operator()(llama_context * context) const { llama_free(context); }
        void operator()(mtmd_context * context) const { mtmd_free(context); }
        void operator()(mtmd_input_chunks * chunks) const { mtmd_input_chunks_free(chunks); }
        void operator()(mtmd_bitmap * bitmap) const { mtmd_bitmap_free(bitmap); }
    };
    template <typename T> using Owned = std::unique_ptr<T, Free>;
    using Embeddings = std::vector<float>;  // of one picture

    void load_language(const std::string & path, const Setup & setup);
    void load_vision(const std::string & path, uint32_t n_threads);
    void find_layout();
    void tokenize_labels();
    Owned<mtmd_input_chunks> tokenize(const Bytes & fed) const;
    Embeddings encode(const mtmd_input_chunk * chunk);
    std::vector<Embeddings> encode_all(const Bytes & fed);
    void decode(const llama_batch & batch, llama_pos position);
    void decode_tokens(const std::vector<llama_token> & ids, llama_pos position, bool all_logits);
    void decode_picture(const Embeddings & picture, size_t n, llama_pos position);
    llama_pos decode_prompt(const std::vector<Embeddings> & pictures);
    // `first`: the log-probability of the label's first token.
    double label_logprob(const std::vector<llama_token> & ids, double first, llama_pos past);
    void generate(Answer & answer, std::vector<float> logits, llama_pos past);
    std::vector<float> logits_at(int32_t place) const;
    std::string text_of(const std::vector<llama_token> & ids) const;

    const Contract contract;
    Owned<llama_model> model;
    Owned<llama_context> context;  // freed before its model
    Owned<mtmd_context> vision;
    const llama_vocab * vocab = nullptr;
    uint32_t n_batch = 0;
    size_t n_vocab = 0, width = 0;
    std::vector<Part> parts;
    bool same_tiles = false;
    std::vector<std::pair<std::string, std::vector<llama_token>>> label_ids;
    std::vector<std::vector<float>> batch_logits;  // of the last decode_tokens
    std::string reported_k, reported_v, reported_flash;
};

// What a GGUF says of itself, read by llama.cpp's own reader.
struct GgufFacts {
    std::string contract_sha256, weights_sha256, recipe;  // empty where it has no such key
    std::string tensor_types;  // of its matrices: `Q8_0`, `Q5_0+Q8_0`
};

// Raises UserError.
GgufFacts read_gguf(const std::string & path);

// Keeps llama.cpp's messages from the terminal; what it says of errors goes into ours, its last words too.
void catch_llama_log();
