"""The node's ceilings: what the setting and the watched file may hold, and what happens when the
file is broken."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.api import watched
from service.api.node_budget import at_start, watch
from service.api.watched import Source, Unusable
from service.bundle import Bundle, Manifest
from service.core import Budget
from service.engines.fake import FakeBackend
from service.errors import SettingsError
from service.model import Model
from service.settings import Settings
from tests.processes import until
from tests.serving import app_of, metrics_of

PERIOD_S = 0.01


class Node(Model):
    """A model that remembers every budget that it was given."""

    def __init__(self, manifest: Manifest) -> None:
        self.applied: list[Budget] = []
        settings = Settings()
        metrics = metrics_of(manifest, settings)
        bundle = Bundle(Path(), manifest, "")
        super().__init__(bundle, settings, metrics, lambda: FakeBackend(manifest))

    @property
    def node_budget(self) -> Budget:
        return self.applied[-1]

    @node_budget.setter
    def node_budget(self, budget: Budget) -> None:
        self.applied.append(budget)


@pytest.fixture
def node(fake_manifest: Manifest) -> Node:
    plans = tuple(replace(plan, depth=plan.depth + 2) for plan in fake_manifest.encoder_plans)
    return Node(replace(fake_manifest, encoder_plans=plans))


class Watched:
    """A running watcher and what it applied."""

    def __init__(self, path: Path, node: Node) -> None:
        self.path, self.applied = path, node.applied

    async def until(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.applied) < count:
                await asyncio.sleep(PERIOD_S / 2)

    async def until_logged(self, caplog: pytest.LogCaptureFixture, count: int) -> None:
        async with asyncio.timeout(5):
            while len(caplog.messages) < count:
                await asyncio.sleep(PERIOD_S / 2)

    async def some_periods(self) -> None:
        await asyncio.sleep(8 * PERIOD_S)


@asynccontextmanager
async def watching(path: Path, node: Node) -> AsyncIterator[Watched]:
    watched = Watched(path, node)
    task = asyncio.create_task(watch(path, node, PERIOD_S))
    try:
        yield watched
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def test_the_setting_has_the_grammar_of_the_header(node: Node) -> None:
    assert at_start("depth=3, ms=80", "", node) == Budget(depth=3, ms=80.0)
    assert at_start("", "", node) == Budget()


def test_the_file_beats_the_setting_from_the_start(node: Node, tmp_path: Path) -> None:
    (tmp_path / "budget").write_text("depth=4\n")
    assert at_start("depth=3", str(tmp_path / "budget"), node) == Budget(depth=4)
    (tmp_path / "budget").write_text("")
    assert at_start("depth=3", str(tmp_path / "budget"), node) == Budget()


def test_a_byte_order_mark_is_passed_over_and_utf_16_is_refused_by_name(
    node: Node, tmp_path: Path
) -> None:
    path = tmp_path / "budget"
    path.write_text("depth=4\r\n", encoding="utf-8-sig", newline="")
    assert at_start("", str(path), node) == Budget(depth=4)
    path.write_text("depth=4\n", encoding="utf-16")
    with pytest.raises(SettingsError, match="it is UTF-16: save it as UTF-8"):
        at_start("", str(path), node)


@pytest.mark.parametrize(("text", "key"), [("depth=9", "depth"), ("depth=3, strict", "strict")])
def test_a_wrong_setting_or_file_stops_the_start_and_names_flag_and_key(
    node: Node, tmp_path: Path, text: str, key: str
) -> None:
    with pytest.raises(SettingsError, match=rf"--node-budget: .*'{key}'"):
        at_start(text, "", node)
    (tmp_path / "budget").write_text(text)
    with pytest.raises(SettingsError, match=rf"--node-budget-file .*'{key}'"):
        at_start("", str(tmp_path / "budget"), node)


def test_a_budget_that_allows_no_plan_is_in_force_with_a_warning(
    node: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> list[Budget]:
        (tmp_path / "budget").write_text("depth=1\n")
        async with watching(tmp_path / "budget", node) as watched:
            await watched.until(1)
            return watched.applied

    assert at_start("gflops=0.5", "", node) == Budget(gflops=0.5)
    assert asyncio.run(run()) == [Budget(depth=1)]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert all("this node refuses every image: No plan" in line for line in caplog.messages)
    assert at_start("depth=3", "", node) == Budget(depth=3)
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(("ms", "warned"), [(5.0, True), (1000.0, False)])
def test_a_limit_under_the_time_of_the_fastest_plan_is_warned_of_once_that_is_known(
    fake_manifest: Manifest,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    ms: float,
    warned: bool,
) -> None:
    (tmp_path / "budget").write_text(f"ms={ms}")
    slow = FakeBackend(fake_manifest, delay_s={"front": 0.02})
    settings = Settings(node_budget_file=str(tmp_path / "budget"))
    with (
        caplog.at_level(logging.WARNING, "fathom"),
        TestClient(app_of(fake_manifest, settings, backend=slow)) as client,
    ):
        until(lambda: client.get("/readyz").status_code == 200, 10)
    found = [line for line in caplog.messages if "this node refuses every image: ms=5" in line]
    assert len(found) == warned


@pytest.mark.parametrize(("target_ms", "warned"), [(20.0, True), (1000.0, False), (0.0, False)])
def test_an_objective_that_no_plan_can_hold_is_warned_of(
    fake_manifest: Manifest, caplog: pytest.LogCaptureFixture, target_ms: float, warned: bool
) -> None:
    slow = FakeBackend(fake_manifest, delay_s={"front": 0.02})
    settings = Settings(target_ms=target_ms)
    with (
        caplog.at_level(logging.WARNING, "fathom"),
        TestClient(app_of(fake_manifest, settings, backend=slow)) as client,
    ):
        until(lambda: client.get("/readyz").status_code == 200, 10)
    text = "this node refuses every image without ms: --target-ms 20, and"
    assert any(text in line for line in caplog.messages) == warned


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_file_that_is_not_there_stops_the_start(node: Node, tmp_path: Path, name: str) -> None:
    with pytest.raises(
        SettingsError, match=r"--node-budget-file .*: (No such file|Is a directory)"
    ):
        at_start("", str(tmp_path / name), node)


def test_a_pipe_in_the_place_of_the_file_is_refused_and_holds_nothing_up(
    node: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkfifo(tmp_path / "budget")
    with pytest.raises(SettingsError, match=r"--node-budget-file .*: it is no regular file"):
        at_start("", str(tmp_path / "budget"), node)

    async def run() -> None:
        async with watching(tmp_path / "budget", node) as watched:
            await watched.until_logged(caplog, 1)

    asyncio.run(run())
    assert "it is no regular file" in caplog.text


def test_a_read_that_hangs_is_logged_and_keeps_no_process_alive(
    node: Node,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gone = threading.Event()
    monkeypatch.setattr(Source, "read", lambda _self: gone.wait(10))
    monkeypatch.setattr(watched, "LATE_S", PERIOD_S)

    async def run() -> None:
        async with watching(tmp_path / "budget", node) as watcher:
            await watcher.until_logged(caplog, 1)

    began = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - began < 5
    assert "no answer within 0.01 s" in caplog.text
    gone.set()


def test_a_change_of_the_file_is_applied(node: Node, tmp_path: Path) -> None:
    async def run() -> list[Budget]:
        path = tmp_path / "budget"
        path.write_text("depth=3\n")
        async with watching(path, node) as watched:
            await watched.until(1)
            path.write_text("gflops=4.5\nms=100\n")
            await watched.until(2)
            path.write_text("")
            await watched.until(3)
            return watched.applied

    assert asyncio.run(run()) == [Budget(depth=3), Budget(gflops=4.5, ms=100.0), Budget()]


def test_a_swap_of_the_link_as_kubernetes_does_it_is_applied(node: Node, tmp_path: Path) -> None:
    # A ConfigMap volume: budget -> ..data/budget, ..data -> ..one; an update makes ..two and
    # renames a new link.
    def publish(name: str, text: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "budget").write_text(text)
        os.utime(tmp_path / name / "budget", (1, 1))  # the times tell nothing
        (tmp_path / "..data_tmp").symlink_to(name)
        os.replace(tmp_path / "..data_tmp", tmp_path / "..data")

    async def run() -> list[Budget]:
        publish("..one", "depth=3")
        (tmp_path / "budget").symlink_to("..data/budget")
        async with watching(tmp_path / "budget", node) as watched:
            await watched.until(1)
            publish("..two", "depth=4")
            await watched.until(2)
            return watched.applied

    assert asyncio.run(run()) == [Budget(depth=3), Budget(depth=4)]


def test_a_broken_file_keeps_the_last_good_budget_and_warns_once_with_the_key(
    node: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> list[Budget]:
        path = tmp_path / "budget"
        path.write_text("depth=3")
        async with watching(path, node) as watched:
            await watched.until(1)
            path.write_text("depht=2")
            await watched.until_logged(caplog, 1)
            await watched.some_periods()
            path.write_text("depth=4")
            await watched.until(2)
            return watched.applied

    with caplog.at_level(logging.WARNING, "fathom.watched"):
        assert asyncio.run(run()) == [Budget(depth=3), Budget(depth=4)]
    assert len(caplog.messages) == 1
    assert "'depht'" in caplog.messages[0]


def test_a_file_that_is_empty_for_one_look_lifts_no_ceiling(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = [Budget(depth=3), Budget(), Budget(depth=2), Budget(depth=2)]

    def read(self: Source[Budget]) -> Budget | Unusable:
        return looks.pop(0) if len(looks) > 1 else looks[0]

    async def run() -> list[Budget]:
        async with watching(tmp_path / "budget", node) as watched:
            await watched.until(2)
            return watched.applied

    monkeypatch.setattr(Source, "read", read)
    assert asyncio.run(run()) == [Budget(depth=3), Budget(depth=2)]


def test_a_mended_file_applies_the_same_budget_again_and_a_missing_one_warns(
    node: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> list[Budget]:
        path = tmp_path / "budget"
        async with watching(path, node) as watched:
            await watched.until_logged(caplog, 1)
            assert watched.applied == []
            path.write_text("depth=3")
            await watched.until(1)
            path.unlink()
            await watched.until_logged(caplog, 2)
            path.write_text("depth=3")
            await watched.until(2)
            return watched.applied

    with caplog.at_level(logging.WARNING, "fathom.watched"):
        assert asyncio.run(run()) == [Budget(depth=3), Budget(depth=3)]
    assert [message.count("No such file") for message in caplog.messages] == [1, 1]


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"x" * 100_000, b"depth=3" * 1000])
def test_bytes_that_are_no_text_and_files_without_end_change_nothing(
    node: Node, tmp_path: Path, content: bytes
) -> None:
    async def run() -> list[Budget]:
        (tmp_path / "budget").write_bytes(content)
        async with watching(tmp_path / "budget", node) as watched:
            await watched.some_periods()
            return watched.applied

    assert asyncio.run(run()) == []


def test_a_folder_in_the_place_of_the_file_changes_nothing(node: Node, tmp_path: Path) -> None:
    async def run() -> list[Budget]:
        async with watching(tmp_path, node) as watched:
            await watched.some_periods()
            return watched.applied

    assert asyncio.run(run()) == []
