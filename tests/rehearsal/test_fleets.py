"""Healthy fleets that differ raise no alarm: each profile, varied at random, judged by both commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from gpuready.rehearsal import engine, faults, healthy, scoreboard


@pytest.mark.parametrize("profile", healthy.PROFILES)
def test_healthy_fleets_raise_no_alarm(
    binaries: engine.Binaries, profile: str, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    monkeypatch.chdir(root)
    with scoreboard.installed(profile, healthy.nodes(profile)) as now:
        found = dict(scoreboard.fleets(now, profile, seed=0))
    assert len(found) == scoreboard.VARIATIONS
    assert {title: alarms for title, alarms in found.items() if alarms} == {}


def test_there_are_enough_faults_and_fleets() -> None:
    assert len(faults.catalogue()) >= 25
    assert len(healthy.PROFILES) * scoreboard.VARIATIONS >= 20
