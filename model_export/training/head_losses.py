"""What each head learns by: one loss for each kind of head, a sum of weighted terms.

The weights bring the losses of all heads to about the same size, so that none drowns the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from model_export.data.datasets import VOID
from model_export.data.several_tasks import TaskBatch
from model_export.network.decoder import Prediction
from model_export.network.heads import Boxes, DepthHead, DetectionHead, Proposals, SemanticHead
from model_export.network.segmenter import semantic_probabilities
from model_export.training.losses import at_centres

PIXEL_WEIGHT, DICE_WEIGHT, ABSENT_WEIGHT = 3.0, 2.0, 0.1
# As DETR (arXiv 2005.12872, section 4): class, L1 and generalised IoU.
CLASS_WEIGHT, L1_WEIGHT, IOU_WEIGHT, NO_OBJECT_WEIGHT = 2.0, 5.0, 2.0, 0.2
CENTRE = 0.15  # cells within this share of a box's sides from its centre propose it
DEPTH_WEIGHT = 10.0


def semantic_loss(answer: list[Prediction], batch: TaskBatch) -> Tensor:
    """Cross-entropy and dice of the class probabilities at stride 4, and each query's class: with
    class matching the masks of Mask2Former's loss are those of the classes, and on a small canvas
    all cells are fewer than its sampled points."""
    prediction = answer[-1]
    probabilities = semantic_probabilities(prediction)
    classes = probabilities.shape[1]
    labels = at_centres(batch.masks, batch.masks.shape[-1] // probabilities.shape[-1]).long()
    known = labels != VOID
    share = probabilities.clamp(min=1e-6)
    share = share / share.sum(1, keepdim=True)
    cross = F.nll_loss(share.log(), labels, ignore_index=VOID, reduction="sum")
    truth = F.one_hot(labels.where(known, labels.new_tensor(classes)), classes + 1)
    truth = truth[..., :classes].movedim(-1, 1).float()
    inside = prediction.masks.sigmoid() * known.unsqueeze(1)
    there = truth.sum((2, 3))  # (B, classes)
    shared = (inside * truth).sum((2, 3))
    dice = 1 - (2 * shared + 1) / (inside.sum((2, 3)) + there + 1)
    shown = (there > 0).float()
    wanted = torch.arange(classes).where(there > 0, torch.tensor(classes))
    weights = torch.ones(classes + 1)
    weights[-1] = ABSENT_WEIGHT
    return (
        PIXEL_WEIGHT * cross / known.sum().clamp(min=1)
        + DICE_WEIGHT * (dice * shown).sum() / shown.sum().clamp(min=1)
        + F.cross_entropy(prediction.classes.mT, wanted, weights)
    )


def depth_loss(answer: Tensor, batch: TaskBatch) -> Tensor:
    """Mean absolute difference of the logarithms, at the centres of cells."""
    truth = at_centres(batch.depth, batch.depth.shape[-1] // answer.shape[-1])
    known = (truth > 0).float()
    gaps = (answer - truth.clamp(min=0.1).log()).abs() * known
    return DEPTH_WEIGHT * gaps.sum() / known.sum().clamp(min=1)


def corners(boxes: Tensor) -> Tensor:
    """(..., 4) centre x, centre y, width, height -> left, top, right, bottom."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), -1)


def generalised_iou(ours: Tensor, theirs: Tensor) -> Tensor:
    """(..., 4) corners of both -> (...): arXiv 1902.09630, -1..1."""
    low, high = (
        torch.maximum(ours[..., :2], theirs[..., :2]),
        torch.minimum(ours[..., 2:], theirs[..., 2:]),
    )
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(each[..., 2:] - each[..., :2]).prod(-1) for each in (ours, theirs)]
    union = areas[0] + areas[1] - shared
    least, most = (
        torch.minimum(ours[..., :2], theirs[..., :2]),
        torch.maximum(ours[..., 2:], theirs[..., 2:]),
    )
    hull = (most - least).prod(-1)
    return shared / union.clamp(min=1e-9) - (hull - union) / hull.clamp(min=1e-9)


def match_boxes(answer: Boxes, index: int, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and targets that belong together, (T,) each: the cheapest assignment (DETR)."""
    chance = answer.classes[index].softmax(-1)[:, truth[:, 0].long()]  # (Q, T)
    boxes = answer.boxes[index][:, None]
    far = (boxes - truth[None, :, 1:]).abs().sum(-1)
    iou = generalised_iou(corners(boxes), corners(truth[None, :, 1:]))
    cost = -CLASS_WEIGHT * chance + L1_WEIGHT * far - IOU_WEIGHT * iou
    queries, targets = linear_sum_assignment(cost.cpu().numpy())
    return torch.as_tensor(queries), torch.as_tensor(targets)


def box_terms(boxes: Tensor, truth: Tensor) -> Tensor:
    """(T, 4) each -> (T,): weighted L1 and generalised IoU."""
    iou = generalised_iou(corners(boxes), corners(truth))
    return L1_WEIGHT * (boxes - truth).abs().sum(-1) + IOU_WEIGHT * (1 - iou)


def query_loss(answer: Boxes, batch: TaskBatch) -> Tensor:
    """Class of every query, and boxes of those that are matched (DETR)."""
    wanted = torch.full(answer.classes.shape[:2], answer.classes.shape[2] - 1)
    pairs = []
    with torch.no_grad():
        for index, truth in enumerate(batch.boxes):
            queries, targets = match_boxes(answer, index, truth)
            wanted[index, queries] = truth[targets, 0].long()
            pairs.append((queries, truth[targets, 1:]))
    weights = torch.ones(answer.classes.shape[2])
    weights[-1] = NO_OBJECT_WEIGHT
    loss = CLASS_WEIGHT * F.cross_entropy(answer.classes.mT, wanted, weights)
    ours = torch.cat([answer.boxes[i, queries] for i, (queries, _) in enumerate(pairs)])
    theirs = torch.cat([boxes for _, boxes in pairs])
    return loss + box_terms(ours, theirs).sum() / max(len(theirs), 1)


def proposal_loss(answer: Proposals, batch: TaskBatch) -> Tensor:
    """Focal loss of the cells' classes (arXiv 1708.02002), and the boxes of cells near the centre
    of an object, at least the nearest one. Of two objects the smaller has the cell."""
    labels, chosen, truths = torch.zeros_like(answer.scores), [], []
    for index, own in enumerate(batch.boxes):
        truth = own[(own[:, 3] * own[:, 4]).argsort(descending=True)]
        if not len(truth):
            continue
        away = answer.reference[:, None] - truth[None, :, 1:3]  # (N, T, 2)
        near = (away.abs() <= CENTRE * truth[None, :, 3:]).all(-1)
        near[away.square().sum(-1).argmin(0), torch.arange(len(truth))] = True
        cells = near.any(1).nonzero()[:, 0]
        # the last of those that claim it
        owner = (near[cells] * torch.arange(1, len(truth) + 1)).argmax(1)
        labels[index, cells, truth[owner, 0].long()] = 1
        chosen.append(answer.boxes[index, cells])
        truths.append(truth[owner, 1:])
    count = max(sum(len(each) for each in truths), 1)
    raw = F.binary_cross_entropy_with_logits(answer.scores, labels, reduction="none")
    hit = (answer.scores.sigmoid() - labels).abs()
    balance = 0.25 * labels + 0.75 * (1 - labels)
    loss = CLASS_WEIGHT * (balance * hit.square() * raw).sum() / count
    if truths:
        loss = loss + box_terms(torch.cat(chosen), torch.cat(truths)).sum() / count
    return loss


def detection_loss(answer: list[Boxes | Proposals], batch: TaskBatch) -> Tensor:
    """answer: the proposals, then the boxes of each layer."""
    proposals, *layers = answer
    losses = [query_loss(each, batch) for each in layers if isinstance(each, Boxes)]
    assert isinstance(proposals, Proposals)
    return 0.5 * torch.stack([proposal_loss(proposals, batch), *losses]).sum()


LOSSES: Mapping[str, Callable[..., Tensor]] = {
    SemanticHead.task: semantic_loss,
    DetectionHead.task: detection_loss,
    DepthHead.task: depth_loss,
}


def agreement(task: str, ours: Any, teacher: Any) -> Tensor:
    """How far a head's answer is from the full configuration's (arXiv 2308.11744): of probabilities
    the cross-entropy less the teacher's own entropy, of depth the mean difference of logarithms, of
    boxes the squared difference of the cells' scores, since queries of two widths are others."""
    if task == DepthHead.task:
        return DEPTH_WEIGHT * (ours - teacher).abs().mean()
    if task == DetectionHead.task:
        gap = ours[0].scores.sigmoid() - teacher[0].scores.sigmoid()
        return 50 * gap.square().sum(-1).mean()
    own, wanted = (semantic_probabilities(each[-1]).clamp(min=1e-6) for each in (ours, teacher))
    own, wanted = own / own.sum(1, keepdim=True), wanted / wanted.sum(1, keepdim=True)
    return PIXEL_WEIGHT * (wanted * (wanted.log() - own.log())).sum(1).mean()
