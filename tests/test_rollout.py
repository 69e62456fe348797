"""What a rollout and a change of the ConfigMap do to traffic: real service processes on loopback,
real signals.

Kubernetes is played by hand: the endpoints follow readiness, a pod that ends leaves them after a
lag, and SIGTERM comes after the preStop sleep. Times are shorter than in k8s/base, their order is
the same.
"""

from __future__ import annotations

import io
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from service.bundle import Bundle
from tests.processes import ROOT, until
from tests.replicas import Replica, replica

LAG_S, PRE_STOP_S = 0.5, 1.0
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),  # a busy machine starts and drains slowly
]


def picture(width: int, height: int) -> bytes:
    """Noise as a JPEG: no plan but the dearest is good enough for the fake engine's gate."""
    pixels = np.random.default_rng(7).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST).save(
        file, "JPEG", quality=90
    )
    return file.getvalue()


@dataclass
class Clients:
    """Threads that post one image after the other to the listed replicas in turn, until `stop`.

    got: request id -> status, or the name of the error; late: ids that were answered after `mark`.
    """

    replicas: list[Replica]
    photo: bytes
    stop: threading.Event = field(default_factory=threading.Event)
    got: dict[str, int | str] = field(default_factory=dict)
    mark: float = float("inf")
    late: list[str] = field(default_factory=list)

    def run(self, name: str, keep_alive: bool) -> None:
        limits = httpx.Limits() if keep_alive else httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(timeout=60, limits=limits) as http:
            number = 0
            while not self.stop.is_set():
                listed = [each for each in self.replicas if each.listed]
                if not listed:
                    return
                number += 1
                self.post(http, listed[number % len(listed)].url, f"{name}-{number}")

    def post(self, http: httpx.Client, url: str, request_id: str) -> None:
        headers = {"Content-Type": "image/jpeg", "Accept": "image/png", "X-Request-Id": request_id}
        try:
            response = http.post(f"{url}/segment", content=self.photo, headers=headers)
        except httpx.TransportError as error:
            self.got[request_id] = type(error).__name__
            time.sleep(0.1)
            return
        # Admitted, and given up at the end of the drain: lost, whatever the status says.
        given_up = response.status_code == 503 and "stopped" in response.text
        self.got[request_id] = "given up" if given_up else response.status_code
        if response.status_code == 200:
            Image.open(io.BytesIO(response.content)).load()  # a whole answer, not half of one
        if response.status_code in (429, 503):
            assert int(response.headers["retry-after"]) >= 1
            time.sleep(0.02)
        if time.monotonic() > self.mark:
            self.late.append(request_id)


@contextmanager
def load(clients: Clients, threads: int) -> Iterator[None]:
    """Half of the threads keep their connection, half open one for each request."""
    running = [
        threading.Thread(target=clients.run, args=(f"c{n}", n % 2 == 0)) for n in range(threads)
    ]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        clients.stop.set()
        for thread in running:
            thread.join(60)
    assert not any(thread.is_alive() for thread in running)


def check(clients: Clients, replicas: list[Replica]) -> Counter[int | str]:
    """Every request that was admitted has its whole answer; those that failed were never read.
    Counts per result."""
    answered: dict[str, str] = {}
    for each in replicas:
        answered |= each.outcomes()
    assert "cancelled" not in answered.values()
    assert [
        name for name, outcome in answered.items() if outcome == "ok" and clients.got[name] != 200
    ] == []
    failed = [name for name, result in clients.got.items() if isinstance(result, str)]
    assert [name for name in failed if name in answered] == []
    found = Counter(clients.got.values())
    print(dict(found))
    assert {status for status in found if isinstance(status, int)} <= {200, 429, 503}
    return found


def test_sigterm_under_load_loses_no_admitted_request(tmp_path: Path) -> None:
    bundle = str(ROOT / "trained_weights/camvid-tiny")
    with replica(
        tmp_path / "log", "--bundle", bundle, "--max-batch", "1", "--drain-timeout-s", "60"
    ) as only:
        clients = Clients([only], picture(480, 360))
        with load(clients, 8):
            until(lambda: len(clients.got) >= 8, 120)
            clients.mark = time.monotonic()
            only.end()
        found = check(clients, [only])
    late = [name for name in clients.late if clients.got[name] == 200]
    assert len(late) >= 2  # one ran and at least one waited when the signal came
    assert found[200] > len(late)
    assert found["ConnectError"] >= 1  # the load went on until nobody listened


def rolled(log: Path, bundle: Bundle, *, pre_stop: bool) -> Counter[int | str]:
    """Two replicas are replaced one by one, as maxSurge 1 and maxUnavailable 0 do it, under
    load."""
    flags = ("--bundle", str(bundle.root), "--backend", "fake", "--drain-timeout-s", "60")
    with ExitStack() as stack:
        replicas = [stack.enter_context(replica(log / f"old{n}", *flags)) for n in range(2)]
        clients = Clients(replicas, picture(640, 480))

        def some_more() -> None:
            seen = len(clients.got)
            until(lambda: len(clients.got) >= seen + 12, 120)

        with load(clients, 4):
            for number, old in enumerate(tuple(replicas)):
                replicas.append(stack.enter_context(replica(log / f"new{number}", *flags)))
                if pre_stop:
                    time.sleep(LAG_S)
                    old.listed = False
                    time.sleep(PRE_STOP_S - LAG_S)
                    old.end()
                else:
                    old.end()
                    some_more()  # the endpoints are late
                    old.listed = False
                some_more()
        return check(clients, replicas)


def test_a_rolling_restart_loses_nothing_at_all(tmp_path: Path, fake_bundle: Bundle) -> None:
    found = rolled(tmp_path, fake_bundle, pre_stop=True)
    assert set(found) == {200}
    assert found[200] > 24


def test_without_the_sleep_before_sigterm_connections_are_refused(
    tmp_path: Path, fake_bundle: Bundle
) -> None:
    # Shows that the test above can fail, and what the preStop hook is for. Even so nothing admitted
    # is lost.
    assert rolled(tmp_path, fake_bundle, pre_stop=False)["ConnectError"] > 0


def test_a_new_budget_shifts_the_depth_histogram_within_five_seconds(
    tmp_path: Path, fake_bundle: Bundle
) -> None:
    # As the kubelet does it: the volume's files are links through ..data, and ..data is replaced at
    # once.
    volume = tmp_path / "volume"
    volume.mkdir()

    def publish(revision: str, budget: str) -> None:
        (volume / revision).mkdir()
        (volume / revision / "node-budget").write_text(budget)
        (volume / "..data_tmp").symlink_to(revision)
        os.replace(volume / "..data_tmp", volume / "..data")

    publish("..1", "")
    (volume / "node-budget").symlink_to("..data/node-budget")
    flags = ("--bundle", str(fake_bundle.root), "--backend", "fake")
    watched = ("--node-budget-file", str(volume / "node-budget"))
    with replica(tmp_path / "log", *flags, *watched) as only:

        def depths() -> tuple[float, float]:
            """Images at depth 1, and all images so far."""
            text = httpx.get(f"{only.url}/metrics", timeout=10).text
            found = [
                re.findall(rf"fathom_exit_depth_layers_{kind}.*\}} (\S+)", text)
                for kind in (shallow, "count")
            ]
            return sum(map(float, found[0])), sum(map(float, found[1]))

        shallow = r'bucket\{canvas="c64",le="1\.0"'
        clients = Clients([only], picture(64, 48))
        with load(clients, 2):
            until(lambda: depths()[1] > 20, 30)
            assert depths()[0] == 0
            publish("..2", "depth=1")
            looks = [depths()]

            def shifted() -> bool:
                """Of the images between two looks, all are shallow; a look waits until there are a
                few."""
                now = depths()
                if now[1] - looks[-1][1] >= 5:
                    looks.append(now)
                return len(looks) > 1 and looks[-1][0] - looks[-2][0] == looks[-1][1] - looks[-2][1]

            print(f"shifted after {until(shifted, 5):.2f} s")
    assert set(check(clients, [only])) == {200}
