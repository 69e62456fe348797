"""Mask2Former's set loss (arXiv 2112.01527, section 3.3 and its code): classes, mask BCE and dice
on sampled points.

Every term is computed per prediction; deep supervision sums it over the decoder's heads. Void
pixels never count.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from model_export.data.datasets import VOID
from model_export.network.decoder import Prediction
from model_export.network.segmenter import semantic_probabilities

CLASS_WEIGHT, BCE_WEIGHT, DICE_WEIGHT, NO_OBJECT_WEIGHT = 2.0, 5.0, 5.0, 0.1


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """maps: (N, H, W), points: (N, P, 2) in 0..1, (x, y) -> bilinear samples (N, P)."""
    return F.grid_sample(maps[:, None], 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]


def known_at(known: Tensor, points: Tensor) -> Tensor:
    """known: (N, H, W), 0 or 1; points: (N, P, 2) -> (N, P): 0 where a sample touches void or the
    edge, else 1."""
    return (sample_points(known, points) > 0.999).float()


def uncertain_points(
    logits: Tensor,
    count: int,
    known: Tensor | None = None,
    oversample: int = 3,
    share: float = 0.75,
) -> Tensor:
    """PointRend's choice: of `oversample` x count random points the `share` nearest to logit 0, the
    rest at random.

    logits: (N, h, w). known: (N, H, W), 0 where void: predictions there must not attract points.
    Returns (N, count, 2).
    """
    candidates = torch.rand(logits.shape[0], oversample * count, 2, device=logits.device)
    distance = sample_points(logits, candidates).abs()
    if known is not None:
        distance = distance.masked_fill(known_at(known, candidates) == 0, torch.inf)
    nearest = distance.topk(int(share * count), dim=1, largest=False).indices
    chosen = torch.gather(candidates, 1, nearest[..., None].expand(-1, -1, 2))
    rest = torch.rand(logits.shape[0], count - chosen.shape[1], 2, device=logits.device)
    return torch.cat((chosen, rest), 1)


def targets_of(mask: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """mask: (H, W) uint8 -> the classes that it shows (T,) and their binary masks (T, H, W)
    float."""
    labels = mask.unique()
    labels = labels[labels < classes].long()
    return labels, (mask[None] == labels[:, None, None]).float()


def match(
    prediction: Prediction, index: int, labels: Tensor, targets: Tensor, known: Tensor, points: int
) -> Tensor:
    """Hungarian matching of one image's T targets to its Q queries: for each target the query's
    index, (T,).

    Where T > Q, the targets that are left without a query get -1.
    """
    spots = torch.rand(1, points, 2, device=targets.device)
    # (Q, P)
    logits = sample_points(prediction.masks[index], spots.expand(prediction.masks.shape[1], -1, -1))
    truth = sample_points(targets, spots.expand(len(targets), -1, -1))  # (T, P)
    weight = known_at(known[None], spots)[0]  # (P,)
    positive, negative = F.softplus(-logits) * weight, F.softplus(logits) * weight
    bce = (positive @ truth.T + negative @ (1 - truth).T) / weight.sum().clamp(min=1)
    inside = logits.sigmoid() * weight
    dice = 1 - (2 * inside @ truth.T + 1) / (
        inside.sum(1)[:, None] + (truth * weight).sum(1)[None] + 1
    )
    chance = prediction.classes[index].softmax(-1)[:, labels]  # (Q, T)
    cost = -CLASS_WEIGHT * chance + BCE_WEIGHT * bce + DICE_WEIGHT * dice
    queries, order = linear_sum_assignment(cost.float().cpu().numpy())
    matched = torch.full_like(labels, -1)
    matched[torch.as_tensor(order, device=labels.device)] = torch.as_tensor(
        queries, device=labels.device
    )
    return matched


def set_loss(
    prediction: Prediction,
    masks: Tensor,
    matching: str,
    points: int,
    pixel_weight: float,
    stride: int = 4,
    emphasis: Tensor | None = None,
) -> dict[str, Tensor]:
    """masks: (B, H, W) uint8 -> weighted terms {"class", "bce", "dice", "pixel"}, scalars.

    pixel_weight: weight of the cross-entropy of the semantic probabilities, which are what is used
    in the end; 0 is Mask2Former's own loss. stride, emphasis: of `semantic_cross_entropy`.
    """
    batch, queries, no_object = *prediction.classes.shape[:2], prediction.classes.shape[2] - 1
    known = (masks != VOID).float()  # (B, H, W)
    wanted = torch.full((batch, queries), no_object, device=masks.device)
    rows, columns, truths = [], [], []
    with torch.no_grad():
        for i in range(batch):
            labels, targets = targets_of(masks[i], no_object)
            if len(labels) == 0:
                continue
            hit = (
                labels
                if matching == "class"
                else match(prediction, i, labels, targets, known[i], points)
            )
            matched = hit >= 0
            wanted[i, hit[matched]] = labels[matched]
            rows += [i] * int(matched.sum())
            columns.append(hit[matched])
            truths.append(targets[matched])
    weights = torch.ones(no_object + 1, device=masks.device)
    weights[-1] = NO_OBJECT_WEIGHT
    terms = {
        "class": CLASS_WEIGHT * F.cross_entropy(prediction.classes.transpose(1, 2), wanted, weights)
    }
    if rows:
        terms |= _mask_terms(
            prediction.masks[rows, torch.cat(columns)], torch.cat(truths), known[rows], points
        )
    if pixel_weight:
        terms["pixel"] = pixel_weight * semantic_cross_entropy(prediction, masks, stride, emphasis)
    return terms


def _mask_terms(logits: Tensor, truths: Tensor, known: Tensor, points: int) -> dict[str, Tensor]:
    """logits: (N, h, w), truths, known: (N, H, W) of the N matched pairs."""
    with torch.no_grad():
        spots = uncertain_points(logits, points, known)
        truth = sample_points(truths, spots)
        weight = known_at(known, spots)
    sampled = sample_points(logits, spots)  # (N, P)
    bce = F.binary_cross_entropy_with_logits(sampled, truth, weight, reduction="none").sum(1)
    inside, truth = sampled.sigmoid() * weight, truth * weight
    dice = 1 - (2 * (inside * truth).sum(1) + 1) / (inside.sum(1) + truth.sum(1) + 1)
    return {
        "bce": BCE_WEIGHT * (bce / weight.sum(1).clamp(min=1)).mean(),
        "dice": DICE_WEIGHT * dice.mean(),
    }


def semantic_cross_entropy(
    prediction: Prediction, masks: Tensor, stride: int = 4, emphasis: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the normalised semantic probabilities against the nearest labels.

    stride: of the labels, 4 or less. Below 4 the probabilities are interpolated as they are in use,
    so that a map can show more than the averages of its cells. emphasis: (B, H, W), the weight of
    each pixel; None = all alike.
    """
    probabilities = semantic_probabilities(prediction)
    labels, counts = (
        at_centres(masks, stride).long(),
        None if emphasis is None else at_centres(emphasis, stride),
    )
    if labels.shape[-2:] != probabilities.shape[-2:]:
        probabilities = F.interpolate(
            probabilities, size=labels.shape[-2:], mode="bilinear", align_corners=False
        )
    probabilities = probabilities.clamp(min=1e-6)
    losses = F.nll_loss(
        (probabilities / probabilities.sum(1, keepdim=True)).log(),
        labels,
        ignore_index=VOID,
        reduction="none",
    )
    known = (labels != VOID).float() if counts is None else (labels != VOID) * counts
    return (losses * known).sum() / known.sum().clamp(min=1)  # crops may be all void


def at_centres(maps: Tensor, stride: int) -> Tensor:
    """(B, H, W) -> (B, H / stride, W / stride): the pixels at the centres of cells."""
    return maps[:, stride // 2 :: stride, stride // 2 :: stride]
