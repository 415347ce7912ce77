"""How well an encoder tells held-out images apart, where no image has a label.

N images, B of a batch, C channels, S x S pixels of a view, F features, D numbers of a projection.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contrast.data.images.image_set import ImageFiles, Images
from contrast.data.loader import Batches
from contrast.evaluation.features import evaluating
from contrast.evaluation.geometry import effective_rank, uniformity
from contrast.losses.functions import nt_xent
from contrast.rng import generator

NAMES = ("held_out_top1", "held_out_loss", "effective_rank", "uniformity")
MOST, BLOCK = 2000, 128  # images that are measured at most, and images of a batch
TEMPERATURE = 0.2  # the same for every run, so that losses can be compared


def unlabelled(
    encoder: nn.Module,
    projector: Callable[[Tensor], Tensor],
    view: Callable[[Tensor, torch.Generator], Tensor],
    images: Images | ImageFiles,
    device: torch.device,
    seed: int = 0,
    workers: int = 0,
) -> dict[str, float]:
    """Metrics of two views of each of at most `MOST` of the images, which are at least 2; the seed draws the views.

    held_out_loss   NT-Xent of the projections at temperature `TEMPERATURE`, among all views
    held_out_top1   the share of the views whose nearest view, of the 2 N - 1 others, is of the same image
    effective_rank, uniformity  of the features of the views (`contrast.evaluation.geometry`)

    encoder    floats in 0..1 [B, C, S, S] -> features [B, F]
    projector  features [B, F] -> [B, D]
    view       a random view of pixels [B, C, H, W] uint8, floats in 0..1 [B, C, S, S]
    """
    chosen = images.select(torch.randperm(len(images), generator=generator(seed, 0))[:MOST])
    of_views, projected = [], []  # of each batch, [2, B, F] and [2, B, D]
    with evaluating(encoder), torch.inference_mode():
        for number, batch in enumerate(Batches(chosen, BLOCK, 0, shuffle=False, device=device, workers=workers)):
            both = [encoder(view(batch.pixels, generator(seed, number, stream))) for stream in (1, 2)]  # [B, F] each
            of_views.append(torch.stack(both).float())
            projected.append(torch.stack([F.normalize(projector(each).float(), dim=1) for each in both]))
        features, z = torch.cat(of_views, dim=1), torch.cat(projected, dim=1)  # [2, N, F], [2, N, D]
        scores = z.flatten(0, 1) @ z.flatten(0, 1).T  # [2 N, 2 N]
        partner = torch.arange(2 * len(chosen), device=device).roll(len(chosen))[:, None]  # [2 N, 1]
        own = scores.gather(1, partner)
        others = scores.fill_diagonal_(-2).scatter_(1, partner, -2)
        values = {
            "held_out_top1": (own > others.amax(dim=1, keepdim=True)).float().mean(),  # ties count against a view
            "held_out_loss": nt_xent(z[0], z[1], TEMPERATURE),
            "effective_rank": effective_rank(features.flatten(0, 1)),
            "uniformity": uniformity(features.flatten(0, 1)),
        }
    return {name: float(value) for name, value in values.items()}
