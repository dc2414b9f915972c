#!/bin/sh
# Compiles llama.cpp from /src into /opt/llama.cpp: llama.sh x86_64|aarch64
set -eu
export PATH=/opt/build/bin:$PATH
target=/opt/llama.cpp
case $1 in
x86_64)
    flags=$LLAMA_FLAGS_X86_64 requires=$LLAMA_REQUIRES_X86_64 prefix=
    programs="llama-quantize llama-mtmd-cli llama-server parity-runner" library=parity-chat
    ;;
aarch64)
    flags=$LLAMA_FLAGS_AARCH64 requires=$LLAMA_REQUIRES_AARCH64 prefix=aarch64-linux-gnu-
    programs="llama-quantize llama-mtmd-cli parity-runner" library=
    ;;
*) echo "error: llama.sh builds x86_64 and aarch64, not $1" >&2 && exit 2 ;;
esac
# Programs and libraries find each other wherever the folder is copied to.
# shellcheck disable=SC2016,SC2086  # the linker reads $ORIGIN; one argument a flag
cmake -G Ninja -S /src/vendor/llama.cpp -B /build $LLAMA_FLAGS $flags \
    '-DCMAKE_PROJECT_llama.cpp_INCLUDE=/inputs/chat_template.cmake;/inputs/runner/runner.cmake' \
    "-DPARITY_LLAMA_COMMIT=$LLAMA_CPP_COMMIT" \
    -DLLAMA_BUILD_NUMBER=0 "-DLLAMA_BUILD_COMMIT=$LLAMA_CPP_COMMIT" -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON \
    '-DCMAKE_INSTALL_RPATH=$ORIGIN;$ORIGIN/../lib'
# shellcheck disable=SC2086
cmake --build /build --target $programs $library
mkdir -p "$target/bin"
for program in $programs; do
    cp "/build/bin/$program" "$target/bin/"
    "${prefix}strip" "$target/bin/$program"
done
if [ "$1" = x86_64 ]; then
    mkdir "$target/lib"
    cp -P /build/bin/*.so* "$target/lib/"
    find "$target/lib" -type f -exec strip --strip-unneeded {} +
fi
python3.11 /inputs/manifest.py "$target" "$1" "$LLAMA_FLAGS $flags" "$requires" "${prefix}g++"
rm -rf /build
