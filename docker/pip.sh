# Sourced: pip's settings for a build stage, from what lies in /inputs.
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
[ -n "${PIP_INDEX_URL:-}" ] || unset PIP_INDEX_URL
if ls /inputs/ca/* >/dev/null 2>&1; then
    cat /etc/ssl/certs/ca-certificates.crt /inputs/ca/* > /tmp/ca.pem
    export PIP_CERT=/tmp/ca.pem
fi
# A folder of wheels is used where it has something; the hashes of the locks hold for it as for the index.
if ls /inputs/wheels/* >/dev/null 2>&1; then
    export PIP_FIND_LINKS=/inputs/wheels
fi

# check FILE SHA256 NAME: stops the build where a file is not the pinned one
check() {
    got=$(sha256sum "$1" | cut -c1-64)
    if [ "$got" != "$2" ]; then
        echo "error: $3 has SHA-256 $got and docker/versions.env pins $2: it is damaged or was changed (make docker-lock" \
            "if the change is meant)" >&2
        exit 2
    fi
}
