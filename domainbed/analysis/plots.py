"""How a figure looks: one style for every plot, drawn without a screen and without global state.

    figure, axes = new_figure(6.0, 4.0)
    axes.plot(steps, losses, color=COLOURS[0])
    save(figure, folder / "loss.png")

Sheets of images are drawn by `reconstructions.sheet`.
"""

import warnings
from pathlib import Path
from typing import Any

from PIL import Image

from domainbed.analysis.extras import require
from domainbed.errors import explain_os_errors
from domainbed.names import printable

#: Okabe & Ito 2008, told apart by colour-blind readers, too; grey for their yellow, which white paper swallows, and
#: two dark ones, so that ten digits differ.
#: Environments and runs take them in order.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A8A", "#882255", "#6A3D9A",
)  # fmt: skip
#: Beside colours, so that a grey print can be read: environments take them in order.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", "p")
#: For quantities: perceptually uniform, and in its turn readable in grey.
SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
}
DPI = 150


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """Return a figure of some inches, and its axes: one, or an array (rows, columns).

    Args:
        options: of `Figure.subplots`, such as sharex=True.

    Raises:
        UserError: matplotlib is not installed.
    """
    matplotlib = require("matplotlib", "analysis", "a plot")
    require("matplotlib.backends.backend_agg", "analysis", "a plot")
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes[0, 0] if rows == columns == 1 else axes


def save(figure: Any, path: Path) -> None:
    """Write a figure as a PNG. Names stand as they are, even with two `$`, which make a formula elsewhere.

    What can't be drawn is escaped, and a letter that the font lacks is a box.

    Raises:
        UserError: the disk is full or the folder can't be written.
    """
    from matplotlib.text import Text
    from matplotlib.ticker import FuncFormatter

    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        named = axis.get_major_formatter()
        if isinstance(named, FuncFormatter):  # of labels that were given: it writes them anew when they are drawn
            axis.set_major_formatter(FuncFormatter(lambda *tick, named=named: _drawable(named(*tick))))
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_text(_drawable(text.get_text()))
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) if axis.get_scale() != "linear"):
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            tick.label1.set_parse_math(True)  # powers of ten are formulas
    with explain_os_errors(f"writing {path}"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def _drawable(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def save_image(picture: Image.Image, path: Path) -> None:
    """Write a sheet of images, such as those of `reconstructions`, in the format of the suffix.

    Raises:
        UserError: the disk is full or the folder can't be written.
    """
    with explain_os_errors(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


def colour(index: int) -> str:
    """Return the colour of the index-th environment, class or run; they repeat after ten."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    """Return the marker of the index-th environment, class or run; they repeat after ten."""
    return MARKERS[index % len(MARKERS)]
