"""The page of a batch, in its source and in a real browser."""

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from photo_folders import RunBatch, below, write_photo

from oldrestore.batch.report import write_report
from oldrestore.jobs import UsageError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HOSTILE = "<img src=x onerror=alert(1)> & 'q' [b]%41.png"
WAIT_S = 10


@pytest.fixture
def restored(run: RunBatch, scans: Path, out: Path) -> Path:
    """Results of a batch with maps, a hostile name and two photos that failed."""
    write_photo(scans / HOSTILE, seed=5, size=(60, 40))
    (scans / "bad.png").write_bytes(b"not a picture")
    (scans / "<").mkdir()
    (scans / "</script><b>.jpg").write_bytes(b"")  # in a folder called "<"
    run(maps=str(out / "maps"))
    return out


@pytest.fixture
def page() -> Iterator[Any]:
    """A page of a headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1200, "height": 900})
        browser.close()


def open_page(page: Any, path: Path) -> list[str]:
    """Show a report; what goes wrong in it is appended to the list."""
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text))
    page.on("dialog", lambda dialog: wrong.append("a dialog"))
    page.goto(path.as_uri())
    return wrong


def wait_until(page: Any, expression: str) -> None:
    """Until it is true in the page (whose own policy forbids the browser's way of waiting)."""
    end = time.monotonic() + WAIT_S
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        time.sleep(0.02)


def entries(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return list(json.loads(data.group(1)))


def test_the_page_holds_every_photo_and_no_markup_of_names(restored: Path, scans: Path) -> None:
    where, counts = write_report(str(restored))
    assert where == str(restored / "report.html")
    assert counts == {"restored": 4, "failed": 2}
    text = (restored / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert text.count("</script>") == 2  # the page's own
    found = {entry["name"]: entry for entry in entries(restored / "report.html")}
    assert set(found) >= {"1931/b.jpg", "1931/c.tif", "a.png", "bad.png", HOSTILE}
    assert "is not a picture" in found["bad.png"]["error"]
    links = found[HOSTILE]["links"]
    assert links["before"] == (scans / HOSTILE).as_uri()
    assert set(links) == {"before", "after", "sidecar", "xmp", "change", "mask", "probability"}
    assert found["a.png"]["tiles"] == ["after", "change", "mask", "probability"]
    for entry in found.values():
        assert entry["preview"] is None or (restored / entry["preview"]).is_file()


def test_a_page_can_hold_its_pictures(restored: Path) -> None:
    write_report(str(restored), embed=True)
    shutil.rmtree(restored / ".oldrestore" / "previews")
    previews = [entry["preview"] for entry in entries(restored / "report.html")]
    assert sum(p is not None and p.startswith("data:image/jpeg;base64,") for p in previews) == 4


def test_the_page_is_of_no_photo(run: RunBatch, restored: Path, out: Path) -> None:
    write_report(str(out))
    assert run(maps=str(out / "maps")).unchanged == 4
    assert "report.html" in below(out)


def test_folders_without_a_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a folder of results"):
        write_report(str(tmp_path))


@pytest.mark.parametrize("embed", [False, True])
def test_in_a_browser_sliders_move_pictures_load_and_errors_show(
    restored: Path, page: Any, embed: bool
) -> None:
    write_report(str(restored), embed=embed)
    wrong = open_page(page, restored / "report.html")
    wait_until(
        page,
        "[...document.images].length == 8 && "
        "[...document.images].every(image => image.complete && image.naturalWidth > 0)",
    )
    cards = page.locator("article")
    failed = page.locator("article.failed")
    assert cards.count() == 6
    assert failed.count() == 2
    assert "is not a picture" in page.locator("article.failed", has_text="bad.png").text_content()
    card = page.locator("article", has_text="onerror")
    assert card.locator("h2").text_content() == HOSTILE
    # the slider: what is left of it shows the photo before
    before, line = card.locator("img.before"), card.locator(".frame i")
    clip = "element => getComputedStyle(element).clipPath"
    assert before.evaluate(clip) == "inset(0px 50% 0px 0px)"
    box = card.locator(".frame").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)
    moved = float(re.search(r"0px ([\d.]+)%", before.evaluate(clip)).group(1))
    assert moved == pytest.approx(75, abs=3)
    assert line.bounding_box()["x"] - box["x"] == pytest.approx(box["width"] * 0.25, abs=12)
    card.locator("input[type=range]").press("ArrowRight")
    assert before.evaluate(clip) != f"inset(0px {moved}% 0px 0px)"
    # the maps: other parts of the strip
    after = card.locator("img.after")
    assert after.evaluate("element => element.style.left") == "-100%"
    card.get_by_role("button", name="mask").click()
    assert after.evaluate("element => element.style.left") == "-300%"
    assert wrong == []


def test_in_a_browser_photos_are_found_sorted_and_marked(restored: Path, page: Any) -> None:
    write_report(str(restored))
    wrong = open_page(page, restored / "report.html")
    # text_content, as the inner text of what the browser has not painted yet is empty
    titles = page.locator("article h2")
    page.locator("#order").select_option("size")
    assert titles.first.text_content() == HOSTILE
    page.locator("#state").select_option("failed")
    assert "bad.png" in titles.all_text_contents()
    assert "a.png" not in titles.all_text_contents()
    page.locator("#state").select_option("")
    page.locator("#find").fill("1931/")
    assert titles.all_text_contents() == ["1931/b.jpg", "1931/c.tif"]
    page.locator("article button.mark").first.click()
    page.reload()
    page.locator("#state").select_option("marked")
    assert titles.all_text_contents() == ["1931/b.jpg"]
    assert wrong == []


def test_in_a_browser_thousands_of_photos_are_made_as_one_scrolls(
    restored: Path, page: Any
) -> None:
    from oldrestore.batch.manifest import Manifest
    from oldrestore.batch.runner import MANIFEST_NAME

    manifest = Manifest(restored / MANIFEST_NAME)
    row = manifest.row("a.png")
    copies = (type(row)(**{**vars(row), "name": f"copies/{n:05}.png"}) for n in range(5000))
    manifest.write_all(copies)
    manifest.close()
    write_report(str(restored))
    wrong = open_page(page, restored / "report.html")
    assert page.locator("article").count() < 500
    before = page.locator("article").count()
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    wait_until(page, f"document.querySelectorAll('article').length > {before}")
    page.locator("#find").fill("copies/04999")
    assert page.locator("article h2").all_inner_texts() == ["copies/04999.png"]
    assert [text for text in wrong if "ERR_FILE_NOT_FOUND" not in text] == []
