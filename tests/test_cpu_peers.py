"""The benchmark of engines on a CPU: what is timed is the engines' work alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from service.bundle import Bundle, Manifest
from service.engines.fake import FakeBackend
from tests.bench import cpu_peers


def test_frames_are_drawn_before_anything_is_timed(
    canvases_manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawing one takes up to 4 ms, the same for all contenders, whose ratios it would blur."""
    drawn, ran, draw = [], [], cpu_peers.frame_for

    def counted(served: Bundle, shape: str) -> Any:
        drawn.append(shape)
        return draw(served, shape)

    def in_turns(contenders: Mapping[str, cpu_peers.Work], rounds: int) -> cpu_peers.Result:
        before = len(drawn)
        for name, work in contenders.items():
            work()
            ran.append(name)
        assert len(drawn) == before
        return {}

    backends = {"first": FakeBackend(canvases_manifest), "second": FakeBackend(canvases_manifest)}
    monkeypatch.setattr(cpu_peers, "engines", lambda *_: backends)
    monkeypatch.setattr(cpu_peers, "frame_for", counted)
    monkeypatch.setattr(cpu_peers, "in_turns", in_turns)
    served = Bundle(Path(), canvases_manifest, "")
    measured = cpu_peers.plans(cpu_peers.Setting(served, 1, 1, Path(), ours=True))
    assert list(measured) == ["c32-d1", "c64-d1", "c64-d4", "c64-d4, encoder"]
    assert ran == ["first", "second"] * 4
    assert {"24x32", "48x64"} == set(drawn)
