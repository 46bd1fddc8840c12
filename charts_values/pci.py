"""The PCIe link of a device, held against what the device and the port above it can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import quantities


@dataclass(frozen=True)
class Link:
    """Lanes and GT/s that a link has, and the most that both of its ends can do; None where one is not shown."""

    width: float | None
    width_max: float | None
    speed: float | None
    speed_max: float | None

    @classmethod
    def of(cls, device: Mapping[str, Any], port: Mapping[str, Any]) -> Link:
        """From a device and the port above it as the probe reads them; ``port`` is empty where it is no real one."""
        ends = (device, port)
        return cls(
            device.get("link_width"),
            _least(*(one.get("link_width_max") for one in ends)),
            quantities.leading(device.get("link_speed")),
            _least(*(quantities.leading(one.get("link_speed_max")) for one in ends)),
        )

    @property
    def shown(self) -> bool:
        """Whether there is anything to judge: virtual functions and emulated ports show 0 or nothing."""
        return bool(self.width and self.width_max)

    def shortfall(self, *, idles: bool) -> str:
        """What it lacks, as ``x8 of x16``; empty where nothing. A GPU that ``idles`` lowers its speed by itself."""
        if self.width and self.width_max and self.width < self.width_max:
            return f"x{self.width:g} of x{self.width_max:g}"
        if not idles and self.speed and self.speed_max and self.speed < self.speed_max:
            return f"{self.speed:g} of {self.speed_max:g} GT/s"
        return ""


def _least(*found: float | None) -> float | None:
    # 255 lanes is how the kernel says that it does not know.
    return min((one for one in found if one and one < 255), default=None)
