# Adds libparity-chat to a build of llama.cpp, and to the wheel where one is made. CMake includes this file behind
# project() (CMAKE_PROJECT_<name>_INCLUDE); the library is added at the end, when llama.cpp's own are there.
set(PARITY_CHAT_SOURCE "${CMAKE_CURRENT_LIST_DIR}/chat_template.cpp")

function(parity_add_chat)
    add_library(parity-chat SHARED "${PARITY_CHAT_SOURCE}")
    target_link_libraries(parity-chat PRIVATE llama-common llama)
    target_compile_features(parity-chat PRIVATE cxx_std_17)
    if(COMMAND llama_cpp_python_install_target)
        llama_cpp_python_install_target(parity-chat)
        llama_cpp_python_install_target(llama-common)
    endif()
endfunction()

cmake_language(DEFER CALL parity_add_chat)
