"""What a model makes of images in the middle: codes, posteriors, and how much they tell about the image.

    codes = read(run, rows)
    codes.code                            # (N, D), without noise and, where the model is told labels, without these
    codes.posterior.kl                    # (N, D) nats, of each level from its own prior
    information(codes.posterior)          # {"kl_nats": …, "mutual_information_nats": …, …}

Maps and figures of codes are in `latents`, what their dimensions draw in `traverse`.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from domainbed.algorithms.base import Hierarchical, LabelConditioned, Posterior, map_of
from domainbed.analysis.opened import OpenedRun
from domainbed.errors import UserError
from domainbed.evaluator import NOISE_SEED
from domainbed.objectives import gaussian

#: A dimension is active where the variance of its posterior means over images is larger (Burda et al. 2016, 5.2).
ACTIVE_VARIANCE = 0.01
#: A level that tells less than this about an image, an eighth of a bit, tells nothing.
DEAD_NATS = 0.1
#: Samples of each image's posterior for the expectation over q(z|x).
NUM_SAMPLES = 4
_CHUNK = 2**24  # pairs of samples and posteriors whose densities are held at once: 128 MiB


@dataclass
class Posteriors:
    """The Gaussian posteriors of N images, of all levels side by side.

    Attributes:
        mean, logvar: (N, D), float64; a level that is drawn from another one is given that one's mean.
        kl: (N, D) nats: of a level whose prior depends on another one, estimated with a sample.
        prior_mean, prior_logvar: (N, D) of p(z|y), zeros where the model is told no labels.
        latent_dims: D_1, …, D_L, the lowest level first; a single one for most.
        image_level: index of the level that is drawn from the image alone.
        latent_map: (c, h, w) of a code that is a map, D = c h w; None for a vector.
    """

    mean: Tensor
    logvar: Tensor
    kl: Tensor
    prior_mean: Tensor
    prior_logvar: Tensor
    latent_dims: list[int]
    image_level: int
    latent_map: tuple[int, int, int] | None = None

    @property
    def levels(self) -> list[slice]:
        """Columns of each level."""
        ends = np.cumsum(self.latent_dims).tolist()
        return [slice(end - size, end) for size, end in zip(self.latent_dims, ends, strict=True)]

    @property
    def active(self) -> Tensor:
        """Which dimensions are active, (D,) bool: those whose mean, less the prior's, varies over images."""
        return (self.mean - self.prior_mean).var(0, correction=0) > ACTIVE_VARIANCE

    @property
    def prior_is_standard(self) -> bool:
        """Whether the prior of the last level is N(0, I) for every image."""
        return not (self.prior_mean.any() or self.prior_logvar.any())


@dataclass
class Codes:
    """Codes (N, D) float32 of N images; their posteriors where the model has any; (c, h, w) where they are maps."""

    code: Tensor
    posterior: Posteriors | None
    latent_map: tuple[int, int, int] | None = None

    @property
    def pooled(self) -> Tensor:
        """The mean of each channel over the places of a map, (N, c); a vector as it is."""
        return pool(self.code, self.latent_map)


def pool(code: Tensor, latent_map: tuple[int, int, int] | None) -> Tensor:
    """Return the mean over places (N, c) of maps (N, c h w); vectors as they are."""
    return code if latent_map is None else code.unflatten(1, latent_map).mean((2, 3))


def read(run: OpenedRun, rows: np.ndarray) -> Codes:
    """Return the codes of some images.

    Args:
        rows: (N,) of the images. The algorithm is an `Encoder`.

    Raises:
        UserError: a code is not finite.
    """
    algorithm: Any = run.algorithm
    with_posterior = isinstance(algorithm, Posterior)

    def answer(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        found = {"code": algorithm.encode(x).flatten(1)}
        if not with_posterior:
            return found
        told = isinstance(algorithm, LabelConditioned)
        mean, logvar = algorithm.posterior(x, y) if told else algorithm.posterior(x)
        prior = algorithm.prior(y) if told else (torch.zeros_like(mean), torch.zeros_like(mean))
        if isinstance(algorithm, Hierarchical):
            kl = torch.cat(algorithm.level_kl(x), dim=1)
        else:
            kl = gaussian.kl(mean, logvar, *prior)
        return found | {"mean": mean, "logvar": logvar, "kl": kl, "prior_mean": prior[0], "prior_logvar": prior[1]}

    found = run.compute(rows, answer, "codes")
    code = found.pop("code")
    if not code.isfinite().all():
        raise UserError(
            "some codes are not finite: nothing can be said of them. Try --precision float32, or another --checkpoint"
        )
    if not with_posterior:
        return Codes(code, None, map_of(algorithm))
    dims = algorithm.latent_dims if isinstance(algorithm, Hierarchical) else [code.shape[1]]
    image_level = algorithm.image_level if isinstance(algorithm, Hierarchical) else 0
    doubles = {name: value.double() for name, value in found.items()}
    posterior = Posteriors(**doubles, latent_dims=list(dims), image_level=image_level, latent_map=map_of(algorithm))
    return Codes(code, posterior, map_of(algorithm))


def information(posterior: Posteriors) -> dict[str, Any]:
    """Return how much the posteriors of N images tell about them, in nats.

    The mean KL is the sum of two terms (Hoffman & Johnson 2016, "ELBO surgery", eq. 5-6): I_q(x; z), what z tells which
    of the N images it is of, at most log N; and KL(q(z) || p(z)), how far the mixture q(z) of the N posteriors is from
    the prior. log q(z) is a logsumexp over all N posteriors; the expectation is over samples of them.

    Returns:
        kl_nats: mean over images of the sum over dimensions. kl_per_dimension_nats: D means.
        map: None, or channels, height and width of a map with kl_per_channel_nats (c, summed over places) and
            kl_per_place_nats (h x w, summed over channels).
        active_units, dimensions: counts. levels: the same for each level, the lowest first, and whether it is dead.
        mutual_information_nats: of the image and the level that is drawn from it alone (`mutual_information_level`,
            from 1); where that is the lowest of several, it is that of the image and all levels.
        mutual_information_bound_nats: log N.
        marginal_kl_nats: of the same level; None where its prior is not N(0, I).
    """
    kl = posterior.kl.mean(0)  # (D,)
    active = posterior.active
    levels = []
    for number, columns in enumerate(posterior.levels, start=1):
        nats, units = kl[columns].sum().item(), int(active[columns].sum())
        levels.append(
            {
                "level": number, "dimensions": posterior.latent_dims[number - 1], "active_units": units,
                "kl_nats": nats, "dead": units == 0 or nats < DEAD_NATS,
            }
        )  # fmt: skip
    columns = posterior.levels[posterior.image_level]
    mutual = mutual_information(posterior.mean[:, columns], posterior.logvar[:, columns])
    is_last = posterior.image_level == len(levels) - 1
    return {
        "kl_nats": kl.sum().item(),
        "kl_per_dimension_nats": kl.tolist(),
        "map": None if posterior.latent_map is None else kl_of_map(kl, posterior.latent_map),
        "dimensions": len(kl),
        "active_units": int(active.sum()),
        "levels": levels,
        "mutual_information_nats": mutual,
        "mutual_information_level": posterior.image_level + 1,
        "mutual_information_bound_nats": math.log(len(posterior.mean)),
        "marginal_kl_nats": kl[columns].sum().item() - mutual if is_last and posterior.prior_is_standard else None,
    }


def kl_of_map(kl: Tensor, latent_map: tuple[int, int, int]) -> dict[str, Any]:
    """Return the KL (c h w,) of a map by channel and by place, as `information` describes it."""
    channels, height, width = latent_map
    by_place = kl.unflatten(0, latent_map)
    return {
        "channels": channels, "height": height, "width": width,
        "kl_per_channel_nats": by_place.sum((1, 2)).tolist(), "kl_per_place_nats": by_place.sum(0).tolist(),
    }  # fmt: skip


def mutual_information(mean: Tensor, logvar: Tensor) -> float:
    """Return E[log q(z|x) - log q(z)] in nats, q(z) being the mixture of N posteriors with equal weights.

    Args:
        mean, logvar: (N, D) of Gaussian posteriors.

    Returns:
        At most log N; below 0 by the noise of the samples alone.
    """
    mean, logvar = mean.double(), logvar.double()
    count, size = mean.shape
    precision = (-logvar).exp()  # (N, D)
    constant = logvar.sum(1) + (mean.square() * precision).sum(1)  # (N,)
    generator = torch.Generator().manual_seed(NOISE_SEED)
    total = 0.0
    for _ in range(NUM_SAMPLES):
        noise = torch.randn(count, size, generator=generator, dtype=torch.float64)
        z = mean + (0.5 * logvar).exp() * noise
        own = -0.5 * (logvar + noise.square()).sum(1)  # (N,), log q(z|x), less the constant that cancels
        for start in range(0, count, max(1, _CHUNK // count)):
            some = z[start : start + max(1, _CHUNK // count)]
            distance = some.square() @ precision.T - 2 * some @ (mean * precision).T + constant  # (M, N)
            aggregate = torch.logsumexp(-0.5 * distance, dim=1) - math.log(count)
            total += (own[start : start + len(some)] - aggregate).sum().item()
    return total / (NUM_SAMPLES * count)
