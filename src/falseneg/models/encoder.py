"""The encoder: a timm backbone that takes images as they are and gives features. The part that outlives training."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from falseneg.errors import UserError
from falseneg.foreign.archives import load_tensors
from falseneg.foreign.building import Within

T = TypeVar("T", bound=nn.Module)
SMALL_IMAGE = 64
"""Up to this side, in pixels, images are small: not blurred, and not cropped for evaluation."""
SMALL_STEM = 32
"""Up to this side, that of CIFAR, a ResNet starts with one 3 × 3 convolution, for its usual stem would shrink an image to
a quarter. Beyond it that would make fewer pixels cost more than many: at 64 pixels the small stem is five times as slow as the
usual one is at 96 (benchmarks/results/2026-11-26-stems.md)."""

_OURS = {"pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "num_classes", "in_chans"}
_ABOUT = "falseneg.encoder"
HEAD = "head."
"""Before the names of a projection head's weights in the file of an encoder."""
_SHOWN = 3
"""Names that differ, at most, in a message."""


class Encoder(nn.Module):
    """A timm backbone without its classifier. Images go in as they are; scaling and normalising happen inside.

    Args:
        name: a model of timm, such as "resnet18", "convnext_atto" or "vit_tiny_patch16_224".
        image_size: side of the square images that it will see, in pixels; None leaves it open.
        weights: None for random weights, "pretrained" for timm's (downloads them once), or a local file
            (.safetensors, .pth, .pt) of this model, or one that `save` wrote.
        small_stem: begin with a 3 × 3 convolution of stride 1 and no pooling (ResNets only), which sees finer detail
            and takes 4 to 12 times as long at the same size; None does so for ResNets and images of up to 32 pixels,
            False never, True always.
        mean: mean of each channel of images in [0, 1]; None takes what timm states for the model, mostly ImageNet's.
        std: standard deviation of each channel, as ``mean``; None likewise.
        arguments: further arguments of ``timm.create_model``, such as ``{"drop_path_rate": 0.1}`` or a ResNet's
            ``{"channels": [32, 64, 128, 256]}``.
        frozen_batch_norm: BatchNorm of the backbone normalises by its running statistics in training, too, and these stay
            as they are; its weights and biases still learn. None does so where weights are given: at the low learning
            rate that is then usual, they suit the weights better than the statistics of a few augmented views.

    Attributes:
        feature_dim: F, the width of the features.
        small_stem: whether the small stem was taken.
        from_weights: whether it was given weights, or loaded.
        frozen_batch_norm: whether BatchNorm keeps its running statistics.

    Raises:
        UserError: the model or an argument is unknown, or the weights cannot be loaded.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str = "resnet18",
        image_size: int | None = None,
        weights: str | Path | None = None,
        small_stem: bool | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        arguments: dict[str, Any] | None = None,
        frozen_batch_norm: bool | None = None,
    ) -> None:
        super().__init__()
        if image_size is not None and image_size < 1:
            raise UserError(f"Encoder: image_size is {image_size}; give the side of the images in pixels, at least 1")
        self.name, self.image_size, self.arguments = name, image_size, dict(arguments or {})
        self.backbone = _create(name, image_size, weights == "pretrained", self.arguments)
        state = None if weights in (None, "pretrained") else _without_head(read_weights(Path(weights)))  # type: ignore[arg-type]
        exported = state is not None and all(key.startswith("backbone.") for key in state)
        if state is not None and not exported:
            load_exactly(self.backbone, _without_classifier(state, self.backbone), f"{weights}")
        self.small_stem = _wants_small_stem(self.backbone, name, image_size, small_stem)
        if self.small_stem:
            _shrink_stem(self.backbone, keep_centre=weights is not None)
        stated = self.backbone.pretrained_cfg
        self.register_buffer("mean", _channels("mean", mean or stated["mean"]), persistent=False)
        self.register_buffer("std", _channels("std", std or stated["std"]), persistent=False)
        if state is not None and exported:
            load_exactly(self, state, f"{weights}")
        self.feature_dim = int(getattr(self.backbone, "head_hidden_size", None) or self.backbone.num_features)
        self.from_weights = weights is not None
        self.frozen_batch_norm = self.from_weights if frozen_batch_norm is None else frozen_batch_norm
        self.train()

    def train(self, mode: bool = True) -> Encoder:
        """Training or evaluation mode; in both, a frozen BatchNorm is in evaluation mode."""
        super().train(mode)
        if self.frozen_batch_norm:
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images, uint8 in [0, 255] or floating point in [0, 1], to (B, F) features."""
        # Convolutions take over the layout of their input, and are up to a third faster in this one.
        images = images.contiguous(memory_format=torch.channels_last)
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        features: Tensor = self.backbone((images.to(self.mean.dtype) - self.mean) / self.std)
        return features

    def save(self, path: str | Path, head: nn.Module | None = None) -> None:
        """Write weights and constructor arguments to a safetensors file, whole or not at all.

        Args:
            path: of the file.
            head: a projection head whose weights go into the same file; `load` leaves them out, `load_head` takes them.

        Raises:
            UserError: the file cannot be written.
        """
        from safetensors.torch import save

        from falseneg.files import write_bytes

        parts = self.state_dict() | ({} if head is None else head.state_dict(prefix=HEAD))
        state = {key: value.detach().cpu().contiguous() for key, value in parts.items()}
        write_bytes(Path(path), save(state, {_ABOUT: json.dumps(self.about())}))

    def about(self) -> dict[str, Any]:
        """The constructor arguments that build it again, without weights; plain values."""
        about: dict[str, Any] = {"name": self.name, "image_size": self.image_size, "small_stem": self.small_stem}
        mean, std = self.mean.flatten().tolist(), self.std.flatten().tolist()
        about |= {"mean": mean, "std": std, "arguments": self.arguments}
        return about | {"frozen_batch_norm": self.frozen_batch_norm}

    @staticmethod
    def load(path: str | Path) -> Encoder:
        """The encoder that `save` wrote. Runs no code from the file.

        Raises:
            UserError: there is no such file, or it is not an encoder of falseneg, or it is damaged.
        """
        kinds = {
            "name": str,
            "image_size": int | None,
            "small_stem": bool,
            "mean": list,
            "std": list,
            "arguments": dict,
        }
        kinds["frozen_batch_norm"] = bool
        encoder, state = described_in(Path(path), _ABOUT, kinds, lambda about: Encoder(**about))
        load_exactly(encoder, _without_head(state), str(path))
        encoder.from_weights = True
        return encoder


def _create(name: str, image_size: int | None, pretrained: bool, arguments: Mapping[str, Any]) -> Any:
    """The backbone of that name from timm, without its classifier."""
    import timm

    if reserved := sorted(_OURS & arguments.keys()):
        raise UserError(
            f"Encoder: arguments holds {reserved[0]!r}, which the encoder sets itself; to start from weights, give weights"
        )
    # Only names from timm's list: the name of a file or of a hub repository would load whatever lies there.
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() names them all"
        raise UserError(f"Encoder: timm has no model {name!r}; {hint}")
    arguments = dict(arguments)
    stated = timm.models.get_pretrained_cfg(name)
    if image_size is not None and stated is not None and stated.fixed_input_size:
        arguments.setdefault("img_size", image_size)
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **arguments)
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        raise UserError(f"Encoder: timm cannot build {name!r} with {arguments}: {_first_line(error)}") from error
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise UserError(
            f"Encoder: the pretrained weights of {name!r} could not be downloaded ({_first_line(error)}); "
            "give a local file as weights, or none for random weights"
        ) from error


def _wants_small_stem(backbone: Any, name: str, image_size: int | None, wish: bool | None) -> bool:
    possible = all(hasattr(backbone, part) for part in ("conv1", "maxpool", "layer1"))
    if wish and not possible:
        raise UserError(f"Encoder: small_stem is for ResNets, and {name!r} is not one; leave it out")
    return possible and (image_size is not None and image_size <= SMALL_STEM if wish is None else wish)


def _shrink_stem(backbone: Any, keep_centre: bool) -> None:
    """A 3 × 3 convolution of stride 1 and no pooling; of a trained 7 × 7 kernel the centre stays."""
    backbone.maxpool = nn.Identity()
    if not isinstance(backbone.conv1, nn.Conv2d):  # a "deep" stem: three 3 × 3 convolutions, the first with stride 2
        backbone.conv1[0].stride = (1, 1)
        return
    usual = backbone.conv1
    backbone.conv1 = nn.Conv2d(usual.in_channels, usual.out_channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
    if keep_centre:
        edge = (usual.kernel_size[0] - 3) // 2
        backbone.conv1.weight.data.copy_(usual.weight.data[:, :, edge : edge + 3, edge : edge + 3])


def _channels(name: str, values: Sequence[float]) -> Tensor:
    if len(values) != 3 or (name == "std" and min(values) <= 0):
        raise UserError(f"Encoder: {name} is {tuple(values)}; give three numbers{' above 0' if name == 'std' else ''}")
    return torch.tensor([float(value) for value in values]).view(3, 1, 1)


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a file, without running code from it.

    Raises:
        UserError: there is no such file, or it holds no state dict, or it is damaged.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; give a .safetensors, .pth or .pt file with weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = load_tensors(path)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is damaged or holds no weights: {_first_line(error)}") from error
    for key in ("state_dict", "model"):
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"{path} holds no state dict of a model; give one that was saved with torch.save(model.state_dict())"
        )
    return state


def _without_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An export's weights without those of a projection head; those of a timm model, which may have a ``head``, as they are."""
    exported = any(key.startswith("backbone.") for key in state)
    return {key: value for key, value in state.items() if not (exported and key.startswith(HEAD))}


def described_in(
    path: Path, key: str, kinds: Mapping[str, Any], build: Callable[[Any], T]
) -> tuple[T, dict[str, Tensor]]:
    """What an exported file describes, built within a bound of memory that its weights set. Runs no code from the file.

    Args:
        path: a safetensors file.
        key: of the description in its metadata.
        kinds: the constructor arguments in the description, and their types.
        build: from the description to the module.

    Returns:
        The module as it was built, and the weights in the file, which are yet to be loaded.

    Raises:
        UserError: the file is damaged, was not exported by falseneg, or describes what cannot be built or is far larger
            than its weights.
    """
    about, state = _read_about(path, key, kinds), read_weights(path)
    size = sum(value.nbytes for value in state.values())
    try:
        with Within(2 * size + 2**26):
            return build(about), state
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(
            f"{path} describes an encoder that is far larger than its {size:,} bytes of weights; give a whole file"
        ) from error
    except Exception as error:  # whatever timm raises for arguments that no encoder has had
        raise UserError(f"{path} describes an encoder that cannot be built ({_first_line(error)})") from error


def describes(path: Path, key: str) -> bool:
    """Whether it is a safetensors file with that description in its metadata."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return key in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _read_about(path: Path, key: str, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor arguments in an exported file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"there is no file {path}; give the encoder.safetensors of a run")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[key])
        if "frozen_batch_norm" in kinds:
            about = {"frozen_batch_norm": False, **about}  # earlier versions had no such option
        if wrong := [name for name, kind in kinds.items() if not isinstance(about[name], kind)]:
            raise TypeError(f"{wrong[0]} is {about[wrong[0]]!r}")
        return {name: about[name] for name in kinds}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file: {_first_line(error)}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not an encoder that falseneg exported; to start from its weights use Encoder(weights=…)"
        ) from error


def _without_classifier(state: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """The state without the layers that a classifier had and a backbone does not."""
    classifier = getattr(backbone, "pretrained_cfg", {}).get("classifier") or ()
    layers = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return {key: value for key, value in state.items() if not key.startswith(tuple(f"{layer}." for layer in layers))}


def load_exactly(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state of exactly these names and shapes.

    Raises:
        UserError: names or shapes differ.
    """
    # Files from before 2018 do not count batches.
    counts = {key: value for key, value in module.state_dict().items() if key.endswith("num_batches_tracked")}
    state = {**counts, **state}
    if (difference := first_difference(module, state)) is not None:
        raise UserError(
            f"the weights in {source} are of another model: {difference}; give the same name, arguments and stem"
        )
    module.load_state_dict(state)


def first_difference(module: nn.Module, state: Mapping[str, Any]) -> str | None:
    """The first names whose shapes differ between a state and the module it is for, in words; None if all are equal."""
    own = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state.items()}
    differ = [key for key in sorted({*own, *given}) if own.get(key) != given.get(key)]
    words = [
        f"{key} is {given.get(key, 'missing')} there and {own.get(key, 'missing')} here" for key in differ[:_SHOWN]
    ]
    more = [f"{len(differ) - _SHOWN} more differ"] if len(differ) > _SHOWN else []
    return ", ".join([*words, *more]) or None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
