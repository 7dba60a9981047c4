#!/bin/bash
# What diskhaul does, from a running guest to its restored disk, every command shown before it runs. Fails when any of them does.
#
# DEMO_DIR: where the small cluster is made and left for a look (new or empty; by default a temporary directory).
set -eu
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH:/usr/sbin:/sbin"

directory=${DEMO_DIR:-$(mktemp -d "${TMPDIR:-/tmp}/diskhaul-demo.XXXXXX")}
directory=$(realpath -m -- "$directory")

stop_guest() {
    [ ! -x "$directory/vm" ] || "$directory/vm" stop web1
}
trap stop_guest EXIT
trap 'exit 130' INT TERM

run() {
    echo
    echo "$ $*"
    "$@"
}

run diskhaul demo "$directory"
cd "$directory"

run diskhaul --config cluster.toml export web1 --node beta
run diskhaul --config cluster.toml list
run diskhaul --config cluster.toml verify web1

echo
echo '$ zstd -dc beta/exports/web1.example.com/*/disk-0.raw.zst | cmp - alpha/disks/web1-root.raw'
zstd -dc beta/exports/web1.example.com/*/disk-0.raw.zst | cmp - alpha/disks/web1-root.raw
[ "${PIPESTATUS[0]}" = 0 ]

run diskhaul --config cluster.toml import web1 --to-dir restored
disk=$(find restored -type f -size +16M)
run cmp "$disk" alpha/disks/web1-root.raw
# The filesystem is the first partition, 1 MiB into the disk.
run e2fsck -fn "$disk?offset=1048576"
run du -k --apparent-size "$disk"
run du -k "$disk"

allocated=$(du -k "$disk" | cut -f1)
apparent=$(du -k --apparent-size "$disk" | cut -f1)
if [ "$allocated" -ge "$apparent" ]; then
    echo "the restored disk has lost its holes" >&2
    exit 1
fi

run "$directory/vm" stop web1
echo
echo "All of it worked. Remove the cluster with: rm -r $directory"
