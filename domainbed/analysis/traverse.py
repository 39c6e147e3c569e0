"""What the latent dimensions of a run draw: traversals, interpolations, samples, and known factors that they follow.

    found = analyse(open_run("results/train_output/SyntheticFundus/first"), folder, dimensions=10)
    found["dimensions"][0]          # {"dimension": 12, "kl_nats": 3.2, "sigma": 0.98, "image_change": 0.04, …}

What the codes tell of images is in `latents`.
"""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from domainbed import reconstructions
from domainbed.algorithms.base import Coder, Decoder, Encoder, Hierarchical, LabelConditioned, Sampler
from domainbed.analysis import codes as reading
from domainbed.analysis import plots
from domainbed.analysis.extras import require
from domainbed.analysis.opened import OpenedRun, dataset_of
from domainbed.datasets.base import KnownFactors
from domainbed.errors import UserError
from domainbed.evaluator import NOISE_SEED
from domainbed.registry import DATASETS

#: Where a dimension is put, in standard deviations from its mean over images.
STEPS_SIGMA = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
#: Shares of the second image in the codes between two.
SHARES = (0.0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0)
NUM_SAMPLES, SAMPLE_ROWS = 8, 2
#: Of images of the same environment, as far as their number goes into it, but at least one of each.
PAIRS = 4
#: The least change of a pixel that an 8-bit image can show.
ONE_LEVEL = 1 / 255
#: Of each environment, images whose codes give mean and sigma, at most.
PER_ENVIRONMENT = 1000
#: Codes with more dimensions are not fitted by Gaussians: there would be too few images for a covariance.
MIXTURE_DIMENSIONS = 512
#: Equally frequent values into which a dimension, or a factor with more values than that, is cut, at most; fewer where
#: two that know nothing of each other would share fewer images in each cell than this (Cochran 1954).
NUM_BINS, IMAGES_PER_CELL = 10, 5
#: Chance of naming a factor for a dimension that knows none.
SIGNIFICANCE = 0.001


def analyse(
    run: OpenedRun,
    folder: Path,
    *,
    images: str = "held-out",
    dimensions: int = 10,
    num_images: int = 1,
    components: int = 10,
) -> dict[str, Any]:
    """Write pictures of what the codes of a run draw, and return their figures.

    Args:
        run: opened.
        folder: for the pictures.
        images: one of `analysis.CHOICES`: whose codes give mean and sigma, and are traversed.
        dimensions: of each level, so many with the largest KL, or variance.
        num_images: around whose codes. components: of the Gaussian mixture.

    Returns:
        images: whose codes give mean and sigma. active_units: of `codes`, None without a posterior.
        code_map: (c, h, w) of a map, whose dimensions are its channels' means over places; None for a vector.
        dimensions: for each of those traversed dimension (from 0, in the code), name, level (from 1, None without
            levels), kl_nats (None without a posterior), mean and sigma over images, image_change (mean absolute
            difference in [0, 1] of the two ends, over pixels and the images shown; None where nothing is decoded), and
            with known factors factor (None where none is followed), share (of its entropy) and spearman.
        largest_change: of any pixel by any of them. label_change, largest_label_change: by the label, likewise; only
            where something is decoded, and where labels are told.
        factors: of `follow`, None without known factors. mixture: components and covariance, None without one.
        findings, notes: sentences. pictures.

    Raises:
        UserError: the model neither decodes codes nor draws samples, and no factors of its codes are known; or a code,
            or what it draws, is not finite.
    """
    algorithm: Any = run.algorithm
    has_codes = isinstance(algorithm, Encoder)
    has_dimensions = has_codes and not isinstance(algorithm, Coder)
    decodes = has_codes and isinstance(algorithm, Decoder)
    factors = known_factors(run) if has_dimensions else None
    if not decodes and factors is None and not isinstance(algorithm, Sampler):
        others = "`latents`, `layers` and `errors`" if has_codes else "`layers` and `errors`"
        raise UserError(
            f"{run.config['algorithm']} draws no images, from a code or otherwise, so there is nothing to traverse. "
            f"{others} look at such a model"
        )
    found: dict[str, Any] = {
        **run.about,
        "images_of": images, "images": 0, "code_map": None, "active_units": None, "dimensions": [], "factors": None,
        "mixture": None, "findings": [], "notes": [], "pictures": [],
    }  # fmt: skip
    chosen = run.rows(images, PER_ENVIRONMENT)
    if has_dimensions:
        rows = np.concatenate([*chosen.values()])
        space = CodeSpace(run, rows)
        found |= {"images": len(rows), "active_units": space.active_units, "dimensions": space.describe(dimensions)}
        found["code_map"] = space.latent_map
        if decodes:
            for row in anchors(run, chosen, num_images):
                traverse(run, found, space, row, folder)
            for one in found["dimensions"]:
                one["image_change"] = sum(one.pop("changes")) / num_images
        else:
            found["notes"].append(f"{found['algorithm']} draws no image from a code: no traversals, no interpolations")
        if factors is not None:
            add_factors(run, found, space, factors(rows), folder)
    elif has_codes:
        found["notes"].append("the code is a grid of discrete codes: its cells are not traversed one by one")
    if decodes:
        interpolate(run, found, chosen, folder)
    draw_samples(run, found, components if decodes and has_dimensions else None, folder)
    return found | {"findings": findings(found)}


class CodeSpace:
    """Mean, spread and importance of every dimension of a code, over some images.

    Args:
        rows: (N,) of the images.

    Attributes:
        codes: (N, D) that are decoded; for a model that is told labels, under their own.
        latent_map: (c, h, w) of a map, D = c h w. What is called a dimension here is then a channel's mean over places,
            P = c; otherwise it is a column of the code, P = D.
        unlabelled: (N, P), without labels. active_units: None without a posterior.
        mean, sigma: (P,) of the aggregate: of the codes, with a posterior of the mixture of all posteriors.
        kl: (P,) nats, None without a posterior; of a channel that of all its places.
        levels: dimensions of each level; one for a plain code.
    """

    def __init__(self, run: OpenedRun, rows: np.ndarray) -> None:
        found = reading.read(run, rows)
        posterior = found.posterior
        self.latent_map = found.latent_map
        self.places = 1 if found.latent_map is None else math.prod(found.latent_map[1:])
        self.unlabelled = found.pooled
        self.codes = found.code if posterior is None else posterior.mean.float()
        self.active_units = None if posterior is None else int(posterior.active.sum())
        values = self.pool(self.codes.double())  # (N, P)
        variance = values.var(0, correction=0)
        if posterior is not None:  # places are independent given the image
            variance = variance + self.pool(posterior.logvar.exp()).mean(0) / self.places
        self.mean, self.sigma = values.mean(0), variance.sqrt()
        self.kl = None if posterior is None else self.pool(posterior.kl).mean(0) * self.places
        self.levels = [slice(0, values.shape[1])]
        if posterior is not None and self.latent_map is None:
            self.levels = posterior.levels

    def pool(self, code: Tensor) -> Tensor:
        """Return the dimensions (N, P) of codes (N, D)."""
        return reading.pool(code, self.latent_map)

    def columns(self, dimensions: slice) -> slice:
        """Return the columns of a code that hold some dimensions."""
        return slice(dimensions.start * self.places, dimensions.stop * self.places)

    def describe(self, count: int) -> list[dict[str, Any]]:
        """Return the figures of the `count` most important dimensions of each level, the most important first."""
        weight = self.sigma if self.kl is None else self.kl
        described = []
        for number, columns in enumerate(self.levels, start=1):
            order = weight[columns].argsort(descending=True, stable=True)[:count] + columns.start
            for dimension in order.tolist():
                described.append(
                    {
                        "dimension": dimension,
                        "name": f"{'z_' if self.latent_map is None else 'channel '}{dimension}",
                        "level": number if len(self.levels) > 1 else None,
                        "kl_nats": None if self.kl is None else self.kl[dimension].item(),
                        "mean": self.mean[dimension].item(),
                        "sigma": self.sigma[dimension].item(),
                        "image_change": None,
                    }
                )
        return described


def anchors(run: OpenedRun, chosen: Mapping[str, np.ndarray], count: int) -> list[int]:
    """Return rows of `count` images, the target's environments first, evenly spread over each.

    Raises:
        UserError: there are not so many images.
    """
    total = sum(map(len, chosen.values()))
    if count > total:
        raise UserError(f"num_images = {count}, but there are {total} images to draw around. Use {total} or fewer")
    order = sorted(chosen, key=lambda name: not run.is_target(run.images.environments.index(name)))
    turns = [name for turn in range(count) for name in order if turn < len(chosen[name])][:count]
    places = {}
    for name in order:
        share = turns.count(name)
        places[name] = iter([(2 * i + 1) * len(chosen[name]) // (2 * share) for i in range(share)])
    return [int(chosen[name][next(places[name])]) for name in turns]


def name_of(run: OpenedRun, row: int) -> str:
    """Return environment and class of an image, for a caption."""
    environment = run.images.environments[run.images.environment[row]]
    return ", ".join(filter(None, [environment, run.images.class_name(row)]))


# --- pictures of codes ---


def decode(run: OpenedRun, z: Tensor, label: int | None = None, level: int | None = None) -> Tensor:
    """Return images (N, C, H, W) on the CPU for codes (N, D), or for those (N, D_l) of a level, under one label."""
    algorithm: Any = run.algorithm
    parts = []
    with run.engine.evaluation(run.algorithm, NOISE_SEED):
        for some in z.float().split(int(run.config["eval_batch_size"])):
            some = some.to(run.engine.device)
            if level is not None:
                drawn = algorithm.decode_level(some, level)
            elif isinstance(algorithm, LabelConditioned) and label is not None:
                drawn = algorithm.decode(some, torch.full((len(some),), label, device=some.device))
            else:
                drawn = algorithm.decode(some)
            parts.append(drawn.float().cpu())
    return finite(run, torch.cat(parts))


def finite(run: OpenedRun, images: Tensor) -> Tensor:
    """Return images that the model drew.

    Raises:
        UserError: they are not finite, which no picture and no difference would tell from a decoder that stands still.
    """
    if not images.isfinite().all():
        raise UserError(
            f"{run.config['algorithm']} draws numbers that are not finite: nothing can be said of them. Try "
            "--precision float32, or another --checkpoint"
        )
    return images


def traverse(run: OpenedRun, found: dict[str, Any], space: CodeSpace, row: int, folder: Path) -> None:
    """Draw each described dimension through its range, the others as the image has them; a sheet for each level.

    Adds to `changes` of each dimension how far its two ends differ.
    """
    code = own_code(run, row)
    label = int(run.images.labels[row])
    x = run.pixels(np.array([row]))
    for number, dimensions in enumerate(space.levels, start=1):
        columns = space.columns(dimensions)
        described = [one for one in found["dimensions"] if one["level"] in (None, number)]
        is_level = isinstance(run.algorithm, Hierarchical) and number > 1
        z = code[columns].repeat(len(described) * len(STEPS_SIGMA) + 1, 1)  # the last one as the image has it
        for index, one in enumerate(described):
            at = slice(index * len(STEPS_SIGMA), (index + 1) * len(STEPS_SIGMA))
            values = one["mean"] + torch.tensor(STEPS_SIGMA) * one["sigma"]
            own = space.columns(slice(one["dimension"], one["dimension"] + 1))
            inside = slice(own.start - columns.start, own.stop - columns.start)
            z[at, inside] += (values.float() - code[own].mean())[:, None]  # a channel moves alike at every place
        if is_level:
            drawn = decode(run, z, level=number - 1)
        else:  # the lowest level is followed by the others in a code, which change nothing
            tail = code[columns.stop :].repeat(len(z), 1)
            drawn = decode(run, torch.cat([z, tail], dim=1), label)
        each = drawn[:-1].unflatten(0, (len(described), len(STEPS_SIGMA)))  # (dimensions, steps, C, H, W)
        difference = (each[:, -1] - each[:, 0]).abs().mean(1, keepdim=True)  # (dimensions, 1, H, W)
        found["largest_change"] = max(found.get("largest_change", 0.0), difference.max().item())
        where = (difference / difference.max().clamp(min=ONE_LEVEL)).expand_as(each[:, 0])
        tiles = {}
        for index, one in enumerate(described):
            one.setdefault("changes", []).append(difference[index].mean().item())
            head = x if index == 0 else drawn[-1:] if index == 1 else torch.ones_like(x)
            kl = "" if one["kl_nats"] is None else f" · {one['kl_nats']:.2f} nats"
            tiles[f"{one['name']}{kl}"] = torch.cat([head, each[index], where[index, None]])
        name = f"traversal_{run.images.names[row]}" + (f"_level_{number}" if len(space.levels) > 1 else "")
        file = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name) + ".png"
        of_level = f" of level {number}" if len(space.levels) > 1 else ""
        steps = [f"{step:+g} sigma" if step else "mean" for step in STEPS_SIGMA]
        title = f"{run.title} · {name_of(run, row)} · left the image, above what its code{of_level} draws"
        plots.save_image(reconstructions.sheet(tiles, ["", *steps, "where"], title), folder / file)
        below = " Levels below follow by the mean of their prior; those above change nothing." if is_level else ""
        moved = "one dimension" if space.latent_map is None else "one channel, at every place alike,"
        strongest = max(described, key=lambda one: one["changes"][-1])
        found["pictures"].append(
            {
                "file": file,
                "title": f"Dimensions{of_level} from -3 to 3 sigma, around an image of {name_of(run, row)}",
                "caption": f"Each row moves {moved} through the range that codes of these images have, the others "
                "stay as the image has them; the last column is where its ends differ, white being the largest "
                f"difference in the picture.{below} {strongest['name']} changes the image most: "
                f"{strongest['changes'][-1]:.3f} of the grey range, mean over pixels.",
            }
        )


def own_code(run: OpenedRun, row: int) -> Tensor:
    """Return the code (D,) that an image is reconstructed from."""
    return CodeSpace(run, np.array([row])).codes[0]


def interpolate(run: OpenedRun, found: dict[str, Any], chosen: Mapping[str, np.ndarray], folder: Path) -> None:
    """Draw what lies on the line between the codes of pairs of images: within environments, and across them."""
    told = isinstance(run.algorithm, LabelConditioned)
    each = max(1, PAIRS // len(chosen))
    ends, pairs = {}, {}
    for name, rows in chosen.items():
        label = run.images.labels[rows[0]]
        same = rows[run.images.labels[rows] == label] if told else rows
        picked = same[np.linspace(0, len(same) - 1, 2 * each).astype(int)].tolist()
        ends[name] = (picked[0], picked[-1])
        for number, pair in enumerate(zip(picked[:each], picked[each:], strict=True), start=1):
            if pair[0] != pair[1]:
                pairs[f"{name}, {number}"] = pair
    names = [*ends]
    for first, second in zip(names, names[1:], strict=False):
        start, end = ends[first][0], ends[second][1]
        if told and run.images.labels[start] != run.images.labels[end]:
            rows = chosen[second][run.images.labels[chosen[second]] == run.images.labels[start]]
            if not len(rows):
                continue
            end = int(rows[-1])
        pairs[f"{first} to {second}"] = (start, end)
    if not pairs:
        found["notes"].append("no interpolations: there are no two images to go between")
        return
    rows = np.array([row for pair in pairs.values() for row in pair])
    codes = reading.read(run, rows)
    z = codes.code if codes.posterior is None else codes.posterior.mean.float()
    x, share, tiles = run.pixels(rows), torch.tensor(SHARES)[:, None], {}
    for index, (name, (start, _)) in enumerate(pairs.items()):
        drawn = decode(run, torch.lerp(z[2 * index], z[2 * index + 1], share), int(run.images.labels[start]))
        tiles[name] = torch.cat([x[2 * index, None], drawn, x[2 * index + 1, None]])
    labels = ["image", *(f"{one:.0%}" for one in SHARES), "image"]
    plots.save_image(
        reconstructions.sheet(tiles, labels, f"{run.title} · between two codes"), folder / "interpolations.png"
    )
    same_class = " Both images of a pair have the same label, and so has what lies between." if told else ""
    found["pictures"].append(
        {
            "file": "interpolations.png",
            "title": "On the straight line between the codes of two images",
            "caption": "On the outside the images themselves, beside them their reconstructions, in between codes at "
            f"equal distances.{same_class} Two images laid over each other in the middle, instead of one that lies "
            "between them, mean that the line leaves the codes that the decoder knows.",
        }
    )


def draw_samples(run: OpenedRun, found: dict[str, Any], components: int | None, folder: Path) -> None:
    """Draw from the prior, from a mixture of Gaussians fitted to the codes (None: none), and under each label."""
    algorithm: Any = run.algorithm
    tiles: dict[str, Tensor] = {}
    count = NUM_SAMPLES * SAMPLE_ROWS

    def add(name: str, images: Tensor) -> None:
        for number, part in enumerate(finite(run, images.float().cpu()).split(NUM_SAMPLES), start=1):
            tiles[f"{name} {number}"] = part

    if isinstance(algorithm, Sampler):
        with run.engine.evaluation(run.algorithm, NOISE_SEED):
            add("prior", algorithm.sample(count))
    else:
        by_code = ": a run of CodePrior learns one over its codes" if isinstance(algorithm, Coder) else ""
        found["notes"].append(f"{found['algorithm']} has no prior to draw from{by_code}")
    if components is not None:
        drawn = from_mixture(run, found, components, count)
        if drawn is not None:
            add("mixture", drawn)
    if tiles:
        plots.save_image(
            reconstructions.sheet(tiles, [""] * NUM_SAMPLES, f"{run.title} · drawn, not reconstructed"),
            folder / "samples.png",
        )
        mixture = found["mixture"]
        of_mixture = (
            f" Mixture: codes drawn from {mixture['components']} Gaussians that were fitted to the codes of the images "
            "trained on. Where it draws better images than the prior, the codes do not fill the prior."
            if mixture
            else ""
        )
        of_prior = "Prior: codes drawn from the model's own prior." if isinstance(algorithm, Sampler) else ""
        found["pictures"].append(
            {"file": "samples.png", "title": "Samples", "caption": f"{of_prior}{of_mixture}".strip()}
        )
    if isinstance(algorithm, LabelConditioned) and run.classes:
        by_label = {}
        for label, name in enumerate(run.classes):
            with run.engine.evaluation(run.algorithm, NOISE_SEED):  # the same noise for each
                y = torch.full((NUM_SAMPLES,), label, device=run.engine.device)
                by_label[name] = finite(run, algorithm.sample(NUM_SAMPLES, y).float().cpu())
        spread = torch.stack([*by_label.values()])  # (K, 8, C, H, W)
        change = (spread - spread.mean(0)).abs()
        title = f"{run.title} · drawn under each label, a column has the same noise"
        plots.save_image(reconstructions.sheet(by_label, [""] * NUM_SAMPLES, title), folder / "samples_per_label.png")
        found |= {"label_change": change.mean().item(), "largest_label_change": change.max().item()}
        found["pictures"].append(
            {
                "file": "samples_per_label.png",
                "title": "Samples under each label",
                "caption": "Each row is one label, each column one draw of the noise. The label moves an image by "
                f"{found['label_change']:.3f} of the grey range from the mean over labels, mean over pixels.",
            }
        )


def from_mixture(run: OpenedRun, found: dict[str, Any], components: int, count: int) -> Tensor | None:
    """Return `count` images of codes drawn from Gaussians fitted to codes of training images (Ghosh et al. 2020, 4).

    The covariances are full or diagonal, whichever makes a fifth of the codes, which is held back, more likely;
    diagonal where there are less than two codes for each dimension of each Gaussian. None where the codes can't be
    fitted.
    """
    rows = np.concatenate([*run.rows("train", PER_ENVIRONMENT).values()])
    told = isinstance(run.algorithm, LabelConditioned)
    codes = CodeSpace(run, rows).codes.double()
    if isinstance(run.algorithm, Hierarchical):  # the image depends on the lowest level alone
        codes = codes[:, : run.algorithm.latent_dims[0]]
    if codes.shape[1] > MIXTURE_DIMENSIONS or told or len(codes) < 5 * components:
        why = (
            "the model is told labels, and draws from its prior under each"
            if told
            else f"{len(codes)} images are too few for a code of {codes.shape[1]} dimensions, or {components} Gaussians"
        )
        found["notes"].append(f"no Gaussian mixture: {why}")
        return None
    mixture = require("sklearn.mixture", "analysis", "a Gaussian mixture")
    spread = codes.var(0).mean().item() or 1.0
    kinds = ["full", "diag"] if len(codes) >= 2 * components * codes.shape[1] else ["diag"]
    order = np.random.default_rng(NOISE_SEED).permutation(len(codes))
    fitted, judged = codes.numpy()[order[len(codes) // 5 :]], codes.numpy()[order[: len(codes) // 5]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one that has not converged, or has fewer distinct codes, draws as well
        fits = [
            mixture.GaussianMixture(
                components, covariance_type=kind, reg_covar=1e-4 * spread, random_state=NOISE_SEED
            ).fit(fitted)
            for kind in kinds
        ]
    best = max(fits, key=lambda one: one.score(judged))
    found["mixture"] = {"components": components, "covariance": best.covariance_type, "images": len(fitted)}
    drawn = best.sample(count)[0][np.random.default_rng(NOISE_SEED).permutation(count)]
    return decode(run, torch.from_numpy(drawn))


# --- known factors ---


def known_factors(run: OpenedRun) -> Any:
    """Return a function from rows (N,) to {factor: N values}; None where the data set knows no factors."""
    if not issubclass(DATASETS[run.config["dataset"]], KnownFactors):
        return None
    dataset: Any = dataset_of(run.config)
    numbers = {sample.name: index for index, sample in enumerate(dataset.samples)}

    def of(rows: np.ndarray) -> dict[str, np.ndarray]:
        each = [dataset.factors(numbers[name]) for name in run.images.names[rows]]
        return {name: np.array([one[name] for one in each]) for name in each[0]}

    return of


def follow(codes: np.ndarray, factors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return which known factor each dimension of a code follows.

    Mutual information of dimension and factor, each cut into at most 10 equally frequent values (fewer below 500
    images), less its expectation for independent ones, (a - 1) (b - 1) / 2N nats with a and b values (Miller 1955), as
    a share of the factor's entropy.

    Args:
        codes: (N, D). factors: N values each, of numbers or of names.

    Returns:
        names: of the factors that vary. share: D x F, from 0 to 1. significant: D x F, whether independence is
            rejected at 0.001, divided by F, by a chi-squared test. spearman: D x F rank correlations, None for names.
        mig: mean over factors of the difference between the two largest shares (Chen et al. 2018, eq. 5); None with a
            single dimension. mig_per_factor.
    """
    stats = require("scipy.stats", "analysis", "the factors of a code")
    names = [name for name, values in factors.items() if len(set(values.tolist())) > 1]
    bins = int(np.clip((len(codes) / IMAGES_PER_CELL) ** 0.5, 2, NUM_BINS))
    cut = [_cut(column, bins) for column in codes.T]
    shares = np.zeros((len(cut), len(names)))
    significant = np.zeros(shares.shape, bool)
    spearman: list[list[float | None]] = [[None] * len(names) for _ in cut]
    for f, name in enumerate(names):
        values = factors[name]
        is_number = np.issubdtype(values.dtype, np.number)
        truth = _cut(values, bins) if is_number else np.unique(values, return_inverse=True)[1]
        ranks = stats.rankdata(values) if is_number else None
        for d, column in enumerate(cut):
            table = np.zeros((column.max() + 1, truth.max() + 1))
            np.add.at(table, (column, truth), 1)
            nats, entropy = _mutual_information(table)
            freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
            if freedom == 0:
                continue
            shares[d, f] = min(1.0, max(0.0, nats - freedom / (2 * len(codes))) / entropy)
            significant[d, f] = stats.chi2.sf(2 * len(codes) * nats, freedom) < SIGNIFICANCE / len(names)
            if ranks is not None and codes[:, d].std() > 0:
                spearman[d][f] = float(np.corrcoef(stats.rankdata(codes[:, d]), ranks)[0, 1])
    ordered = np.sort(shares, axis=0)
    gaps = dict(zip(names, (ordered[-1] - ordered[-2]).tolist(), strict=True)) if len(cut) > 1 else {}
    return {
        "names": names, "share": shares.tolist(), "significant": significant.tolist(), "spearman": spearman,
        "mig": float(np.mean([*gaps.values()])) if gaps else None, "mig_per_factor": gaps,
    }  # fmt: skip


def _cut(values: np.ndarray, bins: int) -> np.ndarray:
    """Return which of at most `bins` equally frequent intervals each value is in, (N,) from 0; equals share one."""
    distinct = np.unique(values)
    if len(distinct) <= bins:
        return np.searchsorted(distinct, values)
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.unique(np.searchsorted(edges, values, side="right"), return_inverse=True)[1]


def _mutual_information(table: np.ndarray) -> tuple[float, float]:
    """Mutual information of rows and columns of a table of counts, and the entropy of its columns, in nats."""
    joint = table / table.sum()
    rows, columns = joint.sum(1), joint.sum(0)
    there = joint > 0
    ratio = joint[there] / np.outer(rows, columns)[there]
    columns = columns[columns > 0]
    return float((joint[there] * np.log(ratio)).sum()), float(-(columns * np.log(columns)).sum())


def add_factors(
    run: OpenedRun, found: dict[str, Any], space: CodeSpace, factors: Mapping[str, np.ndarray], folder: Path
) -> None:
    """Add which factor each described dimension follows, and a heat map of the described ones."""
    figures = found["factors"] = follow(space.unlabelled.numpy(), factors)
    names, share = figures["names"], np.array(figures["share"])
    for one in found["dimensions"]:
        dimension = one["dimension"]
        best = int(share[dimension].argmax())
        followed = figures["significant"][dimension][best]
        one["factor"] = names[best] if followed else None
        one["share"] = float(share[dimension, best]) if followed else 0.0
        one["spearman"] = figures["spearman"][dimension][best] if followed else None
    shown = found["dimensions"]
    matrix = share[[one["dimension"] for one in shown]]
    figure, panel = plots.new_figure(2.2 + 0.46 * len(names), 1.9 + 0.26 * len(shown))
    picture = panel.imshow(matrix, cmap=plots.SEQUENTIAL, vmin=0, vmax=max(0.1, matrix.max()), aspect="auto")
    panel.grid(False)
    panel.set_xticks(range(len(names)), [name.replace("_", " ") for name in names], rotation=45, ha="right")
    panel.set_yticks(range(len(shown)), [one["name"] for one in shown])
    for (row, column), value in np.ndenumerate(matrix):
        if value >= 0.05:
            dark = value < 0.6 * max(0.1, matrix.max())
            panel.text(
                column, row, f"{value:.2f}"[1:] if value < 1 else "1", ha="center", va="center", fontsize=7,
                color="white" if dark else "black",
            )  # fmt: skip
    figure.colorbar(picture, ax=panel, label="share of the factor's entropy")
    figure.suptitle(run.title, fontsize=9)
    plots.save(figure, folder / "factors.png")
    top = max(shown, key=lambda one: one["share"])
    mig = "" if figures["mig"] is None else f" Mutual information gap of the whole code: {figures['mig']:.3f}."
    found["pictures"].append(
        {
            "file": "factors.png",
            "title": "Which known factor each dimension follows",
            "caption": f"Mutual information of dimension and factor, as a share of what is to be known of the factor: "
            f"{top['name']} tells {top['share']:.0%} of {(top['factor'] or 'none').replace('_', ' ')}.{mig}",
        }
    )


def findings(found: dict[str, Any]) -> list[str]:
    """Return what is wrong with the dimensions, a sentence each."""
    said = []
    if found["active_units"] == 0:
        said.append(
            "POSTERIOR COLLAPSE: no dimension tells the images apart, so that a traversal is the decoder's answer to "
            "noise and an interpolation stands still. `latents` has the figures"
        )
    for key, what in (("largest_change", "code"), ("largest_label_change", "label")):
        if found.get(key, 1.0) < ONE_LEVEL:
            said.append(
                f"THE DECODER DOES NOT LISTEN TO THE {what.upper()}: nothing that was tried there changes any pixel by "
                "as much as one of 255 grey levels"
            )
    return said
