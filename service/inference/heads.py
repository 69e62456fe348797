"""The heads of images that ran through one encoder together."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from numpy.typing import NDArray

from service.core import Decision
from service.engines.base import Tensors
from service.inference.batches import Job
from service.inference.costs import Costs
from service.inference.stages import Stages

Answers: TypeAlias = Mapping[str, Mapping[str, NDArray[Any]]]  # head's name -> its tensors


def run_heads(
    stages: Stages,
    costs: Costs,
    decisions: Mapping[Job, Decision],
    jobs: Sequence[Job],
    shape: str,
    encoded: Tensors,
) -> dict[Job, Answers]:
    """Head by head at one width, for those images together whose plan has it; no other head runs.

    jobs: in the order of the encoded tensors.
    """
    answers = {job: dict[str, Mapping[str, NDArray[Any]]]() for job in jobs}
    for head in dict.fromkeys(head for job in jobs for head in decisions[job].plan.heads):
        group = [job for job in jobs if head in decisions[job].plan.heads]
        began = time.perf_counter()
        tensors = stages.head(shape, rows(encoded, jobs, group), head.key)
        now, canvas = time.perf_counter(), decisions[group[0]].plan.canvas
        costs.heads[canvas, head.key].add(now - began, len(group), now)
        for row, job in enumerate(group):
            answers[job][head.name] = {name: own[row] for name, own in tensors.items()}
    return {job: _in_order(own, decisions[job]) for job, own in answers.items()}


def rows(features: Tensors, jobs: Sequence[Job], some: Sequence[Job]) -> Tensors:
    """The features of some of the images, in their order."""
    return features if len(some) == len(jobs) else features.take([jobs.index(job) for job in some])


def _in_order(answers: Answers, decision: Decision) -> Answers:
    """As the bundle has them, whichever ran first."""
    return {head.name: answers[head.name] for head in decision.plan.heads}
