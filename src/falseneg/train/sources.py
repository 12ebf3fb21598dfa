"""An image encoder from wherever it is: a run, an export, a checkpoint, timm or open_clip."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from falseneg.errors import UserError
from falseneg.foreign.text import read_yaml
from falseneg.methods.clip import CLIP
from falseneg.methods.open_clip import OpenCLIP
from falseneg.methods.two_towers import TwoTowers
from falseneg.models import Encoder, ProjectionHead
from falseneg.models.clip_images import clip_images, of_one_process
from falseneg.models.encoder import HEAD, describes, load_exactly, read_weights
from falseneg.models.text import TextEncoder
from falseneg.train.checkpoint import LAST, damage_said, load_checkpoint
from falseneg.train.names import CHECKPOINTS, CONFIG, ENCODER, OPEN_CLIP, TOWERS

KINDS = "the folder of a run, its encoder.safetensors or towers.safetensors, a checkpoint (.pt), timm:NAME or open_clip:NAME"
_MODELS = ("timm", "open_clip")


@dataclass(frozen=True, eq=False)
class Source:
    """An encoder, and the head it was trained with if that was asked for and is known.

    Attributes:
        encoder: (B, 3, H, W) uint8 images to (B, F) features; has ``image_size``, None where any will do.
        head: the projection head, or None.
    """

    encoder: nn.Module
    head: ProjectionHead | None = None


def open_encoder(source: str, weights: str | None = None, image_size: int | None = None, head: bool = False) -> Source:
    """The encoder that a name stands for. No code is run from a file.

    Args:
        source: the folder of a run, an export, a checkpoint, "timm:NAME" or "open_clip:NAME".
        weights: of a timm or open_clip model: a local file; None for random ones; of timm also "pretrained", which
            downloads its own once. Of no other source.
        image_size: side of the images in pixels; None takes the source's own.
        head: bring the projection head, too.

    Raises:
        UserError: there is nothing of the kind, the weights are of another model, or a head was asked for in vain.
    """
    if is_model(source):
        kind, _, name = source.partition(":")
        if head:
            raise UserError(
                f"{source} has no projection head; leave head_layers out, or give a run or an export with one"
            )
        if kind == "open_clip":
            return Source(clip_images(name, None if weights is None else Path(weights), image_size))
        return Source(Encoder(name, image_size, weights))
    if weights is not None:
        raise UserError(f"weights go with timm:NAME or open_clip:NAME, and {source} has its own; leave them out")
    path = Path(source)
    if not head and (towers := _open_clip_of(path, image_size)) is not None:
        return Source(towers.encoder)
    found = _of_files(path, source, head)
    if image_size is not None:
        found.encoder.image_size = image_size  # type: ignore[assignment]
    return found


def open_towers(source: str, weights: str | None = None, image_size: int | None = None) -> TwoTowers | None:
    """Both towers of a run, of its towers.safetensors or a checkpoint, or of a model of open_clip; None where there is an
    encoder of images alone, or nothing.

    The arguments, and what is raised, are those of `open_encoder`.
    """
    kind, _, name = source.partition(":")
    path = Path(source)
    if kind == "open_clip" and is_model(source):
        if weights is not None and not _holds_two(Path(weights)):
            return None
        return OpenCLIP(name, weights, image_size)
    if weights is not None:
        return None
    if (found := _open_clip_of(path, image_size)) is not None:
        return found
    towers = _clip_of(path)
    if towers is not None and image_size is not None:
        towers.encoder.image_size = image_size
    return towers


def has_towers(source: str) -> bool:
    """Whether it is a finished run with two towers, or its towers.safetensors."""
    path = Path(source)
    return any((path / name).exists() for name in (TOWERS, OPEN_CLIP)) or describes(path, CLIP.ABOUT)


def _clip_of(path: Path) -> CLIP | None:
    """The towers of a run with `CLIP`, of its file of them, or of its checkpoint; None where it is none of these."""
    if _is_checkpoint(path):
        kind, arguments = _method_of(path)
        if kind != CLIP.__name__:
            return None
        with damage_said(path):
            encoder, text = (dict(arguments[name]) for name in ("encoder", "text"))
            towers = CLIP(_encoder_of(encoder), TextEncoder(**text.get("init_args", text)), arguments["dim"])
            load_exactly(towers, load_checkpoint(path)["method"], str(path))
        return towers
    file = path / TOWERS if path.is_dir() else path
    return CLIP.load(file) if describes(file, CLIP.ABOUT) else None


def _open_clip_of(path: Path, image_size: int | None) -> OpenCLIP | None:
    """The model of a run with `OpenCLIP`, or of its checkpoint; None where it is neither."""
    if (path / OPEN_CLIP).is_dir():
        return _open_clip_of_run(path, image_size)
    if not _is_checkpoint(path):
        return None
    kind, arguments = _method_of(path)
    if kind != OpenCLIP.__name__:
        return None
    with damage_said(path):
        towers = OpenCLIP(arguments["model"], image_size=image_size or arguments.get("image_size"))
        load_exactly(towers, load_checkpoint(path)["method"], str(path))
    return towers


def _holds_two(weights: Path) -> bool:
    """Whether they are of a whole model of open_clip, and not of its image tower alone."""
    return any(key.startswith("visual.") for key in of_one_process(read_weights(weights)))


def _open_clip_of_run(folder: Path, image_size: int | None) -> OpenCLIP:
    """The model that a run with `OpenCLIP` has written.

    Raises:
        UserError: the run's configuration does not say which model it is, or the weights are of another one.
    """
    file, config = folder / OPEN_CLIP / "open_clip_model.safetensors", folder / CONFIG
    settings: Any = read_yaml(config) if config.is_file() else {}
    try:
        arguments = settings["method"]["init_args"]
        name, size = str(arguments["model"]), image_size or arguments.get("image_size")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder} does not say which model of open_clip {file} is: {CONFIG} names none; give open_clip:NAME --weights {file}"
        ) from error
    return OpenCLIP(name, file, size)


def is_model(source: str) -> bool:
    """Whether a name stands for a model of timm or open_clip, which has random weights unless some are given."""
    return source.partition(":")[0] in _MODELS and not Path(source).exists()


def about_encoder(source: str, weights: str | None, encoder: nn.Module) -> dict[str, Any]:
    """What a file of figures says of an encoder: its ``source``, its ``weights`` and their ``sha256``.

    The weights are "random" of a model without any, and None of a source that holds its own.
    """
    known = "random" if weights is None and is_model(source) else weights
    return {"source": source, "weights": known, "sha256": hash_of(encoder)}


def name_of(about: Mapping[str, Any]) -> str:
    """What an encoder is called beside its figures, and whether it knows nothing yet.

    Args:
        about: what `about_encoder` says.
    """
    return f"{about['source']}{' with random weights' if about['weights'] == 'random' else ''}"


def _of_files(path: Path, source: str, head: bool) -> Source:
    if _is_checkpoint(path):
        return _of_checkpoint(path, head)
    if not head and path.is_file() and (towers := _clip_of(path)) is not None:
        return Source(towers.encoder)
    file = encoder_file(path, source)
    encoder = Encoder.load(file)
    if not head:
        return Source(encoder)
    state = {key.removeprefix(HEAD): value for key, value in read_weights(file).items() if key.startswith(HEAD)}
    last = path / CHECKPOINTS / LAST
    if state:
        return Source(encoder, ProjectionHead.of_state(state))
    if path.is_dir() and last.is_file():
        return Source(encoder, _head_of(load_checkpoint(last)["method"], last))
    raise UserError(
        f"{source} holds no projection head; give the folder of the run, or an export with its head "
        "(falseneg export RUN --head)"
    )


def encoder_file(path: Path, source: str | None = None) -> Path:
    """The file of the encoder: itself, or that of a run's folder.

    Raises:
        UserError: there is no such file or folder, or the run has no encoder yet.
    """
    check_there(source or str(path))
    if path.is_file():
        return path
    if not (path / ENCODER).is_file():
        raise UserError(
            f"{path} holds no {ENCODER}; give the folder of a run that is finished, or one of its {CHECKPOINTS}"
        )
    return path / ENCODER


def check_there(source: str) -> None:
    """Refuse a source that is neither a model's name nor a file or folder, before anything that takes time.

    Raises:
        UserError: there is nothing of the kind.
    """
    if not is_model(source) and not Path(source).exists():
        raise UserError(f"there is no {source}; give {KINDS}{_model_hint(source)}")


def _model_hint(name: str) -> str:
    """What to write if it is the name of a model."""
    import timm

    near = [name] if timm.is_model(name) else difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.9)
    return f" (did you mean timm:{near[0]}?)" if near else ""


def _is_checkpoint(path: Path) -> bool:
    return path.suffix == ".pt" and path.is_file()


def _of_checkpoint(path: Path, head: bool) -> Source:
    """The encoder in a checkpoint, built as the configuration of its run says."""
    with damage_said(path):
        state = load_checkpoint(path)["method"]
        encoder = _encoder_of(dict(_method_of(path)[1]["encoder"]))
        load_exactly(encoder, _below("encoder.", state), str(path))
    return Source(encoder, _head_of(state, path) if head else None)


def _method_of(path: Path) -> tuple[str, dict[str, Any]]:
    """Of the run of a checkpoint: the name of its method, and what that was built with.

    Raises:
        UserError: it lies in no run, or the run's configuration does not say.
    """
    config = path.parent.parent / CONFIG
    if not config.is_file():
        raise UserError(f"{path} lies in no run: there is no {config}, which says how its encoder is built")
    settings: Any = read_yaml(config)
    with damage_said(path):
        method = settings["method"]
        return str(method["class_path"]).rpartition(".")[2], dict(method["init_args"])


def _encoder_of(arguments: dict[str, Any]) -> Encoder:
    """As a configuration describes it, without the weights that it was to start from."""
    return Encoder(**(arguments.get("init_args", arguments) | {"weights": None}))


def _head_of(state: Mapping[str, Tensor], path: Path) -> ProjectionHead:
    with damage_said(path):
        return ProjectionHead.of_state(_below(HEAD, state))


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def hash_of(module: nn.Module) -> str:
    """SHA-256 of names, shapes, kinds and values of all weights: the same for the same network, however it was stored."""
    content = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        content.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        content.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()
