"""Report: one static page to look through a batch: before and after, maps, figures, errors.

The page lies in the folder of results; the small pictures that it shows were made by the batch, and
lie beside the manifest or, on request, in the page itself.
"""

import base64
import os
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

from oldrestore.batch.manifest import Manifest, Row
from oldrestore.batch.maps import is_map
from oldrestore.batch.runner import MANIFEST_NAME
from oldrestore.batch.storage import Folder, LocalFolder, open_folder
from oldrestore.batch.work import DONE, FAILED, preview_name
from oldrestore.jobs import UsageError

PAGE = "report.html"
TEMPLATE = Path(__file__).with_name("report.html")
# states of the manifest in words of the page
WORDS = {DONE: "restored", FAILED: "failed", "unreadable": "failed", "started": "not finished"}


def write_report(where: str, *, embed: bool = False) -> tuple[str, dict[str, int]]:
    """Write the page of a batch, whole or not at all.

    Args:
        where: the folder of results.
        embed: put the small pictures into the page: one file to send, for hundreds of photos.

    Returns:
        What the page is called, and the number of photos by state.

    Raises:
        UsageError: the folder holds no results of a batch, or Jinja2 is not installed.
        ValueError: the manifest cannot be used.
        OSError: the page cannot be written.
    """
    try:
        from jinja2 import Environment
    except ImportError as error:
        message = 'report: expected Jinja2; install it with pip install "oldrestore[report]"'
        raise UsageError(message) from error
    folder = open_folder(where)
    if folder.stamp(MANIFEST_NAME) is None:
        raise UsageError(f"{where}: expected a folder of results of oldrestore batch")
    with folder.to_read(MANIFEST_NAME) as path:
        manifest = Manifest(path, is_read_only=True)
        try:
            entries = _Entries(folder, manifest, embed=embed)
            photos = list(entries.all())
            job = manifest.fact("job") or {}
            source = manifest.fact("source")
        finally:
            manifest.close()
    counts: dict[str, int] = {}
    for photo in photos:
        counts[photo["state"]] = counts.get(photo["state"], 0) + 1
    template = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(
        title=f"{_shown(source or '')} → {_shown(folder.url)}",
        counts=counts,
        facts=_facts(job),
        photos=photos,
    )
    with folder.to_write(PAGE) as path:
        path.write_text(page, encoding="utf-8")
    return folder.title(PAGE), counts


class _Entries:
    """What the page knows of each photo."""

    def __init__(self, folder: Folder, manifest: Manifest, *, embed: bool) -> None:
        self._folder = folder
        self._manifest = manifest
        self._embed = embed
        job = manifest.fact("job") or {}
        self._source = open_folder(manifest.fact("source") or folder.url)
        self._maps = None if job.get("maps") is None else open_folder(job["maps"])

    def all(self) -> Iterator[dict[str, Any]]:
        """One for each row of the manifest, by name."""
        for row in self._manifest.rows():
            yield self._entry(row)

    def _entry(self, row: Row) -> dict[str, Any]:
        entry = {"name": row.name, "state": WORDS[row.state], "error": row.error, "preview": None}
        if row.state != DONE:
            return entry
        record = row.record
        tone = record["tone"][0] if record["tone"] else None
        # batches of before it was estimated say nothing of it
        taken = record.get("denoise") or [None]
        figures = ("width", "height", "damaged", "mean_change", "seconds")
        has_probability = record["damaged"] is not None and "probability" in row.outputs
        tiles = ["after", "change", *(["mask"] if record["damaged"] is not None else [])]
        return {
            **entry,
            **{name: record[name] for name in figures},
            "denoise": taken[0],
            "faded": None if tone is None else tone["faded"],
            "tone": None if tone is None else tone["strength"],
            "tiles": [*tiles, *(["probability"] if has_probability else [])],
            "preview": self._preview(row.name),
            "links": self._links(row),
        }

    def _preview(self, name: str) -> str | None:
        preview = preview_name(name)
        if not self._embed:
            return preview
        if self._folder.stamp(preview) is None:
            return None
        with self._folder.to_read(preview) as path:
            content = base64.b64encode(path.read_bytes()).decode("ascii")
        return f"data:image/jpeg;base64,{content}"

    def _links(self, row: Row) -> dict[str, str]:
        """To the whole pictures and what is said of them."""
        links = {"before": _url(self._source, row.name)}
        for kind, about in row.outputs.items():
            if is_map(kind):
                if self._maps is not None:
                    links[kind] = _url(self._maps, about["name"])
            else:
                links["after" if kind == "photo" else kind] = _quoted(about["name"])
        return links


def _facts(job: dict[str, Any]) -> dict[str, str]:
    """What the page says of the last batch."""
    weights = job.get("weights", {})
    facts = {"weights": f"{weights.get('name')} (sha256 {weights.get('sha256')})"}
    facts |= {name: str(value) for name, value in job.get("options", {}).items()}
    facts |= {name: str(value) for name, value in job.get("versions", {}).items()}
    return facts


def _url(folder: Folder, name: str) -> str:
    if isinstance(folder, LocalFolder):
        path: PurePath = folder.path.absolute() / name
        return "file://" + _quoted(path.as_posix())
    return folder.title(_quoted(name))


def _quoted(name: str) -> str:
    """A path as part of a URL, whatever bytes are in it."""
    return quote(os.fsencode(name))


def _shown(text: str) -> str:
    """Text that can be written in UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()
