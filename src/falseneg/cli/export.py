"""``falseneg export``: the encoder of a run as its own file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from falseneg.cli.messages import SmallParser
from falseneg.errors import UserError

if TYPE_CHECKING:
    from falseneg.models import Encoder

FORMATS = {
    "falseneg": "weights and how to build the encoder, for falseneg.Encoder.load",
    "timm": "the weights alone, for timm.create_model",
    "detectron2": "the weights alone, for MoCo's object detection with detectron2 (ResNet-50, 101 and 152 only)",
}
_SUFFIX = {"detectron2": ".pkl"}
_COMMAND = """    python train_net.py --config-file configs/pascal_voc_R_50_C4_24k_moco.yaml --num-gpus 8 \\
        MODEL.WEIGHTS {path} SOLVER.STEPS "(20000, 28000)" SOLVER.MAX_ITER 34000 \\
        MODEL.PIXEL_MEAN "[{mean}]" MODEL.PIXEL_STD "[{std}]"{depth}"""
"""MoCo's recipe (its folder "detection") with FNC's number of iterations."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = SmallParser(prog="falseneg export", description="Write the encoder of a run to a file for others.")
    parser.add_argument(
        "source", type=Path, metavar="RUN", help="the folder of a run, an encoder.safetensors, or a checkpoint"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the file to write (.safetensors; for detectron2 .pkl)"
    )
    about = "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
    parser.add_argument("--format", choices=FORMATS, default="falseneg", help=f"{about} (default: falseneg)")
    parser.add_argument(
        "--head", action="store_true", help="put the projection head into the same file (to fine-tune from it)"
    )
    options = parser.parse_args(arguments)
    if options.head and options.format != "falseneg":
        raise UserError(
            f"--head goes with --format falseneg, for {options.format} knows no head; leave one of the two out"
        )
    if options.out.suffix != (suffix := _SUFFIX.get(options.format, ".safetensors")):
        raise UserError(f"--out is {options.out}; for {options.format} give a file that ends in {suffix}")
    if options.out.exists():
        raise UserError(f"{options.out} exists already; give another name, or remove it first")

    from falseneg.models import Encoder
    from falseneg.train.sources import open_encoder

    found = open_encoder(str(options.source), head=options.head)
    if not isinstance(encoder := found.encoder, Encoder):
        raise UserError(
            f"{options.source} is not an encoder of falseneg, so it cannot be exported; give a run or a timm:NAME"
        )
    if options.format == "falseneg":
        encoder.save(options.out, found.head)
        print(how_to_load(options.out))
    elif options.format == "timm":
        print(_export_timm(encoder, options.out))
    else:
        print(_export_detectron2(encoder, options.out))
    return 0


def how_to_load(path: Path) -> str:
    """The three lines that load an exported encoder."""
    return (
        "    from falseneg import Encoder\n"
        f"    encoder = Encoder.load({str(path)!r}).eval()\n"
        f"    features = encoder(images)  # (B, 3, H, W) images, uint8 or in [0, 1], to (B, F) features"
    )


def _export_timm(encoder: Encoder, path: Path) -> str:
    """Write the backbone's weights as timm names them, and return the lines that load them."""
    from safetensors.torch import save
    from torch.nn import Conv2d

    from falseneg.files import write_bytes

    state = {key: value.contiguous() for key, value in encoder.backbone.state_dict().items()}
    write_bytes(path, save(state))
    arguments = "".join(f", {key}={value!r}" for key, value in encoder.arguments.items())
    lines = ["import timm, torch", f"model = timm.create_model({encoder.name!r}, num_classes=0{arguments})"]
    if encoder.small_stem and isinstance(stem := encoder.backbone.conv1, Conv2d):
        lines.append(
            f"model.conv1 = torch.nn.Conv2d(3, {stem.out_channels}, 3, padding=1, bias=False)  # the small stem"
        )
    elif encoder.small_stem:
        lines.append("model.conv1[0].stride = 1  # the small stem")
    if encoder.small_stem:
        lines.append("model.maxpool = torch.nn.Identity()")
    lines.append(f"timm.models.load_checkpoint(model, {str(path)!r})")
    mean, std = (", ".join(f"{value:.4g}" for value in numbers.flatten()) for numbers in (encoder.mean, encoder.std))
    lines.append(f"# give it images in [0, 1], less the mean ({mean}), over the standard deviation ({std})")
    return "\n".join(f"    {line}" for line in lines)


def _export_detectron2(encoder: Encoder, path: Path) -> str:
    """Write the backbone's weights as MoCo's converter does, and return the command that fine-tunes them."""
    import pickle

    from falseneg.files import write_bytes
    from falseneg.models.detectron2 import detectron2_weights

    weights, depth = detectron2_weights(encoder)
    content = {"model": weights, "__author__": "falseneg", "matching_heuristics": True}
    write_bytes(path, pickle.dumps(content))
    # The recipe's images are in [0, 255].
    mean, std = (", ".join(f"{255 * value:.6g}" for value in each.flatten()) for each in (encoder.mean, encoder.std))
    other = f" \\\n        MODEL.RESNETS.DEPTH {depth}" if depth != 50 else ""
    return _COMMAND.format(path=path, mean=mean, std=std, depth=other)
