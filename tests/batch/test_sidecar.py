"""What is said of a photo: JSON, XMP, maps and the strip of the report."""

import hashlib
import json
import os
from pathlib import Path
from xml.etree import ElementTree as Xml

import numpy as np
import pytest
import torch
from photo_folders import RunBatch, below, pixels, write_photo
from PIL import Image

import oldrestore
from oldrestore.batch.manifest import Manifest
from oldrestore.batch.maps import MapsOfPage, write_preview
from oldrestore.batch.runner import MANIFEST_NAME
from oldrestore.batch.sidecar import NAMESPACES, describe, write_xmp
from oldrestore.batch.work import preview_name
from oldrestore.face import stage
from oldrestore.face.detect import Face
from oldrestore.image import decode
from oldrestore.pipeline import Restorer
from oldrestore.tiling.windows import ArrayWindows

NAMES = {prefix: uri for prefix, uri in NAMESPACES.items() if prefix != "x"}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_json_says_what_was_done(run: RunBatch, scans: Path, out: Path, weights: Path) -> None:
    run(strength=0.5, threshold=0.25)
    about = json.loads((out / "1931" / "b.jpg.json").read_text())
    assert about["inputs"]["photo"] == {
        "name": "b.jpg",
        "size": (scans / "1931" / "b.jpg").stat().st_size,
        "sha256": sha256(scans / "1931" / "b.jpg"),
    }
    assert about["outputs"]["photo"]["sha256"] == sha256(out / "1931" / "b.jpg")
    assert about["weights"] == {"name": weights.name, "sha256": sha256(weights)}
    assert about["software"]["oldrestore"] == oldrestore.__version__
    assert about["software"]["torch"] == torch.__version__
    assert about["options"] == {
        "threshold": 0.25,
        "denoise": None,
        "outside_mask": "restore",
        "strength": 0.5,
        "tone": about["options"]["tone"],
        "mask": "auto",
    }
    assert (about["width"], about["height"]) == (24, 16)
    assert about["damaged"] == 1.0
    (share,) = about["denoise"]
    assert 0 <= share <= 1
    assert about["tone"][0]["strength"] == about["options"]["tone"]
    row = Manifest(out / MANIFEST_NAME, is_read_only=True).row("1931/b.jpg")
    assert row.record["damaged"] == 1.0


def test_the_xmp_is_a_packet_with_history_and_all_of_the_json(run: RunBatch, out: Path) -> None:
    run()
    text = (out / "a.png.xmp").read_text(encoding="utf-8")
    assert text.startswith('<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<x:xmpmeta')
    assert text.endswith('<?xpacket end="w"?>\n')
    about = json.loads((out / "a.png.json").read_text())
    description = Xml.fromstring(text).find("rdf:RDF/rdf:Description", NAMES)
    event = description.find("xmpMM:History/rdf:Seq/rdf:li", NAMES)
    assert event.findtext("stEvt:action", namespaces=NAMES) == "edited"
    assert event.findtext("stEvt:when", namespaces=NAMES) == about["finished"]
    assert event.findtext("stEvt:softwareAgent", namespaces=NAMES).startswith("oldrestore ")
    parameters = event.findtext("stEvt:parameters", namespaces=NAMES)
    assert json.loads(parameters) == about["options"]
    path = "oldrestore:outputs/oldrestore:photo/oldrestore:sha256"
    assert description.findtext(path, namespaces=NAMES) == about["outputs"]["photo"]["sha256"]
    curve = description.find("oldrestore:tone/rdf:Seq/rdf:li", NAMES)
    black = curve.findall("oldrestore:black/rdf:Seq/rdf:li", NAMES)
    assert [float(li.text) for li in black] == about["tone"][0]["black"]
    source = description.findtext("Iptc4xmpExt:DigitalSourceType", namespaces=NAMES)
    assert source.endswith("/algorithmicallyEnhanced")


def test_names_that_xml_cannot_hold_leave_the_packet_well_formed(tmp_path: Path) -> None:
    name = os.fsdecode(b"<a> & \xe9\x01\x0b.png")
    entry = {"name": name, "size": 1, "sha256": "00", "version": "1"}
    about = describe(
        inputs={"photo": entry},
        outputs={"photo": entry},
        record={"damaged": None},
        options={"mask": "none"},
        weights={},
        software={"oldrestore": "1"},
        finished="2020-01-01T00:00:00Z",
    )
    write_xmp(about, tmp_path / "a.xmp")
    description = Xml.parse(tmp_path / "a.xmp").find("rdf:RDF/rdf:Description", NAMES)
    found = description.findtext("xmpMM:DerivedFrom/stRef:filePath", namespaces=NAMES)
    assert found == "<a> & \ufffd\ufffd\ufffd.png"
    assert description.find("oldrestore:damaged", NAMES) is None


def test_without_sidecars_there_are_none(run: RunBatch, out: Path) -> None:
    run(sidecar=False)
    assert below(out) == ["1931/b.jpg", "1931/c.tif", "a.png"]


def test_maps_show_what_the_detector_found_and_what_was_changed(
    run: RunBatch, scans: Path, out: Path, weights: Path, tmp_path: Path
) -> None:
    maps = tmp_path / "maps"
    restorer = Restorer.load(weights, "cpu")
    image = decode(scans / "a.png").image
    probability = restorer.damage_probability(image)
    threshold = float(probability.median())
    run(maps=str(maps), threshold=threshold)
    kinds = ("change", "mask", "probability")
    names = ("1931/b.jpg", "1931/c.tif", "a.png")
    assert below(maps) == sorted(f"{name}.{kind}.png" for name in names for kind in kinds)
    assert not (maps / ".oldrestore").exists()
    found = pixels(maps / "a.png.probability.png")
    assert np.array_equal(found, (probability[0, 0] * 255).round().numpy())
    expected = restorer.restore(scans / "a.png", threshold=threshold)
    assert np.array_equal(pixels(maps / "a.png.mask.png"), np.asarray(expected.mask))
    assert np.array_equal(pixels(out / "a.png"), np.asarray(expected.image))
    change = np.abs(pixels(out / "a.png").astype(int) - pixels(scans / "a.png")).max(axis=2)
    assert np.array_equal(pixels(maps / "a.png.change.png"), change)
    about = json.loads((out / "a.png.json").read_text())
    assert about["changed"] == pytest.approx((change > 0).mean(), abs=1e-6)
    assert about["mean_change"] == pytest.approx(change.mean() / 255, abs=1e-6)
    assert about["outputs"]["mask"]["sha256"] == sha256(maps / "a.png.mask.png")


def test_no_maps_of_what_was_not_looked_for(run: RunBatch, tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    run(maps=str(maps), mask=None)
    assert [name for name in below(maps) if "a.png" in name] == ["a.png.change.png"]


def test_the_smallest_change_of_16_bits_is_a_change() -> None:
    before = np.full((16, 16), 1000, np.uint16)
    after = before.copy()
    after[3, 4] += 1
    change = np.zeros((16, 16), np.uint8)
    writers = {"photo": ArrayWindows(after.copy()), "change": ArrayWindows(change)}
    maps = MapsOfPage(ArrayWindows(before), writers)
    maps.writer("photo").write(0, 0, after[:, :, None])
    assert change[3, 4] == 1
    assert change.sum() == 1
    assert maps.changed == 1 / 256
    assert maps.mean_change == pytest.approx(1 / 65535 / 256, rel=1e-2)


@pytest.mark.parametrize("rows", [900, 64, 7])
def test_the_strip_shows_five_small_pictures(tmp_path: Path, rows: int) -> None:
    before = np.zeros((900, 600, 3), np.uint8)
    after = before.copy()
    after[:450] = 50
    mask = np.zeros((900, 600, 1), np.uint8)
    mask[100, 200] = 255  # a single pixel shows
    maps = MapsOfPage(ArrayWindows(before), {"photo": ArrayWindows(after.copy())})
    for top in range(0, 900, rows):
        maps.writer("mask").write(top, 0, mask[top : top + rows])
        maps.writer("photo").write(top, 0, after[top : top + rows])
    write_preview(maps.strip(), tmp_path / "strip.jpg")
    strip = pixels(tmp_path / "strip.jpg").astype(int)
    assert strip.shape == (384, 5 * 256, 3)
    tiles = [strip[:, 256 * k : 256 * (k + 1)] for k in range(5)]
    means = [tile[20:160, 20:60].mean() for tile in tiles]
    assert means == pytest.approx([0, 50, 200, 0, 0], abs=2)
    assert tiles[3].max() > 100
    assert tiles[1][250:].max() < 5


def test_a_map_of_more_than_a_png_holds_is_a_tiff(
    run: RunBatch, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oldrestore.batch.maps.PNG_PX", 100)
    run(maps=str(tmp_path / "tiffs"), threshold=0.5)
    monkeypatch.undo()
    run(maps=str(tmp_path / "maps"), output=str(out.with_name("again")), threshold=0.5)
    for kind in ("change", "mask", "probability"):
        found = pixels(tmp_path / "tiffs" / f"a.png.{kind}.tif")
        assert np.array_equal(found, pixels(tmp_path / "maps" / f"a.png.{kind}.png"))


def test_every_photo_has_its_strip(run: RunBatch, scans: Path, out: Path) -> None:
    write_photo(scans / "large.png", size=(500, 300))
    run()
    with Image.open(out / preview_name("large.png")) as strip:
        assert strip.size == (5 * 384, 230)
    with Image.open(out / preview_name("a.png")) as strip:
        assert strip.size == (5 * 24, 16)


def test_faces_stand_in_the_sidecars_and_in_the_key(
    run: RunBatch, out: Path, face_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small:
        def detect(self, image: torch.Tensor) -> list[Face]:
            points = ((4, 4), (8, 4), (6, 6), (5, 8), (7, 8))
            return [Face((2, 2, 10, 10), points, 0.75)]

    monkeypatch.setattr(stage, "make_face_detector", Small)
    monkeypatch.setattr(stage, "why_no_detector", lambda: None)
    plain = run(faces="off")
    assert plain.done == 3
    assert "faces" not in json.loads((out / "a.png.json").read_text())
    again = run(face_weights=str(face_weights))
    assert again.done == 3  # other options: nothing of before holds
    about = json.loads((out / "a.png.json").read_text())
    assert about["options"]["faces"] == sha256(face_weights)
    (face,) = about["faces"]
    assert (face["score"], face["kept"]) == (0.75, False)
    assert "too small" in face["reason"]
    description = Xml.parse(out / "a.png.xmp").find("rdf:RDF/rdf:Description", NAMES)
    path = "oldrestore:faces/rdf:Seq/rdf:li/oldrestore:score"
    assert description.findtext(path, namespaces=NAMES) == "0.75"
    assert run(face_weights=str(face_weights)).unchanged == 3
