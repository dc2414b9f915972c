#!/bin/sh
# Installs the packages of debian/<list>.txt: debian.sh base|build
# With DEBIAN_LOCKED=1 only files whose SHA-256 stands in debian/<list>.lock are taken.
set -eu
cd /inputs/debian
list=$1
export DEBIAN_FRONTEND=noninteractive
names=$(sed 's/#.*//' "$list.txt")

missing=$(for name in $names; do dpkg-query -W -f '${db:Status-Abbrev}' "$name" 2>/dev/null | grep -q '^ii' || echo "$name"; done)
if [ -n "$missing" ]; then
    sources=/etc/apt/sources.list.d/debian.sources
    if [ -f "$sources" ]; then
        # Debian's own images name, in a comment above each address, the snapshot that they were made from.
        grep -q '^# http' "$sources" || { echo "error: $sources of the base image names no snapshot" >&2; exit 2; }
        sed -i -e '/^URIs:/d' -e 's/^# http/URIs: http/' "$sources"
        [ -z "${DEBIAN_MIRROR:-}" ] || sed -i "s|^URIs: .*/archive/debian/.*|URIs: $DEBIAN_MIRROR|" "$sources"
    elif [ -n "${DEBIAN_MIRROR:-}" ]; then
        echo "deb $DEBIAN_MIRROR bookworm main" > /etc/apt/sources.list
    else
        echo "error: this base image has no Debian archive set up: give DEBIAN_MIRROR" >&2
        exit 2
    fi
    if ls /inputs/ca/* >/dev/null 2>&1; then
        cat /etc/ssl/certs/ca-certificates.crt /inputs/ca/* > /tmp/ca.pem 2>/dev/null || cat /inputs/ca/* > /tmp/ca.pem
        echo 'Acquire::https::CaInfo "/tmp/ca.pem";' > /etc/apt/apt.conf.d/99ca
    fi
    # A snapshot is old by nature; its signature is checked all the same.
    apt-get -o Acquire::Check-Valid-Until=false -o Acquire::Retries=5 update
    # shellcheck disable=SC2086  # one argument a name
    apt-get install -y --no-install-recommends --download-only $names
    if [ "${DEBIAN_LOCKED:-}" = 1 ]; then
        (cd /var/cache/apt/archives && ls -- *.deb) | sort > /tmp/offered
        cut -c67- "$list.lock" | sort > /tmp/wanted
        if ! diff /tmp/wanted /tmp/offered > /tmp/difference; then
            cat /tmp/difference >&2
            echo "error: the Debian archive offers other packages than docker/debian/$list.lock (< wanted, > offered):" \
                "name an archive of that date with DEBIAN_MIRROR, or run make docker-lock" >&2
            exit 2
        fi
        (cd /var/cache/apt/archives && sha256sum --check --quiet --strict "/inputs/debian/$list.lock") || {
            echo "error: a package differs from its hash in docker/debian/$list.lock (named above)" >&2
            exit 2
        }
    fi
    # shellcheck disable=SC2086
    apt-get install -y --no-install-recommends --no-download $names
fi

# What says when and from where, and what apt would make again.
rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/* /var/cache/ldconfig/aux-cache /var/cache/debconf/*-old \
    /var/lib/dpkg/*-old /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /etc/apt/sources.list \
    /etc/apt/sources.list.d/* /etc/apt/apt.conf.d/99ca /etc/machine-id /etc/.pwd.lock /tmp/* /usr/share/man/* \
    /usr/share/locale/*
mkdir -p /var/cache/apt/archives/partial
# Bytecode that does not carry the clock of its source, so that the same source gives the same file.
find /usr/lib/python3* -name __pycache__ -prune -exec rm -rf {} +
PYTHONHASHSEED=0 python3.11 -m compileall -q --invalidation-mode unchecked-hash /usr/lib/python3.11 \
    -x 'lib2to3/tests|/test/' || true
