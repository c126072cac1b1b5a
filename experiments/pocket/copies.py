"""Does a sample copy a training photo? Nearest-neighbour distances, samples against photos never trained on.

Distances are taken twice: between pixels (at 32x32, the mirror image counted too) and between the classifier's
features. A copy is nearer to one photo than to all others, so besides the distance itself the ratio of it to the mean
distance of the 50 nearest is kept (Carlini et al. 2023, arXiv 2301.13188, sec. 4). A sample is suspicious when its
ratio lies under the 1% quantile of the held-out photos': 1% is what chance alone would give.
"""

import torch
import torch.nn.functional as F
from classifier import Classifier
from photos import Photos
from torch import Tensor

QUANTILES = (0.01, 0.05, 0.5, 0.95)


def copies(judge: Classifier, seen: Photos, held_out: Photos, samples: Tensor) -> dict:
    """Quantiles of distances and ratios for held-out photos and samples, and the share of suspicious samples."""
    everything = {"seen": _all(seen), "held_out": _all(held_out), "samples": samples}
    found = {}
    for kind, describe in (("pixels", _pixels), ("features", judge.embedding)):
        described = {name: torch.cat([describe(part) for part in x.split(500)]) for name, x in everything.items()}
        mirrored = torch.cat([describe(part.flip(3)) for part in everything["seen"].split(500)])
        base = torch.cat([described["seen"], mirrored])
        nearest = {name: _nearest(described[name], base) for name in ("held_out", "samples")}
        line = {name: nearest["held_out"][name].quantile(0.01) for name in ("distance", "ratio")}
        found[kind] = {
            who: {name: [round(v, 4) for v in _quantiles(values)] for name, values in measured.items()}
            for who, measured in nearest.items()
        }
        for name, limit in line.items():
            suspicious = (nearest["samples"][name] < limit).float().mean().item()
            found[kind][f"samples under the 1% quantile of held-out {name}s"] = round(suspicious, 4)
    return {"quantiles": QUANTILES, **found}


def _all(data: Photos) -> Tensor:
    return data.batch(torch.arange(len(data.pixels), device=data.pixels.device))


def _pixels(x: Tensor) -> Tensor:
    """(N, 3072) such that a distance is the root mean square difference of the pixels."""
    small = F.avg_pool2d(x, 2).flatten(1)
    return small / small.shape[1] ** 0.5


def _nearest(x: Tensor, base: Tensor) -> dict[str, Tensor]:
    among = min(51, len(base))
    near = torch.cat([torch.cdist(part, base).topk(among, largest=False).values for part in x.split(250)])
    return {"distance": near[:, 0], "ratio": near[:, 0] / near[:, 1:].mean(1)}


def _quantiles(values: Tensor) -> list[float]:
    return values.quantile(torch.tensor(QUANTILES, device=values.device)).tolist()
