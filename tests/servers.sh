#!/bin/sh
# Installs Debian packages where they are missing: by default those that the tests talk to or try our files with.
# Never fails: where it may not install, the tests say what they lack.
#   servers.sh [PACKAGE ...]
set -u
[ $# -gt 0 ] || set -- openssh-server openssh-client rsync strace openssl xxhash \
    proftpd-core proftpd-mod-crypto libwrap0 vsftpd \
    systemd logrotate shellcheck faketime e2fsprogs btrfs-progs
policy=/usr/sbin/policy-rc.d
own=$(dirname "$0")/../.venv/servers

missing() {
    for package; do
        [ "$package" != vsftpd ] || { [ -x "$own/vsftpd" ] || printf 'vsftpd '; continue; }
        dpkg-query -W -f '${Status}\n' "$package" 2>/dev/null | grep -q ' installed$' || printf '%s ' "$package"
    done
}

install() {
    case " $* " in *" vsftpd "*) unpack_vsftpd || return ;; esac
    # shellcheck disable=SC2046 # package names have no blanks
    set -- $(printf '%s\n' "$@" | grep -vx vsftpd)
    [ $# -eq 0 ] ||
        DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends "$@" </dev/null >/dev/null
}

# Debian installs one FTP server at most: this one is taken out of its package.
unpack_vsftpd() {
    (
        place=$(mktemp -d) && trap 'rm -rf "$place"' EXIT && mkdir -p "$own" &&
            (cd "$place" && apt-get download -qq vsftpd >/dev/null && dpkg-deb -x vsftpd_*.deb .) &&
            cp "$place/usr/sbin/vsftpd" "$own/"
    )
}

command -v apt-get >/dev/null || exit 0
# shellcheck disable=SC2046 # package names have no blanks
set -- $(missing "$@")
[ $# -gt 0 ] || exit 0
if [ "$(id -u)" -ne 0 ]; then
    echo "not installed, since that needs root: $*"
    exit 0
fi

echo "installing $*"
# The tests start servers of their own: the system's need not run because its package came.
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
fi
install "$@" 2>/dev/null || { apt-get update -qq </dev/null >/dev/null && install "$@"; } ||
    echo "could not install all of: $*"
exit 0
