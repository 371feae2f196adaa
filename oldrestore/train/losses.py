"""The losses of all stages, each a function of tensors.

Every function but ``dice`` returns a scalar that is the mean over the batch of a per-sample loss.
With this the gradient of a batch spread over processes is the mean of their gradients; ``dice``, a
quotient of sums, takes the sums over all processes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional as F

from oldrestore.layers import LUMA

MATCHING_SCALE = 4  # of pix2pixHD's feature matching: its four layers then count once each
TONE_ERROR_FLOOR = 1e-3  # 36 dB: smaller errors after the tone curve are not told apart


def kl_to_prior(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)), mean over elements (Wan et al., eq. 1)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def pixel_l1(restored: Tensor, clean: Tensor, mask: Tensor, hole_weight: float) -> Tensor:
    """L1 in which a pixel of a hole counts 1 + ``hole_weight`` times."""
    return ((restored - clean).abs() * (1 + hole_weight * mask)).mean()


def latent_l1(mapped: Tensor, target: Tensor) -> Tensor:
    """Distance of the mapped latent to the clean photo's (Wan et al., CVPR 2020, eq. 3).

    In standard deviations of the target's channels, so that the weight of this loss does not depend
    on how a VAE scales its latent.
    """
    deviation = target.std(dim=(2, 3), keepdim=True).clamp(min=1e-2)
    return ((mapped - target) / deviation).abs().mean()


def lsgan(scores: Sequence[Tensor], is_real: bool) -> Tensor:
    """Least-squares adversarial loss (Mao et al., 2017), summed over discriminator scales."""
    goal = 1.0 if is_real else 0.0
    return torch.stack([(score - goal).square().mean() for score in scores]).sum()


def feature_matching(fake: Sequence[Sequence[Tensor]], real: Sequence[Sequence[Tensor]]) -> Tensor:
    """L1 between a discriminator's features of both (Wang et al., pix2pixHD, CVPR 2018).

        L = mean over scales of  4 / L_s * sum over its layers of mean |f(fake) - f(real)|

    with L_s the layers but the last, the score, which is left out: one more than the strided ones.
    No gradient flows to ``real``.
    """
    scales = []
    for at_scale, real_at_scale in zip(fake, real, strict=True):
        terms = [
            F.l1_loss(ours, theirs.detach())
            for ours, theirs in zip(at_scale[:-1], real_at_scale[:-1], strict=True)
        ]
        scales.append(torch.stack(terms).sum() * (MATCHING_SCALE / len(terms)))
    return torch.stack(scales).mean()


def focal(logits: Tensor, label: Tensor, gamma: float) -> Tensor:
    """Cross-entropy in which what is told right counts little (Lin et al., ICCV 2017, eq. 4).

    L = mean -(1 - p_t)^gamma log p_t,   p_t = the probability given to the right answer
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, label, reduction="none")
    probability = logits.sigmoid()
    wrong = probability * (1 - label) + (1 - probability) * label
    return (wrong**gamma * cross_entropy).mean()


def dice(logits: Tensor, label: Tensor) -> Tensor:
    """1 - Dice coefficient (Milletari et al., V-Net, 2016) of all samples' pixels together.

    Not sample by sample: one without damage, or with three specks, would then count as much as one
    with a torn corner, and the cheapest way to please it is to find nothing anywhere.
    """
    probability = logits.sigmoid()
    sums = torch.stack([(probability * label).sum(), probability.sum() + label.sum()])
    if dist.is_initialized():
        sums = all_reduce(sums)  # type: ignore[no-untyped-call]
    loss: Tensor = 1 - (2 * sums[0] + 1) / (sums[1] + 1)
    return loss


def tone_log_error(corrected: Tensor, clean: Tensor, toned: Tensor) -> Tensor:
    """Logarithm of the mean square error after the tone curve, which PSNR falls with.

    What a photo faded to can be anything between guessable and hopeless; in logarithms a photo
    counts by the share of its error that is undone, and the hopeless do not drown the others. Of a
    grey or toned photo (``toned``, (B, 1)) only the brightness counts.
    """
    luma = corrected.new_tensor(LUMA)[None, :, None, None]
    difference = corrected - clean
    brightness = (difference * luma).sum(dim=1).square().mean(dim=(1, 2))
    colour = difference.square().mean(dim=(1, 2, 3))
    return (torch.where(toned[:, 0], brightness, colour) + TONE_ERROR_FLOOR).log().mean()


def psnr(restored: Tensor, clean: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each sample of images in [-1, 1], in dB, (B,)."""
    error = (restored.clamp(-1, 1) - clean).square().mean(dim=(1, 2, 3)) / 4
    return -10 * error.clamp(min=1e-10).log10()
