// parity-runner: a bundle's answers to a list of pictures, as a results file. See docs/android.md.
//
// Exit codes: 0 done, 2 bad input, 130 stopped by a signal; the rows so far stay, and the same command goes on.

#include "answer.h"
#include "device.h"
#include "errors.h"
#include "inputs.h"
#include "model.h"
#include "picture.h"
#include "results.h"

#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <optional>

#include <unistd.h>

#ifndef PARITY_LLAMA_COMMIT
#error "PARITY_LLAMA_COMMIT is the commit of llama.cpp that this is compiled with"
#endif

static const char * USAGE =
    "Usage: parity-runner [options] BUNDLE PICTURES OUT\n"
    "\n"
    "Answers a list of pictures with a bundle's model and writes a results file. Run again, it goes on.\n"
    "\n"
    "  BUNDLE    folder with manifest.json, contract.json and the two GGUF files\n"
    "  PICTURES  list of pictures, JSON lines; their files lie beside it\n"
    "  OUT       the results file\n"
    "\n"
    "  --threads N            threads (default: the contract's, else half the cores, 2 to 6)\n"
    "  --limit N              only the first N pictures\n"
    "\n"
    "To plant the faults of an app:\n"
    "  --channel-order ORDER  rgb or bgr: what the model is handed (default: the contract's)\n"
    "  --shift X,Y            move the canvas X pixels right and Y down\n"
    "  --resample FILTER      nearest or bilinear: scale the canvas to half its side and back\n"
    "  --kv-type TYPE         of the KV cache, in place of the contract's: f32, f16, q8_0, q5_1, q5_0, q4_1, q4_0\n";

static const double PROGRESS_SECONDS = 20;

struct Options {
    std::vector<std::string> paths;  // bundle, list, results
    std::string channel_order, kv_type, resample;
    uint32_t threads = 0, limit = 0;  // 0: not given
    int shift_x = 0, shift_y = 0;
};

static volatile std::sig_atomic_t stopped = 0;

static void stop(int) {
    stopped = 1;
}

// ---- the command line ------------------------------------------------------------------------------------------------

static int number(const std::string & option, const std::string & text, int least, int most) {
    int value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || value < least || value > most) {
        throw UserError(
            option + " " + shown(text) + " is not a whole number from " + std::to_string(least) + " to " +
            std::to_string(most) + ": give one");
    }
    return value;
}

static std::string choice(const std::string & option, const std::string & text, const std::vector<std::string> & all) {
    std::string named;
    for (const std::string & one : all) {
        if (one == text) {
            return text;
        }
        named += (named.empty() ? "" : ", ") + one;
    }
    throw UserError(option + " " + shown(text) + " is unknown: give one of " + named);
}

static void take_option(Options & options, const std::string & name, const std::string & value) {
    if (name == "--threads") {
        options.threads = (uint32_t) number(name, value, 1, 1024);
    } else if (name == "--limit") {
        options.limit = (uint32_t) number(name, value, 1, 1000000);
    } else if (name == "--channel-order") {
        options.channel_order = choice(name, value, {"rgb", "bgr"});
    } else if (name == "--resample") {
        options.resample = choice(name, value, {"nearest", "bilinear"});
    } else if (name == "--kv-type") {
        options.kv_type = choice(name, value, {"f32", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"});
    } else if (name == "--shift") {
        const size_t comma = value.find(',');
        if (comma == std::string::npos) {
            throw UserError("--shift " + shown(value) + " is not two numbers: give X,Y as in 3,0");
        }
        options.shift_x = number(name, value.substr(0, comma), -4096, 4096);
        options.shift_y = number(name, value.substr(comma + 1), -4096, 4096);
    } else {
        throw UserError("unknown option " + shown(name) + ": see parity-runner --help");
    }
}

static Options parse_options(const std::vector<std::string> & arguments) {
    Options options;
    for (size_t i = 0; i < arguments.size(); i++) {
        const std::string & word = arguments[i];
        if (word.rfind("--", 0) != 0) {
            options.paths.push_back(word);
            continue;
        }
        const size_t equals = word.find('=');
        if (equals != std::string::npos) {
            take_option(options, word.substr(0, equals), word.substr(equals + 1));
        } else if (i + 1 < arguments.size()) {
            take_option(options, word, arguments[++i]);
        } else {
            throw UserError("the option " + shown(word) + " is unknown or has no value: see parity-runner --help");
        }
    }
    if (options.paths.size() != 3) {
        throw UserError("give a bundle's folder, a list of pictures and a results file: see parity-runner --help");
    }
    return options;
}

// ---- the header ------------------------------------------------------------------------------------------------------

static std::string file_name(const std::string & path) {
    return path.substr(path.rfind('/') + 1);
}

static void check_hash(const std::string & path, const std::string & found, const std::string & stated) {
    if (found != stated) {
        throw UserError(shown(path) + " is not the file that manifest.json lists: copy the bundle again, whole");
    }
}

// Digest of the weights that the pair states; two halves of different weights give what equals neither.
static Json weights_of(const GgufFacts & text, const GgufFacts & vision) {
    if (text.weights_sha256 != vision.weights_sha256) {
        throw UserError(
            "the bundle's two halves say that they are of different weights (parity.weights_sha256): export it again");
    }
    return is_sha256(text.weights_sha256) ? Json(text.weights_sha256) : Json();
}

static void check_contract(const std::string & path, const GgufFacts & facts, const Bundle & bundle) {
    if (facts.contract_sha256 != bundle.contract_sha256) {
        throw UserError(
            shown(path) + " belongs to another contract than the bundle's (parity.contract_sha256): export it again");
    }
}

static Json prompt_ids(const std::vector<Part> & parts) {
    Json ids = Json::array();
    for (const Part & part : parts) {
        for (const llama_token id : part.ids) {
            ids.push_back(id);
        }
        for (size_t i = 0; i < part.positions; i++) {
            ids.push_back(-1);
        }
    }
    return ids;
}

static Json image_slots(const std::vector<Part> & parts) {
    Json slots = Json::array();
    size_t position = 0;
    for (const Part & part : parts) {
        if (part.positions > 0) {
            slots.push_back({position, part.positions});
        }
        position += part.ids.size() + part.positions;
    }
    return slots;
}

// How things were set up; planted faults stand here, too, so that no such file passes for an app's.
static Json runtime_of(
    const Options & options, const Bundle & bundle, const PictureList & list, const Model & model,
    const GgufFacts & text, const GgufFacts & vision, const std::string & order) {
    Json runtime = model.runtime();
    runtime["fed"] = order;
    runtime["text_types"] = text.tensor_types;
    runtime["mmproj_types"] = vision.tensor_types;
    runtime["files"] = shown(file_name(bundle.model)) + " + " + shown(file_name(bundle.mmproj));
    if (!text.recipe.empty()) {
        runtime["recipe"] = shown(text.recipe);
    }
    if (list.plan_sha256) {
        runtime["plan_sha256"] = *list.plan_sha256;
    }
    if (options.shift_x != 0 || options.shift_y != 0) {
        runtime["planted_shift"] = std::to_string(options.shift_x) + "," + std::to_string(options.shift_y);
    }
    if (!options.resample.empty()) {
        runtime["planted_resample"] = options.resample;
    }
    return runtime;
}

static Json optional_text(const std::optional<std::string> & text) {
    return text ? Json(*text) : Json();
}

// ---- a run -----------------------------------------------------------------------------------------------------------

static uint32_t threads_of(const Options & options, const Contract & contract) {
    if (options.threads > 0) {
        return options.threads;
    }
    return contract.n_threads ? *contract.n_threads : std::min(std::max(count_cores() / 2, 2u), 6u);
}

static Json row_of(
    const Picture & picture, const Bytes & fed, const Answer & answer, const Contract & contract, double decode_ms) {
    Json logprobs = Json::object(), top = Json::array();
    for (const auto & [label, value] : answer.label_logprobs) {
        logprobs[label] = value;  // NaN becomes null
    }
    for (const auto & [id, logit] : answer.top_logits) {
        top.push_back({id, (double) logit});
    }
    return {
        {"key", picture.key},
        {"image_id", picture.image_id},
        {"rgb_sha256", sha256_hex(fed.data(), fed.size())},
        {"truth", optional_text(picture.truth)},
        {"text", answer.text},
        {"label", optional_text(read_label(answer.text, contract.labels, contract.contains))},
        {"generated_token_ids", answer.ids},
        {"label_logprobs", logprobs},
        {"top_logits", top},
        {"ms",
         {{"decode", decode_ms},
          {"encode", answer.encode_ms},
          {"prefill", answer.prefill_ms},
          {"generate", answer.generate_ms}}},
        {"stop_reason", answer.ended ? "end" : "length"},
    };
}

static Json answer_picture(Model & model, const Picture & picture, const Contract & contract, const Faults & faults) {
    const auto start = std::chrono::steady_clock::now();
    const Bytes canvas = read_canvas(picture.path, contract.size);
    if (sha256_hex(canvas.data(), canvas.size()) != picture.key) {
        throw UserError(
            shown(picture.path) + " does not hold the pixels that its key in the list is of: copy the pictures again");
    }
    const Bytes fed = fed_bytes(canvas, contract.size, faults);
    const std::chrono::duration<double, std::milli> decoding = std::chrono::steady_clock::now() - start;
    return row_of(picture, fed, model.answer(fed), contract, decoding.count());
}

// One line that is written over in a terminal, else a line now and then.
static void show_progress(size_t done, size_t all, double seconds, double & shown_at) {
    const bool terminal = isatty(STDERR_FILENO);
    if (terminal || seconds - shown_at >= PROGRESS_SECONDS || done == all) {
        fprintf(stderr, "%s%zu of %zu pictures answered%s", terminal ? "\r" : "", done, all, terminal ? "" : "\n");
        shown_at = seconds;
    }
    if (terminal && done == all) {
        fputc('\n', stderr);
    }
}

static void answer_all(
    Model & model, const std::vector<Picture> & pictures, const Contract & contract, const Faults & faults,
    ResultsFile & results) {
    const auto start = std::chrono::steady_clock::now();
    double shown_at = 0;
    for (const Picture & picture : pictures) {
        if (results.has(picture.key)) {
            continue;
        }
        if (stopped) {
            throw Interrupted();
        }
        results.append(picture.key, answer_picture(model, picture, contract, faults));
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        show_progress(results.rows(), pictures.size(), seconds.count(), shown_at);
    }
    results.finish();
}

static void run(const Options & options) {
    const Bundle bundle = read_bundle(options.paths[0]);
    PictureList list = read_pictures(options.paths[1]);
    if (options.limit > 0 && options.limit < list.pictures.size()) {
        list.pictures.resize(options.limit);
    }
    check_hash(bundle.model, hash_file(bundle.model), bundle.model_sha256);
    check_hash(bundle.mmproj, hash_file(bundle.mmproj), bundle.mmproj_sha256);
    const GgufFacts text = read_gguf(bundle.model), vision = read_gguf(bundle.mmproj);
    check_contract(bundle.model, text, bundle);
    check_contract(bundle.mmproj, vision, bundle);
    const Contract & contract = bundle.contract;
    const std::string order = options.channel_order.empty() ? contract.channel_order : options.channel_order;
    const auto kv_type = [&](const std::string & own) { return options.kv_type.empty() ? own : options.kv_type; };
    Model model(bundle, {kv_type(contract.type_k), kv_type(contract.type_v), threads_of(options, contract)});
    const Json header = {
        {"schema_version", 4},
        {"images", list.pictures.size()},
        {"side", "device"},
        {"engine", "llama.cpp"},
        {"contract_sha256", bundle.contract_sha256},
        {"dataset_sha256", list.dataset_sha256},
        {"split", optional_text(list.split)},
        {"model", {{"model", bundle.model_sha256}, {"mmproj", bundle.mmproj_sha256}}},
        {"weights_sha256", weights_of(text, vision)},
        {"versions", {{"llama_commit", PARITY_LLAMA_COMMIT}}},
        {"device", describe_device()},
        {"runtime", runtime_of(options, bundle, list, model, text, vision, order)},
        {"prompt_token_ids", prompt_ids(model.prompt())},
        {"image_slots", image_slots(model.prompt())},
    };
    std::set<std::string> wanted;
    for (const Picture & picture : list.pictures) {
        wanted.insert(picture.key);
    }
    Faults faults;
    faults.bgr = order == "bgr";
    faults.shift_x = options.shift_x;
    faults.shift_y = options.shift_y;
    faults.resampling = options.resample.empty()        ? Resampling::none
                        : options.resample == "nearest" ? Resampling::nearest
                                                        : Resampling::bilinear;
    ResultsFile results(options.paths[2], header, wanted);
    answer_all(model, list.pictures, contract, faults, results);
}

// Altered GGUFs make llama.cpp divide by zero or read where nothing is. Only what is safe in a handler: write, _exit.
static void crash(int) {
    static const char WORDS[] =
        "error: llama.cpp crashed with this bundle: export it again, and report this if that does not help\n";
    if (write(STDERR_FILENO, WORDS, sizeof WORDS - 1) < 0) {
        // Nobody reads it; the exit code says the same.
    }
    _exit(2);
}

static void catch_signals() {
    struct sigaction last = {};
    last.sa_handler = crash;
    for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) {
        sigaction(signal, &last, nullptr);
    }
    struct sigaction action = {};
    action.sa_handler = stop;
    action.sa_flags = (int) (SA_RESETHAND | SA_RESTART);  // the second one ends the process at once
    for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
        sigaction(signal, &action, nullptr);
    }
}

int main(int argc, char ** argv) {
    const std::vector<std::string> arguments(argv + (argc > 0), argv + argc);
    if (arguments.size() == 1 && (arguments[0] == "--help" || arguments[0] == "--version")) {
        fputs(arguments[0] == "--help" ? USAGE : "parity-runner with llama.cpp " PARITY_LLAMA_COMMIT "\n", stdout);
        return 0;
    }
    catch_llama_log();
    catch_signals();
    try {
        const Options options = parse_options(arguments);
        check_cpu();
        llama_backend_init();
        run(options);
        return 0;
    } catch (const UserError & error) {
        fprintf(stderr, "error: %s\n", error.what());
        return 2;
    } catch (const Interrupted &) {
        fputs("interrupted: run the same command again to go on from here\n", stderr);
        return 130;
    } catch (const std::exception & error) {  // a bug of ours, or no memory
        fprintf(stderr, "error: %s: please report this\n", error.what());
        return 70;
    }
}
