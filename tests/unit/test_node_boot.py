"""What is decided at boot: kernel arguments, units and scripts, run by a real shell against trees made for them."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from gpuready.charts_values.errors import RefusedError
from gpuready.deploys.nodes import boot, machine, preparation
from gpuready.deploys.nodes.facts import NodeFacts
from gpuready.deploys.nodes.plan import HEADER, Disruption, NodePlan
from gpuready.deploys.nodes.systems import system_of

from .bare_machine import BARE, BRIDGE, GPU, IB, cluster, content, facts, plan

# What the systems ship as /etc/default/grub, without its comments; the last is of a cloud image.
DEBIAN = """GRUB_DEFAULT=0
GRUB_TIMEOUT=5
GRUB_DISTRIBUTOR=`lsb_release -i -s 2> /dev/null || echo Debian`
GRUB_CMDLINE_LINUX_DEFAULT="quiet"
GRUB_CMDLINE_LINUX=""
"""
UBUNTU = """GRUB_DEFAULT=0
GRUB_TIMEOUT_STYLE=hidden
GRUB_TIMEOUT=0
GRUB_DISTRIBUTOR=`lsb_release -i -s 2> /dev/null || echo Debian`
GRUB_CMDLINE_LINUX_DEFAULT="quiet splash"
GRUB_CMDLINE_LINUX="nvme_core.multipath=N"
"""
CLOUD = """GRUB_RECORDFAIL_TIMEOUT=0
GRUB_TIMEOUT=0
GRUB_CMDLINE_LINUX_DEFAULT="console=tty1 console=ttyS0"
GRUB_TERMINAL=console
"""
RHEL = """GRUB_TIMEOUT=5
GRUB_DISTRIBUTOR="$(sed 's, release .*$,,g' /etc/system-release)"
GRUB_DEFAULT=saved
GRUB_CMDLINE_LINUX="crashkernel=1G-4G:192M,4G-64G:256M,64G-:512M rd.lvm.lv=rhel/root"
GRUB_ENABLE_BLSCFG=true
"""
ENTRY = "root=/dev/mapper/rhel-root ro rd.lvm.lv=rhel/root iommu=soft"
# Like grubby over one boot entry: --remove-args goes first, and --args knows one value for each key.
GRUBBY = r"""#!/bin/bash
remove= add=
for one in "$@"; do case "$one" in
  --update-kernel=ALL) ;;
  --args=*) add="${one#--args=}" ;;
  --remove-args=*) remove="${one#--remove-args=}" ;;
  *) exit 1 ;;
esac; done
options=" $(cat "$ENTRY") "
for one in $remove; do options="${options/ $one / }"; done
for one in $add; do
  options="$(sed -E "s, ${one%%=*}=[^ ]* , ," <<< "$options")"
  options="${options/ $one / }$one "
done
echo $options > "$ENTRY"
"""


def sh(command: str, path: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    search = f"{path}:/usr/sbin:/usr/bin:/sbin:/bin" if path else "/usr/sbin:/usr/bin:/sbin:/bin"
    return subprocess.run(
        ["sh", "-c", command], env={"PATH": search, **environment}, capture_output=True, text=True, timeout=20
    )


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def started(unit: str) -> list[str]:
    """The command of a unit as systemd runs it."""
    (line,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    return [one.replace("$$", "$") for one in shlex.split(line)]


def red_hat(arguments: tuple[str, ...] = (), cmdline: str = ENTRY, **changes: Any) -> NodeFacts:
    record = "\n".join([HEADER, *arguments]) + "\n" if arguments else None
    files = {**BARE.files, machine.DNF_CONF: "[main]\n", boot.ARGUMENTS: record}
    return facts(os_id="rhel", os_version="9.4", package_manager="dnf", files=files, cmdline=cmdline, **changes)


# -- kernel arguments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grub", "cloud", "result"),
    [
        (DEBIAN, "", "quiet| iommu=pt hugepagesz=1G hugepages=4"),
        (UBUNTU, "", "quiet splash|nvme_core.multipath=N iommu=pt hugepagesz=1G hugepages=4"),
        (DEBIAN, CLOUD, "console=tty1 console=ttyS0| iommu=pt hugepagesz=1G hugepages=4"),
        ("GRUB_TIMEOUT=1\n", "", "| iommu=pt hugepagesz=1G hugepages=4"),
    ],
)
def test_grub_adds_the_arguments_to_what_the_system_has(tmp_path: Path, grub: str, cloud: str, result: str) -> None:
    made = plan(facts(hugepages={1048576: 0}), node={"kernel_arguments": ["iommu=pt"], "hugepages": {"1Gi": 4}})
    folder = tmp_path / "grub.d"
    folder.mkdir()
    (tmp_path / "grub").write_text(grub)
    (folder / "50-cloudimg-settings.cfg").write_text(cloud)
    (folder / Path(boot.GRUB_DROP_IN).name).write_text(content(made, boot.GRUB_DROP_IN))
    # As grub-mkconfig reads them.
    read = f'set -e; . {tmp_path}/grub; for one in {folder}/*.cfg; do . "$one"; done'
    done = sh(f'{read}; echo "$GRUB_CMDLINE_LINUX_DEFAULT|$GRUB_CMDLINE_LINUX"')
    assert (done.stdout.strip(), done.stderr) == (result, "")
    assert made.disruption.commands[-1] == "update-grub"


def test_boot_entries_get_arguments_and_lose_them_again(tmp_path: Path) -> None:
    program(tmp_path / "bin" / "grubby", GRUBBY)
    entry = tmp_path / "entry"
    entry.write_text(ENTRY)

    def made(seen: NodeFacts, *wanted: str) -> Disruption:
        return plan(seen, node={"kernel_arguments": list(wanted)}).disruption

    def run(commands: tuple[str, ...]) -> str:
        for command in (one for one in commands if one.startswith("grubby")):
            assert sh(command, tmp_path / "bin", ENTRY=str(entry)).returncode == 0
        return entry.read_text().strip()

    def record(change: Disruption) -> tuple[str, ...]:
        (found,) = [one.content for one in change.files if one.path == boot.ARGUMENTS]
        return tuple((found or HEADER).splitlines()[1:])

    first = made(red_hat(), "iommu=pt", "pci=realloc")
    there = run(first.commands)
    assert there == "root=/dev/mapper/rhel-root ro rd.lvm.lv=rhel/root iommu=pt pci=realloc"
    assert (record(first), first.reboot) == (("iommu=pt", "pci=realloc"), True)
    # A failure brings back the value that the machine came with.
    assert sorted(run(first.undo).split()) == sorted(ENTRY.split())
    run(first.commands)
    settled = red_hat(record(first), there)
    assert not made(settled, "iommu=pt", "pci=realloc").reboot
    less = made(settled, "iommu=pt")
    assert run(less.commands) == "root=/dev/mapper/rhel-root ro rd.lvm.lv=rhel/root iommu=pt"
    assert (record(less), less.reboot) == (("iommu=pt",), True)
    # What somebody else gave is taken as it is, and never taken away.
    assert not made(red_hat(cmdline=f"{ENTRY} pci=realloc"), "pci=realloc").reboot
    assert not made(red_hat(cmdline=f"{ENTRY} pci=realloc")).reboot


def test_boot_entries_take_each_argument_once() -> None:
    node = {"kernel_arguments": ["hugepagesz=2M", "hugepages=512"], "hugepages": {"1Gi": 4}}
    with pytest.raises(RefusedError, match="kernel argument hugepages is wanted twice"):
        plan(red_hat(hugepages={1048576: 0}), node=node)
    assert plan(facts(hugepages={1048576: 0}), node=node).disruption.reboot


def test_kernel_arguments_that_inventory_no_longer_names_go() -> None:
    first = plan(node={"kernel_arguments": ["iommu=pt"]})
    text = content(first, boot.GRUB_DROP_IN)
    assert text.endswith('GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX iommu=pt"\n')
    there = facts(files={**BARE.files, boot.GRUB_DROP_IN: text})
    gone = boot.kernel_arguments(preparation.settings_of(cluster(), None), there, system_of(there)[0])
    assert (gone.files[0].content, gone.reboot) == (None, True)
    assert not boot.kernel_arguments(preparation.settings_of(cluster(), None), BARE, system_of(BARE)[0])


@pytest.mark.parametrize("seen", [BARE, red_hat()])
def test_one_reboot_and_only_where_something_changes(seen: NodeFacts) -> None:
    node = {"kernel_arguments": ["iommu=pt"], "hugepages": {"1Gi": 4}}
    busy = facts_of(seen, modules=frozenset({"overlay", "nouveau"}), hugepages={1048576: 0})
    change = plan(busy, node=node).disruption
    # nouveau, the arguments and the pages of 1Gi come true by the same one.
    assert change.reboot
    assert sum("reboot" in one for one in change.reasons) == 2
    assert not any("reboot" in one for one in change.commands)
    running = f"{seen.cmdline} iommu=pt hugepagesz=1G hugepages=4"
    files = {**seen.files, **{one.path: one.content for one in change.files}}
    after = facts_of(seen, cmdline=running, files=files, hugepages={1048576: 4})
    assert not plan(after, node=node).disruption.reboot
    # The kernel that runs is what counts: a file alone is not enough.
    assert plan(facts_of(after, cmdline=seen.cmdline), node=node).disruption.reboot


def facts_of(seen: NodeFacts, **changes: Any) -> NodeFacts:
    return facts(**{"os_id": seen.os_id, "os_version": seen.os_version, "cmdline": seen.cmdline,
                    "package_manager": seen.package_manager, "files": seen.files, **changes})  # fmt: skip


def test_proofs_read_the_running_kernels_arguments(tmp_path: Path) -> None:
    (proof, *_) = plan(node={"kernel_arguments": ["iommu=pt"]}).disruption.proofs
    for text, good in (("root=/dev/sda1 iommu=pt quiet\n", True), ("root=/dev/sda1 amd_iommu=pt iommu=ptx\n", False)):
        (tmp_path / "cmdline").write_text(text)
        assert (sh(proof.replace("/proc/cmdline", f"{tmp_path}/cmdline")).returncode == 0) is good


# -- units and scripts --------------------------------------------------------------------------------------------

# The registers of ACS by device, in files; a device without the capability has none.
SETPCI = """#!/bin/sh
[ "$1" = -s ] || exit 2
register="$TREE/$2/acs"
case "$3" in
  ECAP_ACS+0x6.w) cat "$register" ;;
  ECAP_ACS+0x6.w=*) test -w "$register" || exit 1; echo "${3#*=}" > "$register" ;;
  *) exit 2 ;;
esac
"""


def tree(folder: Path) -> Path:
    """PCI devices: a switch port that redirects, a bridge without ACS, and a GPU that has ACS of its own."""
    for name, kind, register in (
        ("0000:16:00.0", "0x060400", "001d"),
        ("0000:16:01.0", "0x060400", "0000"),
        ("0000:17:00.0", "0x060400", None),
        ("0000:18:00.0", "0x030200", "001d"),
    ):
        device = folder / name
        device.mkdir(parents=True)
        (device / "class").write_text(f"{kind}\n")
        if register:
            (device / "acs").write_text(f"{register}\n")
    return folder


def test_the_script_turns_acs_off_on_bridges_alone(tmp_path: Path) -> None:
    script = content(plan(facts(pci=(GPU, BRIDGE)), node={"acs": "off"}), boot.ACS_SCRIPT)
    place = tree(tmp_path / "devices")
    program(tmp_path / "bin" / "setpci", SETPCI)
    program(tmp_path / "acs-off", script.replace("/sys/bus/pci/devices", str(place)))
    assert sh(f"{tmp_path}/acs-off", tmp_path / "bin", TREE=str(place)).returncode == 0
    found = {one.parent.name: one.read_text().strip() for one in place.glob("*/acs")}
    assert found == {"0000:16:00.0": "0000", "0000:16:01.0": "0000", "0000:18:00.0": "001d"}
    # A write that fails is a failed unit, not silence.
    program(tmp_path / "bin" / "setpci", SETPCI.replace("test -w", "false"))
    assert sh(f"{tmp_path}/acs-off", tmp_path / "bin", TREE=str(place)).returncode == 1


def test_the_unit_sets_every_cpus_governor(tmp_path: Path) -> None:
    unit = content(plan(node={"governor": "powersave"}), machine.GOVERNOR_UNIT)
    for cpu in range(3):
        path = tmp_path / f"cpu{cpu}" / "cpufreq" / "scaling_governor"
        path.parent.mkdir(parents=True)
        path.write_text("schedutil\n")
    command = [one.replace("/sys/devices/system/cpu", str(tmp_path)) for one in started(unit)]
    assert command[0] == "/bin/sh"
    subprocess.run(command, check=True, timeout=10)
    assert [one.read_text() for one in sorted(tmp_path.rglob("scaling_governor"))] == ["powersave\n"] * 3


def everything(seen: NodeFacts | None = None, **more: Any) -> NodePlan:
    node = {
        "acs": "off",
        "module_options": {"ib_core": "netns_mode=0"},
        "kernel_arguments": ["iommu=pt"],
        "hugepages": {"2Mi": 8},
    }
    return plan(seen or facts(pci=(GPU, BRIDGE), hugepages={2048: 0}), node=node, group=IB, **more)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    units = [one for one in everything().files if one.path.endswith(".service")]
    assert len(units) == 3
    for one in units:
        path = tmp_path / Path(one.path).name
        # The script of ACS is on the node alone.
        path.write_text((one.content or "").replace(boot.ACS_SCRIPT, "/bin/true"))
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True, timeout=60
        )
        said = [line for line in done.stderr.splitlines() if path.name in line]
        assert (done.returncode, said) == (0, [])


def test_units_come_before_pods_and_at_each_boot() -> None:
    for one in everything().files:
        if one.path.endswith(".service"):
            text = one.content or ""
            assert "Before=containerd.service kubelet.service k3s.service k3s-agent.service\n" in text
            assert "WantedBy=multi-user.target\n" in text


# What makes each step last: a file that is read at boot, or what the command itself leaves.
LASTS = {
    "modules": machine.MODULES_FILE,
    "initial RAM disk": machine.NOUVEAU_FILE,
    "sysctl": machine.SYSCTL_FILE,
    "swap off": machine.SWAP_UNIT,
    "CPU governor": machine.GOVERNOR_UNIT,
    "time synchronisation": "systemctl enable",
    "kernel held": "apt-mark hold",
    "setpci for PCIe ACS": "install",
    "PCIe ACS off at each boot": boot.ACS_UNIT,
}


@pytest.mark.parametrize("platform", ["kubeadm", "k3s", "hosted", "vcluster"])
@pytest.mark.parametrize("system", ["ubuntu", "rhel"])
def test_nothing_is_a_one_shot(platform: str, system: str) -> None:
    seen = facts(pci=(GPU, BRIDGE), hugepages={2048: 0}) if system == "ubuntu" else red_hat(pci=(GPU, BRIDGE))
    made = everything(seen, platform=platform)
    paths = {one.path for one in (*made.files, *made.disruption.files)}
    for step in made.steps:
        if step.needed:
            lasts = LASTS[step.title]
            assert lasts in paths or lasts in step.command, step.title
        # A unit that is started is enabled, too.
        if "systemctl" in step.command and "restart" in step.command:
            assert "systemctl enable" in step.command
    # What a drained node gets at once is in a file for the next boot.
    assert machine.HUGEPAGES_FILE in paths
    assert boot.GRUB_DROP_IN in paths or "grubby" in " ".join(made.disruption.commands)


# -- who needs isolation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "table", "line"),
    [
        ("vm-passthrough", "", "label nvidia.com/gpu.workload.config=vm-passthrough"),
        ("", "{enabled: true, defaultWorkload: vm-vgpu}", "sandboxWorkloads.defaultWorkload vm-vgpu"),
        ("container", "{enabled: true, defaultWorkload: vm-vgpu}", ""),
        ("", "{enabled: true}", ""),
        ("", "{enabled: false, defaultWorkload: vm-vgpu}", ""),
    ],
)
def test_acs_stays_where_virtual_machines_get_the_gpus(tmp_path: Path, label: str, table: str, line: str) -> None:
    folder = tmp_path / "charts_values" / "lab"
    folder.mkdir(parents=True)
    if table:
        (folder / "gpu-operator.yaml").write_text(f"sandboxWorkloads: {table}\n")
    made = dataclasses.replace(cluster(node={"acs": "off"}), folder=tmp_path)
    node = {"metadata": {"name": "gpu-0", "labels": {"nvidia.com/gpu.workload.config": label} if label else {}}}
    seen = facts(pci=(GPU, BRIDGE))
    if not line:
        assert any("PCIe ACS" in one for one in preparation.plan(made, None, seen, node).disruption.reasons)
        return
    with pytest.raises(RefusedError) as refused:
        preparation.plan(made, None, seen, node)
    assert f"virtual machines that get its GPUs ({line})" in str(refused.value)
    assert "\n" not in str(refused.value)


# -- links --------------------------------------------------------------------------------------------------------

LINK = {"link_width": 16, "link_width_max": 16, "link_speed": "32.0 GT/s PCIe", "link_speed_max": "32.0 GT/s PCIe"}
PORT = {**BRIDGE, **LINK, "acs": None, "address": "0000:16:00.0"}
NIC = {**LINK, "class": "0x020700", "vendor": "0x15b3", "address": "0000:19:00.0", "bridges": ["0000:16:00.0"]}
LINKED = {**GPU, **LINK, "bridges": ["0000:16:00.0"]}


@pytest.mark.parametrize(
    ("devices", "virtualization", "line"),
    [
        ((PORT, {**LINKED, "link_width": 8}), "none", "0000:18:00.0 x8 of x16"),
        ((PORT, {**NIC, "link_speed": "16.0 GT/s PCIe"}), "none", "0000:19:00.0 16 of 32 GT/s"),
        # An idle GPU saves power; a slot of fewer lanes is no fault of the board; a VM does not see the real port.
        ((PORT, {**LINKED, "link_speed": "2.5 GT/s PCIe"}, NIC), "none", ""),
        (({**PORT, "link_width_max": 8}, {**LINKED, "link_width": 8}), "none", ""),
        (({**PORT, "link_width_max": 8}, {**LINKED, "link_width": 8}), "kvm", "0000:18:00.0 x8 of x16"),
        ((PORT, {**LINKED, "link_width": 0}), "none", ""),
        ((PORT, {**LINKED, "link_width": 4, "link_width_max": 255}), "none", "x4 of x16"),
        (({**GPU, "bridges": None},), "none", ""),
    ],
)
def test_links_below_what_they_can(devices: tuple[dict[str, Any], ...], virtualization: str, line: str) -> None:
    notes = plan(facts(pci=devices, virtualization=virtualization)).notes
    assert [one for one in notes if "PCIe" in one] == [one for one in notes if line and line in one]
    assert bool(notes) == bool(line)
