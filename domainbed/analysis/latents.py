"""What the codes of a run tell: maps of them, and figures computed on the codes themselves, never on a map.

    found = analyse(open_run("results/train_output/DR/full_training"), folder, perplexities=(4, 12))
    found["class"]["probe"], found["posterior"]["active_units"], found["findings"]

For class and for environment: how well their nearest neighbours, and a linear probe, name images (balanced accuracy;
images of one patient never judge each other), and the silhouette, of all images alike. Of a posterior: the KL of each
dimension and level, active units, mutual information (`codes.information`). Of a discrete code: which codes are used.
What the dimensions draw is in `traverse`.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from domainbed import metrics
from domainbed.algorithms.base import Coder, Encoder, Sampler
from domainbed.analysis import codes as reading
from domainbed.analysis import extras, plots
from domainbed.analysis.extras import require
from domainbed.analysis.opened import OpenedRun
from domainbed.datasets.base import UNLABELLED
from domainbed.errors import UserError
from domainbed.evaluator import NOISE_SEED

MAPS = ("pca", "tsne", "umap")
#: Images of each environment, at most: t-SNE and neighbours are quadratic in their number.
PER_ENVIRONMENT = 1000
NUM_NEIGHBOURS, NUM_FOLDS = 10, 5
#: Components that t-SNE and UMAP begin with (van der Maaten & Hinton 2008, 4.2), and that a probe reads at most.
MAP_COMPONENTS, PROBE_COMPONENTS = 50, 256
#: Images on which the trustworthiness of a map is computed, at most: its memory is quadratic in their number.
TRUST_IMAGES = 3000
#: Shares of the variance whose number of principal components is counted.
SHARES = (0.5, 0.9, 0.99)
_CHUNK = 1000


def analyse(
    run: OpenedRun,
    folder: Path,
    *,
    images: str = "held-out",
    per_environment: int = PER_ENVIRONMENT,
    maps: Sequence[str] = MAPS,
    perplexities: Sequence[float] = (30.0,),
    neighbours: Sequence[int] = (15,),
) -> dict[str, Any]:
    """Write maps of the codes of some images, and return their figures.

    Args:
        run: opened.
        folder: for the pictures.
        images: one of `analysis.CHOICES`. per_environment: at most so many of each.
        maps: some of `MAPS`.
        perplexities: of t-SNE, a map for each. neighbours: of UMAP, likewise.

    Returns:
        those of `OpenedRun.about`; images (number), images_of, environments {name: {"images", "role"}},
        code_dimensions.
        class, environment: `separation` of the codes by each; None where there is only one or none.
        pca: of `principal_components`; None where all codes are the same.
        posterior: of `codes.information`, None without a posterior. codebook: of `codebook_use`, None without one.
        maps: {name: {"title", "file", "trustworthiness"}}. map: the last of them, its kind, the rows of the images and
            their points (N, 2); None where none was drawn. findings, notes: sentences. pictures.

    Raises:
        UserError: the model gives no codes.
    """
    extras.check("matplotlib", "analysis", "a plot")
    extras.check("sklearn", "analysis", "a linear probe")
    if "umap" in maps:
        extras.check("umap", "analysis", "the map by UMAP")
    if not isinstance(run.algorithm, Encoder):
        samples = ", and `traverse` draws its samples" if isinstance(run.algorithm, Sampler) else ""
        raise UserError(
            f"{run.config['algorithm']} gives no code of an image, so there is nothing to map. `layers` and `errors` "
            f"look at such a model{samples}. Name the run of an algorithm with a code, such as AE, VAE or ERM"
        )
    chosen = run.rows(images, per_environment)
    rows = np.concatenate([*chosen.values()])
    found: dict[str, Any] = {
        **run.about,
        "images": len(rows), "images_of": images,
        "environments": {name: {"images": len(one), "role": run.roles(one)} for name, one in chosen.items()},
        "class": None, "environment": None, "pca": None, "posterior": None, "codebook": None,
        "maps": {}, "map": None, "findings": [], "notes": [], "pictures": [],
    }  # fmt: skip
    if isinstance(run.algorithm, Coder):
        found["codebook"] = codebook_use(run, chosen)
        draw_codebook(run, found, folder)
    codes = reading.read(run, rows)
    if codes.posterior is not None:
        found["posterior"] = reading.information(codes.posterior)
        draw = draw_kl if codes.latent_map is None else draw_kl_of_map
        draw(run, found, codes.posterior, folder)
    found["code_dimensions"] = codes.code.shape[1]
    if codes.latent_map is not None:
        channels, height, width = codes.latent_map
        found["notes"].append(
            f"the code is a map of {channels} channels at {height} x {width} places: class, environment, variance and "
            f"the maps are of its mean over places, {channels} numbers an image"
        )
    scaled = scale(codes.pooled)
    if scaled is None:
        found["notes"].append("the code is the same for every image: no map, no neighbours, no probe")
        return found | {"findings": findings(found)}
    for name, labels, names in labellings(run, rows):
        found[name] = separation(scaled, labels, run.images.groups[rows], names, found["notes"])
    found["pca"], components = principal_components(scaled)
    draw_maps(run, found, rows, scaled, components, folder, maps, perplexities, neighbours)
    return found | {"findings": findings(found)}


def labellings(run: OpenedRun, rows: np.ndarray) -> list[tuple[str, np.ndarray, list[str]]]:
    """Return (what, labels (N,), names) of what images are told apart by: class, environment, if there are several."""
    by_class = ("class", run.images.labels[rows], run.classes)
    by_environment = ("environment", run.images.environment[rows], run.images.environments)
    if not run.classes:
        return [by_environment]
    return [by_class, by_environment] if len(np.unique(by_environment[1])) > 1 else [by_class]


def scale(code: Tensor) -> Tensor | None:
    """Return codes (N, D) in float64 less their mean, divided by one scale; None where all are the same.

    One scale, not one for each dimension: those that hardly vary, as where a posterior has collapsed, stay small.
    """
    centred = code.double() - code.double().mean(0)
    deviation = centred.square().mean().sqrt()
    smallest = 1e-6 * max(1.0, code.abs().max().item())  # below it lies the rounding of float32
    return centred / deviation if deviation > smallest else None


# --- class and environment, as the codes have them ---


def separation(
    code: Tensor, labels: np.ndarray, groups: np.ndarray, names: list[str], notes: list[str]
) -> dict[str, Any] | None:
    """Return how well codes tell some labels apart; None where there are fewer than two to tell.

    Args:
        code: (N, D), scaled. labels: (N,) indices into `names`, or `UNLABELLED`. groups: (N,) of what must not judge
            itself.
        notes: takes what was left out.

    Returns:
        names, images, chance (1 / number of names), silhouette (mean over images; Rousseeuw 1987), and for `neighbours`
        and `probe` the balanced accuracy with its 95 % bootstrap interval over groups.
    """
    known = np.unique(labels[labels != UNLABELLED]).tolist()
    groups_of = {label: len(set(groups[labels == label])) for label in known}
    kept = [label for label, count in groups_of.items() if count >= NUM_FOLDS]
    for label in groups_of.keys() - set(kept):
        notes.append(
            f"{names[label]} is left out of the figures: it has {groups_of[label]} groups of images, and "
            f"{NUM_FOLDS} are needed"
        )
    if len(kept) < 2:
        return None
    these = np.isin(labels, kept)
    code, groups = code[torch.from_numpy(these)], groups[these]
    targets = np.searchsorted(kept, labels[these])
    metric = require("sklearn.metrics", "analysis", "the silhouette")
    answers = {
        "neighbours": nearest_neighbours(code, targets, groups, len(kept)),
        "probe": linear_probe(code, targets, groups),
    }
    found: dict[str, Any] = {
        "names": [names[label] for label in kept],
        "images": int(these.sum()),
        "chance": 1 / len(kept),
        "silhouette": float(metric.silhouette_score(code.numpy(), targets)),
    }
    truth = torch.from_numpy(targets)
    for name, answer in answers.items():
        share = F.one_hot(torch.from_numpy(answer), len(kept)).float()
        figures = metrics.weighted(torch.ones(len(truth), 1, dtype=torch.float64), share, truth)
        intervals = metrics.bootstrap(groups.tolist(), probabilities=share, labels=truth)
        found[name] = {
            "balanced_accuracy": figures["balanced_accuracy"].item(),
            "interval": intervals["balanced_accuracy"],
        }
    return found


def nearest_neighbours(code: Tensor, labels: np.ndarray, groups: np.ndarray, num_labels: int) -> np.ndarray:
    """Return what most of each image's nearest neighbours in other groups are, (N,); of equals the lower label.

    A vote counts one over how frequent its label is, or a rare label would never be answered where codes overlap.

    Args:
        code: (N, D). labels: (N,) from 0. groups: (N,).
    """
    weights = 1 / torch.from_numpy(np.bincount(labels, minlength=num_labels)).clamp(min=1).double()
    numbers = torch.from_numpy(np.unique(groups.astype(str), return_inverse=True)[1])
    one_hot = F.one_hot(torch.from_numpy(labels), num_labels)
    answers = []
    for start in range(0, len(code), _CHUNK):
        some = slice(start, start + _CHUNK)
        distance = torch.cdist(code[some], code)  # (M, N)
        distance[numbers[some, None] == numbers] = math.inf
        nearest = distance.topk(min(NUM_NEIGHBOURS, len(code)), largest=False)
        votes = one_hot[nearest.indices] * nearest.values.isfinite().unsqueeze(2)
        answers.append((votes.sum(1) * weights).argmax(1))
    return torch.cat(answers).numpy()


def linear_probe(code: Tensor, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return what a linear classifier, fitted to the other folds, answers for each image, (N,).

    Logistic regression with an L2 penalty of C = 1 and balanced classes, five folds of whole groups (Alain & Bengio
    2016 probe layers so). A code of more than 256 dimensions is read by its first principal components.
    """
    linear_model = require("sklearn.linear_model", "analysis", "a linear probe")
    selection = require("sklearn.model_selection", "analysis", "a linear probe")
    x, answers = code.numpy(), np.empty_like(labels)
    folds = selection.StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=NOISE_SEED)
    for fitted, judged in tqdm(
        folds.split(x, labels, groups), desc="probe", total=NUM_FOLDS, leave=False, disable=None
    ):
        mean, components = torch.zeros(x.shape[1]).numpy(), None
        if x.shape[1] > PROBE_COMPONENTS:
            mean = x[fitted].mean(0)
            components = principal_axes(torch.from_numpy(x[fitted] - mean))[1][:PROBE_COMPONENTS].T.numpy()
        read = [part - mean if components is None else (part - mean) @ components for part in (x[fitted], x[judged])]
        probe = linear_model.LogisticRegression(C=1.0, class_weight="balanced", max_iter=10_000, tol=1e-3)
        answers[judged] = probe.fit(read[0], labels[fitted]).predict(read[1])
    return answers


# --- discrete codes ---


def codebook_use(run: OpenedRun, chosen: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return how the codes of a codebook are used: of K, how many occur, and exp of their entropy (perplexity).

    Returns:
        codes (K), grid, used, perplexity, and the same of each environment under `environments`, with the frequencies
        of the codes, each sorted by itself.
    """
    coder: Any = run.algorithm
    counts = {}
    for name, rows in chosen.items():
        grids = run.compute(rows, lambda x, y: {"codes": coder.codes(x)}, f"codes of {name}")["codes"]
        counts[name] = grids.flatten().bincount(minlength=coder.num_codes).double()

    def use(count: Tensor) -> dict[str, Any]:
        share = count / count.sum()
        return {
            "used": int((count > 0).sum()),
            "perplexity": torch.special.entr(share).sum().exp().item(),
            "frequencies": share.sort(descending=True).values.tolist(),
        }

    whole = use(torch.stack([*counts.values()]).sum(0))
    environments = {name: use(count) for name, count in counts.items()}
    return {"codes": coder.num_codes, "grid": list(coder.grid), **whole, "environments": environments}


# --- pictures ---


def principal_components(code: Tensor) -> tuple[dict[str, Any], Tensor]:
    """Return the figures of a principal component analysis of (N, D), and the scores (N, <= 50) of its first ones.

    Returns:
        dimensions (D), explained_variance_ratio of the first ten components, components_for {share: number}.
    """
    spread, axes = principal_axes(code)
    share = spread.square() / spread.square().sum()
    reached = share.cumsum(0)
    figures = {
        "dimensions": code.shape[1],
        "explained_variance_ratio": share[:10].tolist(),
        "components_for": {str(part): int((reached < part - 1e-9).sum()) + 1 for part in SHARES},
    }
    return figures, code @ axes[:MAP_COMPONENTS].T


def principal_axes(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values (r,) and axes (r, D) of codes (N, D) of mean 0; the largest entry of an axis is positive."""
    _, spread, axes = torch.linalg.svd(centred, full_matrices=False)
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    return spread, axes * largest.sign()


def draw_maps(
    run: OpenedRun, found: dict[str, Any], rows: np.ndarray, code: Tensor, components: Tensor, folder: Path,
    maps: Sequence[str], perplexities: Sequence[float], neighbours: Sequence[int],
) -> None:  # fmt: skip
    """Draw each map, and add its figures and pictures to those found.

    Args:
        rows: (N,) of the images. code: (N, D). components: (N, <= 50) scores.
    """
    manifold = require("sklearn.manifold", "analysis", "a map of codes")
    if len(rows) < 3:
        found["notes"].append(f"no maps: there are only {len(rows)} images")
        return
    wanted: list[tuple[str, str, dict[str, Any]]] = []
    share = found["pca"]["explained_variance_ratio"]
    if "pca" in maps:
        wanted.append(("pca", "PCA", {}))
    for perplexity in perplexities if "tsne" in maps else ():
        if perplexity >= len(rows):
            found["notes"].append(f"no t-SNE of perplexity {perplexity:g}: there are only {len(rows)} images")
        else:
            wanted.append((f"tsne_{perplexity:g}", f"t-SNE, perplexity {perplexity:g}", {"perplexity": perplexity}))
    for number in neighbours if "umap" in maps else ():
        if number >= len(rows):
            found["notes"].append(f"no UMAP of {number} neighbours: there are only {len(rows)} images")
        else:
            wanted.append((f"umap_{number}", f"UMAP, {number} neighbours", {"n_neighbors": number}))
    judged = np.arange(len(rows))
    if len(rows) > TRUST_IMAGES:
        judged = np.sort(np.random.default_rng(NOISE_SEED).choice(len(rows), TRUST_IMAGES, replace=False))
    for name, title, options in tqdm(wanted, desc="maps", leave=False, disable=None):
        if name == "pca":
            points = F.pad(components[:, :2], (0, 2 - components[:, :2].shape[1])).numpy()
        elif "perplexity" in options:
            points = manifold.TSNE(random_state=NOISE_SEED, init="pca", **options).fit_transform(components.numpy())
        else:
            umap = require("umap", "analysis", "the map by UMAP")
            points = umap.UMAP(random_state=NOISE_SEED, n_jobs=1, **options).fit_transform(components.numpy())
        near = min(NUM_NEIGHBOURS, (len(judged) - 1) // 2)
        trust = float(manifold.trustworthiness(code.numpy()[judged], points[judged], n_neighbors=near))
        found["maps"][name] = {"title": title, "file": f"{name}.png", "trustworthiness": trust}
        found["map"] = {"kind": title, "rows": rows.tolist(), "points": np.asarray(points, dtype=float).tolist()}
        labels = [f"component {i + 1} ({one:.1%} of the variance)" for i, one in enumerate(share[:2])]
        draw_map(run, found, rows, points, title, labels if name == "pca" else [], folder / f"{name}.png")
        found["pictures"].append(
            {
                "file": f"{name}.png",
                "title": f"{title} of the codes, by {' and by '.join(what for what, *_ in labellings(run, rows))}",
                "caption": caption(found, name),
            }
        )


def caption(found: dict[str, Any], name: str) -> str:
    """Return what is to be seen on a map, in words, from the figures of the codes."""
    parts = []
    for what in ("class", "environment"):
        if found[what]:
            near, probe = (found[what][reader]["balanced_accuracy"] for reader in ("neighbours", "probe"))
            parts.append(f"{what} {near:.2f} and {probe:.2f} (chance {found[what]['chance']:.2f})")
    trust = found["maps"][name]["trustworthiness"]
    seen = (
        f"Balanced accuracy of {NUM_NEIGHBOURS} neighbours and of a linear probe in the code itself: " if parts else ""
    )
    seen += "; ".join(parts) + ". " * bool(parts)
    lost = "most of what is near in the code is near here, too" if trust >= 0.9 else "do not read clusters out of it"
    return f"{seen}Trustworthiness of the map {trust:.2f}: {lost}."


def draw_map(
    run: OpenedRun, found: dict[str, Any], rows: np.ndarray, points: np.ndarray, title: str, axis_names: list[str],
    path: Path,
) -> None:  # fmt: skip
    """Draw points (N, 2), a panel for each of the labellings."""
    panels = labellings(run, rows)
    figure, axes = plots.new_figure(5.4 * len(panels) + 0.2, 4.6, 1, len(panels))
    order = np.random.default_rng(NOISE_SEED).permutation(len(rows))
    size = float(np.clip(6000 / len(rows), 4, 26))
    for panel, (what, labels, names) in zip(np.atleast_1d(axes).ravel(), panels, strict=True):
        palette = _palette(len(names), what == "class" and run.images.ordinal)
        for label in np.unique(labels):
            these = order[labels[order] == label]
            if label == UNLABELLED:
                colour, marker, text = "lightgrey", ".", "no label"
            else:
                colour, marker, text = palette[label], plots.marker(label + label // len(plots.MARKERS)), names[label]
                text += " (target)" if what == "environment" and run.is_target(int(label)) else ""
            panel.scatter(
                points[these, 0], points[these, 1], s=size, color=colour, alpha=0.75, linewidths=0, marker=marker,
                label=text,
            )  # fmt: skip
        figures = found[what]
        if figures:
            near, chance = figures["neighbours"]["balanced_accuracy"], figures["chance"]
            panel.set_title(f"by {what}: {NUM_NEIGHBOURS} neighbours {near:.2f}, chance {chance:.2f}")
        else:
            panel.set_title(f"by {what}")
        for set_label, text in zip((panel.set_xlabel, panel.set_ylabel), axis_names, strict=False):
            set_label(text)
        panel.set_xticks([])
        panel.set_yticks([])
        legend = panel.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), handletextpad=0.2, frameon=False)
        for handle in legend.legend_handles:
            handle.set_sizes([30])
            handle.set_alpha(1)
    figure.suptitle(f"{title} · {run.title}", fontsize=9)
    plots.save(figure, path)


def _palette(count: int, ordinal: bool) -> list[Any]:
    """Return colours: grades from dark to light, or one that is told apart for each."""
    if not ordinal:
        return [plots.colour(index) for index in range(count)]
    colormap = require("matplotlib", "analysis", "a plot").colormaps[plots.SEQUENTIAL]
    return [colormap(0.92 * index / max(1, count - 1)) for index in range(count)]


def draw_kl(run: OpenedRun, found: dict[str, Any], posterior: reading.Posteriors, folder: Path) -> None:
    """Draw the KL of each dimension, sorted, a panel for each level."""
    figures = found["posterior"]
    kl, active = np.array(figures["kl_per_dimension_nats"]), posterior.active.numpy()
    figure, axes = plots.new_figure(4.6 * len(figures["levels"]) + 1, 3.2, 1, len(figures["levels"]))
    panels = np.atleast_1d(axes).ravel()
    for panel, level, columns in zip(panels, figures["levels"], posterior.levels, strict=True):
        order = np.argsort(-kl[columns], kind="stable")
        nats, is_active = kl[columns][order], active[columns][order]
        places = np.arange(1, len(nats) + 1)
        for which, colour, label in ((is_active, 0, "active"), (~is_active, 1, "inactive")):
            if which.any():
                panel.bar(
                    places[which], nats[which], width=1.0, color=plots.colour(colour), edgecolor="white",
                    linewidth=0.3 if len(nats) <= 150 else 0, label=f"{label}: {which.sum()}",
                )  # fmt: skip
        name = f"level {level['level']}: " if len(figures["levels"]) > 1 else ""
        panel.set_title(f"{name}{level['kl_nats']:.2f} nats in {level['dimensions']} dimensions")
        panel.set_xlabel("dimensions, sorted by their KL")
        panel.set_ylabel("KL (nats, mean over images)")
        panel.set_xlim(0.5, len(nats) + 0.5)
        panel.set_ylim(min(0.0, 1.1 * nats.min()), max(1e-3, 1.1 * nats.max()))
        panel.legend(frameon=False)
    figure.suptitle(f"KL from the prior · {run.title}", fontsize=9)
    plots.save(figure, folder / "kl.png")
    found["pictures"].append(
        {
            "file": "kl.png",
            "title": "KL of each latent dimension from its prior",
            "caption": f"{figures['active_units']} of {figures['dimensions']} dimensions are active (variance of the "
            f"posterior mean over images above {reading.ACTIVE_VARIANCE:g}); together they hold "
            f"{figures['kl_nats']:.3g} nats. An inactive dimension is noise to the decoder.",
        }
    )


def draw_kl_of_map(run: OpenedRun, found: dict[str, Any], posterior: reading.Posteriors, folder: Path) -> None:
    """Draw the KL of a map's channels, sorted, and of its places."""
    figures = found["posterior"]["map"]
    channels = np.sort(figures["kl_per_channel_nats"])[::-1]
    places = np.array(figures["kl_per_place_nats"])
    figure, axes = plots.new_figure(9.6, 3.6, 1, 2)
    bars, picture = np.asarray(axes).ravel()
    bars.bar(np.arange(1, len(channels) + 1), channels, color=plots.colour(0))
    bars.set_xlabel("channels, sorted by their KL")
    bars.set_ylabel("KL (nats, mean over images)")
    bars.set_title(f"by channel: {channels.sum():,.0f} nats in {len(channels)} channels")
    drawn = picture.imshow(places, cmap=plots.SEQUENTIAL)
    picture.grid(False)
    picture.set_title(f"by place: {figures['height']} x {figures['width']}")
    figure.colorbar(drawn, ax=picture, label="nats, all channels")
    figure.suptitle(f"KL from the prior · {run.title}", fontsize=9)
    plots.save(figure, folder / "kl.png")
    bits = found["posterior"]["kl_nats"] / math.log(2)
    found["pictures"].append(
        {
            "file": "kl.png",
            "title": "KL of the map of latents from its prior",
            "caption": f"Left each channel, summed over places; right each place, summed over channels: where the code "
            f"spends its {bits:,.0f} bits an image. Places range from {places.min():.3g} to {places.max():.3g} nats.",
        }
    )


def draw_codebook(run: OpenedRun, found: dict[str, Any], folder: Path) -> None:
    """Draw how often each code is used, the most frequent first, by environment."""
    use = found["codebook"]
    figure, panel = plots.new_figure(5.6, 3.4)
    for index, (name, one) in enumerate(use["environments"].items()):
        shares = np.array(one["frequencies"][: max(1, one["used"])])
        panel.plot(
            np.arange(1, len(shares) + 1), shares, color=plots.colour(index),
            label=f"{name}: perplexity {one['perplexity']:.0f}",
        )  # fmt: skip
    panel.axhline(1 / use["codes"], color="grey", linestyle=":", label=f"all {use['codes']} alike")
    panel.set_yscale("log")
    panel.set_xlabel("codes, sorted by their frequency")
    panel.set_ylabel("share of the cells")
    panel.set_xlim(1, use["codes"])
    panel.legend(frameon=False)
    figure.suptitle(run.title, fontsize=9)
    plots.save(figure, folder / "codebook.png")
    found["pictures"].append(
        {
            "file": "codebook.png",
            "title": "How often each code is used",
            "caption": f"{use['used']} of {use['codes']} codes occur, with a perplexity of {use['perplexity']:.0f}: "
            "the images use the codebook as that many equally frequent codes would.",
        }
    )


# --- in words ---


def findings(found: dict[str, Any]) -> list[str]:
    """Return what is wrong with the codes, or worth knowing, a sentence each, with what to do."""
    said = []
    if posterior := found["posterior"]:
        if not posterior["active_units"]:
            said.append(
                f"POSTERIOR COLLAPSE: none of the {posterior['dimensions']} dimensions is active "
                f"(KL {posterior['kl_nats']:.3g} nats): the code tells the decoder nothing about the image. Train with "
                "a smaller weight of the KL, let it rise slowly, or give each dimension free bits. What neighbours and "
                "probe still find are differences of the means that drown in the posterior's own noise"
            )
        elif len(posterior["levels"]) > 1:
            said += [
                f"LEVEL {one['level']} IS DEAD: {one['active_units']} of its {one['dimensions']} dimensions are "
                f"active, KL {one['kl_nats']:.3g} nats: it adds nothing to the other levels. Draw levels from above (a "
                "ladder), let the KL's weight rise slowly, give free bits, or leave the level out"
                for one in posterior["levels"]
                if one["dead"]
            ]
        marginal = posterior["marginal_kl_nats"]
        at_bound = posterior["mutual_information_nats"] > 0.95 * posterior["mutual_information_bound_nats"]
        if marginal is not None and not at_bound and marginal > max(1.0, posterior["mutual_information_nats"]):
            said.append(
                f"THE PRIOR IS ELSEWHERE: all codes together are {marginal:.3g} nats from it, more than they tell of "
                f"an image ({posterior['mutual_information_nats']:.3g}): do not trust samples from it. Give the KL "
                "more weight, or draw from a mixture fitted to the codes, as traverse does"
            )
        if at_bound:
            said.append(
                "the mutual information is at its bound, log N: the code tells every image from every other one, and "
                "more images would raise it (and lower the KL of all codes together)"
            )
    if (use := found["codebook"]) and use["perplexity"] < 0.1 * use["codes"]:
        said.append(
            f"CODEBOOK HARDLY USED: a perplexity of {use['perplexity']:.0f} with {use['codes']} codes. Train "
            "longer, restart dead codes sooner (restart_below), or use a smaller codebook"
        )
    collapsed = posterior is not None and not posterior["active_units"]
    for what in ("class", "environment"):
        figures = found[what]
        if collapsed or not figures or not figures["probe"]["interval"]:
            continue
        low, value, chance = figures["probe"]["interval"][0], figures["probe"]["balanced_accuracy"], figures["chance"]
        near = figures["neighbours"]
        if low <= chance and near["interval"] and near["interval"][0] > chance:
            said.append(
                f"{NUM_NEIGHBOURS} neighbours name the {what} better than chance and a linear probe does not: balanced "
                f"accuracy {near['balanced_accuracy']:.2f} and {value:.2f} (chance {chance:.2f})"
            )
        elif low <= chance:
            said.append(
                f"the {what} can't be read off the code: a linear probe's balanced accuracy of {value:.2f} is not "
                f"above chance ({chance:.2f}), given its interval"
            )
        elif what == "environment":
            how = "is written in" if value > 0.9 else "can be told from"
            said.append(
                f"the environment {how} the code: a linear probe names it with balanced accuracy {value:.2f} "
                f"(chance {chance:.2f})"
            )
    return said
