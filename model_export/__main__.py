"""python -m model_export <command>: train, derive, gate, evaluate, export."""

from __future__ import annotations

import argparse
import importlib
import sys
from contextlib import nullcontext

from model_export.files import alone
from model_export.option_types import Help, register
from service.errors import FathomError

# command -> (module, one line of help). Modules load on demand: --help should not wait for torch.
COMMANDS = {
    "import": (
        "importing.import_checkpoint",
        "a Mask2Former that transformers saved -> a run, whose full plan is the checkpoint",
    ),
    "adapt": (
        "importing.adapt",
        "plans, gate and promise of a run from photos without labels; early exits by --train",
    ),
    "compare-import": (
        "evaluation.compare_import",
        "an imported checkpoint beside transformers, torch.compile and ONNX Runtime on its export",
    ),
    "train-exits": ("training.train_exits", "step A: train the parent for early exits"),
    "train-tasks": (
        "training.train_tasks",
        "step A for several tasks: one encoder, heads whose width can be cut, generated streets",
    ),
    "average": ("training.average", "the mean of several runs' weights, as a run"),
    "search-plans": (
        "gating.search_plans",
        "cost and quality of every plan; choose the ones that are worth having",
    ),
    "derive-targets": ("gating.derive_targets", "step B: quality of every plan on every image"),
    "train-gate": ("gating.train_gate", "step C: train the gate, everything else frozen"),
    "evaluate": (
        "evaluation.evaluate",
        "a run or a bundle: quality and cost of every policy, the gate against the oracle",
    ),
    "draw-scenes": (
        "data.draw_scenes",
        "write generated scenes of known clutter as a labelled folder",
    ),
    "probe": ("evaluation.probe", "frozen linear probe of a backbone's weights"),
    "retarget": (
        "gating.retarget",
        "a new gate and new margins for a bundle, from other data; nothing is trained",
    ),
    "export": ("export.write_bundle", "write a bundle: front, encoders and decoder as ONNX"),
    "rebuild": (
        "export.rebuild",
        "the graphs of a bundle written anew by this version; nothing is trained or measured",
    ),
    "compare-tasks": (
        "evaluation.compare_tasks",
        "several tasks on one encoder against separate networks and against fixed widths",
    ),
    "build-trt": (
        "export.tensorrt",
        "TensorRT engines of a bundle, compared with ONNX Runtime, into a cache",
    ),
}
# Those that write to the run that they are given; trainings hold theirs once its folder is there.
WRITE_TO_RUN = ("adapt", "search-plans", "derive-targets", "train-gate")


def parser_of(command: str) -> argparse.ArgumentParser:
    module = importlib.import_module(f"model_export.{COMMANDS[command][0]}")
    parser = argparse.ArgumentParser(
        f"python -m model_export {command}", description=module.__doc__, formatter_class=Help
    )
    register(parser)
    module.add_arguments(parser)
    parser.set_defaults(main=module.main)
    return parser


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in COMMANDS:
        print("usage: python -m model_export <command> [--help]\n")
        print("\n".join(f"  {name:<16}{text}" for name, (_, text) in COMMANDS.items()))
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    args = parser_of(argv[0]).parse_args(argv[1:])
    run = args.__dict__.pop("main")
    at_work = argv[0] in WRITE_TO_RUN and args.run.is_dir()
    try:
        with alone(args.run) if at_work else nullcontext():
            run(args)
    except (ValueError, FathomError) as error:
        # Bad arguments, data, runs or bundles: the message says what to change.
        print(f"{argv[0]}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        # What the system refuses: a path that is no folder, a full disk, rights.
        file = "" if error.filename is None else f"{error.filename}: "
        print(f"{argv[0]}: {file}{error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # whoever stops a command needs no traceback
        print(f"{sys.argv[1]}: stopped", file=sys.stderr)
        sys.exit(130)
