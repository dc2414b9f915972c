// llama.cpp's own rendering of a model's chat template, as llama-mtmd-cli does it (tools/mtmd/mtmd-cli.cpp,
// chat_add_and_format). The renderer is C++ (common/chat.h) and libllama's C interface does not show it.

#include "chat.h"
#include "llama.h"

#include <cstring>
#include <exception>
#include <string>

static int copied(const std::string & text, char * out, size_t size, int failed) {
    if (text.size() < size) {
        std::memcpy(out, text.c_str(), text.size() + 1);
        return failed;
    }
    return (int) text.size() + 1;
}

// Writes the prompt of a conversation's first message into `out`, or what went wrong. 0: the prompt; -1: the template
// failed; -2: the model has none; more than 0: how many bytes `out` needs.
extern "C" int parity_chat_render(const llama_model * model, const char * content, char * out, size_t size) {
    if (!llama_model_chat_template(model, nullptr)) {
        return -2;
    }
    try {
        const common_chat_templates_ptr templates = common_chat_templates_init(model, "");
        common_chat_msg message;
        message.role    = "user";
        message.content = content;
        return copied(common_chat_format_single(templates.get(), {}, message, true, true), out, size, 0);
    } catch (const std::exception & error) {
        return copied(error.what(), out, size, -1);
    }
}
