"""`python -m domainbed predict <run> <images …>`: what a model answers for image files, as a table and as pictures."""

import json
import sys
from pathlib import Path
from typing import Any

from domainbed.cli import Parser, positive
from domainbed.cli.analysis import add_machine_options, add_model_options
from domainbed.names import printable
from domainbed.paths import as_path

DESCRIPTION = """\
Write what a model answers for images: the probability of each class, how well it reconstructs them, or the
share of the pixels of each class; on request reconstructions and masks as PNG files. The model is a run, or a
file that `export` wrote. Images are files or folders of any layout, and are preprocessed as the run's were.
"""


def main(argv: list[str]) -> int:
    """Write the table and print what it holds; return the exit status."""
    parser = Parser(DESCRIPTION, command="predict")
    parser.add_argument(
        "run",
        type=as_path,
        help="results/train_output/<dataset>/<name>, or model.safetensors, model.onnx, model.pt2",
    )
    parser.add_argument("images", nargs="+", type=as_path, help="image files, or folders of them at any depth")
    parser.add_argument("--out", type=as_path, default=Path("predictions.csv"), help="the table (%(default)s)")
    parser.add_argument("--reconstructions", action="store_true", help="write reconstructions as PNG files")
    parser.add_argument("--masks", action="store_true", help="write masks as PNG files of the images' size")
    parser.add_argument("--images_out", type=as_path, help="folder of these files (default: named as the table)")
    parser.add_argument("--resume", action="store_true", help="go on with a table that was interrupted")
    parser.add_argument("--batch_size", type=positive, help="images that are answered at once (default: the run's)")
    parser.add_argument("--num_workers", type=positive, help="threads that decode (default: one per core)")
    add_model_options(parser)
    add_machine_options(parser)
    parser.add_argument("--trust", action="store_true", help="open a .pt2 file, which can run any code")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args(argv)

    from domainbed.analysis.predict import find_images, open_model, predict
    from domainbed.datasets.listing import PassedOver
    from domainbed.records import finite

    passed_over = PassedOver()
    images = find_images(arguments.images, passed_over)
    model = open_model(
        arguments.run, target=arguments.target, seed=arguments.seed, checkpoint_name=arguments.checkpoint,
        plugin=arguments.plugin, device=arguments.device, precision=arguments.precision, trust=arguments.trust,
    )  # fmt: skip
    try:
        found = predict(
            model, images, arguments.out,
            pictures=[name for name in ("reconstructions", "masks") if getattr(arguments, name)],
            images_out=arguments.images_out, batch_size=arguments.batch_size, num_workers=arguments.num_workers,
            resume=arguments.resume,
        )  # fmt: skip
    except KeyboardInterrupt:
        print(f"\n{arguments.out} holds what was done. Go on with the same command and --resume", file=sys.stderr)
        raise
    found["notes"] += passed_over.lines(", ".join(map(str, arguments.images)))
    print(json.dumps(finite(found), indent=1) if arguments.json else "\n".join(map(printable, lines(found))))
    return 0


def lines(found: dict[str, Any]) -> list[str]:
    """What was predicted, in all, and what could not be read."""
    model, summary = found["model"], found["summary"]
    text = [
        f"{model['algorithm']} · {model['run']} · target {model['target']} · {model['checkpoint']} "
        f"(step {model['step']})",
        *(f"NOTE: {note}" for note in found["notes"]),
        f"{found['images']} images, preprocessed as in training: {', '.join(model['data']['preprocess'])}; "
        f"{model['input_shape'][2]} x {model['input_shape'][1]} px",
    ]
    if predictions := summary.get("predictions"):
        width = max(len("prediction"), *map(len, predictions))
        text += ["", f"  {'prediction':<{width}}  images  mean probability"]
        text += [
            f"  {name:<{width}}  {one['images']:>6}  {one['mean_probability']:>16.3f}"
            for name, one in predictions.items()
        ]
    if shares := summary.get("shares"):
        width = max(len("class"), *map(len, shares))
        text += ["", f"  {'class':<{width}}  mean share of the pixels"]
        text += [f"  {name:<{width}}  {share:>24.2%}" for name, share in shares.items()]
    if "mse" in summary:
        text += ["", f"  reconstruction, median over images: MSE {summary['mse']:.3g}, PSNR {summary['psnr']:.2f} dB"]
    text.append("")
    if found["unreadable"]:
        text.append(f"could not be read, so without a row: {len(found['unreadable'])}")
        text += [f"  {path}: {reason}" for path, reason in found["unreadable"]]
    for name, folder in found["pictures"].items():
        text.append(f"{name} are in {folder}")
    if found["masks"]:
        text.append(f"  geometry: {found['masks']['geometry']}")
        text.append(f"  files: {found['masks']['files']}; what their values mean is in {found['beside']}")
    return [*text, f"the table is {found['out']}; which model answered is in {found['beside']}"]
