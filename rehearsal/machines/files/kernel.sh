#!/bin/sh
# Gives the machine what it shares with its host and must not change there: copies of the kernel's settings.
# Those of the network are the machine's own already.
set -eu

mkdir -p /run/rehearsal
for tree in vm fs kernel; do
    # Some settings can only be written.
    cp -rx "/proc/sys/$tree" /run/rehearsal/ 2>/dev/null || true
done
# What every kubelet sets. It writes without a line end, which a kernel adds when it is read and a file does not.
while read -r name value; do
    echo "$value" > "/run/rehearsal/$name"
done <<'SETTINGS'
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
SETTINGS
# Recursively: the boot id is a mount of its own.
mount --rbind /proc/sys/kernel/random /run/rehearsal/kernel/random
for tree in vm fs kernel; do
    mount --rbind "/run/rehearsal/$tree" "/proc/sys/$tree"
done

# Version 1 of the control groups comes read-only, but for systemd's own.
for group in /sys/fs/cgroup/*/; do
    mount -o remount,rw,bind "$group" 2>/dev/null || true
done

# Volumes that a pod mounts must be seen by other pods.
mount --make-rshared /
