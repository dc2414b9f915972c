#include "model.h"

#include "errors.h"
#include "numbers.h"

#include <gguf.h>
#include <mtmd-helper.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <set>

#include <unistd.h>

static const size_t TOP_LOGITS = 8;  // pipeline/models/prediction.py
static const size_t MOST_LOG = 1 << 20;

// ---- what llama.cpp says ---------------------------------------------------------------------------------------------

// llama.cpp's log is one for the whole process.
static std::string all_log, error_log;

static void record(ggml_log_level level, const char * text, void *) {
    if (all_log.size() < MOST_LOG) {
        all_log += text;
    }
    if (level == GGML_LOG_LEVEL_ERROR && error_log.size() < MOST_LOG) {
        error_log += text;
    }
}

// A failed assertion ends the process whatever we do; said in one sentence it is of more use than a core file.
static void give_up(const char * message) {
    fprintf(stderr, "error: llama.cpp gave up (%s): export the bundle again\n", shown(message).c_str());
    _exit(2);
}

void catch_llama_log() {
    ggml_set_abort_callback(give_up);
    llama_log_set(record, nullptr);
    mtmd_helper_log_set(record, nullptr);  // libmtmd's own, too
}

static void clear_log() {
    all_log.clear();
    error_log.clear();
}

// The errors since clear_log() as one line.
static std::string last_errors() {
    std::string line;
    for (const char letter : error_log) {
        const bool space = std::isspace((unsigned char) letter);
        if (!space || (!line.empty() && line.back() != ' ')) {
            line += space ? ' ' : letter;
        }
    }
    while (!line.empty() && line.back() == ' ') {
        line.pop_back();
    }
    return line.empty() ? "no message from llama.cpp" : line;
}

// What stands between two texts in llama.cpp's log, every different one, joined by "+"; empty where nothing does.
static std::string logged(const std::string & before, const std::string & behind) {
    std::set<std::string> found;
    for (size_t at = 0; (at = all_log.find(before, at)) != std::string::npos;) {
        at += before.size();
        const size_t end = all_log.find(behind, at);
        if (end != std::string::npos && end - at < 32) {
            found.insert(all_log.substr(at, end - at));
        }
    }
    std::string joined;
    for (const std::string & one : found) {
        joined += (joined.empty() ? "" : "+") + one;
    }
    return joined;
}

// ---- what a file says ------------------------------------------------------------------------------------------------

static std::string text_key(const gguf_context * gguf, const char * key) {
    const int64_t id = gguf_find_key(gguf, key);
    return id >= 0 && gguf_get_kv_type(gguf, id) == GGUF_TYPE_STRING ? gguf_get_val_str(gguf, id) : "";
}

// The patch and position tables of the vision half stay as they are in every export (pipeline/export/check.py).
static bool is_kept(const std::string & name) {
    return name.rfind("v.patch_embd", 0) == 0 || name.rfind("v.position_embd", 0) == 0;
}

static std::string matrix_types(const gguf_context * gguf) {
    std::set<std::string> types;
    for (int64_t i = 0; i < gguf_get_n_tensors(gguf); i++) {
        // A vector has one dimension in the file, and here 1 in all others; no matrix of ours has a single row.
        const int64_t * shape = gguf_get_tensor_ne(gguf, i);
        if (shape[1] * shape[2] * shape[3] > 1 && !is_kept(gguf_get_tensor_name(gguf, i))) {
            std::string type = ggml_type_name(gguf_get_tensor_type(gguf, i));
            std::transform(type.begin(), type.end(), type.begin(), [](unsigned char c) { return std::toupper(c); });
            types.insert(type);
        }
    }
    std::string joined;
    for (const std::string & type : types) {
        joined += (joined.empty() ? "" : "+") + type;
    }
    return joined;
}

GgufFacts read_gguf(const std::string & path) {
    clear_log();
    const std::unique_ptr<gguf_context, void (*)(gguf_context *)> gguf(
        gguf_init_from_file(path.c_str(), {/*no_alloc=*/true, /*ctx=*/nullptr}), gguf_free);
    if (!gguf) {
        throw UserError("llama.cpp cannot read " + shown(path) + ": " + shown(last_errors()));
    }
    return {
        text_key(gguf.get(), "parity.contract_sha256"), text_key(gguf.get(), "parity.weights_sha256"),
        text_key(gguf.get(), "parity.recipe"), matrix_types(gguf.get()),
    };
}

// ---- loading ---------------------------------------------------------------------------------------------------------

static ggml_type type_named(const std::string & name) {
    const ggml_type types[] = {
        GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q5_1, GGML_TYPE_Q5_0, GGML_TYPE_Q4_1, GGML_TYPE_Q4_0,
    };
    for (const ggml_type type : types) {
        if (name == ggml_type_name(type)) {
            return type;
        }
    }
    throw UserError("unknown type of a KV cache: " + shown(name) + "; take f32, f16, q8_0, q5_1, q5_0, q4_1 or q4_0");
}

Model::Model(const Bundle & bundle, const Setup & setup) : contract(bundle.contract) {
    load_language(bundle.model, setup);
    load_vision(bundle.mmproj, setup.n_threads);
    vocab = llama_model_get_vocab(model.get());
    n_vocab = (size_t) llama_vocab_n_tokens(vocab);
    width = (size_t) llama_model_n_embd(model.get());
    tokenize_labels();
    find_layout();
}

void Model::load_language(const std::string & path, const Setup & setup) {
    clear_log();
    llama_model_params parameters = llama_model_default_params();
    parameters.n_gpu_layers = 0;
    model.reset(llama_model_load_from_file(path.c_str(), parameters));
    if (!model) {
        throw UserError("llama.cpp cannot load " + shown(path) + ": " + shown(last_errors()));
    }
    n_batch = std::min(contract.n_batch, contract.n_ctx);
    llama_context_params settings = llama_context_default_params();
    settings.n_ctx = contract.n_ctx;
    settings.n_seq_max = 1;
    settings.kv_unified = false;
    settings.n_batch = settings.n_ubatch = n_batch;
    settings.n_threads = settings.n_threads_batch = (int32_t) setup.n_threads;
    settings.type_k = type_named(setup.type_k);
    settings.type_v = type_named(setup.type_v);
    settings.flash_attn_type = contract.flash_attn ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    context.reset(llama_init_from_model(model.get(), settings));
    if (!context) {
        throw UserError(
            "llama.cpp refuses the contract's runtime profile for " + shown(path) + ": " + shown(last_errors()));
    }
    // llama.h tells neither; the log has what was allocated.
    reported_k = logged(", K (", "):");
    reported_v = logged(", V (", "):");
    reported_flash = logged("flash_attn            = ", "\n");
}

void Model::load_vision(const std::string & path, uint32_t n_threads) {
    clear_log();
    mtmd_context_params settings = mtmd_context_params_default();
    settings.use_gpu = false;
    settings.print_timings = false;
    settings.n_threads = (int) n_threads;
    settings.media_marker = contract.marker.c_str();
    vision.reset(mtmd_init_from_file(path.c_str(), model.get(), settings));
    if (!vision) {
        throw UserError("llama.cpp cannot load " + shown(path) + ": " + shown(last_errors()));
    }
    if (mtmd_decode_use_mrope(vision.get()) || mtmd_decode_use_non_causal(vision.get(), nullptr)) {
        throw UserError(shown(path) + " wants M-RoPE or a non-causal mask, which this program does not do");
    }
}

static bool is_text(const mtmd_input_chunk * chunk) {
    return mtmd_input_chunk_get_type(chunk) == MTMD_INPUT_CHUNK_TYPE_TEXT;
}

static std::vector<Part> layout_of(const mtmd_input_chunks * chunks) {
    std::vector<Part> parts;
    for (size_t i = 0; i < mtmd_input_chunks_size(chunks); i++) {
        const mtmd_input_chunk * chunk = mtmd_input_chunks_get(chunks, i);
        Part part;
        if (is_text(chunk)) {
            size_t count = 0;
            const llama_token * ids = mtmd_input_chunk_get_tokens_text(chunk, &count);
            part.ids.assign(ids, ids + count);
        } else {
            part.positions = mtmd_input_chunk_get_n_tokens(chunk);
        }
        parts.push_back(std::move(part));
    }
    return parts;
}

// A canvas of noise: its tiles and its overview can only be equal where they are the same picture.
static Bytes noise(size_t size) {
    Bytes bytes(size);
    uint32_t state = 1;
    for (unsigned char & byte : bytes) {
        state = state * 1664525u + 1013904223u;  // Numerical Recipes' generator; its high bits are the good ones
        byte = (unsigned char) (state >> 24);
    }
    return bytes;
}

void Model::find_layout() {
    const Bytes canvas = noise(size_t(contract.size) * contract.size * 3);
    parts = layout_of(tokenize(canvas).get());
    const std::vector<Embeddings> pictures = encode_all(canvas);
    if (pictures.size() != contract.tiles || parts.empty() || parts.back().ids.empty()) {
        throw UserError(
            "libmtmd cuts the canvas into " + std::to_string(pictures.size()) + " pictures, and the contract's tile plan"
            " has " + std::to_string(contract.tiles) + " with text behind them: export the bundle again");
    }
    same_tiles = std::all_of(pictures.begin(), pictures.end(), [&](const auto & one) { return one == pictures[0]; });
    size_t total = contract.max_new_tokens;
    for (const Part & part : parts) {
        total += part.ids.size() + part.positions;
    }
    if (total > contract.n_ctx) {
        throw UserError(
            "prompt and answer take " + std::to_string(total) + " tokens, more than the contract's n_ctx " +
            std::to_string(contract.n_ctx) + ": export with a larger one");
    }
}

void Model::tokenize_labels() {
    for (const std::string & label : contract.labels) {
        const std::string text = contract.answer_prefix + label;
        std::vector<llama_token> ids(text.size() + 8);
        const int32_t count = llama_tokenize(
            vocab, text.data(), (int32_t) text.size(), ids.data(), (int32_t) ids.size(), false, true);
        if (count <= 0 || (uint32_t) count >= contract.max_new_tokens) {
            throw UserError(
                "the label " + shown(label) + " is " + std::to_string(count) + " tokens, and an answer has room for " +
                std::to_string(contract.max_new_tokens) + " with its end: give a larger max_new_tokens");
        }
        ids.resize((size_t) count);
        label_ids.emplace_back(label, ids);
    }
}

Json Model::runtime() const {
    return {
        {"n_ctx", llama_n_ctx(context.get())},
        {"n_batch", llama_n_batch(context.get())},
        {"type_k", reported_k},
        {"type_v", reported_v},
        {"flash_attn", reported_flash == "enabled"},
        {"n_threads", llama_n_threads(context.get())},
    };
}

// ---- a picture -------------------------------------------------------------------------------------------------------

Model::Owned<mtmd_input_chunks> Model::tokenize(const Bytes & fed) const {
    const Owned<mtmd_bitmap> bitmap(mtmd_bitmap_init(contract.size, contract.size, fed.data()));
    Owned<mtmd_input_chunks> chunks(mtmd_input_chunks_init());
    // text_len must be given: left 0, libmtmd sees an empty prompt without a marker.
    const mtmd_input_text text = {contract.prompt.c_str(), contract.prompt.size(), contract.add_bos, true};
    const mtmd_bitmap * bitmaps[] = {bitmap.get()};
    clear_log();
    const int32_t code = mtmd_tokenize(vision.get(), chunks.get(), &text, bitmaps, 1);
    if (code != 0) {
        throw UserError(
            "libmtmd cannot tokenize the prompt and a picture (code " + std::to_string(code) + "): " +
            shown(last_errors()));
    }
    return chunks;
}

Model::Embeddings Model::encode(const mtmd_input_chunk * chunk) {
    clear_log();
    const int32_t code = mtmd_encode_chunk(vision.get(), chunk);
    if (code != 0) {
        throw UserError(
            "libmtmd failed to encode a picture (code " + std::to_string(code) + "): " + shown(last_errors()));
    }
    const float * embeddings = mtmd_get_output_embd(vision.get());
    return Embeddings(embeddings, embeddings + mtmd_input_chunk_get_n_tokens(chunk) * width);
}

std::vector<Model::Embeddings> Model::encode_all(const Bytes & fed) {
    const Owned<mtmd_input_chunks> chunks = tokenize(fed);
    if (layout_of(chunks.get()) != parts) {
        throw UserError("libmtmd lays the prompt out otherwise for this picture than for the first: report this as a bug");
    }
    std::vector<Embeddings> pictures;
    for (size_t i = 0; i < mtmd_input_chunks_size(chunks.get()); i++) {
        const mtmd_input_chunk * chunk = mtmd_input_chunks_get(chunks.get(), i);
        if (!is_text(chunk)) {
            pictures.push_back(same_tiles && !pictures.empty() ? pictures[0] : encode(chunk));
        }
    }
    return pictures;
}

// ---- the language model ----------------------------------------------------------------------------------------------

void Model::decode(const llama_batch & batch, llama_pos position) {
    clear_log();
    const int32_t code = llama_decode(context.get(), batch);
    if (code != 0) {
        throw UserError(
            "llama.cpp failed to decode at position " + std::to_string(position) + " (code " + std::to_string(code) +
            "): " + shown(last_errors()));
    }
}

namespace {

// A llama_batch of one sequence, over memory of its own.
class Batch {
public:
    Batch(size_t n, llama_pos position) : positions(n), counts(n, 1), sequences(n, &zero), wanted(n) {
        for (size_t i = 0; i < n; i++) {
            positions[i] = position + (llama_pos) i;
        }
    }

    llama_batch of(llama_token * tokens, float * embeddings) {
        return {
            (int32_t) positions.size(), tokens, embeddings, positions.data(), counts.data(), sequences.data(),
            wanted.data(),
        };
    }

    void want(size_t place) { wanted[place] = 1; }

private:
    llama_seq_id zero = 0;
    std::vector<llama_pos> positions;
    std::vector<int32_t> counts;
    std::vector<llama_seq_id *> sequences;
    std::vector<int8_t> wanted;
};

}  // namespace

std::vector<float> Model::logits_at(int32_t place) const {
    const float * logits = llama_get_logits_ith(context.get(), place);
    if (!logits) {
        throw UserError("llama.cpp gave no logits: report this as a bug");
    }
    return std::vector<float>(logits, logits + n_vocab);
}

// Appends token ids; keeps the logits behind all of them, or behind the last.
void Model::decode_tokens(const std::vector<llama_token> & ids, llama_pos position, bool all_logits) {
    batch_logits.clear();
    for (size_t begin = 0; begin < ids.size(); begin += n_batch) {
        const size_t count = std::min<size_t>(n_batch, ids.size() - begin);
        Batch batch(count, position + (llama_pos) begin);
        const size_t first = all_logits ? 0 : begin + count == ids.size() ? count - 1 : count;
        for (size_t i = first; i < count; i++) {
            batch.want(i);
        }
        std::vector<llama_token> tokens(ids.begin() + begin, ids.begin() + begin + count);
        decode(batch.of(tokens.data(), nullptr), position + (llama_pos) begin);
        for (size_t i = first; i < count; i++) {
            batch_logits.push_back(logits_at((int32_t) i));
        }
    }
}

void Model::decode_picture(const Embeddings & picture, size_t n, llama_pos position) {
    for (size_t begin = 0; begin < n; begin += n_batch) {
        const size_t count = std::min<size_t>(n_batch, n - begin);
        Batch batch(count, position + (llama_pos) begin);
        Embeddings part(picture.begin() + begin * width, picture.begin() + (begin + count) * width);
        decode(batch.of(nullptr, part.data()), position + (llama_pos) begin);
    }
}

// Chunk by chunk, as mtmd_helper_eval_chunks does; returns the prompt's length.
llama_pos Model::decode_prompt(const std::vector<Embeddings> & pictures) {
    llama_memory_clear(llama_get_memory(context.get()), true);
    llama_pos position = 0;
    size_t picture = 0;
    for (const Part & part : parts) {
        if (part.positions > 0) {
            decode_picture(pictures.at(picture++), part.positions, position);
            position += (llama_pos) part.positions;
        } else {
            decode_tokens(part.ids, position, false);
            position += (llama_pos) part.ids.size();
        }
    }
    return position;
}

// The cache is left as it was after the prompt.
double Model::label_logprob(const std::vector<llama_token> & ids, double first, llama_pos past) {
    double total = first;
    if (ids.size() == 1) {
        return total;
    }
    decode_tokens({ids.begin(), ids.end() - 1}, past, true);
    for (size_t step = 1; step < ids.size(); step++) {
        const std::vector<float> & logits = batch_logits.at(step - 1);
        total += LogSoftmax(logits.data(), n_vocab)(logits[(size_t) ids[step]]);
    }
    llama_memory_seq_rm(llama_get_memory(context.get()), -1, past, -1);
    return total;
}

void Model::generate(Answer & answer, std::vector<float> logits, llama_pos past) {
    while (true) {
        const auto token = (llama_token) argmax(logits.data(), n_vocab);
        if (llama_vocab_is_eog(vocab, token)) {
            answer.ended = true;
            return;
        }
        answer.ids.push_back(token);
        if (answer.ids.size() >= contract.max_new_tokens) {
            return;
        }
        decode_tokens({token}, past++, false);
        logits = batch_logits.at(0);
    }
}

std::string Model::text_of(const std::vector<llama_token> & ids) const {
    if (ids.empty()) {
        return "";
    }
    std::string text(64 * ids.size(), '\0');
    int32_t count = 0;
    for (int attempt = 0; attempt < 2; attempt++) {
        count = llama_detokenize(
            vocab, ids.data(), (int32_t) ids.size(), text.data(), (int32_t) text.size(), false, false);
        if (count >= 0) {
            break;
        }
        text.resize((size_t) -(int64_t) count);
    }
    text.resize((size_t) std::max(count, 0));
    // An answer cut at its last token may end within a letter: U+FFFD in its place, as Python's decode("replace").
    return Json::parse(Json(text).dump(-1, ' ', false, Json::error_handler_t::replace)).get<std::string>();
}

Answer Model::answer(const Bytes & fed) {
    using Clock = std::chrono::steady_clock;
    const auto milliseconds = [](auto duration) { return std::chrono::duration<double, std::milli>(duration).count(); };
    Answer answer;
    const auto start = Clock::now();
    const std::vector<Embeddings> pictures = encode_all(fed);
    const auto encoded = Clock::now();
    const llama_pos past = decode_prompt(pictures);
    const std::vector<float> first = batch_logits.at(0);
    const auto prefilled = Clock::now();
    const LogSoftmax log_softmax(first.data(), n_vocab);
    for (const auto & [label, ids] : label_ids) {
        const double own = log_softmax(first.at((size_t) ids[0]));
        answer.label_logprobs.emplace_back(label, label_logprob(ids, own, past));
    }
    generate(answer, first, past);
    answer.encode_ms = milliseconds(encoded - start);
    answer.prefill_ms = milliseconds(prefilled - encoded);
    answer.generate_ms = milliseconds(Clock::now() - prefilled);
    answer.text = text_of(answer.ids);
    answer.top_logits = greatest(first.data(), n_vocab, TOP_LOGITS);
    return answer;
}
