"""The evaluation: samples, rows, scores, tables, and what it says to bad input."""

import json
import math
import os
import sys
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F

from oldrestore.evaluate import COLUMNS, INPUTS, ROWS, evaluate, main
from oldrestore.evaluate.command import Files, save
from oldrestore.evaluate.methods import default_rows, make_methods
from oldrestore.evaluate.samples import Pixels, Sample, draw_sample
from oldrestore.evaluate.scores import Target, psnr_of
from oldrestore.perceptual import Backbone
from oldrestore.pipeline import Restorer

SIZES = ((56, 64), (64, 48), (41, 53))
CLASSICAL = ("input", "fill", "telea-nlm", "telea-nlm-autocontrast")
WITHOUT_NETWORK = ("input", "fill")


def clean_photo(index: int, height: int, width: int) -> Pixels:
    """Soft shades with some grain: compressible, not flat, not faded."""
    rng = np.random.default_rng(index)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return (smooth + rng.normal(0, 4, smooth.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clean")
    for index, (height, width) in enumerate(SIZES):
        Image.fromarray(clean_photo(index, height, width)).save(path / f"photo{index}.png")
    return path


def ssim_by_definition(a: Pixels, b: Pixels) -> float:
    """Wang et al. (2004): 11x11 Gaussian windows of sigma 1.5; the border mirrored."""
    x, y = (torch.from_numpy(p).permute(2, 0, 1)[:, None].double() / 255 for p in (a, b))
    bell = torch.exp(-((torch.arange(11.0).double() - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(bell, bell)[None, None] / bell.sum() ** 2

    def mean(z: Tensor) -> Tensor:
        return F.conv2d(F.pad(z, (5, 5, 5, 5), mode="reflect"), window)

    variance_x, variance_y = mean(x * x) - mean(x) ** 2, mean(y * y) - mean(y) ** 2
    covariance = mean(x * y) - mean(x) * mean(y)
    luminance = (2 * mean(x) * mean(y) + 0.01**2) / (mean(x) ** 2 + mean(y) ** 2 + 0.01**2)
    structure = (2 * covariance + 0.03**2) / (variance_x + variance_y + 0.03**2)
    return float((luminance * structure).mean())


def psnr_by_definition(a: Pixels, b: Pixels) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def sample_with_holes() -> Sample:
    clean = clean_photo(0, *SIZES[0])
    sample = draw_sample(clean, "not-faded", seed=0, index=0)
    mask = np.zeros(SIZES[0], np.uint8)
    mask[20:26, 10:50] = 1
    degraded = np.where(mask[:, :, None] > 0, np.uint8(255), sample.degraded)
    return Sample("not-faded", degraded, mask, sample.kept, sample.clean)


def test_psnr_and_ssim_equal_their_definitions() -> None:
    clean, other = clean_photo(0, 56, 64), clean_photo(1, 56, 64)
    score = Target(clean, None).score("photo", "input", "clean", other)
    assert score.psnr == pytest.approx(psnr_by_definition(other, clean), abs=1e-9)
    # torchmetrics computes in float32, where the variances lose digits
    assert score.ssim == pytest.approx(ssim_by_definition(other, clean), abs=1e-5)
    assert score.distance is None
    assert score.compared == clean.size


def test_holes_are_compared_where_the_mask_is() -> None:
    clean, other = clean_photo(0, 56, 64), clean_photo(1, 56, 64)
    mask = np.zeros((56, 64), np.uint8)
    mask[3:9, 30:] = 1
    score = Target(clean, None).score_holes("photo", "input", "holes", other, mask)
    expected = psnr_by_definition(other[3:9, 30:], clean[3:9, 30:])
    assert score.psnr == pytest.approx(expected, abs=1e-9)
    assert (score.compared, score.ssim) == (6 * 34 * 3, None)
    none = Target(clean, None).score_holes("photo", "input", "holes", other, mask * 0)
    assert (none.compared, none.psnr) == (0, None)


def test_identical_pictures_score_100_db_and_1() -> None:
    clean = clean_photo(0, 56, 64)
    score = Target(clean, None).score("photo", "input", "clean", clean.copy())
    assert score.psnr == 100.0
    assert score.ssim == pytest.approx(1.0, abs=1e-6)
    assert psnr_of(1e-12, 1) == 100.0
    assert psnr_of(1.0, 100) == pytest.approx(20.0)


class PlainBackbone(Backbone):
    """Its features are the colours themselves."""

    def __init__(self) -> None:
        super().__init__("vgg19", nn.Sequential(nn.Identity()))

    def features(self, image: Tensor, *, normalise: bool = True) -> list[Tensor]:
        return [image]


def test_distance_is_the_backbones() -> None:
    clean, other = clean_photo(0, 56, 64), clean_photo(1, 56, 64)
    score = Target(clean, PlainBackbone()).score("photo", "input", "clean", other)
    a, b = (torch.from_numpy(p).permute(2, 0, 1)[None] / 127.5 - 1 for p in (clean, other))
    expected = PlainBackbone().perceptual_distance(a, b).item()
    assert expected > 0
    assert score.distance == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("inputs", INPUTS)
def test_samples_are_a_function_of_seed_and_index(inputs: str) -> None:
    clean = clean_photo(0, 56, 64)
    first = draw_sample(clean, inputs, seed=3, index=5)
    again = draw_sample(clean.copy(), inputs, seed=3, index=5)
    for name in ("degraded", "mask", "kept", "clean"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    others = [draw_sample(clean, inputs, seed=s, index=i) for s, i in ((4, 5), (3, 6))]
    is_same = [np.array_equal(first.degraded, other.degraded) for other in others]
    assert is_same == [inputs == "clean"] * 2


def test_each_kind_of_input_is_what_its_name_says() -> None:
    clean = clean_photo(0, 56, 64)
    for index in range(12):
        not_faded = draw_sample(clean, "not-faded", 0, index)
        assert np.array_equal(not_faded.kept, not_faded.clean)
        assert not np.array_equal(not_faded.degraded, clean)
        faded = draw_sample(clean, "faded", 0, index)
        assert not np.array_equal(faded.kept, faded.clean)
        mild = draw_sample(clean, "nearly-clean", 0, index)
        assert 30 < psnr_by_definition(mild.degraded, clean) < 50
        assert not mild.mask.any()
    untouched = draw_sample(clean, "clean", 0, 0)
    assert np.array_equal(untouched.degraded, clean)
    assert not untouched.mask.any()


def test_the_classical_rows_are_opencvs() -> None:
    sample = sample_with_holes()
    methods = make_methods(CLASSICAL, None)
    assert methods["input"](sample).kept is sample.degraded
    bgr = cv2.cvtColor(sample.degraded, cv2.COLOR_RGB2BGR)
    bgr = cv2.inpaint(bgr, sample.mask, 3, cv2.INPAINT_TELEA)
    expected = cv2.cvtColor(cv2.fastNlMeansDenoisingColored(bgr, None, 6, 6), cv2.COLOR_BGR2RGB)
    assert np.array_equal(methods["telea-nlm"](sample).kept, expected)
    stretched = ImageOps.autocontrast(Image.fromarray(expected), cutoff=0.5)
    assert np.array_equal(methods["telea-nlm-autocontrast"](sample).kept, np.asarray(stretched))
    filled = methods["fill"](sample).kept
    outside = sample.mask == 0
    assert np.array_equal(filled[outside], sample.degraded[outside])
    assert psnr_by_definition(filled, sample.kept) > psnr_by_definition(
        sample.degraded, sample.kept
    )


def test_our_rows_are_what_restore_gives(restorer: Restorer) -> None:
    sample = sample_with_holes()
    ours = [row for row in ROWS if row.startswith("ours")]
    methods = make_methods(ours, restorer)
    found = {row: methods[row](sample) for row in ours}

    def restore(**options: object) -> Pixels:
        image: Pixels = restorer.restore(sample.degraded, **options).image  # type: ignore[arg-type]
        return image

    expected = {
        "ours": restore(mask=sample.mask, tone=0),
        "ours-whole": restore(mask=sample.mask, tone=0, denoise=1),
        "ours-fixed": restore(mask=sample.mask, tone=0, denoise=0.75),
        "ours-holes": restore(mask=sample.mask, outside_mask="keep"),
        "ours-detected": restore(tone=0),
        "ours-default": restore(),
    }
    for row, picture in expected.items():
        assert np.array_equal(found[row].kept, picture), row
    assert np.array_equal(found["ours"].undo_fading(), restore(mask=sample.mask, tone=1))
    assert np.array_equal(found["ours-detected"].undo_fading(), restore(tone=1))
    assert np.array_equal(found["ours-default"].undo_fading(), found["ours-default"].kept)
    pictures = [output.kept.tobytes() for output in found.values()]
    assert len(set(pictures)) == 7  # else this test could not tell the rows apart
    assert all(output.seconds > 0 for output in found.values())


def test_without_holes_the_nonlocal_block_changes_nothing(restorer: Restorer) -> None:
    sample = draw_sample(clean_photo(0, 56, 64), "clean", 0, 0)
    methods = make_methods(["ours", "ours-local"], restorer)
    fresh = make_methods(["ours-local"], restorer)
    kept = methods["ours"](sample).kept
    assert np.array_equal(methods["ours-local"](sample).kept, kept)
    assert np.array_equal(fresh["ours-local"](sample).kept, kept)


def test_the_same_seed_gives_the_same_results(folder: Path, restorer: Restorer) -> None:
    rows = [row for row in default_rows() if "ffdnet" not in row]
    first = evaluate(folder, restorer, seed=1, rows=rows)
    again = evaluate(folder, restorer, seed=1, rows=rows)
    other = evaluate(folder, None, seed=2, rows=["input"])
    assert first.inputs_sha256 == again.inputs_sha256 != other.inputs_sha256
    assert first.scores == again.scores
    assert first.cell("input", "not-faded") != other.cell("input", "not-faded")
    assert len(first.scores) == len(SIZES) * len(rows) * len(COLUMNS)


def test_part_of_the_table_and_of_the_photos_has_the_same_numbers(
    folder: Path, restorer: Restorer
) -> None:
    whole = evaluate(folder, restorer, rows=["input", "ours"])
    part = evaluate(folder, restorer, rows=["ours"], columns=["holes", "faded-restored"], limit=2)
    assert part.config["photos"] == ["photo0.png", "photo1.png"]
    assert len(part.scores) == 4
    for score in part.scores:
        assert score in whole.scores


def test_cells_are_means_and_holes_are_pooled(folder: Path) -> None:
    results = evaluate(folder, None, rows=WITHOUT_NETWORK, columns=["not-faded", "holes"])
    chosen = [s for s in results.scores if (s.row, s.column) == ("input", "not-faded")]
    cell = results.cell("input", "not-faded")
    assert cell.photos == len(SIZES)
    assert cell.psnr.value == pytest.approx(np.mean([s.psnr for s in chosen]))
    assert cell.ssim.value == pytest.approx(np.mean([s.ssim for s in chosen]))
    error, compared = 0.0, 0
    for index, size in enumerate(SIZES):
        sample = draw_sample(clean_photo(index, *size), "not-faded", 0, index)
        inside = sample.mask > 0
        difference = sample.degraded[inside].astype(float) - sample.kept[inside]
        error += (difference**2).sum() / 255**2
        compared += difference.size
    assert compared > 0
    found = results.cell("input", "holes").psnr.value
    assert found == pytest.approx(10 * math.log10(compared / error))


def test_targets_of_faded_photos_are_their_columns(folder: Path) -> None:
    columns = ["faded-kept", "faded-restored"]
    results = evaluate(folder, None, rows=["input"], columns=columns)
    samples = [
        draw_sample(clean_photo(index, *size), "faded", 0, index)
        for index, size in enumerate(SIZES)
    ]
    kept = np.mean([psnr_by_definition(s.degraded, s.kept) for s in samples])
    restored = np.mean([psnr_by_definition(s.degraded, s.clean) for s in samples])
    assert results.cell("input", "faded-kept").psnr.value == pytest.approx(kept)
    assert results.cell("input", "faded-restored").psnr.value == pytest.approx(restored)


def test_identity_rows_agree_on_clean_photos(folder: Path) -> None:
    results = evaluate(folder, None, rows=WITHOUT_NETWORK, columns=["clean", "nearly-clean"])
    for column in ("clean", "nearly-clean"):
        assert results.cell("input", column) == results.cell("fill", column)
    assert results.cell("input", "clean").psnr.value == 100.0


def test_unreadable_photos_are_skipped_and_named(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    good = evaluate(tmp_path, None, rows=["input"])
    (tmp_path / "photo1.png").write_bytes(b"no picture")
    (tmp_path / "photo9.jpg").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not a photo")
    results = evaluate(tmp_path, None, rows=["input"])
    assert set(results.skipped) == {"photo1.png", "photo9.jpg"}
    assert "photo1.png" in results.skipped["photo1.png"]
    assert results.config["photos"] == ["photo0.png", "photo2.png"]
    assert results.scores == tuple(s for s in good.scores if s.photo != "photo1.png")


def test_a_folder_without_readable_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a folder of photos"):
        evaluate(tmp_path / "nowhere", None, rows=["input"])
    with pytest.raises(ValueError, match="no photo in it"):
        evaluate(tmp_path, None, rows=["input"])
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="none of its 1 photos can be read"):
        evaluate(tmp_path, None, rows=["input"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": ["best"]}, "rows: expected some of input, .* got 'best'"),
        ({"rows": ["input"], "columns": ["hole"]}, "columns: expected some of .* got 'hole'"),
        ({"rows": ["input", "ours"]}, "restorer: the rows about ours need one"),
        ({"rows": []}, "rows, columns: expected at least one of each, got none"),
        ({"rows": ["input"], "limit": 0}, "limit: expected 1 or more, got 0"),
    ],
)
def test_bad_arguments_are_named(folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(folder, None, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("module", "row", "needed"),
    [("cv2", "telea-nlm", "OpenCV"), ("torchmetrics.functional.image", "input", "torchmetrics")],
)
def test_a_missing_package_is_named_with_its_extra(
    folder: Path, monkeypatch: pytest.MonkeyPatch, module: str, row: str, needed: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{needed} is needed.*oldrestore\[train\]"):
        evaluate(folder, None, rows=[row])


def test_the_saved_file_holds_table_and_every_photos_scores(
    folder: Path, restorer: Restorer, tmp_path: Path
) -> None:
    restorer.about["steps"] = 0
    results = evaluate(folder, restorer, rows=["input", "ours"], backbone=PlainBackbone())
    path = tmp_path / "results.json"
    save(path, {"restoration": results})
    saved = json.loads(path.read_text())["restoration"]
    assert saved["config"]["seed"] == 0
    assert saved["config"]["weights"] == restorer.about
    assert saved["versions"]["torch"] == torch.__version__
    assert len(saved["scores"]) == len(results.scores)
    cell = results.cell("ours", "faded-kept")
    assert saved["table"]["ours"]["columns"]["faded-kept"]["psnr"] == asdict(cell.psnr)
    assert cell.distance
    assert saved["table"]["ours"]["columns"]["faded-kept"]["distance"] == asdict(cell.distance)
    assert saved["table"]["ours"]["seconds_per_megapixel"] > 0
    assert list(tmp_path.iterdir()) == [path]


def test_a_table_has_a_line_a_row_and_says_what_its_numbers_are(folder: Path) -> None:
    results = evaluate(folder, None, rows=WITHOUT_NETWORK, columns=["clean", "holes"])
    means, medians = results.tables()
    lines = means.markdown().splitlines()
    assert lines[0] == "|  | clean | inside holes | s/MP |"
    assert lines[2].startswith("| degraded input | 100.00 [100.00, 100.00] / 1.000 | ")
    assert len(lines) == 6
    assert lines[-1].startswith("mean PSNR in dB [95 % interval] / SSIM; 3 photos, seed 0; ")
    assert medians.markdown().splitlines()[2].startswith("| degraded input | 100.00 / 1.000 | ")
    with pytest.raises(ValueError, match="was not measured"):
        results.cell("input", "faded-kept")
    with pytest.raises(ValueError, match="was not measured"):
        results.seconds_per_megapixel("ours")


def test_the_command_prints_the_table_and_saves_it(
    folder: Path,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "results.json"
    options = {"clean": folder, "files": Files(weights=weights), "parts": ["restoration"]}
    options |= {"columns": ["clean"], "rows": ["input", "ours"]}
    code = main(**options, output=output, threads=2, markdown=True)  # type: ignore[arg-type]
    assert code == 0
    printed = capsys.readouterr()
    saved = json.loads(output.read_text())["restoration"]
    psnr = saved["table"]["ours"]["columns"]["clean"]["psnr"]["value"]
    assert f"| ours, true mask | {psnr:.2f} [" in printed.out
    assert "2 threads" in printed.out
    assert printed.err == ""
    main(**options)  # type: ignore[arg-type]
    assert f"{psnr:.2f}" in capsys.readouterr().out


def test_the_command_names_skipped_photos_and_needs_no_weights_for_other_rows(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.png").write_bytes((folder / "photo0.png").read_bytes())
    (tmp_path / "bad.png").write_bytes(b"no picture")
    nowhere = tmp_path / "nowhere.safetensors"
    options = {"rows": ["input"], "columns": ["clean"], "parts": ["restoration"]}
    options |= {"files": Files(weights=nowhere)}
    assert main(clean=tmp_path, **options, markdown=True) == 1  # type: ignore[arg-type]
    printed = capsys.readouterr()
    assert "bad.png" in printed.err.splitlines()[0]
    assert "1 photo skipped" in printed.err


def test_the_command_refuses_before_it_works(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="its folder does not exist"):
        main(clean=folder, rows=["input"], output=tmp_path / "nowhere" / "results.json")
    with pytest.raises(ValueError, match="threads: expected 1 or more, got 0"):
        main(clean=folder, rows=["input"], threads=0)
    with pytest.raises(FileNotFoundError):
        main(clean=folder, rows=["ours"], files=Files(weights=tmp_path / "none.safetensors"))
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match="OpenCV is needed"):
        main(clean=folder, rows=["telea-nlm"], parts=["restoration"])


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    results = evaluate(folder, None, rows=["input"], columns=["clean"])
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        save(tmp_path / "results.json", {"restoration": results})
    tmp_path.chmod(0o700)
    assert not list(tmp_path.iterdir())
