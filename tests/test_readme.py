"""What the documentation promises exists: settings, metrics, make targets, links, files, commands
and their flags.

The two tables of docs/reference.md stand between `<!-- settings -->` and `<!-- /settings -->`,
`<!-- metrics -->` and `<!-- /metrics -->`. `python -m tests.test_readme` prints both as they must
be.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from model_export.__main__ import COMMANDS, parser_of
from service import command_line, settings
from service.answer import Answer
from service.api.problems import of_status
from service.bundle.manifest import SCHEMA
from service.core import Decision, HeadWidth, Plan, Reason
from service.labels import OUTCOMES, SHED, STAGES
from service.metrics import Metrics
from service.tasks.values import Statistics
from service.trace import Trace
from tests.test_architecture import LAYERS

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
REFERENCE = ROOT / "docs" / "reference.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PYTHON = ROOT / "docs" / "python.md"
TRAINING = ROOT / "docs" / "training.md"
MAX_LINES, MAX_WORDS = 150, 1600  # of README.md, for a reader who has two minutes
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "*/README.md", "trained_weights/*/README.md")
    for path in ROOT.glob(pattern)
)
# A word of code that starts in one of these folders is a path of the repository.
FOLDERS = r"(?:\.ci|docker|docs|examples|k8s|model_export|monitoring|service|tests|trained_weights)"
# `python -m service ...` as a whole command, with the lines that a trailing backslash continues it
# on.
COMMAND = r"python3? -m (service|model_export)\b((?:[^\n`\\]|\\\n)*)"


def code(text: str) -> str:
    """Fenced blocks and inline code, one a line; the prose between is left out."""
    fence = re.compile(r"^```.*?\n(.*?)^```", re.M | re.S)
    return "\n".join(fence.findall(text) + re.findall(r"`([^`\n]+)`", fence.sub("", text)))


def block(name: str) -> str:
    inner = re.findall(
        rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", REFERENCE.read_text("utf-8"), re.S
    )
    assert len(inner) == 1, (
        f"{REFERENCE.name} must have one block <!-- {name} --> ... <!-- /{name} -->"
    )
    return str(inner[0]).strip()


def anchors(text: str) -> set[str]:
    """The fragments by which a document's headings can be linked to, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


def metrics_table() -> str:
    """The service's metrics as a Markdown table, taken from a registry in which each metric has
    happened once."""
    metrics = Metrics(layers=2, max_batch=1, heads=[HeadWidth("semantic")])
    plan = Plan(name="d1", depth=1, keep=1.0, width=1.0, gflops=1.0, quality=0.5)
    decision = Decision(plan=plan, reason=Reason.GATE, predicted_quality=0.5)
    metrics.observe(
        Trace(stages=dict.fromkeys(STAGES, 0.1), decision=decision, batch_size=1), "ok", 0.1
    )
    metrics.build_info(version="1", bundle="b", backend="fake", reason="asked")
    metrics.ran([decision])
    metrics.shed(SHED[0])
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for family in sorted(metrics.registry.collect(), key=lambda family: family.name):
        if family.name.startswith("fathom_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = sorted(
                {label for sample in family.samples for label in sample.labels} - {"le"}
            )
            shown = ", ".join(f"`{label}`" for label in labels)
            rows.append(f"| `{name}` | {family.type} | {shown} | {family.documentation} |")
    return "\n".join(rows)


def test_settings_table_is_the_one_that_the_settings_give() -> None:
    expected = command_line.table().strip()
    assert block("settings") == expected, f"must read:\n{expected}"


def test_settings_table_names_every_field_with_its_default_and_help() -> None:
    rows = {row.split("|")[1].strip(" `"): row for row in command_line.table().splitlines()}
    for entry in fields(settings.Settings):
        row = rows[settings.flag(entry.name)]
        assert settings.variable(entry.name) in row
        assert str(entry.default) in row
        assert entry.metadata["help"] in row


def test_metrics_table_is_the_one_that_the_registry_gives() -> None:
    expected = metrics_table()
    assert block("metrics") == expected, f"must read:\n{expected}"


def test_the_table_of_errors_has_every_type_with_its_status() -> None:
    """And no other, but for those that are named as HTTP names the status."""
    section = REFERENCE.read_text("utf-8").partition("\n### Errors\n")[2].partition("\n### ")[0]
    told = {}
    for statuses, types in re.findall(r"^\| ([\d, ]+) \| (`[^|]+`) \|", section, re.M):
        codes, slugs = statuses.split(", "), re.findall(r"`([^`]+)`", types)
        codes *= len(slugs) // len(codes)  # of one status, all of them
        told |= dict(zip(slugs, map(int, codes), strict=True))
    own = {word: status for word, status in OUTCOMES.items() if word not in ("ok", "cancelled")}
    assert own.items() <= told.items()
    for slug in told.keys() - own.keys():
        answer = of_status(told[slug], "", "1")
        assert json.loads(bytes(answer.body))["type"] == f"urn:fathom:problem:{slug}"


def test_the_names_of_an_answer_in_python_exist() -> None:
    section = PYTHON.read_text("utf-8").partition("\n## The answer\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.+?`) \|", section, re.M)
    named = {name for row in rows for name in re.findall(r"`(\w+)", row)}
    assert named >= {"heads", "labels", "values"}
    known = set(dir(Answer)) | {field.name for field in fields(Answer)}
    assert named <= known
    assert {field.name for field in fields(Statistics)} <= set(re.findall(r"`(\w+)`", section))


def test_upgrading_names_the_schemas_that_are_read() -> None:
    assert f"from 2 to {SCHEMA}," in TRAINING.read_text("utf-8")


def test_readme_can_be_read_in_two_minutes() -> None:
    text = README.read_text("utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert len(text.split()) <= MAX_WORDS


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
class TestDocument:
    def test_make_targets_exist(self, document: Path) -> None:
        rules = "".join(
            (ROOT / name).read_text("utf-8") for name in ("Makefile", "trained_weights/recipes.mk")
        )
        targets = set(re.findall(r"^([a-z][\w-]*):(?!=)", rules, re.M))
        text = code(document.read_text("utf-8"))
        named = set(re.findall(r"(?:^|&& |\n)(?:\$ )?make ([a-z][\w-]*)", text))
        assert named <= targets
        if document == README:
            assert {"serve", "test"} <= named

    def test_links_and_pictures_lead_to_files_and_headings(self, document: Path) -> None:
        text = document.read_text("utf-8")
        links = re.findall(r"\]\(([^)\s]+)|(?:src|href)=\"([^\"]+)", text)
        broken = []
        for link in (markdown or html for markdown, html in links):
            if link.startswith(("http://", "https://", "mailto:")):
                continue
            path, _, fragment = link.partition("#")
            target = document.parent / path if path else document
            if not target.exists() or (
                fragment and fragment not in anchors(target.read_text("utf-8"))
            ):
                broken.append(link)
        assert broken == []

    def test_commands_and_their_flags_exist(self, document: Path) -> None:
        for package, rest in re.findall(COMMAND, code(document.read_text("utf-8"))):
            words = rest.replace("\\\n", " ").split()
            flags = {
                word.split("=")[0].strip("[]") for word in words if word.strip("[").startswith("--")
            }
            if package == "service":
                known = {settings.flag(entry.name) for entry in fields(settings.Settings)}
            elif words and not words[0].startswith("-") and words[0] != "<command>":
                assert words[0] in COMMANDS, f"python -m model_export has no {words[0]}"
                known = set(re.findall(r"--[\w-]+", parser_of(words[0]).format_help()))
            else:
                known = set()
            unknown = sorted(flags - known - {"--help"})
            assert not unknown, f"python -m {package}{rest} has no {unknown}"

    def test_curl_says_what_it_sends(self, document: Path) -> None:
        """Else it sends a form, and the answer is 415."""
        text = code(document.read_text("utf-8")).replace("\\\n", " ")
        sends = [line for line in text.splitlines() if "curl " in line and "--data-binary" in line]
        assert [line for line in sends if "-H 'Content-Type: " not in line] == []

    def test_paths_in_code_exist(self, document: Path) -> None:
        text = code(document.read_text("utf-8"))
        paths = set(re.findall(rf"(?<![\w./:-])({FOLDERS}/[\w./-]*\w)", text))
        # NAME and RUN in capitals stand for what the reader chooses.
        real = {path for path in paths if not re.search(r"/[A-Z][A-Z_]+\b(?!\.)", path)}
        roots = (ROOT, document.parent)
        assert {path for path in real if not any((root / path).exists() for root in roots)} == set()


def test_architecture_describes_every_folder() -> None:
    folders = {
        path.name
        for package in ("service", "model_export")
        for path in (ROOT / package).iterdir()
        if path.is_dir() and path.name != "__pycache__"
    }
    rows = re.findall(r"^\| `(\w+)/` \|", ARCHITECTURE.read_text("utf-8"), re.M)
    assert set(rows) == folders


def test_architecture_has_what_is_in_service_in_the_order_of_its_imports() -> None:
    """A row may name several modules, in any order."""
    table = ARCHITECTURE.read_text("utf-8").partition("\n`service/`, from low to high")[2]
    table = table.partition("\n`model_export/`, from low to high")[0]
    rows = re.findall(r"^\| (`.+?`) \|", table, re.M)
    named = [set(re.findall(r"`(\w+)(?:/|\.py)`", row)) for row in rows]
    layers = [name for name in LAYERS["service"] if name != "__main__"]
    assert set().union(*named) == {*layers, "web"}
    places = [min(map(layers.index, row)) for row in named if row != {"web"}]
    assert places == sorted(places)


def test_training_has_a_row_for_every_command() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|", TRAINING.read_text("utf-8"), re.M)
    assert set(rows) >= set(COMMANDS)


@pytest.mark.parametrize("document", [README, PYTHON], ids=lambda path: path.name)
def test_python_examples_run(document: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", document.read_text("utf-8"), re.M | re.S)
    assert blocks
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_pages_that_other_files_name_exist() -> None:
    """Settings, alerts, manifests and comments lead their reader to pages of docs/."""
    kinds = {"Makefile", ".py", ".yaml", ".yml", ".mk", ".toml"}
    files = [
        path
        for entry in ROOT.iterdir()
        if not entry.name.startswith(".") and entry.name != "runs"
        for path in ([entry] if entry.is_file() else entry.rglob("*"))
        if path.is_file() and {path.name, path.suffix} & kinds
    ]
    named = {
        page for path in files for page in re.findall(r"docs/[\w-]+\.md", path.read_text("utf-8"))
    }
    assert "docs/backends.md" in named
    assert {page for page in named if not (ROOT / page).exists()} == set()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# What a plan is\n", {"what-a-plan-is"}),
        ("## POST /segment\n", {"post-segment"}),
        (
            "## Does it follow?\n### `Compute-Used`, in short\n",
            {"does-it-follow", "compute-used-in-short"},
        ),
        ("```sh\n# a comment\n```\n", set()),
    ],
)
def test_anchors_are_those_that_github_makes(text: str, expected: set[str]) -> None:
    assert anchors(text) == expected


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see `python -m service --port 80` now", [("service", " --port 80")]),
        (
            "```\npython -m model_export export RUN \\\n  -o X\nls\n```\n",
            [("model_export", " export RUN \\\n  -o X")],
        ),
        ("prose: python -m service is not code", []),
    ],
)
def test_commands_are_found_in_code_only(text: str, found: list[tuple[str, str]]) -> None:
    assert re.findall(COMMAND, code(text)) == found


if __name__ == "__main__":
    print(command_line.table(), metrics_table(), sep="\n")
