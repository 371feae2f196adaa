"""The ImageNet classifiers whose features ``perceptual`` compares: layers, names in their files."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

# what ImageNet classifiers were trained on: (v - mean) / std for v in [0, 1]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# EfficientNet-Lite's authors: (v - 127) / 128 for v in 0..255
LITE_MEAN = (127 / 255,) * 3
LITE_STD = (128 / 255,) * 3
NORM_EPS, LITE_NORM_EPS = 1e-5, 1e-3  # of the batch norms: torchvision's, EfficientNet-Lite's
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
MOBILENET_LAYERS = (1, 3, 6, 13, 17)  # the last block at each scale, from 1/2 to 1/32 of the side
# table 1 of Tan and Le (ICML 2019), without squeeze-and-excitation, with ReLU6 for swish: the
# authors' "lite" networks. Expansion, channels, blocks, stride of the first, side of the filters
LITE_BLOCKS = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
LITE_LAYERS = (1, 3, 5, 11, 16)  # likewise


class SamePadded(nn.Conv2d):
    """A convolution of ceil(side / stride) outputs; an odd row or column of zeros comes last.

    TensorFlow's "same" padding, with which EfficientNet-Lite was trained.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the base class names it so
        padding: list[int] = []
        for side, size, stride in zip(
            input.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True
        ):
            total = max((-(-side // stride) - 1) * stride + size - side, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(input, padding))


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow: the block of MobileNetV2 (Sandler et al., 2018).

    Args:
        channels_in, channels_out: of the block; ``expansion`` times as many are filtered.
        stride, size: of the filters.
        is_lite: as EfficientNet-Lite has it: TensorFlow's padding, another epsilon.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        expansion: int,
        stride: int,
        size: int = 3,
        *,
        is_lite: bool = False,
    ) -> None:
        super().__init__()
        width = channels_in * expansion
        widen = [_conv_norm_relu6(channels_in, width, 1, is_lite=is_lite)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *widen,
            _conv_norm_relu6(width, width, size, stride=stride, groups=width, is_lite=is_lite),
            *list(_conv_norm_relu6(width, channels_out, 1, is_lite=is_lite))[:2],
        )
        self.is_residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        narrow: Tensor = self.conv(x)
        return x + narrow if self.is_residual else narrow


def _conv_norm_relu6(
    channels_in: int,
    channels_out: int,
    size: int,
    *,
    stride: int = 1,
    groups: int = 1,
    is_lite: bool = False,
) -> nn.Sequential:
    kind, padding = (SamePadded, 0) if is_lite else (nn.Conv2d, size // 2)
    conv = kind(channels_in, channels_out, size, stride, padding, groups=groups, bias=False)
    norm = nn.BatchNorm2d(channels_out, eps=LITE_NORM_EPS if is_lite else NORM_EPS)
    return nn.Sequential(conv, norm, nn.ReLU6())


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


def _efficientnet_lite0() -> nn.Sequential:
    layers: list[nn.Module] = [_conv_norm_relu6(3, 32, 3, stride=2, is_lite=True)]
    width_in = 32
    for expansion, width, count, first, size in LITE_BLOCKS:
        for i in range(count):
            stride = first if i == 0 else 1
            block = InvertedResidual(width_in, width, expansion, stride, size, is_lite=True)
            layers.append(block)
            width_in = width
    return nn.Sequential(*layers)


def _torchvision_key(key: str) -> str:
    return f"features.{key}"


def _lite_key(key: str) -> str:
    """Its package's name of a tensor: 3.conv.1.0.weight -> _blocks.2._depthwise_conv.weight."""
    index, *place, tensor = key.split(".")
    if index == "0":
        return f"{('_conv_stem', '_bn0')[int(place[0])]}.{tensor}"
    names = ["_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
    if index == "1":  # does not widen
        del names[:2]
    # conv, norm and ReLU6 lie in one module; the last conv and norm lie beside them
    step, *inner = (int(number) for number in place[1:])
    at = 2 * step + inner[0] if inner else step + len(names) // 2 - 1
    return f"_blocks.{int(index) - 1}.{names[at]}.{tensor}"


@dataclass(frozen=True)
class Architecture:
    """How one of the known networks is built and read.

    marker: a key that only its files have. own: how the keys begin of which none may be unknown.
    key: a trunk's key -> the file's. layers: whose outputs are the features. mean, std: of the
        images in [0, 1] that it was trained on.
    """

    marker: str
    own: str | None
    build: Callable[[], nn.Sequential]
    key: Callable[[str], str]
    layers: tuple[int, ...]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


ARCHITECTURES = {
    "mobilenet_v2": Architecture(
        "features.0.0.weight", None, _mobilenet_v2, _torchvision_key, MOBILENET_LAYERS
    ),
    "vgg19": Architecture("features.0.weight", None, _vgg19, _torchvision_key, VGG19_LAYERS),
    "efficientnet_lite0": Architecture(
        "_conv_stem.weight",
        "_blocks.",  # EfficientNet-B0 differs by more of these alone
        _efficientnet_lite0,
        _lite_key,
        LITE_LAYERS,
        LITE_MEAN,
        LITE_STD,
    ),
}
