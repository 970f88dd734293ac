# Shared by the scripts of this directory; sourced, never run.
#
# Owns: where the checkout and the cache of PostgreSQL servers are, how to become root or postgres, how to fail.
# Sets: root (the checkout), cache (servers for tests, outside the checkout). Extends PATH by the user's cargo.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${PGKEEP_TEST_CACHE:-/var/cache/pgkeep-test}
export PGKEEP_TEST_CACHE=$cache

case ":$PATH:" in
    *":${CARGO_HOME:-$HOME/.cargo}/bin:"*) ;;
    *) PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin ;;
esac

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "error: $*"; exit 1; }

# Runs a command as root: directly, or by sudo when we are someone else.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root or sudo: $*"
    fi
}

# Runs a command as the user servers run as: postgres when we are root (the server refuses root), else ourselves.
as_postgres() {
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid=postgres --regid=postgres --clear-groups env -i \
            PATH=/usr/local/bin:/usr/bin:/bin HOME=/tmp LC_ALL=C.UTF-8 TZ=UTC "$@"
    else
        env -i PATH=/usr/local/bin:/usr/bin:/bin HOME=/tmp LC_ALL=C.UTF-8 TZ=UTC "$@"
    fi
}

# The directory with the server programs of one major version, or nothing.
pg_bin() {
    local dir
    for dir in "/usr/lib/postgresql/$1/bin" "$cache/pg/$1/bin"; do
        if [ -x "$dir/postgres" ]; then
            printf '%s\n' "$dir"
            return
        fi
    done
}
