"""Test machines: systemd-nspawn containers with systemd, sshd, containerd and a real kubelet, joined as nodes."""
