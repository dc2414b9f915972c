#!/bin/sh
# Puts the archive's content, its SHA-256 checked, into /src, and what compiles it into /opt/build.
set -eu
. /inputs/pip.sh
check /inputs/build.txt "$BUILD_LOCK_SHA256" locks/build.txt
archive=/inputs/wheels/$LLAMA_ARCHIVE
[ ! -f "$archive" ] || check "$archive" "$LLAMA_ARCHIVE_SHA256" "$LLAMA_ARCHIVE"

python3.11 -m venv /opt/build
/opt/build/bin/pip install --no-deps --no-compile --require-hashes --only-binary :all: -r /inputs/build.txt

if [ ! -f "$archive" ]; then
    archive=/tmp/$LLAMA_ARCHIVE
    release=${LLAMA_ARCHIVE%.tar.gz}
    echo "${release%-*}==${release##*-} --hash=sha256:$LLAMA_ARCHIVE_SHA256" > /tmp/archive.txt
    PATH=/opt/build/bin:$PATH pip download --no-deps --require-hashes --no-binary :all: --no-build-isolation \
        --dest /tmp -r /tmp/archive.txt
    check "$archive" "$LLAMA_ARCHIVE_SHA256" "$LLAMA_ARCHIVE"
fi
mkdir /src
tar -xzf "$archive" -C /src --strip-components=1 --no-same-owner
# The bytecode that venv made of its pip, with the clock of this build in it.
find /opt/build -name __pycache__ -prune -exec rm -rf {} +
rm -rf /tmp/*
