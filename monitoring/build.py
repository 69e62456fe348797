"""Write what is derived: dashboards/fathom.json from dashboard.py, prometheus-rule.yaml from
rules.yml.

    python -m monitoring.build            write both
    python -m monitoring.build --check    exit 1 and name what is stale; write nothing

Needs the packages of the extra `test`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from monitoring import dashboard

HERE = Path(__file__).resolve().parent
RULE_HEAD = """\
# Written by `python -m monitoring.build` from rules.yml: change that file, not this one.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: fathom
  labels:
    app.kubernetes.io/name: fathom
spec:
"""


def built() -> dict[Path, str]:
    """Every derived file with the text that it must have."""
    board = JSONEncoder(sort_keys=True, indent=1, ensure_ascii=False).encode(dashboard.fathom())
    return {
        HERE / "dashboards" / "fathom.json": board + "\n",
        HERE / "prometheus-rule.yaml": prometheus_rule((HERE / "rules.yml").read_text("utf-8")),
    }


def prometheus_rule(rules: str) -> str:
    """The same groups as a custom resource of the Prometheus operator, comments and all: its `spec`
    is a rules file."""
    return RULE_HEAD + "".join(
        f"  {line}" if line.strip() else line for line in rules.splitlines(keepends=True)
    )


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if a file is stale"
    )
    check = parser.parse_args(argv).check
    stale = [
        path
        for path, text in built().items()
        if not path.is_file() or path.read_text("utf-8") != text
    ]
    for path in stale:
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(built()[path], "utf-8")
        sys.stdout.write(f"{'stale' if check else 'wrote'} {path.relative_to(HERE.parent)}\n")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
