"""`python -m domainbed latents <run>`: maps and figures of a run's latent codes."""

import argparse
from typing import Any

from domainbed.cli import positive
from domainbed.cli.analysis import add_images_option, finish, made, opened, run_parser

DESCRIPTION = """\
Map the codes of a run's images by PCA, t-SNE and UMAP, coloured by class and by environment, and print what can be
read off the codes themselves: neighbours, a linear probe, the KL of each dimension, dead levels, unused codes.

    python -m domainbed latents results/train_output/DR/full_training --target idrid --perplexity 4 12
"""
MAPS = ("pca", "tsne", "umap")


def main(argv: list[str]) -> int:
    """Draw the maps and print the figures; return the exit status."""
    parser = run_parser("latents", DESCRIPTION)
    add_images_option(parser)
    parser.add_argument(
        "--per_environment", type=positive, default=1000, help="at most so many of each environment (default: 1000)"
    )
    parser.add_argument("--maps", nargs="+", default=list(MAPS), choices=MAPS, help="default: all")
    parser.add_argument(
        "--perplexity", nargs="+", type=perplexity, default=[30.0], help="of t-SNE, a map for each (default: 30)"
    )
    parser.add_argument(
        "--neighbors", nargs="+", type=at_least_two, default=[15], help="of UMAP, a map for each (default: 15)"
    )
    arguments = parser.parse_args(argv)
    run = opened(arguments)
    from domainbed.analysis import latents

    folder = made(arguments.out or run.folder_for("latents"))
    found = latents.analyse(
        run, folder, images=arguments.images, per_environment=arguments.per_environment, maps=arguments.maps,
        perplexities=arguments.perplexity, neighbours=arguments.neighbors,
    )  # fmt: skip
    return finish(arguments, folder, found, table)


def perplexity(text: str) -> float:
    """Return a perplexity, as the type of an argument."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a perplexity, a number of at least 1 such as 30")
    return value


def at_least_two(text: str) -> int:
    """Return a whole number of at least 2, as the type of an argument."""
    if positive(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r} is too few neighbours: give 2 or more")
    return int(text)


def table(found: dict[str, Any]) -> list[str]:
    """The figures as lines: what the codes tell apart, the posterior, the codebook, the maps."""
    lines = [f"codes of {found['images']} images ({found['images_of']}), checkpoint {found['checkpoint']}:"]
    lines += [f"  {name}: {one['images']} ({one['role']})" for name, one in found["environments"].items()]
    for what in ("class", "environment"):
        if figures := found[what]:
            lines.append(f"{what} ({len(figures['names'])}: {', '.join(figures['names'])})")
            for key, title in (("neighbours", "10 nearest neighbours"), ("probe", "linear probe")):
                value, interval = figures[key]["balanced_accuracy"], figures[key]["interval"]
                between = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
                lines.append(f"  {title:<22} {value:6.3f}{between}   chance {figures['chance']:.3f}")
            lines.append(f"  {'silhouette':<22} {figures['silhouette']:6.3f}")
    if pca := found["pca"]:
        count = ", ".join(f"{float(share):.0%} in {number}" for share, number in pca["components_for"].items())
        lines.append(f"variance, of {pca['dimensions']} dimensions: {count} principal components")
    if posterior := found["posterior"]:
        lines.append("posterior                   dimensions  active  KL (nats)")
        levels = posterior["levels"] if len(posterior["levels"]) > 1 else []
        for name, one in [(f"level {level['level']}", level) for level in levels] + [("all", posterior)]:
            lines.append(f"  {name:<25} {one['dimensions']:>10}  {one['active_units']:>6}  {one['kl_nats']:>9.3f}")
        of = f" of level {posterior['mutual_information_level']}" if levels else ""
        mutual, bound = posterior["mutual_information_nats"], posterior["mutual_information_bound_nats"]
        lines.append(f"  mutual information{of}: {mutual:.2f} nats, of at most log N = {bound:.2f}")
        if posterior["marginal_kl_nats"] is not None:
            lines.append(f"  KL of all codes together{of} from the prior: {posterior['marginal_kl_nats']:.2f} nats")
    if use := found["codebook"]:
        lines.append(f"codebook of {use['codes']}, grid {use['grid'][0]} x {use['grid'][1]}     used  perplexity")
        for name, one in [*use["environments"].items(), ("all", use)]:
            lines.append(f"  {name:<28} {one['used']:>6} {one['perplexity']:>11.1f}")
    if found["maps"]:
        lines.append("map                          trustworthiness")
        lines += [f"  {one['title']:<26} {one['trustworthiness']:>15.3f}" for one in found["maps"].values()]
    lines += [f"* {sentence}" for sentence in found["findings"]]
    return lines + [f"NOTE: {note}" for note in found["notes"]]
