"""The page of a run: its words against planted figures, its pictures, and that it needs nobody and escapes everything.

How it behaves in a browser is in test_report_in_a_browser.
"""

import base64
import io
import json
import re
import sys
import types
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import in_memory
import numpy as np
import pytest
import torch
from PIL import Image
from planted_runs import plant
from report_runs import EVIL, opened, with_pictures
from sklearn.decomposition import PCA

from domainbed.algorithms.vae import VAE
from domainbed.analysis import latents
from domainbed.analysis.recorded import RecordedRun
from domainbed.analysis.report import html, parts, words, write
from domainbed.errors import UserError
from domainbed.testing import build

VOID = {"meta", "link", "img", "input", "br", "path", "circle", "line", "rect"}


def answers(folder: Path) -> dict[str, tuple[str, str]]:
    found = words.verdicts(RecordedRun.read(folder))
    return {one["question"]: (one["answer"], one["because"]) for one in found}


BEATS = "Does it predict labels of the left-out environment better than the trivial answer (majority class)?"
SURVIVES = "Does its ability to predict labels survive the left-out environment?"


@pytest.mark.parametrize(
    "values, between, beats, survives",
    [
        ([0.90], (0.80, 0.95), "Yes", "Yes"),  # 0.5 above on its own environments, 0.5 above here
        ([0.60], (0.55, 0.65), "Yes", "In part"),
        ([0.45], (0.35, 0.55), "Can't be told", "Can't be told"),  # from the majority class
        ([0.35], (0.25, 0.45), "Can't be told", "Can't be told"),  # below it, and not clearly so
        ([0.20], (0.10, 0.30), "No", "No"),
    ],
)
def test_whether_a_model_beats_its_trivial_answer_is_read_off_the_interval(
    tmp_path: Path, values: list[float], between: tuple[float, float], beats: str, survives: str
) -> None:
    figures = {(seed, "x"): {"accuracy": value} for seed, value in enumerate(values)}
    home = {"accuracy": 1.0}  # the trivial answer has half of it
    folder = plant(tmp_path / "run", figures, majority={"accuracy": 0.4}, sources=home, intervals={"accuracy": between})
    found = answers(folder)
    assert (found[BEATS][0], found[SURVIVES][0]) == (beats, survives)
    assert f"{values[0]:.3f}" in found[BEATS][1] and "0.400" in found[BEATS][1]
    assert "+0.500" in found[SURVIVES][1]
    if survives == "In part":
        assert "keeps 40%" in found[SURVIVES][1]  # 0.2 of 0.5


def test_seeds_that_disagree_are_an_answer_in_part(tmp_path: Path) -> None:
    figures = {(seed, "x"): {"accuracy": value} for seed, value in enumerate((0.7, 0.3, 0.6))}
    found = answers(plant(tmp_path / "run", figures, majority={"accuracy": 0.5}))
    assert found[BEATS][0] == "In part" and "In 2 of 3 trainings" in found[BEATS][1]
    assert found[SURVIVES][0] == "Can't be told"  # nothing was recorded of its own environments


def test_a_model_that_beats_nothing_at_home_has_nothing_that_could_survive(tmp_path: Path) -> None:
    folder = plant(
        tmp_path / "run", {(0, "x"): {"accuracy": 0.9}}, majority={"accuracy": 0.4}, sources={"accuracy": 0.0}
    )
    assert "nothing that could survive" in answers(folder)[SURVIVES][1]


def test_a_collapsed_posterior_is_named(tmp_path: Path) -> None:
    question = "Does the latent code say anything about the image?"
    for name, kl, said in (("dead", 0.002, True), ("alive", 12.0, False)):
        figures = {"psnr": 20.0, "KLD_nats": kl}
        found = answers(plant(tmp_path / name, {(0, "x"): figures}, sources=figures))
        assert (question in found) == said


def test_the_map_is_the_pca_of_scikit_learn_up_to_its_scale() -> None:
    run = opened()
    found = parts.latent_map(run)
    rows = np.concatenate(list(run.rows().values()))
    codes = run.compute(rows, lambda x, y: {"code": run.algorithm.encode(x)})["code"]
    expected = PCA(2).fit_transform(codes.double().numpy())
    drawn = np.array(found["points"]) * [1, -1]
    for axis in range(2):
        assert abs(np.corrcoef(drawn[:, axis], expected[:, axis])[0, 1]) == pytest.approx(1, abs=1e-5)
    assert found["names"] == [str(run.images.names[row]) for row in rows]
    assert min(map(min, found["points"])) == 0 and max(map(max, found["points"])) == 1


def test_a_code_that_keeps_places_is_mapped_by_its_mean_over_places_as_latents_does() -> None:
    run = in_memory.opened(build(VAE, latent="map", latent_channels=3, latent_halvings=2))
    found = parts.latent_map(run)
    rows = np.concatenate(list(run.rows().values()))
    codes = run.compute(rows, lambda x, y: {"code": run.algorithm.encode(x).unflatten(1, (3, -1)).mean(2)})["code"]
    drawn = np.array(found["points"]) * [1, -1]
    expected = PCA(2).fit_transform(codes.double().numpy())
    for axis in range(2):
        assert abs(np.corrcoef(drawn[:, axis], expected[:, axis])[0, 1]) == pytest.approx(1, abs=1e-4)


def test_the_map_that_latents_drew_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = opened()
    drawn = latents.analyse(run, tmp_path, maps=("tsne",), perplexities=(5,))["map"]
    found = parts.latent_map(run, drawn)
    assert found["kind"] == "t-SNE, perplexity 5" and len(found["points"]) == 40
    shown = np.array(found["points"]) * [1, -1]
    for axis in range(2):
        assert np.corrcoef(shown[:, axis], np.array(drawn["points"])[:, axis])[0, 1] == pytest.approx(1, abs=1e-4)
    monkeypatch.setattr(parts, "MAP_IMAGES", 10)
    few = parts.latent_map(run, drawn)
    assert len(few["names"]) == 10 and set(few["names"]) <= set(found["names"])


def test_each_thumbnail_is_that_of_its_image() -> None:
    run = opened()
    found = parts.latent_map(run)
    rows = np.concatenate(list(run.rows().values()))
    sprite = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["sprite"].partition(",")[2]))).convert("RGB"))
    tile = found["tile"]
    for k in range(len(rows)):
        row, column = divmod(k, found["columns"])
        piece = sprite[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
        mean = run.pixels(rows[k : k + 1])[0].mean((1, 2)).numpy() * 255
        assert np.abs(piece.mean((0, 1)) - mean).max() < 6


def test_the_slider_has_the_first_step_the_last_and_few_between_what_was_left_out_first(tmp_path: Path) -> None:
    folder = with_pictures(plant(tmp_path / "run", {(0, "x"): {"psnr": 20.0}}), steps=range(0, 400, 10))
    found = parts.reconstructions(RecordedRun.read(folder), "x", 0)
    assert list(found) == ["x_val", "x_train", "home_val", "home_train", "samples"]
    steps = [one["step"] for one in found["x_val"]]
    assert len(steps) == parts.MAX_STEPS and steps == sorted(steps) and steps[0] == 0
    assert found["x_val"][-1]["label"].endswith("the last")
    assert parts.reconstructions(RecordedRun.read(folder), "nowhere", 0) == {}


def stub(monkeypatch: pytest.MonkeyPatch, **modules: Any) -> None:
    for name, analyse in modules.items():
        module = types.ModuleType(f"domainbed.analysis.{name}")
        module.analyse = analyse  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(parts, "SECTIONS", {name: name.capitalize() for name in modules})


def test_a_section_that_this_model_has_not_is_left_out_and_said_and_a_bug_is_not_hidden(
    tmp_path: Path, monkeypatch
) -> None:
    def drawn(run: Any, folder: Path) -> dict[str, Any]:
        Image.new("RGB", (4, 2), "red").save(folder / "red.png")
        return {"pictures": [{"file": "red.png", "title": "Red", "caption": "All red."}], "findings": ["It is red."]}

    def refuses(run: Any, folder: Path) -> dict[str, Any]:
        raise UserError("this algorithm has no codes")

    stub(monkeypatch, one=drawn, other=refuses)
    first, second = parts.sections(opened(), tmp_path, lambda line: None)
    assert first["pictures"][0]["width"] == 4 and first["why_not"] is None
    assert "It is red." in html.section(first) and "data:image/webp;base64," in html.section(first)
    assert "this algorithm has no codes" in html.section(second)
    stub(monkeypatch, broken=lambda run, folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        parts.sections(opened(), tmp_path / "again", lambda line: None)


class Strict(HTMLParser):
    """Collects what must not be, and that every element ends where it should."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.images_without_text = 0
        self.headings: list[int] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [found["id"]] if found.get("id") else []
        self.addresses += [found[key] or "" for key in ("src", "href") if key in found]
        self.handlers += [key for key in found if key.startswith("on")]
        self.images_without_text += tag == "img" and not found.get("alt")
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> ends another element"


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The page of a run whose names are hostile."""
    figures = {(seed, "x"): {"accuracy": 0.5 + seed / 8, "psnr": 20.0} for seed in range(2)}
    curves = {(seed, "x"): {step: {"accuracy": step / 40, "psnr": 20.0} for step in (10, 20)} for seed in range(2)}
    folder = plant(tmp_path / "a<b>&'run", figures, majority={"accuracy": 0.25}, curves=curves, content=EVIL)
    with open(folder / "results.jsonl", "a") as file:
        file.write(json.dumps({"kind": "note", "text": EVIL}) + "\n")
    stub(monkeypatch, one=lambda run, folder: {"pictures": [], "findings": [EVIL], "notes": [EVIL], "figures": EVIL})
    found = write(
        [RecordedRun.read(with_pictures(folder))],
        tmp_path / "out" / "page.html",
        lambda *training: opened(),
        report=str,
    )
    assert found["bytes"] == (tmp_path / "out" / "page.html").stat().st_size
    return (tmp_path / "out" / "page.html").read_text(encoding="utf-8")


def test_the_page_needs_nobody_and_is_well_formed(page: str) -> None:
    parser = Strict()
    parser.feed(page)
    assert parser.open == [] and len(set(parser.ids)) == len(parser.ids)
    assert all(address.startswith(("data:", "#")) for address in parser.addresses)
    assert {address[1:] for address in parser.addresses if address.startswith("#")} <= set(parser.ids)
    assert not parser.handlers and not parser.images_without_text
    levels = parser.headings
    assert levels[0] == 1 and all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert "http://" not in re.sub(r"http://www\.w3\.org/2000/svg", "", page) and "default-src 'none'" in page


def test_names_and_notes_can_not_become_code(page: str) -> None:
    assert page.count("<script") == 2 and EVIL not in page
    assert "a&lt;b&gt;&amp;&#x27;run" in page
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert data["map"]["run0"]["names"][0].startswith(EVIL)  # whole, for the script to show as text
    assert data["figures"]["a<b>&'run"]["one"]["figures"] == EVIL


def test_what_the_model_can_not_show_is_said_and_the_page_is_there(tmp_path: Path) -> None:
    def gone(run: RecordedRun, target: str, seed: int) -> Any:
        raise UserError("the images are not there any more")

    run = RecordedRun.read(plant(tmp_path / "run", {(0, "x"): {"accuracy": 0.5}}))
    found = write([run], tmp_path / "page.html", gone)
    assert "not there any more" in found["runs"][0]["left_out"]["model"]
    assert "not there any more" in (tmp_path / "page.html").read_text()


def test_runs_that_can_not_be_compared_stand_side_by_side(tmp_path: Path) -> None:
    runs = [
        RecordedRun.read(plant(tmp_path / name, {(0, "x"): {"accuracy": 0.5}}, dataset=name))
        for name in ("DR", "TCell")
    ]
    write(runs, tmp_path / "page.html", None)
    text = (tmp_path / "page.html").read_text()
    assert "different data sets" in text and text.count("Whole target environment") == 4  # captions and their labels
    with pytest.raises(UserError, match="twice"):
        write([runs[0], runs[0]], tmp_path / "page.html", None)


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    values = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_text_and_lines_have_contrast_in_light_and_dark() -> None:
    css = Path(parts.__file__).with_name("page.css").read_text()
    light, *others = [
        dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r"\{([^{}]*--paper:[^{}]*)\}", css)
    ]
    assert len(others) == 2 and others[0] == others[1]  # dark by the system, dark by the button
    for colours in (light, *others):
        for over, least, names in (
            ("paper", 4.5, ("ink", "faint", "link", "yes", "no", "open")),
            ("panel", 4.5, ("ink",)),
            ("note", 4.5, ("ink",)),
            ("paper", 3.0, [f"c{k}" for k in range(8)]),
        ):
            for name in names:
                pair = sorted(luminance(colours[one]) for one in (name, over))
                assert (pair[1] + 0.05) / (pair[0] + 0.05) >= least, (name, over, colours[name])


def test_codes_of_one_dimension_have_no_map() -> None:
    run = opened()
    run.algorithm.encode = lambda x: torch.zeros(len(x), 1)
    with pytest.raises(UserError, match="one dimension"):
        parts.latent_map(run)
