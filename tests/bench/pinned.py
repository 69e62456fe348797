"""The service without scheduling by load: what a request asks for is what it gets, however many
wait. `python -m tests.bench.pinned [flags]`, as the other side of a benchmark.
"""

from __future__ import annotations

import math
import os
import sys

from service.__main__ import main
from service.inference import engine, schedule


def unlimited(*_: object) -> float:
    return math.inf


def an_hour(_: float) -> float:
    return 3600.0


if __name__ == "__main__":
    schedule.eased = unlimited
    engine.objective_s = an_hour  # no image is ever late
    sys.exit(main(sys.argv[1:], os.environ))
