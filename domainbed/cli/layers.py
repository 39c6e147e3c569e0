"""`python -m domainbed layers <run>`: what training changed in each layer, and what the layers answer."""

import textwrap
from typing import Any

from domainbed.cli import positive
from domainbed.cli.analysis import add_images_option, finish, made, opened, run_parser

DESCRIPTION = """\
Look into the layers of a run: does the loss move, do the weights of each layer change, which units never answer, what
do the layers make of an image, and what did the model make of it before training? Networks with many layers are shown
by block; layers.csv has every layer.
"""


def main(argv: list[str]) -> int:
    """Print the table; return the exit status."""
    parser = run_parser("layers", DESCRIPTION)
    add_images_option(parser)
    parser.add_argument("--per_environment", type=positive, default=64, help="at most so many of each (default: 64)")
    parser.add_argument("--num_images", type=positive, default=3, help="images whose channel maps are drawn")
    parser.add_argument("--max_channels", type=positive, default=10, help="channels of a layer that are drawn")
    arguments = parser.parse_args(argv)
    run = opened(arguments)
    from domainbed.analysis import layers

    folder = made(arguments.out or run.folder_for("layers"))
    found = layers.analyse(
        run, folder, arguments.images, arguments.per_environment, arguments.num_images, arguments.max_channels
    )
    return finish(arguments, folder, found, lines)


def lines(found: dict[str, Any]) -> list[str]:
    """The figures as text: structure and settings, the loss, the layers, figures before and after, what is amiss."""
    from domainbed.analysis.network import Layer, by_block, change_of
    from domainbed.summary import UNDEFINED, table

    made = found["structure"]
    text = [f"NOTE: {note}" for note in found["notes"]]
    text += ["", found["title"], ""]
    epochs = f" = {made['epochs']:.1f} epochs of {made['train_images']} images" if made["epochs"] is not None else ""
    said = {
        "input": f"{' x '.join(map(str, made['input_shape']))}, {made['dataset']}: {_settings(made['data'])}",
        "weights": f"{made['parameters']:,}, of which {made['trainable']:,} are trained",
        "optimiser": "; ".join(f"{name}: {one}" for name, one in made["optimizers"].items()),
        "training": _settings(made["training"]),
        "settings": _settings(made["settings"]),
        "length": f"{made['steps']} of {made['steps_asked']} steps of {made['batch']} images{epochs}",
    }
    for key, value in said.items():
        text += textwrap.wrap(f"{key:<11}{value}", 120, subsequent_indent=" " * 11)
    if found["loss"]:
        rows = []
        for term, one in found["loss"].items():
            loss = one["movement"]
            change = UNDEFINED if loss["decrease"] is None else f"{-loss['decrease']:+.1%}"
            rows.append([
                term, f"{loss['first']:.4g}", f"{loss['last']:.4g}", change,
                UNDEFINED if loss["noise"] is None else f"{loss['noise']:.2g}",
                {None: "too few records", True: "yes", False: "no"}[loss["moves"]], loss["end"] or UNDEFINED,
            ])  # fmt: skip
        head = ["loss in training", "first", "last", "change", "noise", "moves", "at the end"]
        text += ["", *table(head, rows, words=1)]
    layers = [Layer(**one) for one in found["layers"]]
    rows = []
    for name, members in by_block(layers):
        shapes = [one.shape for one in members if one.shape]
        dead, constant = (
            [v for one in members if (v := getattr(one, key)) is not None] for key in ("dead", "constant")
        )
        parameters = sum(one.parameters for one in members)
        changed = change_of(members) if parameters else members[0].change
        rows.append([
            name, members[0].kind if len(members) == 1 else f"{len(members)} layers",
            " x ".join(map(str, shapes[-1])) if shapes else UNDEFINED,
            f"{parameters:,}" if parameters else "", _change(members, parameters, changed),
            _share(max(dead, default=None), ""), _share(max(constant, default=None), ""),
        ])  # fmt: skip
    head = ["layer", "kind", "output", "weights", "change", "dead", "constant"]
    text += ["", *table(head, rows, words=3)]
    if len(rows) < len(layers):
        text.append(
            f"({len(layers)} layers, by block; dead and constant of the worst of each. layers.csv has them all)"
        )
    text += ["", *_before_and_after(found), ""]
    for finding in found["findings"]:
        text += textwrap.wrap(finding, 120, subsequent_indent="    ")
    if share := found["without_gradient"]:
        shown = ", ".join(f"{share[when]:.1%} {when} training" for when in ("before", "after") if share.get(when))
        if shown:
            text.append(f"the loss sends no gradient to {shown} of the values of {share['layer']}")
    return text


def _before_and_after(found: dict[str, Any]) -> list[str]:
    """A table of figures with the first weights and these, of every environment."""
    from domainbed.summary import COLUMNS, table

    rows: list[list[str]] = []
    for name, one in found["environments"].items():
        for key, title in [*COLUMNS.items(), ("brightness", "brightness")]:
            if one["after"].get(key) is None:
                continue
            beside = {
                "psnr": f"mean image {one.get('psnr_mean_image', 0):.2f}, black {one.get('psnr_black', 0):.2f}",
                "brightness": f"images {one.get('brightness_images', 0):.3f}",
            }
            before = one["before"].get(key)
            whose = f"{name} ({one['role']}, {one['n']} images)"
            rows.append([
                "" if whose in (row[0] for row in rows) else whose, title,
                "" if before is None else f"{before:.4g}", f"{one['after'][key]:.4g}", beside.get(key, ""),
            ])  # fmt: skip
    return table(["images", "figure", "before", "after", "beside"], rows, words=2)


def _change(members: Any, parameters: int, changed: float | None) -> str:
    """The change of a layer or a block in a cell."""
    if parameters and not any(one.trainable for one in members):
        return "frozen"
    began_at_zero = changed is None and any(one.norms and one.norms[1] for one in members)
    return "from 0" if began_at_zero else _share(changed, "")


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None) or "none"


def _share(value: float | None, undefined: str = "–") -> str:
    return undefined if value is None else f"{value:.1%}"
