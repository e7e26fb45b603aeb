"""Losses for full and for coarse labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spineps.anatomy import CANAL, CANAL_PARTS, CLASS_IDS, CORD, DISC, ENDPLATE, SACRUM, VERTEBRA_PARTS
from spineps.training.cache import FULL

IGNORED = -100

#: Ids that each coarse label may stand for.  SPIDER: 0 rest (its sacrum is not labelled), 1 vertebra, 2 disc, 3 canal,
#: 4 endplate (:func:`spineps.training.real.mark_plates`, :func:`spineps.training.feed.with_plates`).  1 and 2 do not
#: cover endplate: where they did, it took over whole discs.  VerSe: 5 vertebra with its endplates, 6 anything else.
#: 7 and 8: cord with the roots below it, and the fluid around them, where :func:`spineps.training.real.mark_cord` can
#: tell them apart.
#: FULL + k: class k alone.
COARSE_GROUPS: tuple[tuple[int, ...], ...] = (
    (0, SACRUM),
    VERTEBRA_PARTS,
    (DISC,),
    CANAL_PARTS,
    (ENDPLATE,),
    (*VERTEBRA_PARTS, ENDPLATE),
    (0, SACRUM, DISC, *CANAL_PARTS),
    (CORD,),
    (CANAL,),
    *((i,) for i in CLASS_IDS),
)
#: Labels that a Dice is asked of: not the rest, and not the two that only cord and fluid share with label 3.
SCORED = [1, 2, 3, 4, 5, *range(FULL + 1, len(COARSE_GROUPS))]


def group_matrix(groups: tuple[tuple[int, ...], ...] = COARSE_GROUPS) -> Tensor:
    """(groups, classes) of 0 and 1: which network classes a coarse label covers."""
    return torch.tensor([[float(i in group) for i in CLASS_IDS] for group in groups])


def full_loss(logits: Tensor, labels: Tensor, valid: Tensor, class_weights: Tensor) -> Tensor:
    """Cross-entropy plus one minus the mean soft Dice of the structures that are present.

    Args:
        logits: (N, K, x, y, z).
        labels: (N, x, y, z) int64 class indices.
        valid: (N, x, y, z) bool; other voxels do not count.
        class_weights: (K,).
    """
    entropy = F.cross_entropy(logits.float(), labels.masked_fill(~valid, IGNORED), class_weights, ignore_index=IGNORED)
    truth = F.one_hot(labels, logits.shape[1]).movedim(-1, 1).float() * valid[:, None]
    scores = soft_dice(logits.float().softmax(1) * valid[:, None], truth)
    present = truth.sum((0, 2, 3, 4)) > 20
    present[0] = False
    return entropy + 1 - scores[present].mean() if bool(present.any()) else entropy


def coarse_loss(logits: Tensor, labels: Tensor, valid: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Loss on summed class probabilities.

    Args:
        logits: (N, K, x, y, z).
        labels: (N, x, y, z) int64 coarse labels.
        valid: (N, x, y, z) bool; other voxels do not count.
        groups: see :func:`group_matrix`.

    Returns:
        The loss, and the soft Dice of the labels in SCORED (for the log; NaN where one does not occur).
    """
    p = logits.float().softmax(1)
    scores = torch.full((len(groups),), float("nan"), device=p.device)
    codes, labels = labels.unique(return_inverse=True)
    groups = groups[codes]
    sums = torch.einsum("gk,nkxyz->ngxyz", groups, p).clamp(1e-5, 1)
    weight = valid.float()
    surprise = -sums.gather(1, labels[:, None])[:, 0].log()
    likelihood = (surprise * weight).sum() / weight.sum().clamp(min=1)
    truth = F.one_hot(labels, len(groups)).movedim(-1, 1).float()
    # A class that two labels share counts, where the truth is one of them, for that one alone.
    shared = torch.einsum("gk,nkxyz->ngxyz", groups, p * groups[labels].movedim(-1, 1)) * (1 - truth)
    truth = truth * weight[:, None]
    found = soft_dice((sums - shared) * weight[:, None], truth)
    present = (truth.sum((0, 2, 3, 4)) > 20) & torch.isin(codes, torch.tensor(SCORED, device=p.device))
    scores[codes[present]] = found[present].detach()
    loss = likelihood + 0.5 * (1 - found[present].mean()) if bool(present.any()) else likelihood
    return loss, scores[SCORED]


def soft_dice(p: Tensor, truth: Tensor) -> Tensor:
    """(K,) soft Dice of (N, K, x, y, z) probabilities."""
    dims = (0, 2, 3, 4)
    return (2 * (p * truth).sum(dims) + 1) / (p.sum(dims) + truth.sum(dims) + 1)
