"""How a report looks: one HTML page that needs no server and no network. What it shows comes from `parts`.

Everything that comes from data is escaped here: text by `escape`, and what the script reads by `as_json`. The page's
own content security policy forbids every request, so that nothing can be loaded even by mistake.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from domainbed.analysis.compare import short_names
from domainbed.records import finite
from domainbed.summary import CHOSEN_ON_TARGET, COLUMNS, ORACLE, PARTS, UNDEFINED, label, number

_HERE = Path(__file__).parent
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(title: str, sections: Sequence[tuple[str, str, str]], data: Mapping[str, Any]) -> str:
    """Return the whole page.

    Args:
        title: of the page. sections: (id, heading, content as HTML), in order. data: what the script reads.
    """
    links = "".join(f'<li><a href="#{name}">{escape(heading)}</a></li>' for name, heading, _ in sections)
    content = "\n".join(
        f'<section id="{name}" aria-labelledby="{name}-h"><h2 id="{name}-h">{escape(heading)}</h2>\n{body}</section>'
        for name, heading, body in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{(_HERE / "page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header>
<h1>{escape(title)}</h1>
<div class="tools">
<button type="button" id="theme" aria-pressed="false">Dark</button>
<button type="button" id="save">Save all figures (JSON)</button>
</div>
</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main id="content">
<noscript><p class="note">Curves, the map and the slider need JavaScript, which is switched off here.</p></noscript>
{content}
</main>
<footer><p>Made by <code>python -m domainbed report</code>. The definitions of all figures are in the project's
documentation.</p></footer>
<script type="application/json" id="data">{as_json(data)}</script>
<script>
{(_HERE / "page.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""


def as_json(data: Any) -> str:
    """Return JSON that can't end the element that it stands in."""
    text = json.dumps(finite(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def paragraphs(texts: Iterable[str], kind: str = "") -> str:
    """Return paragraphs, of a class where one is given."""
    of_class = f' class="{kind}"' if kind else ""
    return "".join(f"<p{of_class}>{escape(text)}</p>\n" for text in texts)


def bullets(texts: Sequence[str]) -> str:
    """Return a list, nothing for none; what stands between backticks is code."""
    items = (re.sub("`([^`]+)`", r"<code>\1</code>", escape(text)) for text in texts)
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>\n" if texts else ""


def facts(pairs: Mapping[str, str]) -> str:
    """Return a list of names with what they are."""
    return (
        "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs.items()) + "</dl>\n"
    )


def answers(verdicts: Sequence[Mapping[str, str]]) -> str:
    """Return questions, their answers in a word, and why."""
    kinds = {"Yes": "yes", "No": "no"}
    rows = "".join(
        f'<li><span class="answer {kinds.get(one["answer"], "open")}">{escape(one["answer"])}</span>'
        f"<div><strong>{escape(one['question'])}</strong><br>{escape(one['because'])}</div></li>"
        for one in verdicts
    )
    return f'<ul class="answers">{rows}</ul>\n' if verdicts else ""


Cell = str | tuple[str, float | None]


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[Cell]], words: int = 1) -> str:
    """Return a table whose columns sort.

    Args:
        caption: what it holds. head: names of the columns. words: the first so many columns are text; the others, and a
            cell given as (text, number), sort by number.
    """
    heads = "".join(
        f'<th scope="col" aria-sort="none"{"" if index < words else _NUMERIC}><button type="button">{escape(name)}'
        "</button></th>"
        for index, name in enumerate(head)
    )
    lines = []
    for row in rows:
        cells = []
        for index, cell in enumerate(row):
            text, value = (cell, None) if isinstance(cell, str) else cell
            key = "" if value is None else f' data-value="{value!r}"'
            kind = "" if index < words else _NUMERIC
            tag = ("th", ' scope="row"') if index == 0 else ("td", "")
            cells.append(f"<{tag[0]}{tag[1]}{kind}{key}>{escape(text)}</{tag[0]}>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead>\n<tbody>{''.join(lines)}</tbody></table></div>\n"
    )


_NUMERIC = ' class="n"'


def figures(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str], names: Mapping[str, str]) -> str:
    """Return a table for each part that has one, from rows of `compare.tables`; `names` of the runs, by label."""
    text = ""
    several_runs = len({row["run"] for row in rows} - {None}) > 1
    for part in [part for part in PARTS if any(row["part"] == part for row in rows)]:
        of_part = [row for row in rows if row["part"] == part]
        shown = [metric for metric in metrics if any(metric in row["figures"] for row in of_part)]
        several = any(one["n"] > 1 for row in of_part for one in row["figures"].values())
        head = [*["run"] * several_runs, "environment", "protocol", "images", *(COLUMNS[metric] for metric in shown)]
        spread = " Mean ± standard deviation (n − 1) over seeds." if several else ""
        if any(one["interval"] for row in of_part for one in row["figures"].values()):
            spread += " In brackets 95 % intervals over groups of images, for these weights."
        text += table(
            f"{PARTS[part]}.{spread}",
            head,
            [
                [
                    *[names.get(row["run"], "(any run)")] * several_runs,
                    row["unit"],
                    label(row["protocol"]),
                    (str(row["n"]), float(row["n"])),
                ]
                + [_figure(metric, row["figures"].get(metric)) for metric in shown]
                for row in of_part
            ],
            words=2 + several_runs,
        )
    if any(row["protocol"] == ORACLE for row in rows):
        text += paragraphs([CHOSEN_ON_TARGET])
    return text


def _figure(metric: str, one: Mapping[str, Any] | None) -> Cell:
    if one is None:
        return UNDEFINED
    spread = f" ± {number(metric, one['sd'])}" if one["sd"] else ""
    if one["interval"]:
        spread = f" [{', '.join(number(metric, bound) for bound in one['interval'])}]"
    return number(metric, one["mean"]) + spread, one["mean"]


def differences(found: Mapping[str, Any]) -> str:
    """Return the table of differences of `compare`, and what it does not say."""
    if not found["differences"]:
        return paragraphs(["No two runs have a figure of the same images: there is no difference to judge."])
    rows: list[list[Cell]] = []
    names = short_names(found)
    for one in found["differences"]:
        values = [
            (f"{value:{form}}", value) if (value := one[key]) is not None else UNDEFINED
            for key, form in (("difference", "+.4g"), ("se", ".4g"), ("n", "d"), ("p_holm", ".3f"))
        ]
        better = f": {names[one['better']]} is better" if one["better"] else ""
        pair = f"{names[one['one']]} − {names[one['other']]}"
        rows.append([COLUMNS[one["metric"]], pair, one["verdict"] + better, *values])
    head = ["figure", "pair", "verdict", "difference", "standard error", "seeds", "p (Holm)"]
    caption = "Which differences exceed the seed noise: a paired t test over seeds, training-domain validation."
    warning = (
        "Each figure is a family of its own, adjusted by Holm over the pairs: decide on one before you look. "
        "“Does not exceed” is no proof of equality."
    )
    return table(caption, head, rows, words=3) + paragraphs([warning])


def pictures(found: Sequence[Mapping[str, Any]]) -> str:
    """Return pictures with title and caption."""
    return "".join(
        f'<figure><h4>{escape(one["title"])}</h4><div class="scroll" role="region" tabindex="0" '
        f'aria-label="{escape(one["title"])}"><img src="{one["src"]}" width="{one["width"]}" height="{one["height"]}" '
        f'alt="{escape(one["title"])}. {escape(one["caption"])}"></div>'
        f"<figcaption>{escape(one['caption'])}</figcaption></figure>\n"
        for one in found
    )


def section(found: Mapping[str, Any]) -> str:
    """Return a section of `parts.sections`."""
    if found["why_not"] is not None:
        return paragraphs([f"Left out: {found['why_not']}"], "note")
    return paragraphs(found["notes"], "note") + bullets(found["findings"]) + pictures(found["pictures"])


def curves(key: str) -> str:
    """Return the place where the script draws curves; `key` names them in the data."""
    return f'<div class="curves" data-key="{key}"></div>\n'


def slider(key: str, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the slider through the steps of some pictures; `key` names them in the data."""
    first = next(iter(found))
    last = found[first][-1]
    options = "".join(f'<option value="{escape(name)}">{escape(_spoken(name))}</option>' for name in found)
    return f"""<div class="slider" data-key="{key}">
<p class="controls"><label for="{key}-what">Images</label> <select id="{key}-what">{options}</select>
<label for="{key}-step">Step</label> <input type="range" id="{key}-step" min="0" max="{len(found[first]) - 1}"
 value="{len(found[first]) - 1}" step="1"> <output for="{key}-step"></output></p>
<div class="scroll" role="region" tabindex="0" aria-label="Reconstructions"><img src="{last["src"]}"
 width="{last["width"]}" height="{last["height"]}" alt="Reconstructions of {escape(_spoken(first))}"></div>
</div>
"""


def _spoken(name: str) -> str:
    """Name of a picture's file as a person says it."""
    if name == "samples":
        return "samples from the prior"
    environment, _, split = name.rpartition("_")
    return f"{environment}, {({'val': 'held-out', 'train': 'train'}).get(split, split)} images"


def latent_map(key: str, found: Mapping[str, Any]) -> str:
    """Return the map of `parts.latent_map`, to be drawn by the script; `key` names it in the data."""
    options = "".join(
        f'<option value="{name}">{text}</option>'
        for name, text in (("class", "class"), ("environment", "environment"))
        if found["classes"] or name == "environment"
    )
    label = f"Map of {len(found['names'])} images by their codes ({found['kind']}). Arrow keys go from image to image."
    return f"""<div class="map" data-key="{key}">
<p class="controls"><label for="{key}-by">Colour by</label> <select id="{key}-by">{options}</select></p>
<div class="beside"><div class="plot"><svg viewBox="0 0 640 480" tabindex="0" role="application"
 aria-label="{escape(label)}" aria-describedby="{key}-shown"></svg><ul class="legend"></ul></div>
<div class="shown" id="{key}-shown" aria-live="polite"><div class="thumb" role="img" aria-label="no image yet"></div>
<p>Point at an image, or use the arrow keys in the map.</p></div></div>
<p>{escape(found["kind"])}. Distances in a map of two dimensions are not those between codes.</p>
</div>
"""
