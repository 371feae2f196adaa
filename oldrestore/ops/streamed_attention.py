"""``partial_nonlocal`` for keys that are too many to be held: they come in parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class StreamedAttention:
    """``partial_nonlocal`` of one sample whose keys come in parts, for queries in parts.

    The softmax is rescaled as larger logits are met (Milakov and Gimelshein, arXiv:1805.02867).
    The mask is 0 or 1.

    Args:
        kept: gives the undamaged keys (n, D) with their values (n, E), part by part, at each call.
        lost: the damaged keys (n, D), likewise.
        least_mass: see ``partial_nonlocal``.
    """

    def __init__(
        self,
        kept: Callable[[], Iterable[tuple[Tensor, Tensor]]],
        lost: Callable[[], Iterable[Tensor]],
        least_mass: float,
    ) -> None:
        self._kept, self._lost, self._least_mass = kept, lost, least_mass

    def __call__(self, query: Tensor) -> Tensor:
        """(M, D) float32 -> (M, E); zeros if there are no undamaged keys."""
        highest = query.new_full((len(query), 1), -math.inf)
        mass, out = torch.zeros_like(highest), None
        for key, value in self._kept():
            logits = query @ key.T.to(query)
            higher = torch.maximum(highest, logits.amax(dim=1, keepdim=True))
            weights = logits.sub_(higher).exp_()
            shrink = (highest - higher).exp_()
            mass = mass * shrink + weights.sum(dim=1, keepdim=True)
            found = weights @ value.to(query)
            out = found if out is None else out.mul_(shrink).add_(found)
            highest = higher
        if out is None:
            return torch.zeros_like(query)
        of_kept = highest + mass.log()
        of_lost = torch.full_like(of_kept, -math.inf)
        for key in self._lost():
            logits = (query @ key.T.to(query)).logsumexp(dim=1, keepdim=True)
            of_lost = torch.logaddexp(of_lost, logits)
        excess = of_kept - torch.logaddexp(of_kept, of_lost) - math.log(self._least_mass)
        return out / mass * excess.clamp(max=0).exp()
