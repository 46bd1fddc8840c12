#!/bin/sh
# Run by mmdebstrap, with the new root file system as $1: what every machine has in common.
set -eu
root=$1

# Each machine brings a host key and an id of its own.
rm -f "$root"/etc/ssh/ssh_host_*
: > "$root/etc/machine-id"
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin
: > "$root/etc/resolv.conf"

chroot "$root" useradd --create-home --shell /bin/bash --groups sudo ops
echo 'ops ALL=(ALL) NOPASSWD: ALL' > "$root/etc/sudoers.d/ops"
chmod 0440 "$root/etc/sudoers.d/ops"
install -d -m 0700 "$root/root/.ssh" "$root/home/ops/.ssh"
chroot "$root" chown ops:ops /home/ops/.ssh

# udev would act on the host's devices, the others have nothing to do here.
for unit in systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket \
    systemd-udev-trigger.service sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
    proc-sys-fs-binfmt_misc.automount systemd-modules-load.service systemd-timesyncd.service \
    systemd-networkd.service systemd-resolved.service console-getty.service \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done

# The places that kubeadm's packages use.
mkdir -p "$root/opt/cni" "$root/etc/cni/net.d" "$root/etc/kubernetes/manifests" "$root/etc/kubernetes/pki" \
    "$root/var/lib/kubelet/pki" "$root/usr/lib/systemd/system/kubelet.service.d" "$root/usr/local/lib/gpuready"
ln -s /usr/lib/cni "$root/opt/cni/bin"
: > "$root/usr/bin/kubelet"

files=$(dirname "$0")
units=$root/etc/systemd/system
install -m 0644 "$files/kubelet.service" "$root/usr/lib/systemd/system/"
install -m 0644 "$files/10-kubeadm.conf" "$files/20-rehearsal.conf" "$root/usr/lib/systemd/system/kubelet.service.d/"
install -m 0644 "$files/rehearsal-kernel.service" "$units/"
install -m 0755 "$files/kernel.sh" "$root/usr/local/lib/gpuready/"
install -D -m 0644 "$files/containerd.toml" "$root/etc/containerd/config.toml"
mkdir -p "$units/sysinit.target.wants" "$units/multi-user.target.wants"
ln -s ../rehearsal-kernel.service "$units/sysinit.target.wants/"
ln -s /usr/lib/systemd/system/kubelet.service "$units/multi-user.target.wants/"
