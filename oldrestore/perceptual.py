"""Perceptual distance and loss from ImageNet weights that the user gives; none are shipped.

VGG-19 and MobileNetV2, in the key layout of torchvision's files. Training compares a restored photo
with the clean one by them, and evaluation measures with them.
"""

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

# what ImageNet classifiers were trained on: (v - mean) / std for v in [0, 1]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
UNIT_EPS = 1e-10  # of a feature vector's length, as in LPIPS
SMALLEST_SIDE_PX = 32  # the deepest features are at a 16th or a 32nd of the side

# configuration E of Simonyan and Zisserman (2015) up to relu5_1; "M" is a 2x2 maximum
VGG19_WIDTHS = (64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", 512)
VGG19_LAYERS = (1, 6, 11, 20, 29)  # relu1_1, relu2_1, relu3_1, relu4_1, relu5_1
# table 2 of Sandler et al. (2018): expansion, channels, blocks, stride of the first
MOBILENET_BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
MOBILENET_LAYERS = (
    1,
    3,
    6,
    13,
    17,
)  # the last block at each scale, from 1/2 to 1/32 of the side
# a loss weight per layer, shallow to deep; pix2pixHD's, which the published system takes over
LAYER_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)

# a key that only this network has; in this order
MARKERS = {"mobilenet_v2": "features.0.0.weight", "vgg19": "features.0.weight"}


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow: the block of MobileNetV2 (Sandler et al., 2018)."""

    def __init__(self, channels_in: int, channels_out: int, expansion: int, stride: int) -> None:
        super().__init__()
        width = channels_in * expansion
        widen = [_conv_norm_relu6(channels_in, width, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *widen,
            _conv_norm_relu6(width, width, 3, stride=stride, groups=width),
            nn.Conv2d(width, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.is_residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        narrow: Tensor = self.conv(x)
        return x + narrow if self.is_residual else narrow


def _conv_norm_relu6(
    channels_in: int, channels_out: int, size: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(
        channels_in,
        channels_out,
        size,
        stride,
        padding=size // 2,
        groups=groups,
        bias=False,
    )
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU6())


def _vgg19() -> nn.Sequential:
    layers: list[nn.Module] = []
    width_in = 3
    for width in VGG19_WIDTHS:
        if isinstance(width, int):
            layers += [nn.Conv2d(width_in, width, 3, padding=1), nn.ReLU()]
            width_in = width
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def _mobilenet_v2() -> nn.Sequential:
    layers: list[nn.Module] = [_conv_norm_relu6(3, 32, 3, stride=2)]
    width_in = 32
    for expansion, width, count, stride in MOBILENET_BLOCKS:
        for i in range(count):
            layers.append(InvertedResidual(width_in, width, expansion, stride if i == 0 else 1))
            width_in = width
    return nn.Sequential(*layers)


class Backbone(nn.Module):
    """Frozen features of an ImageNet classifier; gradients flow to the image, none to the weights.

    Args:
        name: "vgg19" or "mobilenet_v2".
        trunk: the layers, in evaluation mode for good.
    """

    def __init__(self, name: str, trunk: nn.Sequential) -> None:
        super().__init__()
        self.name = name
        self.trunk = trunk.requires_grad_(False)
        self.layers = VGG19_LAYERS if name == "vgg19" else MOBILENET_LAYERS
        self.train(False)

    def train(self, mode: bool = True) -> "Backbone":  # noqa: ARG002 - the base class has it
        """Stay in evaluation mode, whatever the network this is part of does."""
        return super().train(False)

    def features(self, image: Tensor, *, normalise: bool = True) -> list[Tensor]:
        """Features at five depths.

        Args:
            image: (B, 3, H, W) floating point in [-1, 1]; sides of at least 32 px.
            normalise: bring the image to ImageNet's mean and deviation, as these networks were
                trained. The published system shows VGG-19 the image in [-1, 1] as it is.

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
            mean = image.new_tensor(IMAGENET_MEAN)[:, None, None]
            std = image.new_tensor(IMAGENET_STD)[:, None, None]
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
        VGG-19 sees the image without ImageNet's normalisation there, and so here. MobileNetV2, ours
        for want of the larger file, sees it with.

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
    """Read ImageNet weights in torchvision's key layout, in float32 on the CPU.

    Args:
        path: safetensors, or a ``.pth`` of ``torch.save``, read with ``weights_only=True``.
            A classifier in the same file is ignored.
        name: "vgg19" or "mobilenet_v2"; None tells by the keys.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated, would run code, is of another network, or a tensor is
            missing or of another shape (the first one is named).
    """
    path = Path(path)
    tensors = _read_tensors(path)
    found = next((name for name, marker in MARKERS.items() if marker in tensors), None)
    if found is None:
        markers = " or ".join(f"{marker} ({name})" for name, marker in MARKERS.items())
        raise ValueError(f"{path}: no known backbone; expected a key {markers}")
    if name not in (None, found):
        raise ValueError(f"name: {path} holds {found}, got {name!r}")
    with torch.device("meta"):  # shapes only: the values come from the file
        trunk = _vgg19() if found == "vgg19" else _mobilenet_v2()
    state = {}
    for key, expected in trunk.state_dict().items():
        if key.endswith("num_batches_tracked"):  # a counter that files from before 2018 lack
            state[key] = torch.tensor(0)
            continue
        tensor = tensors.get(f"features.{key}")
        if tensor is None:
            raise ValueError(f"{path}: features.{key} of {found} is missing")
        if tensor.shape != expected.shape:
            raise ValueError(
                f"{path}: features.{key}: expected {tuple(expected.shape)} of {found}, "
                f"got {tuple(tensor.shape)}"
            )
        state[key] = tensor.float()
    trunk.load_state_dict(state, assign=True)
    trunk.eval()
    for module in list(trunk.modules()):
        _fold_norms(module)
    return Backbone(found, trunk)


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
