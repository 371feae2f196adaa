"""Our networks with the published weights' names give what the published code gives.

`golden.npz` holds inputs and outputs (some channels of latents, every second pixel) of the
published PyTorch code, in float32 on a CPU, at the published sizes, with weights from a formula of
their names: a wrong name gives other weights, and so another picture.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oldrestore.fill import paint_white
from oldrestore.mapping import PaperMappingConfig, PaperMappingNetwork
from oldrestore.mask import PaperDetector, PaperDetectorConfig
from oldrestore.vae import VAE, PaperVAEConfig

ALLOWED = 5e-4  # both sides are in float32; the published one is about as far from float64 itself
Fill = Callable[..., nn.Module]
Outputs = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(Path(__file__).with_name("golden.npz")) as file:
        return {name: torch.from_numpy(file[name]) for name in file}


@pytest.fixture(scope="module")
def vaes(filled: Fill) -> tuple[nn.Module, nn.Module]:
    old, clean = VAE(PaperVAEConfig()), VAE(PaperVAEConfig())
    return filled(old), filled(clean, is_clean_vae=True)


def _image(pixels: Tensor) -> Tensor:
    return pixels.float() / 255 * 2 - 1


def _mapping(filled: Fill, variant: str) -> nn.Module:
    return filled(PaperMappingNetwork(PaperMappingConfig(variant)))


def _sample(name: str, found: Tensor) -> Tensor:
    """The part of an output that the golden file holds."""
    channels = {"latent": 4, "nl_output": 64}.get(name, 8)
    return found[..., ::2, ::2] if found.shape[1] == 3 else found[:, ::channels]


def _agree(golden: dict[str, Tensor], outputs: Outputs) -> None:
    errors = {
        name: float((_sample(name, found) - golden[name]).abs().max())
        for name, found in outputs.items()
    }
    assert {name: error for name, error in errors.items() if not error <= ALLOWED} == {}


def _quality(golden: dict[str, Tensor], vaes: tuple[nn.Module, nn.Module], fill: Fill) -> Outputs:
    old, clean = vaes
    latent = old.encode(_image(golden["image"]).to(_dtype(old)))
    mapped = _mapping(fill, "quality").to(latent.dtype)(latent, golden["mask"].to(latent))
    return {"latent": latent, "quality_mapped": mapped, "quality_output": clean.decode(mapped)}


def _scratch(golden: dict[str, Tensor], vaes: tuple[nn.Module, nn.Module], fill: Fill) -> Outputs:
    old, clean = vaes
    image, mask = _image(golden["image"]).to(_dtype(old)), golden["mask"].to(_dtype(old))
    mapping = _mapping(fill, "scratch").to(image.dtype)
    latent = old.encode(paint_white(image, mask))
    mapped = mapping(latent, mask)
    unmasked = mapping(old.encode(image), torch.zeros_like(mask))
    return {
        "nl_output": mapping.trunk[0](mapping.head(latent), mask),
        "scratch_mapped": mapped,
        "scratch_output": clean.decode(mapped),
        "scratch_nohole_output": clean.decode(unmasked),
    }


def _hr(golden: dict[str, Tensor], vaes: tuple[nn.Module, nn.Module], fill: Fill) -> Outputs:
    old, clean = vaes
    image, mask = _image(golden["hr_image"]).to(_dtype(old)), golden["hr_mask"].to(_dtype(old))
    mapped = _mapping(fill, "hr").to(image.dtype)(old.encode(paint_white(image, mask)), mask)
    return {"hr_mapped": mapped, "hr_output": clean.decode(mapped)}


def _dtype(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype


@pytest.mark.parametrize("run", [_quality, _scratch, _hr], ids=["quality", "scratch", "hr"])
def test_each_variant_agrees_with_the_published_code(
    run: Callable[..., Outputs],
    golden: dict[str, Tensor],
    vaes: tuple[nn.Module, nn.Module],
    filled: Fill,
) -> None:
    _agree(golden, run(golden, vaes, filled))


def test_the_detector_agrees_with_the_published_code(
    golden: dict[str, Tensor], filled: Fill
) -> None:
    detector = filled(PaperDetector(PaperDetectorConfig()))
    grey = _image(golden["detector_image"]).expand(-1, 3, -1, -1)
    error = (detector(grey).sigmoid() - golden["detector_probability"]).abs().max()
    assert error <= 1e-5  # some tens of roundings; probabilities are not amplified


def test_the_networks_have_the_published_sizes() -> None:
    def millions(network: nn.Module) -> float:
        return round(sum(p.numel() for p in network.parameters()) / 1e6, 2)

    with torch.device("meta"):
        mappings = {v: PaperMappingConfig(v) for v in ("quality", "scratch", "hr")}
        sizes = {v: millions(PaperMappingNetwork(config)) for v, config in mappings.items()}
        vae = VAE(PaperVAEConfig())
        assert (millions(vae.encoder), millions(vae.decoder)) == (0.44, 0.44)
        assert millions(PaperDetector(PaperDetectorConfig())) == 37.63
    assert sizes == {"quality": 36.14, "scratch": 51.34, "hr": 73.9}


@pytest.mark.slow
@pytest.mark.parametrize("run", [_quality, _scratch, _hr], ids=["quality", "scratch", "hr"])
def test_we_are_as_near_the_exact_result_as_the_published_code(
    run: Callable[..., Outputs],
    golden: dict[str, Tensor],
    vaes: tuple[nn.Module, nn.Module],
    filled: Fill,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prints both distances to the result in float64, as README quotes them."""
    single = run(golden, vaes, filled)
    exact = run(golden, tuple(vae.double() for vae in vaes), filled)
    for vae in vaes:
        vae.float()
    for name, truth in exact.items():
        published = float((golden[name] - _sample(name, truth)).abs().max())
        ours = float(_sample(name, single[name] - truth).abs().max())
        with capsys.disabled():
            line = f"{name}: published code {published:.1e}, ours {ours:.1e} from float64"
            sys.stdout.write(f"\n{line}")
        assert ours <= 2 * published
