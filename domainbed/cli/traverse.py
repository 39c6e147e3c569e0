"""`python -m domainbed traverse <run>`: what each latent dimension draws; interpolations and samples."""

from typing import Any

from domainbed.cli import positive
from domainbed.cli.analysis import add_images_option, finish, made, opened, run_parser

DESCRIPTION = """\
Draw what the latent dimensions of a run mean: each of the most important ones from -3 to 3 sigma around an image,
codes between two images, samples of the prior and of a Gaussian mixture fitted to the codes, and, on SyntheticFundus,
which known factor each dimension follows.

    python -m domainbed traverse results/train_output/DR/full_training --target idrid --dimensions 10
"""


def main(argv: list[str]) -> int:
    """Draw the pictures and print the figures; return the exit status."""
    parser = run_parser("traverse", DESCRIPTION)
    add_images_option(parser)
    parser.add_argument(
        "--dimensions", type=positive, default=10, help="so many of each level, largest KL first (default: 10)"
    )
    parser.add_argument("--num_images", type=positive, default=1, help="around how many images (default: 1)")
    parser.add_argument(
        "--components", type=positive, default=10, help="Gaussians in the mixture fitted to the codes (default: 10)"
    )
    arguments = parser.parse_args(argv)
    run = opened(arguments)
    from domainbed.analysis import traverse

    folder = made(arguments.out or run.folder_for("traverse"))
    found = traverse.analyse(
        run, folder, images=arguments.images, dimensions=arguments.dimensions, num_images=arguments.num_images,
        components=arguments.components,
    )  # fmt: skip
    return finish(arguments, folder, found, table)


def table(found: dict[str, Any]) -> list[str]:
    """The figures as lines: one for each dimension."""
    lines = []
    if found["dimensions"]:
        with_factors = found["factors"] is not None
        lines.append(
            f"mean and sigma of {found['images']} images ({found['images_of']}), checkpoint {found['checkpoint']}:"
        )
        head = " dimension  level  KL (nats)   sigma  image change"
        lines.append(head + ("  follows" if with_factors else ""))
        for one in found["dimensions"]:
            level = "–" if one["level"] is None else str(one["level"])
            kl = "–" if one["kl_nats"] is None else f"{one['kl_nats']:.3f}"
            change = "–" if one["image_change"] is None else f"{one['image_change']:.4f}"
            line = f"{one['name']:>10}  {level:>5}  {kl:>9}  {one['sigma']:>6.3f}  {change:>12}"
            if with_factors and one["factor"]:
                rank = "" if one["spearman"] is None else f", Spearman {one['spearman']:+.2f}"
                line += f"  {one['factor']} ({one['share']:.0%} of its entropy{rank})"
            elif with_factors:
                line += "  no known factor"
            lines.append(line)
    if found["factors"] is not None and found["factors"]["mig"] is not None:
        lines.append(f"mutual information gap (MIG): {found['factors']['mig']:.3f}")
    if mixture := found["mixture"]:
        kind = {"full": "full", "diag": "diagonal"}[mixture["covariance"]]
        lines.append(
            f"mixture: {mixture['components']} Gaussians of {kind} covariance, fitted to {mixture['images']} codes"
        )
    lines += [f"* {sentence}" for sentence in found["findings"]]
    return lines + [f"NOTE: {note}" for note in found["notes"]]
