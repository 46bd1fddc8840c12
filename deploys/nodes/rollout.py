"""Changes that disturb pods, node by node: drain, stop the kubelet, change, start, wait, give the node back.

The first node is the canary. What fails is put back as it was and said, and no further node is touched.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from gpuready.charts_values.errors import (
    ApiError,
    DeadlineError,
    GpureadyError,
    RefusedError,
    ToolError,
    UnreachableError,
)
from gpuready.charts_values.kube import Api, Object

from . import copies
from .plan import Disruption
from .standing import CORDONED, Standing, holds, moves, standing

_POLL_S = 1.0


class Shell(Protocol):
    """Root's shell on one node."""

    def run(self, command: str, *, timeout: float = 60.0) -> tuple[bool, str]:
        """Whether a command ended with 0, and what it printed; raises UnreachableError where the node is away."""

    def reconnect(self) -> bool:
        """Try to reach the node again after it went away; whether that worked."""


@dataclass(frozen=True)
class Timing:
    """How long each wait may take, in seconds. ``hold_s``: how long a node must stay well; the canary's is its own."""

    drain_s: float = 900.0
    ready_s: float = 300.0
    reboot_s: float = 1200.0
    command_s: float = 300.0
    reconnect_s: float = 60.0
    hold_s: float = 5.0
    canary_hold_s: float = 15.0


class Rollout:
    """The nodes of one run. ``say`` takes progress, one line each."""

    def __init__(self, api: Api, say: Callable[[str], None], timing: Timing | None = None) -> None:
        self._api, self._say, self._timing = api, say, timing or Timing()
        self._done = 0
        self.stopped_by: str | None = None

    def change(self, node: str, shell: Shell, change: Disruption, drain_s: float | None = None) -> None:
        """Make the change on one node, or put back what was there and raise what went wrong.

        ``drain_s`` is the node's own deadline for its drain. Raises RefusedError where nothing was touched, also
        because an earlier node failed.
        """
        if self.stopped_by:
            raise RefusedError(f"{node}: not touched, since {self.stopped_by} failed; mend that one, then run again")
        hold = self._timing.hold_s if self._done else self._timing.canary_hold_s
        timing = self._timing if drain_s is None else replace(self._timing, drain_s=drain_s)
        try:
            _Turn(self._api, node, shell, change, self._say, timing, hold).take()
        except GpureadyError:
            self.stopped_by = node
            raise
        self._done += 1


class _Turn:
    """One node's turn."""

    def __init__(
        self,
        api: Api,
        node: str,
        shell: Shell,
        change: Disruption,
        say: Callable[[str], None],
        timing: Timing,
        hold: float,
    ) -> None:
        self._api, self._node, self._shell, self._change = api, node, shell, change
        self._say, self._timing, self._hold = say, timing, hold
        self._path = f"/api/v1/nodes/{node}"
        self._beat: tuple[str, str] = ("", "")

    def take(self) -> None:
        before = self._standing()
        if before.joined and not before.well and not before.ours:
            raise RefusedError(
                f"{self._node}: not touched, since it is not healthy as it is ({before.complaint}); mend it first"
            )
        self._shell_works()
        if before.joined:
            self._refuse_lost_pods()
        cordoned = before.joined and (before.ours or not before.cordoned)
        running = self._active(before) or before.ours
        try:
            if before.joined:
                self._cordon(cordoned)
                self._drain()
            self._keep(before.ours)
        except GpureadyError as error:
            # One that an earlier run left unwell keeps its mark, by which the next run takes it up.
            self._uncordon(cordoned and before.well)
            raise ToolError(f"{self._node}: {error}; nothing was changed on it") from error
        try:
            self._make(before, running)
        except GpureadyError as error:
            raise ToolError(f"{self._node}: {error}; {self._put_back(before, running, cordoned)}") from error
        self._run(copies.finish())
        self._uncordon(cordoned)
        self._say(f"{self._node}: done")

    # -- the change itself --------------------------------------------------------------------------------------

    def _make(self, before: Standing, running: bool) -> None:
        change = self._change
        self._beat = self._heartbeat()
        if running and change.restart:
            self._say(f"{self._node}: stopping {change.unit}")
            self._run(f"systemctl stop {shlex.quote(change.unit)}")
        for path in change.removals:
            self._run(f"rm -f {shlex.quote(path)}")
        for file in change.files:
            self._run(copies.write(file), f"writing {file.path}")
        if change.files:
            self._run("systemctl daemon-reload")
        for command in change.commands:
            self._run(command)
        if change.reboot:
            self._reboot()
        else:
            for service in change.services:
                self._run(f"systemctl try-restart {shlex.quote(service)}")
            if running and change.restart:
                self._run(f"systemctl start {shlex.quote(change.unit)}")
        if running:
            self._wait_well(before, self._hold)
            self._verify()
        for command in change.proofs:
            self._run(command)

    def _put_back(self, before: Standing, running: bool, cordoned: bool) -> str:
        """Restore files, state files and services; says how that went."""
        change = self._change
        self._say(f"{self._node}: failed; putting back what was there")
        try:
            self._connected()
            self._run(f"systemctl stop {shlex.quote(change.unit)}", check=False)
            self._beat = self._heartbeat()
            for path in (*change.removals, *(file.path for file in change.files)):
                self._run(copies.restore(path), f"putting back {path}")
            if before.ours:
                self._run(copies.restore_all(), "putting back the copies of the earlier run")
            self._run("systemctl daemon-reload")
            for command in change.undo or change.commands:
                self._run(command)
            for service in change.services:
                self._run(f"systemctl try-restart {shlex.quote(service)}")
            if running:
                self._run(f"systemctl reset-failed {shlex.quote(change.unit)}", check=False)
                self._run(f"systemctl start {shlex.quote(change.unit)}")
                self._wait_well(before, self._timing.hold_s)
            self._run(copies.finish())
            self._uncordon(cordoned)
        except GpureadyError as error:
            left = " It stays cordoned." if cordoned else ""
            where = f"its old files lie in {copies.BEFORE} on the node."
            return f"putting back what was there failed, too: {error}; {where}{left}"
        return "what was there is back, and the node is as it was" + (", but for its reboot" if change.reboot else "")

    def _connected(self) -> None:
        """The node's shell works, also after its connection was cut; raises UnreachableError after a while."""
        end = time.monotonic() + self._timing.reconnect_s
        while True:
            try:
                self._shell.run("true", timeout=10)
            except UnreachableError:
                if time.monotonic() > end:
                    raise
            else:
                return
            time.sleep(_POLL_S)
            self._shell.reconnect()

    def _keep(self, again: bool) -> None:
        """Copies of what is about to change, on the node itself: they outlive this program."""
        self._run(copies.begin(again=again), f"making {copies.BEFORE}")
        for path in (*self._change.removals, *(file.path for file in self._change.files)):
            self._run(copies.keep(path), f"keeping a copy of {path}")

    def _reboot(self) -> None:
        self._say(f"{self._node}: rebooting")
        booted = self._run("cat /proc/sys/kernel/random/boot_id").strip()
        # By a timer, so that the answer to this command still arrives.
        self._run("systemd-run --on-active=1 --timer-property=AccuracySec=100ms systemctl reboot")
        end = time.monotonic() + self._timing.reboot_s
        while time.monotonic() < end:
            time.sleep(_POLL_S)
            try:
                if self._shell.reconnect():
                    good, now = self._shell.run("cat /proc/sys/kernel/random/boot_id", timeout=10)
                    if good and now.strip() != booted:
                        return
            except UnreachableError:
                continue
        raise DeadlineError(f"it did not come back within {self._timing.reboot_s:g} s of its reboot")

    def _wait_well(self, before: Standing, hold: float) -> None:
        """The node is what it was, Ready or healthy but for the network: so says the new kubelet, ``hold`` s long."""
        unit = self._change.unit
        self._say(f"{self._node}: waiting until it is as it was")
        end = time.monotonic() + self._timing.ready_s + hold
        well_since: float | None = None
        process, why = "", "it says nothing"
        while time.monotonic() < end:
            shown = self._show()
            pid = shown.get("MainPID", "")
            why = self._lacking(before, shown.get("ActiveState", "not to be reached"))
            if shown.get("ActiveState") == "failed":
                # systemd has given up on it.
                raise DeadlineError(f"{unit} is failed{self._last_words()}")
            if why:
                well_since = None
            elif well_since is None or pid != process:
                # Another process: it fell over in between.
                well_since, process = time.monotonic(), pid
            elif time.monotonic() - well_since >= hold:
                return
            time.sleep(_POLL_S)
        why = why or f"{unit} does not stay up"
        raise DeadlineError(f"it was not as before within {self._timing.ready_s:g} s: {why}{self._last_words()}")

    def _lacking(self, before: Standing, state: str) -> str:
        if state != "active":
            return f"{self._change.unit} is {state}"
        if not before.joined:
            return ""
        if self._heartbeat() == self._beat:
            return "the new kubelet has not reported yet"
        now = self._standing()
        if now.ready or (now.network_only and not before.ready):
            return ""
        return now.complaint or "its Node object is gone"

    def _verify(self) -> None:
        """The kubelet says itself that it has the settings; where it cannot be asked, that is said."""
        if not self._change.expected or not self._standing().joined:
            return
        try:
            config = self._api.get(f"{self._path}/proxy/configz").get("kubeletconfig") or {}
        except (ApiError, UnreachableError, DeadlineError) as error:
            self._say(f"{self._node}: its settings could not be verified through the API server: {error}")
            return
        for key, value in self._change.expected.items():
            if not holds(config.get(key), value):
                raise ToolError(f"the kubelet runs with {key} {config.get(key)!r} instead of {value!r}")

    # -- the node in its cluster --------------------------------------------------------------------------------

    def _standing(self) -> Standing:
        return standing(self._api.find(self._path))

    def _heartbeat(self) -> tuple[str, str]:
        """The last signs of life of the kubelet, as the API server holds them; no clock of ours is compared."""
        lease = self._api.find(f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{self._node}") or {}
        node = self._api.find(self._path) or {}
        beats = [one.get("lastHeartbeatTime", "") for one in node.get("status", {}).get("conditions") or ()]
        return str((lease.get("spec") or {}).get("renewTime", "")), max(beats, default="")

    def _cordon(self, ours: bool) -> None:
        if ours:
            meta = {"annotations": {CORDONED: "rollout"}}
            self._api.patch(self._path, {"metadata": meta, "spec": {"unschedulable": True}})

    def _uncordon(self, ours: bool) -> None:
        if ours:
            meta = {"annotations": {CORDONED: None}}
            self._api.patch(self._path, {"metadata": meta, "spec": {"unschedulable": None}})

    def _pods(self) -> list[Object]:
        pods = self._api.list("/api/v1/pods", fieldSelector=f"spec.nodeName={self._node}", resourceVersion="")
        return [pod for pod in pods if moves(pod)]

    def _refuse_lost_pods(self) -> None:
        lost = [_name(pod) for pod in self._pods() if not pod["metadata"].get("ownerReferences")]
        if lost:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            raise RefusedError(
                f"{self._node}: not touched, since a drain would lose pod {lost[0]}{more}, which no controller makes "
                "again; move or delete it first"
            )

    def _drain(self) -> None:
        """Evict, so that disruption budgets are kept, and wait until the pods are gone."""
        end = time.monotonic() + self._timing.drain_s
        asked: set[str] = set()
        blocked: dict[str, str] = {}
        said = False
        while True:
            left = self._pods()
            if not left:
                return
            if not said:
                self._say(f"{self._node}: draining {len(left)} pods")
                said = True
            for pod in left:
                if pod["metadata"]["uid"] not in asked and not pod["metadata"].get("deletionTimestamp"):
                    why = self._evict(pod)
                    blocked[pod["metadata"]["uid"]] = why
                    if not why:
                        asked.add(pod["metadata"]["uid"])
            if time.monotonic() > end:
                first = left[0]
                why = blocked.get(first["metadata"]["uid"]) or "it was evicted and does not end"
                raise DeadlineError(
                    f"{len(left)} pods were still there after {self._timing.drain_s:g} s; {_name(first)}: {why}"
                )
            time.sleep(_POLL_S)

    def _evict(self, pod: Object) -> str:
        """Ask for one eviction; why it was not granted, empty where it was."""
        meta = {"name": pod["metadata"]["name"], "namespace": pod["metadata"]["namespace"]}
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/eviction"
        # A pod of the same name that was made again in between is another one.
        options = {"preconditions": {"uid": pod["metadata"]["uid"]}}
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": meta, "deleteOptions": options}
        try:
            self._api.create(path, body)
        except ApiError as error:
            if error.missing or error.conflict:
                return ""
            if error.forbidden:
                raise
            return str(error)
        except UnreachableError as error:
            # Too many requests is how a budget says no; asked again until the deadline.
            return str(error)
        return ""

    # -- the node's shell ---------------------------------------------------------------------------------------

    def _shell_works(self) -> None:
        good, _ = self._shell.run("test $(id -u) = 0")
        if not good:
            raise RefusedError(f"{self._node}: not touched, since the shell is not root's; give root or sudo over SSH")

    def _active(self, before: Standing) -> bool:
        """Whether the kubelet is to run afterwards. One that has joined nothing starts over and over by itself."""
        state = self._show().get("ActiveState")
        return state == "active" or (before.joined and state == "activating")

    def _show(self) -> dict[str, str]:
        try:
            _, text = self._shell.run(f"systemctl show -p ActiveState -p MainPID {shlex.quote(self._change.unit)}")
        except UnreachableError:
            # The next look may then see it: a cut connection says nothing about the node.
            self._shell.reconnect()
            return {}
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def _last_words(self) -> str:
        unit = shlex.quote(self._change.unit)
        try:
            good, text = self._shell.run(f"journalctl -u {unit} -p err -n 1 -o cat --no-pager", timeout=15)
        except UnreachableError:
            return ""
        line = " ".join(text.split())
        return f" (it logged: {line[:300]})" if good and line and "No entries" not in line else ""

    def _run(self, command: str, what: str = "", *, check: bool = True) -> str:
        good, text = self._shell.run(command, timeout=self._timing.command_s)
        if not good and check:
            said = " ".join(text.split())[-300:] or "it printed nothing"
            raise ToolError(f"{what or f'`{command.splitlines()[0][:80]}`'} failed: {said}")
        return text


def _name(pod: Object) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
