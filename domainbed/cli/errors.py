"""`python -m domainbed errors <run>`: the most wrong answers, the worst reconstructions and masks, by environment."""

from typing import Any

from domainbed.cli import positive
from domainbed.cli.analysis import add_images_option, finish, made, opened, run_parser

DESCRIPTION = """\
Find where a run is wrong: the most confident wrong answers and those furthest from the true grade, the worst
reconstructions and masks of each environment, calibration, confusion, and by how much the environment that was left out
is worse than the others. errors.csv has a line for every image that was looked at.
"""
SHOWN = 3  # images of each kind in the table; pictures and figures.json have more
KINDS = {
    "confident": "most confident wrong answers",
    "far": "furthest from the true grade",
    "reconstruction": "worst reconstructions",
    "mask": "worst masks",
}


def main(argv: list[str]) -> int:
    """Print the table; return the exit status."""
    parser = run_parser("errors", DESCRIPTION)
    add_images_option(parser)
    parser.add_argument("--per_environment", type=positive, help="at most so many of each environment (default: all)")
    parser.add_argument("--num_worst", type=positive, default=8, help="images in a picture (default: 8)")
    arguments = parser.parse_args(argv)
    run = opened(arguments)
    from domainbed.analysis import errors

    folder = made(arguments.out or run.folder_for("errors"))
    found = errors.analyse(run, folder, arguments.images, arguments.per_environment, arguments.num_worst)
    return finish(arguments, folder, found, lines)


def lines(found: dict[str, Any]) -> list[str]:
    """The figures as text: a row for each environment, what was left out beside the rest, and the worst images."""
    from domainbed.summary import COLUMNS, UNDEFINED, table

    text = [*(f"NOTE: {note}" for note in found["notes"]), "", f"{found['title']}, {found['images_of']} images"]
    calibrated = {"confidence": "confidence", "ece": "ECE", "ece_adaptive": "adaptive ECE", "brier": "Brier",
                  "nll": "NLL"}  # fmt: skip
    places = found["environments"].values()
    rows = [
        [title, *(_cell(one["metrics"].get(key), one["intervals"].get(key)) for one in places)]
        for key, title in COLUMNS.items()
        if any(one["metrics"].get(key) is not None for one in places)
    ]
    rows += [
        [title, *(_cell(one["calibration"][key]) for one in places)]
        for key, title in calibrated.items()
        if all("calibration" in one for one in places)
    ]
    rows = [["images (groups)", *(f"{one['n']} ({one['num_groups']})" for one in places)], *rows]
    names = [f"{name}{' (left out)' if one['is_target'] else ''}" for name, one in found["environments"].items()]
    text += ["", *table(["figure [95 % interval]", *names], rows, words=1)]
    if found["differences"]:
        rows = [
            [one["environment"], COLUMNS[one["figure"]], f"{one['value']:.4g}", f"{one['others']:.4g}",
             f"{one['difference']:+.4g}",
             "[{:+.4g}, {:+.4g}]".format(*one["interval"]) if one["interval"] else UNDEFINED, one["verdict"]]
            for one in found["differences"]
        ]  # fmt: skip
        head = ["left out of training", "figure", "value", "others", "difference", "95 % interval", "verdict"]
        text += ["", *table(head, rows, words=2)]
        text.append("a difference holds what makes these images harder for any answer, too: report compares advantages")
    for name, one in found["environments"].items():
        for kind, images in one["worst"].items():
            if images:
                text += ["", f"{name}, {KINDS[kind]}:", *(f"  {_one(kind, image)}" for image in images[:SHOWN])]
    return text


def _cell(value: float | None, interval: list[float] | None = None) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" + (" [{:.4g}, {:.4g}]".format(*interval) if interval else "")


def _one(kind: str, image: dict[str, Any]) -> str:
    """What is wrong with one image."""
    if kind == "mask":
        return f"{image['image']}: Dice {image['dice']:.3f}"
    if kind == "reconstruction":
        return f"{image['image']}: {image['psnr']:.1f} dB"
    return f"{image['image']}: {image['answer']} (p = {image['probability']:.2f}), true: {image['class']}"
