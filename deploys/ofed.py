"""What loading OFED takes away: it reloads the NICs' driver, and a node that is reached over such a NIC is off then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gpuready.charts_values.errors import GpureadyError, RefusedError
from gpuready.charts_values.inventory import Cluster
from gpuready.charts_values.kube import Object
from pyinfra import context

from .nodes.shell import PyinfraShell
from .survey import gpu_nodes

# The drivers that OFED brings: mlx5_core, mlx4_core, mlx4_en.
_DRIVER = "mlx"
_SHOWN = 4
_LIMIT_S = 30.0
# The best default route of IPv4 and that of IPv6, down to the hardware below bonds, bridges and VLANs. One line each:
# the route's device, the hardware's and its driver. No root, and no program but the shell and readlink.
SCRIPT = r"""
walk() (
    found=
    for one in "$ROOT/sys/class/net/$2"/lower_*; do
        [ -e "$one" ] && found=1 && walk "$1" "${one##*/lower_}"
    done
    [ -n "$found" ] && exit 0
    driver=$(readlink "$ROOT/sys/class/net/$2/device/driver") || driver=none
    echo "$1 $2 ${driver##*/}"
)
better() {
    [ -z "$way" ] || [ "$(($2))" -lt "$best" ] && way=$1 best=$(($2))
}
way=
while read -r device to _ _ _ _ metric mask _; do
    [ "$to$mask" = 0000000000000000 ] && better "$device" "$metric"
done < "$ROOT/proc/net/route"
[ -n "$way" ] && walk "$way" "$way"
way=
[ -r "$ROOT/proc/net/ipv6_route" ] && while read -r to bits _ _ _ metric _ _ _ device; do
    [ "$to$bits" = 0000000000000000000000000000000000 ] && [ "$device" != lo ] && better "$device" "0x$metric"
done < "$ROOT/proc/net/ipv6_route"
[ -n "$way" ] && walk "$way" "$way"
exit 0
"""


@dataclass(frozen=True)
class Way:
    """One way out of a node: the device of a default route, the hardware below it, and that one's driver."""

    route: str
    device: str
    driver: str


def is_new(wanted: Iterable[Object], live: Object | None) -> bool:
    """Whether OFED is about to be loaded where the operator has not loaded it yet."""
    return any("ofedDriver" in one["spec"] for one in wanted) and "ofedDriver" not in (live or {}).get("spec", {})


def check(cluster: Cluster, nodes: Sequence[Object], seen: Mapping[str, Sequence[Way]]) -> list[str]:
    """Refuse OFED where the management route of a node runs over a NIC of its driver.

    ``seen`` has the ways out of the nodes that could be asked. Returns a note that names the others; raises
    RefusedError.
    """
    remedy = f"set `ofed_owner` to host, or to inbox, in inventory, cluster {cluster.name!r}"
    for name, paths in sorted(seen.items()):
        for one in paths:
            if one.driver.startswith(_DRIVER):
                over = one.device if one.device == one.route else f"{one.route} ({one.device})"
                raise RefusedError(
                    f"`ofed_owner` is operator, and node {name} is reached over {over}, whose driver {one.driver} OFED "
                    f"reloads: that takes the node off the network; {remedy}"
                )
    asked = {name for name, paths in seen.items() if paths}
    rest = [
        name
        for node, group in gpu_nodes(cluster, list(nodes))
        if group.rdma != "none" and (name := str(node["metadata"]["name"])) not in asked
    ]
    if not rest:
        return []
    more = f" and {len(rest) - _SHOWN} more" if rest[_SHOWN:] else ""
    return [
        f"`ofed_owner` is operator: whether {' '.join(rest[:_SHOWN])}{more} can be reached while OFED loads was not "
        f"looked at (no answer over `ssh_nodes`); where the way there runs over a ConnectX they cannot, so {remedy}"
    ]


def ways(cluster: Cluster) -> dict[str, list[Way]]:
    """The ways out of each machine of `ssh_nodes` that this run of pyinfra reaches."""
    found = {}
    for one in context.state.inventory.get_active_hosts():
        if str(one.name) in cluster.ssh_nodes:
            try:
                output = PyinfraShell(one, sudo=False).output(SCRIPT, timeout=_LIMIT_S)
            except GpureadyError:
                continue  # it is named among those that were not looked at
            found[str(one.name)] = read(output)
    return found


def read(output: str) -> list[Way]:
    """What the script prints."""
    return [Way(*words) for line in output.splitlines() if len(words := line.split()) == 3]
