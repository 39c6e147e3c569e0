"""`python -m domainbed export <run> --to safetensors onnx torch.export`: the model as files, and its card."""

from pathlib import Path
from typing import Any

from domainbed.cli import Parser
from domainbed.cli.analysis import add_model_options, finish
from domainbed.errors import UserError
from domainbed.paths import as_path

DESCRIPTION = """\
Write the model of a run as files: its weights with their configuration (safetensors), or a graph that takes
images (B, C, H, W) in [0, 1] and needs no code of this project (onnx, torch.export). Every file is run again
and compared with the model. MODEL_CARD.md beside them says what it is, how it scored, and how it is used.
"""
#: As in `analysis.export.FORMATS` and `analysis.exported.OUTPUTS`, which need torch.
FORMATS = ("safetensors", "onnx", "torch.export")
OUTPUTS = ("logits", "mean", "logvar", "code", "codes", "reconstruction", "mask_logits")


def main(argv: list[str]) -> int:
    """Write the files and print what they are; return the exit status."""
    parser = Parser(DESCRIPTION, command="export")
    parser.add_argument(
        "run", type=as_path, help="results/train_output/<dataset>/<name>, or an exported model.safetensors"
    )
    parser.add_argument("--to", nargs="+", choices=FORMATS, help="formats of the files (default: safetensors)")
    parser.add_argument("--outputs", nargs="+", choices=OUTPUTS, help="what the graph gives (default: all it can)")
    parser.add_argument(
        "--part", choices=["model", "encoder"], default="model", help="encoder: the timm backbone's weights alone"
    )
    add_model_options(parser)
    parser.add_argument("--data_dir", type=as_path, help="where the run's images are now, for the check")
    parser.add_argument("--licence", default="", help="terms of the training images, for the card")
    parser.add_argument("--out", type=as_path, help="folder of the files (default: analysis/export/… in the run)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args(argv)
    if arguments.part == "encoder" and (arguments.outputs or set(arguments.to or ()) - {"safetensors"}):
        raise UserError("--part encoder writes weights for timm, as safetensors. Leave out --outputs and other formats")

    from domainbed.analysis import export

    found = export.analyse(
        arguments.run, arguments.out, formats=list(dict.fromkeys(arguments.to or ["safetensors"])),
        outputs=arguments.outputs, part=arguments.part, target=arguments.target, seed=arguments.seed,
        checkpoint_name=arguments.checkpoint, plugin=arguments.plugin, data_dir=arguments.data_dir,
        licence=arguments.licence,
    )  # fmt: skip
    return finish(arguments, Path(found["folder"]), found, lines)


def lines(found: dict[str, Any]) -> list[str]:
    """The files, what they give, and how far they are from the model."""
    about = found["about"]
    text = [
        f"{about['algorithm']} · {about['run']} · target {about['target']} · {about['checkpoint']} "
        f"(step {about['step']})",
        *(f"NOTE: {note}" for note in found["notes"]),
        f"checked on {found['checked_on']}; largest absolute difference from the model:",
    ]
    for file in found["files"]:
        apart = ", ".join(f"{name} {value:.1e}" if value else f"{name} 0" for name, value in file["difference"].items())
        text.append(f"  {file['file']:<20} {file['bytes'] / 1e6:>8.1f} MB   {apart}")
    return [*text, f"files and their card are in {found['folder']}: read MODEL_CARD.md before you pass them on"]
