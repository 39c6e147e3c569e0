"""The card of an exported model: what it is, what it was trained on and scored, and code that uses it.

A pure function of what `export` found and of what the run wrote down; nothing is measured here. The figures are those
of the run's summary, for the checkpoint that was exported, beside the answers that need no model.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from domainbed import pretrained, summary
from domainbed.analysis.exported import About, describe_output
from domainbed.analysis.recorded import RecordedRun
from domainbed.model_selection import PROTOCOLS, SELECTION_METRICS
from domainbed.names import printable
from domainbed.registry import ALGORITHMS, DATASETS

NAME = "MODEL_CARD.md"
#: Figures that say whether a model is of any use beside an answer that needs none.
_COMPARED = ("accuracy", "kappa", "dice_dataset", "mse")
_CHOSEN = {checkpoint: protocol for protocol, checkpoint in PROTOCOLS.items()}


def text(
    found: Mapping[str, Any],
    about: About,
    config: Mapping[str, Any],
    meta: Mapping[str, Any],
    recorded: RecordedRun | None,
) -> str:
    """Return the card as Markdown.

    Args:
        found: of `export.analyse`: files, checked_on, encoder.
        about: of the model. config, meta: of `checkpoint.load_with_meta`.
        recorded: of the run; None where only its exported file is there.
    """
    sections = {
        "": _what(about),
        "Not for": _not_for(),
        "Files": _files(found, about),
        "Use": _use(found, about),
        "Input": _input(found, about),
        "Classes": _classes(about),
        "Data": _data(about, meta),
        "Training": _training(about, config, meta),
        "Figures": _figures(about, meta, recorded),
        "Warnings of the run": _warnings(about, recorded),
        "Limits": _limits(about),
    }
    lines = [f"# {about.run}: {about.algorithm} on {about.dataset}, target {about.target}"]
    for title, content in sections.items():
        if content:
            lines += ["", *([f"## {title}", ""] if title else []), *content]
    return "\n".join(lines) + "\n"


def _what(about: About) -> list[str]:
    doc = (ALGORITHMS[about.algorithm].__doc__ or "").strip().partition("\n")[0]
    return [
        f"{doc}",
        "",
        f"Weights of the checkpoint `{about.checkpoint}`, after {about.step} steps, seed {about.seed}; written by "
        f"domainbed {about.version}.",
    ]


def _not_for() -> list[str]:
    return [
        "A model of research. It is not a medical device: nobody has examined whether its answers are safe or useful "
        "for the care of a patient, and they must not be used for it."
    ]


def _files(found: Mapping[str, Any], about: About) -> list[str]:
    lines = ["| file | what it is | MB | largest difference from the model |", "| --- | --- | ---: | --- |"]
    what = {
        "safetensors": "weights and configuration, for `domainbed.load`",
        "onnx": "graph with weights, ONNX, float32",
        "torch.export": "graph with weights, for `torch.export.load`, float32",
        "timm": "weights of the encoder under timm's names",
    }
    for file in found["files"]:
        apart = ", ".join(f"{name} {value:.1e}" if value else f"{name} 0" for name, value in file["difference"].items())
        lines.append(f"| `{file['file']}` | {what[file['format']]} | {file['bytes'] / 1e6:.1f} | {apart} |")
    return [*lines, "", f"Each was run again, on {found['checked_on']}."]


def _use(found: Mapping[str, Any], about: About) -> list[str]:
    lines = [
        "The examples run as they stand, with `image.png` and the file beside them, and domainbed installed for the "
        "preprocessing."
    ]
    if {"logits", "reconstruction", "mask_logits"} & {*about.outputs}:
        lines[0] += " `python -m domainbed predict <file> <images …>` does the same for folders."
    code = {"onnx": _onnx, "torch.export": _torch_export, "safetensors": _safetensors}
    for file in found["files"]:
        if file["format"] == "timm":
            imports, body = _timm(found["encoder"])
        else:
            imports, body = code[file["format"]](about)
        head = ["import numpy as np", *imports, "from domainbed.registry import DATASETS"]
        head = [*sorted(head, key=lambda line: line.split()[1]), ""]
        lines += ["", f"`{file['file']}`:", "", "```python", *head, *_reading(about), *body, "```"]
    return lines


def _reading(about: About) -> list[str]:
    """Code that makes `x` of an image file."""
    fields = DATASETS[about.dataset].HParams.model_fields
    settings = {
        key: value
        for key, value in about.data.items()
        if key in ("image_size", "preprocess") or (key in fields and value != fields[key].get_default())
    }
    channels, height, width = about.input_shape
    return [
        f"dataset = DATASETS[{about.dataset!r}]",
        f"settings = dataset.HParams(**{settings!r})",
        f'pixels = dataset.read_new("image.png", settings)  # uint8 ({height}, {width}, {channels})',
        f"x = np.moveaxis(pixels, -1, 0)[None].astype(np.float32) / 255  # (1, {channels}, {height}, {width})",
        "",
    ]


def _show(about: About, name: str) -> list[str]:
    """Code that says what one of the `answers`, a numpy array, means."""
    value = f'answers["{name}"]'
    if name == "logits":
        return [
            f"logits = {value}[0]",
            "probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()",
            f"for name, probability in zip({about.classes!r}, probabilities):",
            '    print(f"{name}: {probability:.3f}")',
        ]
    if name == "mask_logits" and about.masks == "softmax":
        return [
            f"mask = {value}[0].argmax(0)  # (H, W), a class for each pixel",
            f"for index, name in enumerate({about.classes!r}):",
            '    print(f"{name}: {(mask == index).mean():.1%} of the pixels")',
        ]
    if name == "mask_logits":
        return [
            f"masks = {value}[0] > 0  # (K, H, W), True where the kind is more likely than not",
            f"for name, mask in zip({about.classes!r}, masks):",
            '    print(f"{name}: {mask.mean():.1%} of the pixels")',
        ]
    if name == "reconstruction":
        return [f'print("mean squared error:", np.square({value} - x).mean())']
    return [f'print("{name}:", {value}.shape)']


Code = tuple[list[str], list[str]]  # imports, and what comes behind `_reading`


def _shown(about: About) -> list[str]:
    return [line for name in about.outputs for line in _show(about, name)]


def _onnx(about: About) -> Code:
    lines = [
        'session = onnxruntime.InferenceSession("model.onnx")',
        "names = [one.name for one in session.get_outputs()]",
        'answers = dict(zip(names, session.run(names, {"x": x})))',
    ]
    return ["import onnxruntime"], [*lines, *_shown(about)]


def _torch_export(about: About) -> Code:
    lines = [
        'model = torch.export.load("model.pt2").module()  # unpickles: open only a file that you trust',
        f"names = {about.outputs!r}",
        "with torch.no_grad():",
        "    answers = {name: one.numpy() for name, one in zip(names, model(torch.from_numpy(x)))}",
    ]
    return ["import torch"], [*lines, *_shown(about)]


def _safetensors(about: About) -> Code:
    calls = {
        "logits": "predict(images)", "mean": "posterior(images)[0]", "logvar": "posterior(images)[1]",
        "code": "encode(images)", "codes": "codes(images)", "reconstruction": "reconstruct(images)",
        "mask_logits": "segment(images)",
    }  # fmt: skip
    imports = ["import torch", "import domainbed"]
    lines = ['algorithm = domainbed.load("model.safetensors")']
    if not about.outputs:
        return imports, [*lines, "print(algorithm)"]
    lines += ["images = torch.from_numpy(x)", "answers = {}", "with torch.no_grad():"]
    lines += [f'    answers["{name}"] = algorithm.{calls[name]}.numpy()' for name in about.outputs]
    return imports, [*lines, *_shown(about)]


def _timm(encoder: Mapping[str, Any]) -> Code:
    options = ", ".join(f"{key}={value!r}" for key, value in encoder["options"].items())
    imports = ["import json", "import timm", "import torch", "from safetensors import safe_open"]
    return imports, [
        "# num_classes=0: timm would leave a head of another size random, without a word",
        "backbone = timm.create_model(",
        f"    {encoder['model']!r}, pretrained=True, {options},",
        '    pretrained_cfg_overlay=dict(file="encoder.safetensors"),',
        ").eval()",
        'with safe_open("encoder.safetensors", "pt") as file:  # the normalisation that the encoder was trained with',
        '    mean, std = (torch.tensor(json.loads(file.metadata()[key])) for key in ("mean", "std"))',
        "with torch.no_grad():",
        "    features = backbone((torch.from_numpy(x) - mean[:, None, None]) / std[:, None, None])",
        'print("features:", tuple(features.shape))',
    ]


def _input(found: Mapping[str, Any], about: About) -> list[str]:
    channels, height, width = about.input_shape
    inside = "The normalisation that the encoder wants is part of the model."
    if any(file["format"] == "timm" for file in found["files"]):
        inside = "The encoder wants (x - mean) / std, both in the file's metadata."
    steps = list(about.data["preprocess"])
    lines = [
        f"`x`: float32 (B, {channels}, {height}, {width}) in [0, 1], {'grey' if channels == 1 else 'RGB'}. {inside}",
        "",
        f"Before it, every image is brought there as those of the run were: `preprocess = {json.dumps(steps)}`, "
        f"`image_size = {about.data['image_size']}` (`domainbed.datasets.preprocess`). Images that are brought "
        "there in another way get answers that mean nothing.",
    ]
    if about.outputs:
        lines += ["", "| output | meaning |", "| --- | --- |"]
        lines += [f"| `{name}` | {_cell(describe_output(name, about.masks))} |" for name in about.outputs]
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _classes(about: About) -> list[str]:
    if not about.classes or not {"logits", "mask_logits"} & {*about.outputs}:
        return []
    order = ", in order of severity" if about.ordinal and about.masks is None else ""
    return [
        f"In the order of the logits{order}:",
        "",
        *(f"{k}. {printable(name)}" for k, name in enumerate(about.classes)),
    ]


def _data(about: About, meta: Mapping[str, Any]) -> list[str]:
    counts = meta.get("train_counts") or []
    lines = [
        f"- data set: `{about.dataset}`",
        f"- trained on: {', '.join(about.trained_on)}",
        f"- left out of training, and judged on: {'nothing' if about.target == 'none' else about.target}",
        f"- terms of the images: {about.licence or 'not recorded; ask whoever published them'}",
    ]
    if sum(counts):
        per_class = ", ".join(f"{printable(name)}: {count}" for name, count in zip(about.classes, counts, strict=True))
        lines.append(f"- training images: {sum(counts)} ({per_class})")
    return lines


def _training(about: About, config: Mapping[str, Any], meta: Mapping[str, Any]) -> list[str]:
    chosen = _CHOSEN.get(about.checkpoint)
    how = f"chosen by {chosen}, {meta.get('select_by', config.get('select_by'))}" if chosen in PROTOCOLS else ""
    how = {"last": "the weights after the last step", "init": "the weights before the first step"}.get(
        about.checkpoint, how
    )
    if about.checkpoint == "oracle":
        how += (
            ". That looked at the target: its figures there are optimistic, and nobody could choose so for a new camera"
        )
    settings = yaml.safe_dump(dict(config["algorithms"][about.algorithm]), sort_keys=False).strip()
    source = str(config["algorithms"][about.algorithm].get("pretrained", "false"))
    began = (
        [] if source == "false" else [f"- the encoder began with weights of {pretrained.package_of(source) or source}"]
    )
    return [
        f"- checkpoint: `{about.checkpoint}`, {how}",
        *began,
        f"- trained on {meta.get('machine', 'a machine that was not recorded')}; the files hold float32",
        "",
        f"Settings of {about.algorithm}:",
        "",
        "```yaml",
        settings,
        "```",
    ]


def _figures(about: About, meta: Mapping[str, Any], recorded: RecordedRun | None) -> list[str]:
    if recorded is None:
        return ["Not known here: this card was written from an exported file, without the records of its run."]
    records = [
        record
        for record in recorded.of("final", about.target, about.seed)
        if record["checkpoint"] in (about.checkpoint, None)
    ]
    if not records:
        return [
            f"None were recorded for the checkpoint `{about.checkpoint}`: the training is not finished, or it is "
            "not one that a run judges."
        ]
    run = {
        "name": about.run, "algorithm": about.algorithm, "dataset": about.dataset, "class_names": about.classes,
        "select_by": meta.get("select_by", "the selection metric"),
    }  # fmt: skip
    if about.masks == "softmax":
        run["background"] = about.classes[0]
    lines = summary.build(records, run).full().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("- **"))
    warnings = [f"- **{line}**" for line in not_better(records)]
    return [*warnings, *(f"#{line}" if line.startswith("##") else line for line in lines[start:])]


def not_better(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each figure of the model that is not better than an answer that needs no model.

    Better is the whole 95 % interval, or where there is none the figure. Of the environments that the run is about, the
    first part that was judged counts.

    Args:
        records: final ones, of one checkpoint and of the trivial answers.
    """
    about = summary.main_records(records)
    parts = [part for part in summary.PARTS if any(record["part"] == part for record in about)]
    about = [record for record in about if record["part"] == parts[0]] if parts else []
    found = []
    for model in (record for record in about if record["checkpoint"] is not None):
        for trivial in (one for one in about if one["checkpoint"] is None):
            if _place(model) != _place(trivial):
                continue
            for metric in _COMPARED:
                value, other = model["metrics"].get(metric), trivial["metrics"].get(metric)
                if value is None or other is None:
                    continue
                low, high = model.get("intervals", {}).get(metric) or (value, value)
                if low > other if SELECTION_METRICS[metric] == "higher" else high < other:
                    continue
                found.append(
                    f"{model['environment']}: {summary.COLUMNS[metric]} {value:.3g} [{low:.3g}, {high:.3g}] is not "
                    f"better than {other:.3g}, that of the {trivial['protocol']}."
                )
    return found


def _place(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return which images a record is of."""
    return record["target"], record["seed"], record["environment"], record["part"]


def _warnings(about: About, recorded: RecordedRun | None) -> list[str]:
    if recorded is None:
        return []
    notes = [
        record["text"] for record in recorded.of("note") if record.get("target", about.target) in (about.target, None)
    ]
    return [f"- {note}" for note in dict.fromkeys(notes)]


def _limits(about: About) -> list[str]:
    lines = [
        f"- It has seen images of {', '.join(about.trained_on)}. Whether it holds for another camera or "
        "population is known only as far as the figures above go; they are of one seed.",
    ]
    if "logits" in about.outputs:
        lines.append(
            "- Probabilities are a softmax. Whether they are calibrated was not examined, and an image of anything "
            "else than these classes still gets one of them."
        )
    if "mask_logits" in about.outputs:
        lines.append("- Masks have the resolution of x: what is smaller than a pixel of it is not seen.")
    if "reconstruction" in about.outputs:
        lines.append(
            "- A reconstruction is what the model believes an image looks like; it can draw what is not there."
        )
    return lines
