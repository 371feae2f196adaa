import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from photo_folders import below, pixels, write_photo
from PIL import Image

import oldrestore
from oldrestore.cli import run_command
from oldrestore.files import side_by_side
from oldrestore.pipeline import Restorer


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder with two photos, one in a folder of its own, and something else."""
    folder = tmp_path / "scans"
    write_photo(folder / "a.png")
    write_photo(folder / "1931" / "b.png", seed=1)
    (folder / "notes.txt").write_text("no photo")
    return folder


def test_one_photo_into_one_file(scans: Path, weights: Path, tmp_path: Path) -> None:
    source, target = str(scans / "a.png"), tmp_path / "new" / "out.png"
    assert run_command(["restore", source, "-o", str(target), "--weights", str(weights)]) == 0
    expected = Restorer.load(weights, "cpu").restore(source).image
    assert np.array_equal(pixels(target), np.asarray(expected))


def test_a_folder_is_mirrored_by_name(
    scans: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run_command(["restore", str(scans), "-o", str(out), "--weights", str(weights)]) == 0
    assert below(out) == ["1931/b.png", "a.png"]
    assert capsys.readouterr() == ("", "")  # no progress bar where there is no terminal


def test_results_inside_the_folder_are_not_restored_again(
    scans: Path, weights: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        command = ["restore", str(scans), "-o", str(scans / "out"), "--weights", str(weights)]
        assert run_command(command) == 0
    assert below(scans / "out") == ["1931/b.png", "a.png"]


def test_patterns_and_photos_we_cannot_write_in_their_format(weights: Path, tmp_path: Path) -> None:
    write_photo(tmp_path / "in" / "a.gif")
    write_photo(tmp_path / "in" / "b.JPG")
    write_photo(tmp_path / "in" / "c.png")
    pattern, out = str(tmp_path / "in" / "[ab].*"), tmp_path / "out"
    assert run_command(["restore", pattern, "-o", str(out), "--weights", str(weights)]) == 0
    assert below(out) == ["a.png", "b.JPG"]


def test_masks_comparisons_and_json(
    scans: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks, out = tmp_path / "masks", tmp_path / "out"
    mask = np.zeros((16, 24), np.uint8)
    mask[4:8] = 255
    for name in ("a", "1931/b"):
        (masks / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(masks / f"{name}.png")
    command = ["restore", str(scans), "-o", str(out), "--weights", str(weights), "--json"]
    options = ["--mask", str(masks), "--save-mask", str(tmp_path / "saved"), "--compare"]
    assert run_command([*command, *options]) == 0
    assert below(out) == ["1931/b-compare.jpg", "1931/b.png", "a-compare.jpg", "a.png"]
    assert np.array_equal(pixels(tmp_path / "saved" / "1931" / "b.png"), mask)
    compared = pixels(out / "a-compare.jpg").astype(float)
    assert compared.shape == (16, 48, 3)
    assert np.abs(compared[:, :24] - pixels(scans / "a.png")).mean() < 8  # JPEG of noise
    assert np.abs(compared[:, 24:] - pixels(out / "a.png")).mean() < 8
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(r["input"]).name for r in records] == ["b.png", "a.png"]
    assert records[1]["output"] == str(out / "a.png")
    assert records[1]["mask"] == str(tmp_path / "saved" / "a.png")
    assert records[1]["compare"] == str(out / "a-compare.jpg")
    assert records[1]["size"] == [24, 16]
    assert records[1]["damaged"] == pytest.approx(0.25)
    assert records[1]["seconds"] > 0
    assert len(records[1]["tone"][0]["black"]) == 3


def test_options_reach_the_restorer(scans: Path, weights: Path, tmp_path: Path) -> None:
    source, out = scans / "a.png", tmp_path / "out.png"
    command = ["restore", str(source), "-o", str(out), "--weights", str(weights)]
    assert run_command([*command, "--strength", "0"]) == 0
    assert np.array_equal(pixels(out), pixels(source))
    restorer = Restorer.load(weights, "cpu")
    for options, expected in (
        (["--no-mask", "--tone", "0"], {"mask": None, "tone": 0.0}),
        (["--threshold", "0.9"], {"threshold": 0.9}),
        (["--backend", "reference", "--device", "cpu", "--threads", "1"], {}),
    ):
        assert run_command([*command, *options]) == 0
        wanted = np.asarray(restorer.restore(source, **expected).image).astype(int)
        assert np.abs(pixels(out) - wanted).max() <= ("reference" in options)


def test_a_bad_photo_does_not_stop_the_rest(
    scans: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (scans / "0.png").write_bytes(b"")
    (scans / "1.jpg").write_bytes(b"not a picture")
    (scans / "2.png").write_bytes((scans / "a.png").read_bytes()[:200])
    write_photo(scans / "3.png", size=(1, 1))
    gone = str(scans / "gone.png")
    command = ["restore", str(scans), gone, "-o", str(tmp_path / "out"), "--json"]
    assert run_command([*command, "--weights", str(weights)]) == 1
    assert below(tmp_path / "out") == ["1931/b.png", "a.png"]
    output, errors = capsys.readouterr()
    lines = errors.splitlines()
    assert len(lines) == 5
    for line, name, reason in zip(
        lines,
        ("0.png", "1.jpg", "2.png", "3.png", "gone.png"),
        ("is empty", "is not a picture", "damaged or cut short", "8 to", "cannot be read"),
        strict=True,
    ):
        assert line.startswith(f"oldrestore: {scans / name}: ")
        assert reason in line
    records = [json.loads(line) for line in output.splitlines()]
    assert sum("error" in record for record in records) == 5
    assert len(records) == 7


def test_masks_that_do_not_fit_fail_their_photo_only(
    scans: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.new("L", (9, 9)).save(masks / "a.png")
    command = ["restore", str(scans), "-o", str(tmp_path / "out"), "--weights", str(weights)]
    assert run_command([*command, "--mask", str(masks)]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].endswith(f"no mask 1931/b.* in {masks}")
    assert f"{masks / 'a.png'}: expected (16, 24) to match photo, got (9, 9)" in errors[1]
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(
    scans: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    out = str(tmp_path / "file" / "out")
    assert run_command(["restore", str(scans), "-o", out, "--weights", str(weights)]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert all("Not a directory" in line for line in errors)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into every folder")
def test_a_read_only_folder(scans: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    out = str(tmp_path / "out")
    assert run_command(["restore", str(scans), "-o", out, "--weights", str(weights)]) == 1


def test_a_full_disk_leaves_nothing_half_written(
    scans: Path,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real_save = Image.Image.save

    def full_after_the_first(self: Image.Image, file: object, form: str, **options: object) -> None:
        if (out / "1931" / "b.png").exists():
            file.write(b"half")
            raise OSError(28, "No space left on device")
        real_save(self, file, form, **options)

    out = tmp_path / "out"
    monkeypatch.setattr(Image.Image, "save", full_after_the_first)
    assert run_command(["restore", str(scans), "-o", str(out), "--weights", str(weights)]) == 1
    assert below(out) == ["1931/b.png"]
    assert "a.png: cannot be written: No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{scans}", "-o", "{scans}"], "would replace the photo it is made of"),
        (["{scans}/a.png", "-o", "{scans}/a.png"], "would replace the photo it is made of"),
        (["{scans}", "-o", "x.png"], "x.png: expected a folder for more than one photo"),
        (["{scans}/a.png", "{scans}/../more/a.png", "-o", "out"], "more than one result"),
        (["{scans}/none/*.png", "-o", "out"], "no photos found"),
        (["{scans}/../masks", "-o", "out"], "no photos found"),
        (["{scans}", "-o", "out", "--no-mask", "--save-mask", "m"], "--no-mask: expected neither"),
        (["{scans}", "-o", "out", "--threads", "0"], "--threads: expected 1 or more"),
        (["{scans}", "-o", "out", "--weights", "gone"], "gone: no such weights file"),
        (["{scans}", "-o", "out", "--device", "abacus"], "device: cannot use 'abacus'"),
        (["{scans}", "-o", "out", "--backend", "x"], "backend: no operation can use 'x'"),
        (["{scans}", "-o", "out", "--bogus"], "Unknown option"),
        (["{scans}"], "requires an argument"),
        ([], "requires an argument"),
    ],
)
def test_requests_that_make_no_sense_do_nothing(
    scans: Path,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "masks").mkdir()
    write_photo(tmp_path / "more" / "a.png")
    monkeypatch.chdir(tmp_path)
    before = below(tmp_path)
    command = ["restore", *(text.format(scans=scans) for text in arguments)]
    command += [] if "--weights" in command else ["--weights", str(weights)]
    assert run_command(command) == 2
    output, errors = capsys.readouterr()
    assert message in " ".join((output + errors).split())
    assert below(tmp_path) == before


def test_a_pickle_as_weights_is_refused(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old.pth").write_bytes(b"PK\x03\x04 and so on")
    command = ["restore", str(scans), "-o", str(tmp_path / "out")]
    assert run_command([*command, "--weights", str(tmp_path / "old.pth")]) == 2
    assert "old.pth: is a pickle" in capsys.readouterr().err


def test_numbers_out_of_range_fail(
    scans: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["restore", str(scans / "a.png"), "-o", str(tmp_path / "out")]
    assert run_command([*command, "--weights", str(weights), "--strength", "2"]) == 1
    assert "strength: expected 0 to 1, got 2.0" in capsys.readouterr().err


def test_detect_writes_masks(
    scans: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["detect", str(scans), "-o", str(tmp_path / "out"), "--weights", str(weights)]
    assert run_command([*command, "--json"]) == 0
    assert below(tmp_path / "out") == ["1931/b.png", "a.png"]
    expected = Restorer.load(weights, "cpu").detect(scans / "a.png")
    assert np.array_equal(pixels(tmp_path / "out" / "a.png"), np.asarray(expected))
    record = json.loads(capsys.readouterr().out.splitlines()[1])
    assert record["damaged"] == pytest.approx(np.asarray(expected).mean() / 255, abs=1e-6)


def test_degrade_writes_pairs_and_names_what_it_skips(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["degrade", str(scans), "-o", str(tmp_path / "pairs"), "--seed", "3"]
    assert run_command(command) == 0
    pairs = [f"{k}/{n}.png" for k in ("clean", "degraded", "mask") for n in ("1931/b", "a")]
    assert below(tmp_path / "pairs") == sorted([*pairs, "degradations.jsonl"])
    assert "2 pairs written" in capsys.readouterr().out
    (scans / "bad.png").write_bytes(b"")
    assert run_command(command) == 1
    output, errors = capsys.readouterr()
    assert "2 pairs written" in output
    assert f"skipped: {scans / 'bad.png'}: is empty" in errors
    assert run_command([*command[:2], "-o", str(scans / "a.png" / "x")]) == 1
    assert "Not a directory" in capsys.readouterr().err
    assert run_command(["degrade", str(tmp_path / "gone"), "-o", str(tmp_path / "x")]) == 2


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_the_other_commands_are_mounted(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([command, "--help"]) == 0
    assert f"oldrestore {command}" in capsys.readouterr().out


def test_info_says_what_is_used(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["info", "--weights", str(weights), "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert f"weights: {weights}" in text
    assert "    data: none" in text
    assert "    residual_block reference: active" in text
    assert run_command(["info", "--weights", "gone", "--device", "cpu", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["about the weights"] == "gone: no such weights file"
    named = {row["operation"] for row in facts["operations"]}
    assert named >= {"partial_nonlocal", "patch_attention", "residual_block"}


def test_comparing_16_bit_and_alpha() -> None:
    deep = np.full((9, 9, 2), 65535, np.uint16)
    values = side_by_side(deep, deep * 0)
    assert values.shape == (9, 18, 3)
    assert values[:, :9].min() == 255
    assert values[:, 9:].max() == 0


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--version"]) == 0
    assert capsys.readouterr().out.strip() == oldrestore.__version__


def test_an_interrupt_has_its_own_code(
    scans: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Restorer, "restore_windows", interrupt)
    command = ["restore", str(scans), "-o", str(tmp_path / "out"), "--weights", str(weights)]
    assert run_command(command) == 130


def test_the_module_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "oldrestore", "restore"]
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert "requires an argument" in failed.stdout + failed.stderr


def test_every_page_of_a_deep_tiff_is_restored(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    pages = [rng.integers(0, 65536, (24, 32, 3), np.uint16) for _ in range(3)]
    with tifffile.TiffWriter(tmp_path / "in.tif") as writer:
        for number, page in enumerate(pages):
            writer.write(page, photometric="rgb", description=f"page {number}", metadata=None)
    command = ["restore", str(tmp_path / "in.tif"), "--weights", str(weights), "--json"]
    out = tmp_path / "new" / "out.tif"
    options = ["--save-mask", str(tmp_path / "mask.png"), "--compare"]
    assert run_command([*command, "-o", str(out), *options]) == 0
    assert below(tmp_path / "new") == [
        "out-compare-page-2.jpg",
        "out-compare-page-3.jpg",
        "out-compare.jpg",
        "out.tif",
    ]
    assert {"mask.png", "mask-page-2.png", "mask-page-3.png"} <= set(below(tmp_path))
    restorer = Restorer.load(weights, "cpu")
    with tifffile.TiffFile(out) as file:
        assert [page.description for page in file.pages] == ["page 0", "page 1", "page 2"]
        for page, pixels_before in zip(file.pages, pages, strict=True):
            assert np.array_equal(page.asarray(), restorer.restore(pixels_before).image)
    record = json.loads(capsys.readouterr().out)
    assert [page["size"] for page in record["pages"]] == [[32, 24]] * 3
    assert run_command([*command, "-o", str(out), "--strength", "0"]) == 0
    assert np.array_equal(tifffile.imread(out, key=2), pages[2])


def test_masks_of_pages(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zeros = np.zeros((16, 24), np.uint8)
    for name, count in (("in", 2), ("two", 2), ("three", 3)):
        with tifffile.TiffWriter(tmp_path / f"{name}.tif") as writer:
            for _ in range(count):
                writer.write(zeros, photometric="minisblack", metadata=None)
    command = ["restore", str(tmp_path / "in.tif"), "-o", str(tmp_path / "out.tif")]
    command += ["--weights", str(weights), "--mask"]
    assert run_command([*command, str(tmp_path / "two.tif")]) == 0
    (tmp_path / "out.tif").unlink()
    assert run_command([*command, str(tmp_path / "three.tif")]) == 1
    assert "three.tif: expected 1 page or 2, as the photo has, got 3" in capsys.readouterr().err
    assert not (tmp_path / "out.tif").exists()


def test_what_cannot_be_restored_gets_one_line(
    scans: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tifffile.imwrite(scans / "c.tif", np.zeros((16, 16, 4), np.uint8), photometric="separated")
    tifffile.imwrite(scans / "d.tif", np.zeros((16, 16), np.float32), photometric="minisblack")
    (scans / "e.tif").write_bytes((scans / "c.tif").read_bytes()[:99])
    command = ["restore", str(scans), "-o", str(tmp_path / "out"), "--weights", str(weights)]
    assert run_command(command) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1].rsplit("/")[-1] for line in lines] == ["c.tif", "d.tif", "e.tif"]
    assert below(tmp_path / "out") == ["1931/b.png", "a.png"]


def test_every_page_gets_a_mask(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = np.zeros((2, 16, 24), np.uint16)
    tifffile.imwrite(tmp_path / "in.tif", pages, photometric="minisblack", metadata=None)
    command = ["detect", str(tmp_path / "in.tif"), "-o", str(tmp_path / "out"), "--json"]
    assert run_command([*command, "--weights", str(weights)]) == 0
    assert below(tmp_path / "out") == ["in-page-2.png", "in.png"]
    assert len(json.loads(capsys.readouterr().out)["pages"]) == 2
