"""Whether a figure of two runs is the same quantity, measured on the same images: only then is a difference one.

    why_not("total_loss", one, other)      # None, or what stands in the way, in words

The rules are those of docs/objectives.md. What is compared, and how, is in `compare`.
"""

import hashlib
from collections import defaultdict
from typing import Any

from domainbed.algorithms.base import EncoderHParams
from domainbed.analysis.recorded import RecordedRun

#: Figures of answers about labels: they ask for the same images, but not at the same size.
_OF_LABELS = (
    "accuracy", "balanced_accuracy", "macro_f1", "auc", "auc_referable", "kappa", "sensitivity", "specificity",
)  # fmt: skip
#: What decides which reconstruction term is taken, and what, in which unit.
_RECONSTRUCTION, _UNIT = ("likelihood", "sigma", "loss"), ("recon_reduction", "paper_compat")
#: Settings that change a model or its way there, and never what `total_loss` of given answers is.
_NOT_OF_THE_LOSS = {
    *EncoderHParams.model_fields, "latent", "latent_dim", "latent_dims", "latent_halvings", "latent_channels", "mode",
    "encoder_hidden_dims", "stride", "decoder", "kl_anneal_start", "kl_anneal_end", "kl_anneal_cyclical",
    "kl_anneal_cycle_length",
}  # fmt: skip
#: Likelihoods that are densities of values in [0, 1]; `bernoulli` is none.
_DENSITIES = ("continuous_bernoulli", "gaussian", "sigma_vae", "log_cosh", "laplace")
#: Settings of a run, beside its algorithm's and its data set's, that can move a figure.
_OF_THE_RUN = ("algorithm", "subset_size", "holdout_fraction", "trial_seed", "steps", "select_by", "precision")


def settings(run: RecordedRun) -> dict[str, Any]:
    """Return every setting of a run that can move a figure, by name."""
    of_run = {key: run.config[key] for key in _OF_THE_RUN if key in run.config}
    return of_run | dict(run.config["datasets"][run.dataset]) | run.hparams


def differing(runs: list[RecordedRun]) -> dict[str, list[Any]]:
    """Return the settings that differ, of those that all runs have: name to a value for each run."""
    found = [settings(run) for run in runs]
    shared = [key for key in found[0] if all(key in one for one in found)]
    return {key: [one[key] for one in found] for key in shared if any(one[key] != found[0][key] for one in found)}


def digests(run: RecordedRun) -> dict[tuple[str, str], str]:
    """Return a digest of the images, their labels and masks of every environment and part, by (environment, part).

    Raises:
        UserError: the run's images.csv is missing or damaged.
    """
    lines: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in run.images():
        line = "\t".join([row["image"], row["class"], row["content"], row.get("masks") or ""])
        for part in (row["split"], "whole"):
            lines[row["environment"], part].append(line)
    texts = {key: "\n".join(sorted(found)).encode(errors="surrogateescape") for key, found in lines.items()}
    return {key: hashlib.sha256(text).hexdigest() for key, text in texts.items()}


def why_not(metric: str, one: RecordedRun, other: RecordedRun) -> str | None:
    """Return why a figure of two runs on the same images can't be compared, None where it can."""
    if metric in _OF_LABELS:
        return None
    a, b = settings(one), settings(other)
    for key in ("image_size", "preprocess"):
        if a.get(key) != b.get(key):
            return f"they differ in {key}, so it is of other pixels"
    if metric in ("mse", "psnr", "ssim", "pixel_accuracy") or metric.startswith(("dice_", "iou_", "KLD_nats", "KLD_l")):
        return None
    if metric in ("recon_loss", "recon_nats", "KLD_weighted"):  # the last in the unit of the others
        in_nats = metric == "recon_nats"
        keys = [key for key in (*_RECONSTRUCTION, *(() if in_nats else _UNIT)) if a.get(key) != b.get(key)]
        if one.algorithm != other.algorithm and not (a.get("likelihood") and b.get("likelihood")):
            keys.append("algorithm")
        return _differ_in(keys) if keys else None
    if one.algorithm != other.algorithm:
        keys = ["algorithm"]
    else:
        keys = [key for key in one.hparams if a[key] != b.get(key, a[key]) and key not in _NOT_OF_THE_LOSS]
        if not keys and betas(one) != betas(other):  # means over latents, and over a batch, weigh by their numbers
            keys = ["beta"]
        if not keys:
            return None
    if metric == "total_loss" and _is_bound(one) and _is_bound(other):
        return None
    return _differ_in(keys)


def _differ_in(keys: list[str]) -> str:
    return f"they differ in {' and '.join(keys)}, which makes it another quantity"


def betas(run: RecordedRun) -> list[float]:
    """Return the weights of the KL in nats beside sums that the trainings of a run had, once each; none without KL."""
    weights = [record.get("weights") or {} for record in run.of("start")]
    return sorted({one["beta"] for one in weights if one.get("beta") is not None and one.get("capacity") is None})


def _is_bound(run: RecordedRun) -> bool:
    """Whether `total_loss` is an upper bound on -log p(x) in nats (docs/objectives.md)."""
    starts = [record.get("weights") for record in run.of("start")]
    hparams = run.hparams
    return (
        all(
            weights is not None
            and weights["reduction"] == "sums"
            and weights["beta"] == 1
            and weights["capacity"] is None
            and weights["label_weight"] is None
            for weights in starts
        )
        and hparams.get("likelihood") in _DENSITIES
        and not hparams.get("free_bits")
        and hparams.get("structure", "none") == "none"
    )
