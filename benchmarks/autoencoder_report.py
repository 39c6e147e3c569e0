"""What has an autoencoder learnt? Does its loss move, do the weights of each layer change, what does it reconstruct?

    python benchmarks/autoencoder_report.py results/train_output/TCell/ae_model1 [more runs] [--output report.md]

Reads finished runs of algorithms that reconstruct (`AE` and others with an encoder and a decoder), their checkpoints
`init` and `last`, and the images that they were trained on; writes Markdown: one table with a row for each model, then
structure, settings and layers of each. The figures:

    loss               of the training images, whole and without noise, with the first and the last weights
    change             |last - first| / |first| of all numbers of a layer, biases included
    without gradient   share of output values to which the loss of training images sends a gradient of exactly 0
    PSNR               of the held-out images of the environments trained on; beside it, that of an image that is black
                       everywhere and of the mean training image: what needs no look at the image
    brightness         mean of held-out images, and of their reconstructions
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from domainbed import checkpoint, evaluator, metrics
from domainbed.algorithms.base import Algorithm, Reconstructor
from domainbed.cli import guarded
from domainbed.datasets.prepare import Images, default_cache_dir, default_num_workers, prepare
from domainbed.engine import Engine
from domainbed.errors import UserError
from domainbed.registry import DATASETS

#: Images of which gradients are taken: one batch of them must fit into memory.
GRADIENT_IMAGES = 128
SETTINGS = ("optimizer", "lr", "weight_decay", "output", "loss", "likelihood", "recon_reduction", "noise",
            "initialisation")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders results/train_output/<dataset>/<name>")
    parser.add_argument("--output", type=Path, help="write the report to this file, too")
    arguments = parser.parse_args()

    def run() -> int:
        text = report(arguments.runs)
        print(text)
        if arguments.output:
            arguments.output.write_text(text + "\n", encoding="utf-8")
        return 0

    return guarded(run)


def report(runs: list[Path]) -> str:
    """Return the report of all models of some runs."""
    models = []
    for run in runs:
        images = images_of(run)
        for seed, target in checkpoint.find_targets(run):
            models.append(measure(run, target, seed, images))
    head = ["model", "loss before", "after", "least and most changed layer", "without gradient before", "after",
            "PSNR before", "after", "of black", "of mean image", "brightness before", "after", "of images"]  # fmt: skip
    rows = [
        [m["name"], f"{m['loss'][0]:.4g}", f"{m['loss'][1]:.4g}",
         "{:.1%}, {:.1%}".format(*(f(c for *_, c in m["layers"] if c is not None) for f in (min, max))),
         *(f"{share:.0%}" for share in m["without_gradient"]), *(f"{value:.2f}" for value in m["psnr"]),
         f"{m['psnr_black']:.2f}", f"{m['psnr_mean']:.2f}", *(f"{value:.3f}" for value in m["brightness"]),
         f"{m['brightness_images']:.3f}"]
        for m in models
    ]  # fmt: skip
    return "\n".join([*table(head, rows), *(line for model in models for line in section(model))])


def section(model: dict[str, Any]) -> list[str]:
    """Lines about one model: settings, and a table of its layers."""
    rows = [
        [name, " x ".join(map(str, shape)), f"{count:,}" if count else "", "" if change is None else f"{change:.1%}"]
        for name, shape, count, change in model["layers"]
    ]
    total = sum(count for _, _, count, _ in model["layers"])
    return [
        "", f"## {model['name']}", "",
        f"{total:,} weights. {model['settings']}.", "",
        f"{model['length']}. Reconstructions before and after: {model['pictures']}.", "",
        *table(["layer", "output", "weights", "change"], rows),
    ]  # fmt: skip


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def images_of(run: Path) -> Images:
    """Return the images of a run, split as they were."""
    config = checkpoint.read_config(run)
    ((name, values),) = config["datasets"].items()
    cls = DATASETS[name]
    folder = config["data_dir"] and Path(config["data_dir"])
    return prepare(
        cls(folder, cls.HParams(**values)), trial_seed=config["trial_seed"],
        holdout_fraction=config["holdout_fraction"], subset_size=config["subset_size"],
        cache_dir=Path(config["cache_dir"] or default_cache_dir()), num_workers=default_num_workers(),
        skip_unreadable=config["skip_unreadable"], strict=False, report=lambda line: None,
    )  # fmt: skip


def measure(run: Path, target: str, seed: int | None, images: Images) -> dict[str, Any]:
    """Return the figures of one model of a run, those of the first and the last weights as pairs.

    Raises:
        UserError: it is of an algorithm that does not reconstruct, or has no checkpoint `init` or `last`.
    """
    before, config, _ = checkpoint.load_with_meta(run, target, seed, "init")
    after, _, meta = checkpoint.load_with_meta(run, target, seed, "last")
    if not isinstance(after, Reconstructor) or not isinstance(getattr(after, "decoder", None), nn.Module):
        raise UserError(
            f"{run} is of {config['algorithm']}, which has no decoder. Name runs of autoencoders, such as AE"
        )
    sources = [images.environments.index(name) for name in meta["sources"]]
    train, held_out = (np.concatenate([images.select(e, part) for e in sources]) for part in ("train", "val"))
    x = images.pixels(held_out).float() / 255
    mean = (images.pixels(train).float() / 255).mean(0).expand_as(x)
    trained, judged = zip(*(figures(one, config, images, train, held_out) for one in (before, after)), strict=True)
    batch = config["algorithms"][config["algorithm"]]["batch_size"] * len(sources)
    values = config["algorithms"][config["algorithm"]]
    place = run if seed is None else run / f"seed_{seed}"
    return {
        "name": f"{run.name}, target {target}" + ("" if seed is None else f", seed {seed}"),
        "settings": ", ".join(f"{key} {values[key]}" for key in SETTINGS if key in values),
        "length": f"{meta['step']} steps of {batch} images = {meta['step'] * batch / len(train):.1f} epochs of "
        f"{len(train)} training images of {config['dataset']} ({' x '.join(map(str, images.input_shape))})",
        "pictures": f"{place}/recon_step_0/te_{target} and recon_final/te_{target}",
        "loss": [one["loss"] for one in trained],
        "without_gradient": [without_gradient(one, images, train) for one in (before, after)],
        "psnr": [one["psnr"] for one in judged],
        "brightness": [one["brightness"] for one in judged],
        "psnr_black": metrics.reconstruction(torch.zeros_like(x), x)["psnr"].mean().item(),
        "psnr_mean": metrics.reconstruction(mean, x)["psnr"].mean().item(),
        "brightness_images": x.mean().item(),
        "layers": layers(before, after, x[:1]),
    }


def figures(
    algorithm: Algorithm, config: dict[str, Any], images: Images, train: np.ndarray, held_out: np.ndarray
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the loss of the training images, and PSNR and mean brightness of the held-out reconstructions."""
    engine = Engine("cpu", config["precision"])
    engine.prepare(algorithm)
    size = config["eval_batch_size"]
    on_train = evaluator.evaluate_rows(algorithm, engine, images, train, size).losses["total_loss"]
    outputs = evaluator.evaluate_rows(algorithm, engine, images, held_out, size)
    with engine.evaluation(algorithm, seed=0):
        made = [algorithm.reconstruct(engine.to_device(images.pixels(rows))) for rows in np.array_split(held_out, 4)]
    engine.release()
    brightness = torch.cat([one.float() for one in made]).mean().item()
    return {"loss": on_train}, {"psnr": outputs.per_image["psnr"].mean().item(), "brightness": brightness}


def without_gradient(algorithm: Algorithm, images: Images, rows: np.ndarray) -> float:
    """Return the share of the decoder's output values to which the loss of some images sends no gradient."""
    seen: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), GRADIENT_IMAGES)).astype(int)]
    hook = algorithm.decoder.register_forward_hook(keep)
    algorithm.losses([(images.pixels(chosen).float() / 255, torch.from_numpy(images.labels[chosen]))])[
        "loss"
    ].backward()
    hook.remove()
    (output,) = seen
    return (output.grad == 0).float().mean().item()


def layers(
    before: Algorithm, after: Algorithm, x: torch.Tensor
) -> list[tuple[str, tuple[int, ...], int, float | None]]:
    """Return name, shape of the output, number of weights and relative change of every layer, as they are passed."""
    found = []
    first = dict(before.named_modules())

    def visit(name: str, module: nn.Module, output: Any) -> None:
        last = [p.detach().flatten() for p in module.parameters()]
        change = None
        if last:
            start = torch.cat([p.detach().flatten() for p in first[name].parameters()])
            change = ((torch.cat(last) - start).norm() / start.norm()).item()
        found.append((f"{name} {module!r}", tuple(output.shape[1:]), sum(map(len, last)), change))

    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: visit(name, module, output))
        for name, module in after.named_modules()
        if not list(module.children())
    ]
    with torch.no_grad():
        after.reconstruct(x)
    for hook in hooks:
        hook.remove()
    return found


if __name__ == "__main__":
    sys.exit(main())
