# Adds the runner to a build of llama.cpp. CMake includes this file behind project() (CMAKE_PROJECT_<name>_INCLUDE); the
# runner is added at the end, when llama.cpp's own targets are there.
set(PARITY_RUNNER "${CMAKE_CURRENT_LIST_DIR}/CMakeLists.txt")
cmake_language(DEFER CALL include "${PARITY_RUNNER}")
