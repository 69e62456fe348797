"""A bundle's graphs written anew by this version of Fathom, from the bundle's own weights.

Nothing is trained or measured again: gate, qualities and margins stay what they are. Costs are
counted anew. So a bundle gains what the exporter has learned since it was made.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from model_export.data.datasets import refuse_unread
from model_export.data.for_network import open_samples
from model_export.export.graphs import heads_of
from model_export.export.weights import read_entries
from model_export.export.write_bundle import add_parity_arguments, report, write_graphs
from model_export.export.write_manifest import costs_of, revision, stage_of
from model_export.training.bundle_weights import WEIGHTS, read_weights
from model_export.training.initial_weights import knobs_of
from model_export.training.run_files import RunError, new_folder, refuse_full
from service import bundle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("bundle", type=Path, help="the bundle's folder, e.g. trained_weights/camvid-tiny")
    add("-o", "--out", type=Path, required=True, help="folder of the new bundle")
    add_parity_arguments(parser)


def main(args: argparse.Namespace) -> None:
    manifest = bundle.load(args.bundle).manifest
    refuse_full(args.out)
    refuse_unread(args.data, "--parity", args.parity)
    model, gate, _ = read_weights(args.bundle / WEIGHTS)
    config, canvases, heads = model.config, manifest.input.canvases, heads_of(model.config)
    plans = knobs_of(args.bundle, manifest)
    classes = [entry.name for entry in manifest.heads[0].classes]
    samples = open_samples("--parity", args.parity, args.data, config, classes)
    entries = read_entries(args.bundle / WEIGHTS)
    half = any(entry.half for entry in entries.values())
    with new_folder(args.out) as folder:
        graphs = write_graphs(folder, model, gate, canvases, plans, samples, half=half)
        if read_entries(folder / WEIGHTS) == entries:
            # The same but for the order of its header: let the hash stay, too.
            shutil.copyfile(args.bundle / WEIGHTS, folder / WEIGHTS)
        encoder_plans = []
        for knobs, plan in zip(plans, manifest.encoder_plans, strict=True):
            before, own = costs_of(knobs, canvases, graphs.gflops, heads)
            worth = {
                key: replace(head, gflops=round(own[key], 4)) for key, head in plan.heads.items()
            }
            encoder_plans.append(replace(plan, gflops=round(before, 4), heads=worth))
        changed = replace(
            manifest,
            name=args.out.name,
            revision=revision(),
            stages={
                name: stage_of(folder / f"{name}.onnx", error)
                for name, error in graphs.errors.items()
            },
            files=(bundle.BundleFile(WEIGHTS, ""),),
            encoder_plans=tuple(encoder_plans),
            calibration=dict(manifest.calibration) | graphs.about,
            kernels=graphs.kernels,
        )
        if any(a.gflops > b.gflops for a, b in pairwise(changed.plans)):
            raise RunError(
                f"{args.bundle}: by this version's costs its plans are in another order; export "
                f"its run again"
            )
        bundle.save(folder, changed)
    report(args.out, changed)
