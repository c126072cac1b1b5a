"""Metrics: pure functions of features, float32, from tensors to numbers; encoders.py makes the features.

What DreamBooth is judged by (Ruiz et al. 2022, arXiv 2208.12242, sections 4.2 and 4.3): subject fidelity (DINO,
CLIP-I), prompt fidelity (CLIP-T), preservation of the class (PRES) and diversity (DIV). Beside them what the paper
shows but does not number: copies of training photos, drift of what was not trained, collapse of the class.

Most functions give one score per image or per prompt; `estimates.estimate_mean` makes a mean and its interval of
them. Cosines are of unit-length features, whatever length comes in.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from dreamlab.estimates import Estimate, bootstrap, mean_pair

IDENTICAL = 1 - 1e-6  # float32 cannot tell a cosine above this from 1
USUAL_SPREAD, USUAL_WEIGHT = 0.2, 4  # deviation of Fisher z expected before any photo is seen, and its weight in photos


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """cos(a_i, b_j), `(N, M)` float32, of features `(N, d)` and `(M, d)`."""
    return F.normalize(one.float(), dim=1) @ F.normalize(other.float(), dim=1).T


def fidelity(generated: Tensor, photos: Tensor) -> Tensor:
    """DINO or CLIP-I, by the encoder: s_i = mean_j cos(x_i, r_j), `(N,)` in [-1, 1], higher is nearer.

    The metric is the mean over generated x `(N, d)` and real r `(M, d)` (arXiv 2208.12242, section 4.2). Resample
    prompts: the images of one prompt are alike, and the photos are the same for every run that is compared.
    With images of the class prompt as `generated` this is PRES (section 4.3), lower is better.
    """
    return cosine(generated, photos).mean(1)


def prompt_fidelity(generated: Tensor, texts: Tensor) -> Tensor:
    """CLIP-T: s_i = cos(x_i, t_i), `(N,)`; row i of `texts` is the prompt of image i without the identifier.

    Section 4.2 of arXiv 2208.12242, as in CLIPScore (arXiv 2104.08718) without its factor 2.5. Resample prompts.
    """
    return (F.normalize(generated.float(), dim=1) * F.normalize(texts.float(), dim=1)).sum(1)


def preservation_change(tuned: Tensor, base: Tensor, photos: Tensor) -> Tensor:
    """PRES minus the base model's: d_i = mean_j cos(x_i, r_j) - mean_j cos(b_i, r_j), `(N,)`; 0 is undisturbed.

    x and b are images of the class prompt from the same noise, tuned and base. A class word is like its subject
    to begin with, so PRES alone says little; the pair also cancels what the noise does. Resample pairs.
    """
    return fidelity(tuned, photos) - fidelity(base, photos)


def drift(tuned: Tensor, base: Tensor) -> Tensor:
    """d_i = 1 - cos(x_i, b_i), `(N,)` in [0, 2], of pairs from one prompt and noise; 0 where nothing changed.

    For prompts that the run never trained on, such as other classes. Resample prompts, or pairs of one prompt.
    """
    return 1 - prompt_fidelity(tuned, base)


def distances(features: Tensor) -> Tensor:
    """1 - cos(x_i, x_j), `(N, N)` symmetric with a zero diagonal: DIV's distance where LPIPS is absent."""
    alike = cosine(features, features)
    return (1 - (alike + alike.T) / 2).clamp_min(0).fill_diagonal_(0)


def diversity(apart: Tensor, prompts: Tensor) -> Tensor:
    """DIV: per prompt the mean distance over pairs of its images, `(P,)`, higher is more diverse.

    `apart` `(N, N)` holds the distances, LPIPS (arXiv 1801.03924) in the paper (section 4.3); `prompts` `(N,)` int64
    the prompt of each image. Prompts of one image have no pairs and are left out. Resample prompts.
    """
    found = []
    for prompt in prompts.unique():
        index = (prompts == prompt).nonzero()[:, 0]
        if len(index) > 1:
            found.append(mean_pair(apart[index][:, index], torch.ones(1, len(index)))[0])
    return torch.stack(found) if found else torch.empty(0)


def collapse(tuned: Tensor, base: Tensor, seed: int = 0) -> Estimate:
    """Diversity of the class after training over before: mean_{i<j} D(x_i, x_j) / mean_{i<j} D(b_i, b_j).

    Distance matrices `(N, N)` of images of the class prompt, image i of both from one noise. 1 is unharmed, 0 a class
    that became one picture. The unit is the noise: both matrices are resampled together.
    """
    return bootstrap(lambda counts: mean_pair(tuned, counts) / mean_pair(base, counts), len(tuned), seed)


@dataclass(frozen=True)
class Memorisation:
    """Per sample what is nearest and how unusual that is; `(N,)` tensors."""

    similarity: Tensor  # cosine to the nearest training photo, float32
    nearest: Tensor  # index of that photo, int64
    p_value: Tensor  # chance that an unseen photo lies as near, float32
    is_copy: Tensor  # bool
    reference: Tensor  # (n,) the same similarity of photos that are not copies
    excess: Estimate | None  # mean similarity of samples minus that of the reference; units: samples and photos

    @property
    def copies(self) -> int:
        """How many samples are copies."""
        return int(self.is_copy.sum())


def memorisation(
    samples: Tensor, train_photos: Tensor, held_out: Tensor | None = None, false_alarms: float = 0.05, seed: int = 0
) -> Memorisation:
    """Which samples lie nearer to a training photo than other photos of the subject do: copies, not likenesses.

    The similarity of a sample is max_j cos(x_i, r_j). What is usual comes from `held_out` photos, or from each
    training photo against the others. In Fisher's z = artanh(cos) the n usual values have mean m and variance s^2,
    which three photos hardly tell; so it is moderated, s~^2 = (4 * 0.2^2 + (n - 1) s^2) / (n + 3), as in Smyth 2004
    (doi 10.2202/1544-6115.1027), and t = (z_i - m) / (s~ sqrt(1 + 1/n)) is held against Student's t of n + 3 degrees
    of freedom. A copy has p < `false_alarms` / N (Bonferroni): of samples like unseen photos, *any* is flagged with
    at most that chance. With one photo and no held-out ones nothing is usual: no p below 1, no flag.
    """
    similarity, nearest = cosine(samples, train_photos).max(1)
    if held_out is not None:
        reference = cosine(held_out, train_photos).max(1).values
        usual = reference
    else:
        alike = 1 - distances(train_photos)
        reference = alike.fill_diagonal_(-1).max(1).values if len(train_photos) > 1 else torch.empty(0)
        usual = reference.unique()  # two photos nearest to each other are one observation
    p_value = torch.ones_like(similarity)
    if len(usual):
        z, known = _fisher(similarity), _fisher(usual)
        n, freedom = len(known), len(known) - 1 + USUAL_WEIGHT
        squares = USUAL_WEIGHT * USUAL_SPREAD**2 + float((known - known.mean()).square().sum())
        t = (z - known.mean()) / (squares / freedom * (1 + 1 / n)) ** 0.5
        p_value = torch.from_numpy(stats.t.sf(t.cpu().numpy(), freedom)).float().to(similarity.device)
    is_copy = p_value < false_alarms / len(samples)
    return Memorisation(similarity, nearest, p_value, is_copy, reference, _excess(similarity, reference, seed))


def _excess(similarity: Tensor, reference: Tensor, seed: int) -> Estimate | None:
    """Mean of the samples minus mean of the reference; both are resampled, as one pool of units of two sorts."""
    if not len(reference):
        return None
    both = torch.cat([similarity, reference]).cpu()
    ours = (torch.arange(len(both)) < len(similarity)).float()

    def difference(counts: Tensor) -> Tensor:
        theirs = 1 - ours
        return counts @ (both * ours) / (counts @ ours) - counts @ (both * theirs) / (counts @ theirs)

    return bootstrap(difference, len(both), seed)


def _fisher(similarity: Tensor) -> Tensor:
    return similarity.double().clamp(-IDENTICAL, IDENTICAL).atanh()
