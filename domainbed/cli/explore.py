"""`python -m domainbed explore <folder>`: what is in a folder of images, and how far its environments are apart."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from domainbed.cli import Parser, positive
from domainbed.cli.analysis import Found, finish, made
from domainbed.cli.configuration import COMMAND_LINE, read_arguments
from domainbed.errors import UserError
from domainbed.hparams import Layer, resolve
from domainbed.paths import as_path, user_path
from domainbed.registry import DATASETS, add_plugin

DESCRIPTION = """\
Look at a data set before training: images per class, sizes and formats, files that can't be read, duplicates, exposure,
focus, frame, printed text and stray light, and how well the environments of images can be told apart. The folder is
read as a run would read it; images are looked at as they are stored, before preprocessing.
"""


def main(argv: list[str]) -> int:
    """Print tables; return the exit status."""
    parser = Parser(DESCRIPTION, command="explore")
    parser.add_argument(
        "words", nargs="*", metavar="data_dir | key=value", help="folder of the images, or a manifest; and settings "
        "of the data set. Without a folder: --dataset SyntheticFundus"
    )  # fmt: skip
    parser.add_argument(
        "--dataset", help="data set that reads them (default: DR, or Folder where classes are no grades)"
    )
    parser.add_argument("--max_images", type=positive, help="images of each environment (default: all)")
    parser.add_argument("--num_workers", type=positive, help="threads that read (default: one per core)")
    parser.add_argument("--plugin", nargs="+", default=[], help="Python files that register the data set")
    parser.add_argument(
        "--out", type=as_path, help="folder of pictures and figures.json (default: results/explore/<name>)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    arguments = parser.parse_intermixed_args(argv)
    for path in arguments.plugin:
        add_plugin(path)
    places = [word for word in arguments.words if "=" not in word]
    if len(places) > 1:
        raise UserError(
            f"explore reads one folder, but {' and '.join(map(repr, places))} are given. Leave all but one out"
        )
    place = places[0] if places else None
    settings = read_arguments([word for word in arguments.words if "=" in word]).values
    dataset = open_dataset(place, arguments.dataset, settings)

    from domainbed.analysis.explore import analyse
    from domainbed.machine import default_num_workers

    name = user_path(place).resolve().name if place else arguments.dataset
    folder = made(arguments.out or Path("results") / "explore" / name)
    workers = arguments.num_workers or default_num_workers()
    return finish(
        arguments, folder, analyse(dataset, folder, max_images=arguments.max_images, num_workers=workers), lines
    )


def open_dataset(place: str | None, name: str | None, settings: dict[str, Any]) -> Any:
    """Return the data set of a folder: of the given name, or else DR, or Folder where the classes are no grades.

    Raises:
        UserError: no such folder, data set or setting, or the folder is laid out otherwise.
    """
    if place is None and name is None:
        raise UserError("explore needs images. Give the folder, as in: python -m domainbed explore <folder>")
    from domainbed.datasets.base import refuse_vectors
    from domainbed.datasets.tables import SUFFIXES

    folder = None if place is None else user_path(place)
    if name is None and folder is not None and folder.suffix.lower() in SUFFIXES:
        name = "Manifest"
    if name is not None:
        refuse_vectors(DATASETS[name], "explore looks at images")
        return _constructed(DATASETS[name], folder, settings)
    with suppress(UserError):
        return _constructed(DATASETS["DR"], folder, settings)
    return _constructed(DATASETS["Folder"], folder, settings)  # whose complaint, if any, is the more general one


def _constructed(cls: Any, folder: Path | None, settings: dict[str, Any]) -> Any:
    hparams = resolve([cls.HParams], [Layer(COMMAND_LINE, settings)]).models[cls.HParams]
    try:
        return cls(folder, hparams)
    except UserError:
        if folder is None or "environments" not in cls.HParams.model_fields or not folder.is_dir():
            raise
        with suppress(UserError):  # <class>/<image>: one environment
            folder = folder.resolve()
            return cls(folder.parent, hparams.model_copy(update={"environments": [folder.name]}))
        raise


def lines(found: Found) -> list[str]:
    """The figures as text: one table each of images, checks and figures, then duplicates and distance."""
    environments = found["environments"]
    plural = "s" * (len(environments) != 1)
    text = [f"{found['dataset']}: {found['images']} images of {len(environments)} environment{plural}"]
    text += [f"NOTE: {note}" for note in found["notes"]]
    bare = ["no label"] if found["classes"] and any(one["unlabelled"] for one in environments.values()) else []
    text += ["", *columns(["environment", "images", "patients", *found["classes"], *bare, "sizes", "formats"], [
        [
            name, str(one["images"]), str(one["groups"]), *(str(count) for count in one["per_class"].values()),
            *[str(one["unlabelled"])] * len(bare),
            sizes(one["sizes"]), ", ".join(f"{kind} {count}" for kind, count in one["formats"].items()) or "-",
        ]
        for name, one in environments.items()
    ])]  # fmt: skip
    if distance := found["class_distance"]:
        text.append(
            f"shares of classes differ by {distance['distance']:.0%} between {' and '.join(distance['between'])}"
        )
    if found["unreadable"]:
        text += ["", f"{len(found['unreadable'])} images can't be read:"]
        text += [f"  {name}: {reason}" for name, reason in found["unreadable"]]
    return (
        text
        + [""]
        + checks(environments)
        + [""]
        + distributions(environments)
        + [""]
        + same(found)
        + [""]
        + apart(found)
    )


def checks(environments: dict[str, Any]) -> list[str]:
    """How many images of each environment there is something to see in."""
    from domainbed.analysis.photograph import CHECKS

    def count(environment: dict[str, Any], number: int, among: int) -> str:
        return f"{number} ({number / among:.1%})" if among else "-"

    rows = [["retina found", *(count(one, one["retina"], one["images"]) for one in environments.values())]]
    retinas = sum(one["retina"] for one in environments.values())
    for check in (one for one in CHECKS if retinas or not one.of_retinas):
        rows.append([
            check.title,
            *(
                count(one, one["checks"][check.name], one["retina"] if check.of_retinas else one["images"])
                for one in environments.values()
            ),
        ])  # fmt: skip
    return columns(["images that are, or show", *environments], rows)


def distributions(environments: dict[str, Any]) -> list[str]:
    """Median and 90 % range of some figures of each environment."""
    from domainbed.analysis.explore import SHOWN

    def span(figures: dict[str, float] | None) -> str:
        return f"{figures['median']:.3f} [{figures['p5']:.3f}, {figures['p95']:.3f}]" if figures else "-"

    rows = [[name, *(span(one["figures"][name]) for one in environments.values())] for name in SHOWN]
    return columns(["median [5 %, 95 %]", *environments], rows)


def same(found: Found) -> list[str]:
    """Groups of images that show the same, those of different classes first."""
    groups = found["duplicates"]
    if not groups:
        return ["duplicates: none"]
    exact = sum(group["exact"] for group in groups)
    differ = [group for group in groups if group["classes_differ"]]
    text = [
        f"duplicates: {len(groups)} groups, {exact} of them equal to the pixel; the classes differ in {len(differ)}"
    ]
    for group in (differ + [group for group in groups if not group["classes_differ"]])[:MOST_GROUPS]:
        sign = " = " if group["exact"] else " ~ "
        labels = f": classes {', '.join(map(str, group['classes'][:4]))}" if group["classes_differ"] else ""
        more = f" and {len(group['files']) - 4} more" if len(group["files"]) > 4 else ""
        text.append(f"  {sign.join(group['files'][:4])}{more}{labels}")
    if len(groups) > MOST_GROUPS:
        text.append(f"  and {len(groups) - MOST_GROUPS} more groups, see figures.json")
    return text + [f"WARNING: {line}" for line in found["leaks"]]


def apart(found: Found) -> list[str]:
    """How well environments are told apart, by which figures."""
    shift = found["shift"]
    if shift is None:
        return ["distance of environments: there are no two with two patients or more, or all look alike"]
    rows = [
        [
            title,
            f"{one['balanced_accuracy']:.3f}",
            "[{:.3f}, {:.3f}]".format(*one["interval"]) if one["interval"] else "-",
        ]
        for title, one in shift["told_by"].items()
    ]
    text = columns(["environment told by", "balanced accuracy", "95 %"], rows)
    text.append(f"chance is {shift['chance']:.3f}; logistic regression on {shift['images']} images, cross-validated")
    best = [
        f"{name} {one['auc']:.3f} ({one['is']} in {one['environment']})" for name, one in list(shift["auc"].items())[:5]
    ]
    return [*text, f"most telling alone, by area under the ROC curve: {', '.join(best)}"]


#: Groups of duplicates that are printed; all are in figures.json.
MOST_GROUPS = 12


def sizes(counts: list[list[int]]) -> str:
    """Sizes in words: the only one, or the most frequent one and the range."""
    if not counts:
        return "-"
    if len(counts) == 1:
        return f"{counts[0][0]} x {counts[0][1]}"
    wide, high, number = counts[0]
    low, most = (tuple(pick(one[side] for one in counts) for side in (0, 1)) for pick in (min, max))
    return f"{len(counts)} sizes, {low[0]}-{most[0]} x {low[1]}-{most[1]}, {number} of {wide} x {high}"


def columns(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a table with a line under its head; the first column is left-aligned."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: list[str]) -> str:
        first, *others = (f"{cell:<{widths[0]}}" if i == 0 else f"{cell:>{widths[i]}}" for i, cell in enumerate(cells))
        return "  ".join([first, *others]).rstrip()

    return [line(head), line(["-" * width for width in widths]), *(line(row) for row in rows)]
