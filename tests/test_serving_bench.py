"""The benchmark of serving: what it sends and when, against the service with the fake engine."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from service.bundle import Bundle, Manifest
from service.engines.base import HostTensors, Tensors
from service.engines.fake import FakeBackend
from service.segmenting import open_bundle
from tests.api.server import running
from tests.bench import bare, peers_serving
from tests.bench.closed_loop import in_turns
from tests.bench.open_loop import Answer, Load, Wrap, _request, bursts, poisson, replay, send, step
from tests.bench.peers.full_plan import FullPlan
from tests.bench.peers_serving import Beside, Contender, Record, found
from tests.bench.photos import Photos
from tests.bench.points import Bench, Point
from tests.processes import python, until

PHOTOS = Photos.of(None).paths
BUNDLE = Path(__file__).parents[1] / "trained_weights" / "camvid-tiny"


def test_loads_have_the_rate_that_was_asked_for() -> None:
    times = poisson(50.0, 100.0, 1)
    assert len(times) == pytest.approx(5000, rel=0.05)
    assert np.std(np.diff(times)) == pytest.approx(1 / 50, rel=0.1)  # exponential gaps
    swings = bursts((10.0, 100.0), (10.0, 10.0), 1000.0, 2)
    assert swings == sorted(swings)
    per_second = np.histogram(swings, 1000)[0]
    assert np.var(per_second) > 5 * np.mean(per_second)  # far more than a Poisson process has
    burst = np.array(step(1.0, 50.0, 10.0, 10.0, 3))
    during = int(((burst >= 10) & (burst < 20)).sum())
    assert (during, len(burst) - during) == (pytest.approx(500, rel=0.2), pytest.approx(10, abs=9))


def test_a_stalled_service_is_seen_from_the_planned_times(fake_manifest: Manifest) -> None:
    """A client that waits for answers before it sends again would see one slow answer of many."""
    with running(fake_manifest, delay_s={"front": 0.1}, max_batch=1) as server:
        times = [0.01 * index for index in range(10)]
        answers = send(Load(server.url, times, PHOTOS, "depth=1"))
    assert [answer.status for answer in answers] == [200] * 10
    took = [answer.took_s for answer in answers]
    assert took[-1] - took[0] > 0.6  # the last waited for nine of 0.1 s
    assert {answer.gflops for answer in answers} == {2.0}
    assert max(answer.late_s for answer in answers) < 0.2


def test_refusals_and_failures_are_answers_too(fake_manifest: Manifest) -> None:
    with running(fake_manifest) as server:
        (refused,) = send(Load(server.url, [0.0], PHOTOS, "gflops=0.5"))
    (nobody,) = send(Load(server.url, [0.0], PHOTOS))
    assert (refused.status, refused.gflops, nobody.status) == (422, 0.0, 0)


def test_requests_without_load_take_turns_with_the_bare_stages(fake_manifest: Manifest) -> None:
    at_work: list[tuple[float, float]] = []

    def work() -> None:
        began = time.perf_counter()
        time.sleep(0.02)
        at_work.append((began, time.perf_counter()))

    with running(fake_manifest, delay_s={"front": 0.05}) as server:
        pairs = in_turns(Load(server.url, [], PHOTOS, "depth=1"), work, 4)
    answers = [answer for answer, _ in pairs]
    assert [(answer.status, answer.photo) for answer in answers] == [(200, i % 2) for i in range(4)]
    assert len(at_work) == 4
    for answer, seconds in pairs:
        assert seconds >= 0.02
        assert answer.took_s >= 0.05
    for answer, (_, ended), (began, _) in zip(answers[1:], at_work, at_work[1:], strict=False):
        assert began - ended > answer.took_s  # one at a time


def test_the_bare_stages_are_those_that_the_service_runs_for_a_plan(
    fake_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the glance's own canvas the service runs the front once, not again for the plan."""
    ran = list[str]()

    class Noted(FakeBackend):
        def run(self, stage: str, tensors: Tensors) -> HostTensors:
            ran.append(stage)
            return super().run(stage, tensors)

    manifest = fake_bundle.manifest
    monkeypatch.setattr(bare, "OnnxRuntimeBackend", lambda *_, **__: Noted(manifest))
    for number in (0, -1):
        bare.bare_stages(str(fake_bundle.root), Path(PHOTOS[0]), 1, number)()
    assert ran == ["front", "encoder-d1", "decoder", "front", "encoder-d4", "decoder"]


def test_a_machine_that_gets_slower_does_not_count_as_the_servers_time() -> None:
    """The stages take 100 ms, later 200, and a request 10 ms more than they do, at all times."""
    stages_s = [0.1 * 2 ** (turn / 19) for turn in range(20)]
    answers = [Answer(0.0, 0.0, bare_s + 0.01, 200) for bare_s in stages_s]
    beside = Beside.of(list(zip(answers, stages_s, strict=True)))
    assert beside.beside_ms == pytest.approx(10.0)
    assert beside.percent == pytest.approx(100 * 0.01 / float(np.median(stages_s)))
    with pytest.raises(RuntimeError, match="answered 429"):
        Beside.of([(Answer(0.0, 0.0, 0.1, 429), 0.1)])


@pytest.mark.parametrize(
    ("offered", "in_time", "held"),
    [(50, 50, True), (50, 49, True), (50, 48, False), (1000, 990, True), (1000, 989, False)],
)
def test_an_objective_is_held_if_one_in_a_hundred_misses_it(
    offered: int, in_time: int, held: bool
) -> None:
    assert measured(offered=offered, in_time=in_time).held is held


def measured(
    who: str = "", load: float = 1.0, *, offered: int = 100, in_time: int = 100, p99: float = 1.0
) -> Point:
    rest = {"p50": 1.0, "quality": 0.7, "miou": 0.7, "gflops": 1.0, "thrown_away": 0.0}
    return Point(
        who, load, offered, offered, in_time, p99=p99, client_late_p99=0.0, seconds=10.0, **rest
    )


def test_a_trace_is_replayed_as_far_as_it_lasts(tmp_path: Path) -> None:
    trace = tmp_path / "intervals"
    trace.write_text("250000\n500000\n0\n1000000\n")
    assert replay(trace, 60.0) == [0.25, 0.75, 0.75, 1.75]
    assert replay(trace, 1.0) == [0.25, 0.75, 0.75]
    with pytest.raises(ValueError, match=r"no request within 0\.2 s"):
        replay(trace, 0.2)
    trace.write_text("250000\n0.5\n")
    with pytest.raises(ValueError, match=r"line 2: '0\.5' is no interval in microseconds"):
        replay(trace, 60.0)


@pytest.mark.parametrize("wrap", ["body", "form", "json"])
def test_images_are_wrapped_as_servers_take_them(wrap: Wrap) -> None:
    request, body = _request(b"photo", Load("http://x:1", [0.0], [], "ms=1", wrap))
    fields = {name.decode(): value.decode() for name, value in request.headers}
    assert int(fields["content-length"]) == len(body)
    assert (fields["host"], fields["compute-budget"]) == ("x:1", "ms=1")
    if wrap == "json":
        assert base64.b64decode(json.loads(body)["image"]) == b"photo"
    elif wrap == "body":
        assert (body, fields["content-type"]) == (b"photo", "image/jpeg")


def test_a_form_is_read_by_the_service_as_a_body_is(fake_manifest: Manifest) -> None:
    with running(fake_manifest) as server:
        ways: tuple[Wrap, ...] = ("body", "form")
        answers = [send(Load(server.url, [0.0], PHOTOS, "depth=1", wrap))[0] for wrap in ways]
    assert answers[0].body == answers[1].body
    with Image.open(PHOTOS[0]) as photo:
        assert Image.open(io.BytesIO(answers[0].body)).size == photo.size


def png(labels: list[list[int]]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.array(labels, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_accuracy_is_that_of_the_answers_and_photos_count_alike(tmp_path: Path) -> None:
    for part in ("images", "masks"):
        (tmp_path / part / "val").mkdir(parents=True)
    for index, labels in enumerate(([[0, 1], [1, 255]], [[0, 0], [0, 0]])):
        Image.new("RGB", (2, 2)).save(tmp_path / "images" / "val" / f"{index}.jpg")
        (tmp_path / "masks" / "val" / f"{index}.png").write_bytes(png(labels))
    photos = Photos.of(tmp_path)

    def answer(photo: int, labels: list[list[int]], status: int = 200) -> Answer:
        return Answer(0.0, 0.0, 0.1, status, photo=photo, body=png(labels))

    right = [answer(0, [[0, 1], [1, 7]]), answer(1, [[0, 0], [0, 0]])]
    assert photos.miou(right) == 1.0
    wrong = answer(0, [[0, 0], [1, 7]])  # class 0: 1 of 2 pixels, class 1: 1 of 2
    assert photos.miou([wrong]) == pytest.approx(0.5)
    assert photos.miou([wrong] * 3) == pytest.approx(0.5)
    # Photo 0 half right, half wrong: class 0 has 5 of 5.5 pixels, class 1 has 1.5 of 2.
    assert photos.miou([wrong, *right, *right[1:]]) == pytest.approx((5 / 5.5 + 1.5 / 2) / 2)
    assert math.isnan(photos.miou([answer(0, [[0, 0], [0, 0]], status=429)]))
    assert math.isnan(Photos.of(None).miou(right))
    with pytest.raises(FileNotFoundError, match="images/val"):
        Photos.of(tmp_path / "images")


def test_a_summary_counts_what_was_computed_in_vain() -> None:
    bench = Bench(str(BUNDLE), 10.0, Photos.of(None))
    bench.objective_s = 0.5
    prices = [plan.gflops for plan in bench.plans]
    answers = [
        Answer(0.0, 0.0, 0.4, 200, prices[0]),
        Answer(0.0, 0.0, 0.6, 200),  # a server that does not tell runs the full plan
        Answer(0.0, 0.0, 0.6, 504, prices[0]),
        Answer(0.0, 0.0, 0.1, 429),
    ]
    point = bench.summary("", 4.0, answers, 10.0)
    assert (point.offered, point.answered, point.in_time, point.goodput) == (4, 2, 1, 0.1)
    assert point.gflops == pytest.approx((prices[0] + prices[-1]) / 2)
    assert point.thrown_away == pytest.approx(2 / 3)


def test_points_are_measured_once_and_compared(tmp_path: Path) -> None:
    record = Record(tmp_path / "new" / "points")
    record.write({"full_s": 0.2, "cheapest_s": 0.02, "objective_s": 0.6})
    rows = [("full plan", 4.0, 40), ("full plan", 8.0, 44), ("ray", 4.0, 40), ("litserve", 4.0, 30)]
    for who, load, in_time in rows:
        point = measured(who, load, offered=int(10 * load), in_time=in_time)
        record.write({"share": load / 5, "point": vars(point)})
    for who, bare_ms in (("full plan", 100.0), ("ray", 120.0)):
        record.write({"who": who, "bare_ms": bare_ms, "beside_ms": 30.0})
        record.write({"share": 0.0, "point": vars(measured(who))})
    record.write({"who": "litserve", "bare_ms": 100.0})  # of another moment than the requests
    record.write({"share": 0.0, "point": vars(measured("litserve"))})
    again = Record(tmp_path / "new" / "points")
    assert again.figures["objective_s"] == 0.6
    assert [point.load for point in again.of("full plan")] == [4.0, 8.0]
    result = found(again)
    assert (result["best_peer"], result["over_best_peer"]) == ("ray", {"full plan": 1.1})
    assert result["objective_held_at"] == {"full plan": 4.0, "litserve": 0.0, "ray": 4.0}
    assert result["beside_ms"] == {"full plan": 30.0, "ray": 30.0}
    assert result["beside_percent"] == {"full plan": 30.0, "ray": 25.0}
    assert [again.has(who, 0.0) for who in ("full plan", "ray", "litserve")] == [True, True, False]
    assert [again.has("ray", share) for share in (0.8, 1.6)] == [True, False]


def test_without_load_each_server_is_measured_beside_its_own_stages_and_once(
    fake_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str]()

    def stages(bench: Bench, who: str) -> object:
        asked.append(who)
        return lambda: time.sleep(0.01)

    with running(fake_manifest, delay_s={"front": 0.03}) as server:

        @contextmanager
        def started(bench: Bench, who: str) -> Iterator[Contender]:
            yield Contender(os.getpid(), server.url, "depth=1")

        monkeypatch.setattr(peers_serving, "contender", started)
        monkeypatch.setattr(peers_serving, "bare", stages)
        monkeypatch.setattr(peers_serving, "ALONE", 3)
        monkeypatch.setattr(Contender, "signal", lambda *_: None)  # it is this process
        bench = Bench(str(BUNDLE), 1.0, Photos.of(None))
        bench.full_s, bench.objective_s = 0.5, 1.5
        for chosen in (["full plan"], ["full plan", "cheapest plan"]):
            record = Record(tmp_path / "points")
            peers_serving.measure(bench, record, chosen, [0.0])
    assert asked == ["full plan", "cheapest plan"]
    again = Record(tmp_path / "points")
    assert again.beside == record.beside
    for who in asked:
        assert again.has(who, 0.0)
        assert again.points[who, 0.0].answered == 3
        assert again.beside[who].bare_ms >= 10.0


def test_a_server_and_its_children_run_in_its_turn_only() -> None:
    lines = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", lines], stdin=subprocess.PIPE) as process:
        parent = psutil.Process(process.pid)
        until(lambda: len(parent.children()) == 1, 20)
        both = [parent, *parent.children()]
        server = Contender(process.pid, "http://127.0.0.1:1")
        with server.turn():
            assert psutil.STATUS_STOPPED not in [each.status() for each in both]
        until(lambda: [each.status() for each in both] == [psutil.STATUS_STOPPED] * 2, 5)
        server.signal(signal.SIGCONT)
        process.communicate(b"\n", timeout=10)


def test_the_model_of_other_servers_answers_as_the_full_plan_does() -> None:
    photo = Path(PHOTOS[0]).read_bytes()
    with open_bundle(BUNDLE, backend="onnxruntime", threads=1, max_batch=1) as segmenter:
        ours = segmenter.segment(photo, max_loss=0).png()
    model = FullPlan(str(BUNDLE), 1)
    assert model.segment(photo) == ours
    assert model.predict(np.stack([model.decode(photo).pixels] * 2)).shape[0] == 2


def test_the_soak_sends_all_kinds_and_finds_everything_given_back() -> None:
    run = python("tests/bench/soak.py", "--minutes", "0.05", "--", "--backend", "fake")
    found = json.loads(run.stdout.splitlines()[-1])
    assert (found["left"], found["unexpected"]) == ({}, 0), run.stdout
    assert found["requests"] > 5
    assert found["growth"] < 1
