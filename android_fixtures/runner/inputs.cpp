#include "inputs.h"

#include "errors.h"
#include "sha256.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <set>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static const uint64_t MOST_JSON = 1 << 24;  // bytes; the longest contract has a few thousand
static const size_t MOST_LINE = 1 << 16;
static const size_t MOST_PICTURES = 1000000;
static const int MOST_DEPTH = 32;  // of JSON; the writer below calls itself at each level
static const char * COPY_AGAIN = "copy the bundle again, whole";
static const char * LIST_AGAIN = "write the list again";

using File = std::unique_ptr<FILE, int (*)(FILE *)>;

std::string shown(const std::string & text) {
    std::string line = Json(text.substr(0, 500)).dump(-1, ' ', false, Json::error_handler_t::replace);
    return line.substr(1, line.size() - 2);
}

static File open_file(const std::string & path, const std::string & advice) {
    const int handle = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a FIFO would be waited for
    if (handle < 0) {
        throw UserError(shown(path) + " cannot be read: " + std::strerror(errno) + "; " + advice);
    }
    struct stat about;
    FILE * file = fstat(handle, &about) == 0 && S_ISREG(about.st_mode) ? fdopen(handle, "rb") : nullptr;
    if (!file) {
        close(handle);
        throw UserError(shown(path) + " is not a file: " + advice);
    }
    return File(file, fclose);
}

std::string read_file(const std::string & path, uint64_t most, const std::string & advice) {
    const File file = open_file(path, advice);
    std::string content;
    char block[1 << 16];
    size_t count;
    while ((count = fread(block, 1, sizeof block, file.get())) > 0) {
        content.append(block, count);
        if (content.size() > most) {
            throw UserError(shown(path) + " has more than " + std::to_string(most) + " bytes: " + advice);
        }
    }
    if (ferror(file.get())) {
        throw UserError(shown(path) + " cannot be read to its end: " + advice);
    }
    return content;
}

std::string hash_file(const std::string & path) {
    const File file = open_file(path, COPY_AGAIN);
    std::vector<char> block(1 << 20);
    Sha256 hash;
    size_t count;
    while ((count = fread(block.data(), 1, block.size(), file.get())) > 0) {
        hash.update(block.data(), count);
    }
    if (ferror(file.get())) {
        throw UserError(shown(path) + " cannot be read to its end: " + COPY_AGAIN);
    }
    return hash.hex();
}

Json parse_json(const std::string & text, const std::string & about, const std::string & advice) {
    const auto check_depth = [&](int depth, Json::parse_event_t, Json &) {
        if (depth > MOST_DEPTH) {
            throw UserError(about + " is nested too deeply: " + advice);
        }
        return true;
    };
    try {
        return Json::parse(text, check_depth);
    } catch (const Json::exception &) {
        throw UserError(about + " is not valid JSON: " + advice);
    }
}

namespace {

// Takes values out of a JSON object; what is missing or of another kind is one sentence.
class Reader {
public:
    Reader(const Json & object, std::string about, std::string advice)
        : object(object), about(std::move(about)), advice(std::move(advice)) {
        if (!object.is_object()) {
            throw UserError(this->about + " is not a JSON object: " + this->advice);
        }
    }

    [[noreturn]] void refuse(const std::string & key, const std::string & wanted) const {
        throw UserError(about + ": " + key + " must be " + wanted + "; " + advice);
    }

    const Json & at(const std::string & key) const {
        const auto found = object.find(key);
        return found == object.end() ? null : *found;
    }

    const Json & list(const std::string & key) const {
        if (!at(key).is_array()) {
            refuse(key, "a list");
        }
        return at(key);
    }

    const Json & map(const std::string & key) const {
        if (!at(key).is_object()) {
            refuse(key, "a JSON object");
        }
        return at(key);
    }

    Reader inside(const std::string & key) const {
        return Reader(at(key), about + ": " + key, advice);
    }

    std::string text(const std::string & key) const {
        if (!at(key).is_string()) {
            refuse(key, "a text");
        }
        return at(key).get<std::string>();
    }

    std::optional<std::string> text_or_null(const std::string & key) const {
        return at(key).is_null() ? std::nullopt : std::optional(text(key));
    }

    std::string one_of(const std::string & key, const std::vector<std::string> & values) const {
        const std::string value = text(key);
        std::string all;
        for (const std::string & one : values) {
            if (one == value) {
                return value;
            }
            all += (all.empty() ? "" : ", ") + one;
        }
        refuse(key, "one of " + all);
    }

    uint32_t number(const std::string & key, uint32_t least, uint32_t most) const {
        const Json & value = at(key);
        if (!value.is_number_unsigned() || value.get<uint64_t>() < least || value.get<uint64_t>() > most) {
            refuse(key, "a whole number from " + std::to_string(least) + " to " + std::to_string(most));
        }
        return value.get<uint32_t>();
    }

    bool truth(const std::string & key) const {
        if (!at(key).is_boolean()) {
            refuse(key, "true or false");
        }
        return at(key).get<bool>();
    }

    std::string digest(const std::string & key) const {
        const std::string value = text(key);
        if (!is_sha256(value)) {
            refuse(key, "a SHA-256, 64 lower-case hex digits");
        }
        return value;
    }

    std::optional<std::string> digest_or_null(const std::string & key) const {
        return at(key).is_null() ? std::nullopt : std::optional(digest(key));
    }

    void only(const std::set<std::string> & known) const {
        for (const auto & item : object.items()) {
            if (!known.count(item.key())) {
                throw UserError(about + ": unknown key \"" + shown(item.key()) + "\"; " + advice);
            }
        }
    }

private:
    const Json & object;
    const Json null = nullptr;
    const std::string about, advice;
};

}  // namespace

static std::vector<std::string> read_labels(const Reader & reader) {
    std::vector<std::string> labels;
    for (const Json & one : reader.list("labels")) {
        if (!one.is_string() || one.get<std::string>().empty()) {
            reader.refuse("labels", "a list of texts");
        }
        labels.push_back(one.get<std::string>());
    }
    if (labels.size() < 2 || std::set(labels.begin(), labels.end()).size() != labels.size()) {
        reader.refuse("labels", "at least two different texts");
    }
    return labels;
}

static std::string filled(std::string prompt, const std::vector<std::string> & labels) {
    std::string all;
    for (const std::string & label : labels) {
        all += (all.empty() ? "" : ", ") + label;
    }
    const std::string slot = "{labels}";
    for (size_t at = 0; (at = prompt.find(slot, at)) != std::string::npos; at += all.size()) {
        prompt.replace(at, slot.size(), all);
    }
    return prompt;
}

static uint32_t count_tiles(const Reader & tiling) {
    const uint32_t grid = tiling.number("grid", 1, 6);
    return tiling.one_of("plan", {"grid", "overview"}) == "overview" ? 1 : grid * grid + 1;
}

static Contract read_contract(const Json & json, const std::string & path) {
    const std::vector<std::string> types = {"f32", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"};
    const Reader whole(json, shown(path), COPY_AGAIN);
    const Reader image = whole.inside("image"), runtime = whole.inside("runtime");
    whole.number("schema_version", 1, 1);
    Contract contract;
    contract.labels = read_labels(whole);
    contract.prompt = filled(whole.text("prompt_template"), contract.labels);
    contract.marker = whole.text("media_marker");
    const size_t marker = contract.prompt.find(contract.marker);
    if (contract.marker.empty() || marker == std::string::npos ||
        contract.prompt.find(contract.marker, marker + 1) != std::string::npos) {
        whole.refuse("prompt_template", "a text with media_marker in it just once");
    }
    contract.answer_prefix = whole.text("answer_prefix");
    contract.contains = whole.one_of("answer_rule", {"contains", "exact"}) == "contains";
    contract.add_bos = whole.truth("add_bos");
    contract.max_new_tokens = whole.number("max_new_tokens", 1, 1 << 20);
    contract.size = image.number("size", 16, 4096);
    contract.channel_order = image.one_of("channel_order", {"rgb", "bgr"});
    contract.tiles = count_tiles(whole.inside("tiling"));
    contract.n_ctx = runtime.number("n_ctx", 64, 1 << 20);
    contract.n_batch = runtime.number("n_batch", 1, 1 << 20);
    contract.type_k = runtime.one_of("type_k", types);
    contract.type_v = runtime.one_of("type_v", types);
    contract.flash_attn = runtime.truth("flash_attn");
    if (!runtime.at("n_threads").is_null()) {
        contract.n_threads = runtime.number("n_threads", 1, 1024);
    }
    return contract;
}

// The names of the pair in the manifest: `mmproj-` begins the vision half's (pipeline/export/bundle.py).
static void find_pair(const Reader & manifest, const std::string & folder, Bundle & bundle) {
    for (const auto & item : manifest.map("outputs").items()) {
        const std::string & name = item.key();
        if (name.size() < 6 || name.compare(name.size() - 5, 5, ".gguf") != 0) {
            continue;
        }
        if (name.find('/') != std::string::npos || !item.value().is_string() || !is_sha256(item.value())) {
            manifest.refuse("outputs", "file names with their SHA-256");
        }
        const bool vision = name.rfind("mmproj-", 0) == 0;
        if (!(vision ? bundle.mmproj : bundle.model).empty()) {
            manifest.refuse("outputs", "of one language half and one vision half");
        }
        (vision ? bundle.mmproj : bundle.model) = folder + "/" + name;
        (vision ? bundle.mmproj_sha256 : bundle.model_sha256) = item.value();
    }
    if (bundle.model.empty() || bundle.mmproj.empty()) {
        manifest.refuse("outputs", "of one language half and one vision half");
    }
}

Bundle read_bundle(const std::string & folder) {
    const std::string manifest_path = folder + "/manifest.json", contract_path = folder + "/contract.json";
    const Json manifest_json = parse_json(
        read_file(manifest_path, MOST_JSON, "give a bundle's folder"), shown(manifest_path), COPY_AGAIN);
    const Reader manifest(manifest_json, shown(manifest_path), COPY_AGAIN);
    manifest.number("schema_version", 1, 1);
    const Json contract =
        parse_json(read_file(contract_path, MOST_JSON, COPY_AGAIN), shown(contract_path), COPY_AGAIN);
    Bundle bundle;
    bundle.contract = read_contract(contract, contract_path);
    // As Contract.digest: keys sorted, no spaces. The export writes every default out, so that nothing is missing here.
    const std::string canonical = nlohmann::json(contract).dump();
    bundle.contract_sha256 = sha256_hex(canonical.data(), canonical.size());
    if (manifest.digest("contract_sha256") != bundle.contract_sha256) {
        throw UserError(
            shown(contract_path) + " is not the contract that " + shown(manifest_path) + " names: " + COPY_AGAIN);
    }
    find_pair(manifest, folder, bundle);
    return bundle;
}

namespace {

// The lines of a file, one by one.
class Lines {
public:
    explicit Lines(const std::string & path) : path(path), file(open_file(path, "give a list of pictures")) {}

    bool next(std::string & line) {
        line.clear();
        int letter;
        while ((letter = getc_unlocked(file.get())) != EOF && letter != '\n') {
            line += (char) letter;
            if (line.size() > MOST_LINE) {
                throw UserError(where(number + 1) + " is too long: " + LIST_AGAIN);
            }
        }
        number++;
        if (letter == EOF && !line.empty()) {
            throw UserError(where(number) + " has no line break, as in a file that was cut: " + LIST_AGAIN);
        }
        return letter != EOF;
    }

    std::string where() const { return where(number); }

private:
    std::string where(size_t line) const { return shown(path) + " line " + std::to_string(line); }

    const std::string path;
    const File file;
    size_t number = 0;
};

}  // namespace

static size_t read_list_header(const Json & json, const std::string & where, PictureList & list) {
    const Reader header(json, where, "a list of pictures begins with its header");
    header.only({"schema_version", "kind", "images", "dataset_sha256", "split", "plan_sha256"});
    header.number("schema_version", 1, 1);
    header.one_of("kind", {"pictures"});
    list.dataset_sha256 = header.digest("dataset_sha256");
    list.plan_sha256 = header.digest_or_null("plan_sha256");
    if (!header.at("split").is_null()) {
        list.split = header.one_of("split", {"test", "validation"});
    }
    return header.number("images", 1, MOST_PICTURES);
}

static Picture read_picture(const Json & json, const std::string & where, const std::string & folder) {
    const Reader row(json, where, LIST_AGAIN);
    row.only({"key", "image_id", "file", "truth"});
    const std::string file = row.text("file");
    if (file.empty() || file.find('\0') != std::string::npos) {
        row.refuse("file", "the path of a PNG file, seen from the list's folder");
    }
    return {row.digest("key"), row.text("image_id"), file[0] == '/' ? file : folder + file, row.text_or_null("truth")};
}

PictureList read_pictures(const std::string & path) {
    const std::string folder = path.substr(0, path.rfind('/') + 1);  // npos + 1 is 0: the folder we are in
    Lines lines(path);
    std::string line;
    if (!lines.next(line)) {
        throw UserError(shown(path) + " is empty: give a list of pictures");
    }
    PictureList list;
    const size_t images = read_list_header(parse_json(line, lines.where(), LIST_AGAIN), lines.where(), list);
    std::set<std::string> keys;
    while (lines.next(line)) {
        const Json json = parse_json(line, lines.where(), LIST_AGAIN);
        list.pictures.push_back(read_picture(json, lines.where(), folder));
        if (!keys.insert(list.pictures.back().key).second) {
            throw UserError(lines.where() + ": this picture stands there twice (its key is the same); " + LIST_AGAIN);
        }
        if (list.pictures.size() > images) {
            break;
        }
    }
    if (list.pictures.size() != images) {
        const bool fewer = list.pictures.size() < images;
        throw UserError(
            shown(path) + " has " + (fewer ? std::to_string(list.pictures.size()) : "more") +
            " pictures, and its header says " + std::to_string(images) + ": " + LIST_AGAIN);
    }
    return list;
}
