#!/bin/sh
# What "make demo" shows: a small spool is moved, verified, into a directory beside it. Run it as often as you like.
set -eu
cd -- "$(dirname -- "$0")/.."
top=$PWD/demo
PATH=$PWD/.venv/bin:$PATH

show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

make_spool() {
    mkdir -p "$top/spool/2026/north" "$top/spool/2026/south"
    head -c 3000000 /dev/urandom >"$top/spool/2026/north/radar.dat"
    head -c 1000000 /dev/urandom >"$top/spool/2026/south/radar.dat"
    echo "calm, 4 C" >"$top/spool/2026/north/weather at noon.txt"
    : >"$top/spool/2026/empty.log"
    echo "read me first" >"$top/spool/README"
}

write_stream() {
    cat >"$top/stream.ini" <<END
; One stream: where units appear, where they go, how. Options left out have their defaults.

[global]
; The record of what was delivered. Without this: ~/.local/state/mistamover, or /var/lib/mistamover for root.
state_dir = $top/state

[data_stream]
name = demo
; The spool: whatever appears here is moved, with its subdirectories.
directory = $top/spool
; A file is taken when it has not changed for this long (default 5 s).
settle_time = 1

[outgoing]
; Another directory of this host; sftp, with target_host, reaches another one.
transfer_protocol = local
target_dir = $top/target
; Without this a missing target is an error: it may be a disk that is not mounted.
create_target = yes
END
}

rm -rf -- "$top/spool" "$top/target" "$top/state"
make_spool
write_stream
cd "$top/.."

show cat demo/stream.ini
show ls -R demo/spool
show mistamover run --once demo/stream.ini
show mistamover history demo/stream.ini
show ls -R demo/spool
echo "(nothing left: each file was removed after it was proven at the target)"
show ls -R demo/target
