"""The service without scheduling by load: what a request asks for is what it gets, however many
wait. `python -m tests.bench.pinned [flags]`, as the other side of a benchmark.
"""

from __future__ import annotations

import math
import os
import sys

from service.__main__ import main
from service.inference import queue


def unlimited(*_: object) -> float:
    return math.inf


if __name__ == "__main__":
    queue.eased = unlimited
    sys.exit(main(sys.argv[1:], os.environ))
