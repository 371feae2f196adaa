"""Sidecars: what was done to a photo, beside it, as JSON and as an XMP packet.

The XMP has the standard fields that other programs show (history, what the file was derived from,
that software enhanced it) and all of the JSON's in a namespace of our own.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree as Xml

FORMAT = "oldrestore-sidecar/1"
NAMESPACES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "xmpMM": "http://ns.adobe.com/xap/1.0/mm/",
    "stEvt": "http://ns.adobe.com/xap/1.0/sType/ResourceEvent#",
    "stRef": "http://ns.adobe.com/xap/1.0/sType/ResourceRef#",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "oldrestore": "urn:oldrestore:provenance:1.0/",
}
# IPTC's word for a photo that was corrected by an algorithm
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicallyEnhanced"
# the fixed id of every packet; begin is a byte order mark (XMP specification part 1, 7.3.2)
PACKET = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n{}\n<?xpacket end="w"?>\n'
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def describe(
    *,
    inputs: Mapping[str, Mapping[str, Any]],
    outputs: Mapping[str, Mapping[str, Any]],
    record: Mapping[str, Any],
    options: Mapping[str, Any],
    weights: Mapping[str, Any],
    software: Mapping[str, str],
    finished: str,
) -> dict[str, Any]:
    """What a sidecar says.

    Args:
        inputs: the photo, and the mask if one was given; see ``storage.entry``.
        outputs: the restored photo and its maps.
        record: size, mask coverage, share of the mending taken, tone, change, seconds and device.
        options: with defaults filled in.
        weights: name and sha256.
        software: versions by name.
        finished: UTC.
    """
    return {
        "format": FORMAT,
        "finished": finished,
        "software": dict(software),
        "weights": dict(weights),
        "options": dict(options),
        "inputs": {kind: _of_content(about) for kind, about in inputs.items()},
        "outputs": {kind: _of_content(about) for kind, about in outputs.items()},
        **record,
    }


def write_json(about: Mapping[str, Any], path: Path) -> None:
    """Write a sidecar; characters that are no ASCII are escaped, as names may be no UTF-8."""
    path.write_text(json.dumps(about, indent=2) + "\n", encoding="ascii")


def write_xmp(about: Mapping[str, Any], path: Path) -> None:
    """Write what ``describe`` gave as an XMP packet in UTF-8."""
    for prefix, uri in NAMESPACES.items():
        Xml.register_namespace(prefix, uri)
    root = Xml.Element(_tag("x:xmpmeta"))
    description = Xml.SubElement(
        Xml.SubElement(root, _tag("rdf:RDF")), _tag("rdf:Description"), {_tag("rdf:about"): ""}
    )
    agent = f"oldrestore {about['software']['oldrestore']}"
    _add(description, "xmp:MetadataDate", about["finished"])
    _add(description, "Iptc4xmpExt:DigitalSourceType", SOURCE_TYPE)
    photo = about["inputs"]["photo"]
    _add(
        description,
        "xmpMM:DerivedFrom",
        {"stRef:filePath": photo["name"], "stRef:documentID": f"sha256:{photo['sha256']}"},
    )
    event = {
        "stEvt:action": "edited",
        "stEvt:when": about["finished"],
        "stEvt:softwareAgent": agent,
        "stEvt:parameters": json.dumps(about["options"]),
        "stEvt:changed": "/content",
    }
    _add(description, "xmpMM:History", [event])
    for key, value in about.items():
        _add(description, f"oldrestore:{key}", _own(value))
    Xml.indent(root)
    path.write_text(PACKET.format(Xml.tostring(root, encoding="unicode")), encoding="utf-8")


def sidecar_names(photo: str) -> dict[str, str]:
    """Names of the sidecars of a restored photo, by kind."""
    return {"sidecar": f"{photo}.json", "xmp": f"{photo}.xmp"}


def _of_content(about: Mapping[str, Any]) -> dict[str, Any]:
    """A file's name and content, without where and when it lay."""
    return {
        "name": PurePosixPath(about["name"]).name,
        "size": about["size"],
        "sha256": about["sha256"],
    }


def _own(value: Any) -> Any:
    """Field names of a JSON object as those of our namespace, at every depth."""
    if isinstance(value, Mapping):
        return {f"oldrestore:{key}": _own(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_own(one) for one in value]
    return value


def _add(parent: Xml.Element, name: str, value: Any) -> None:
    """An XMP property: an object becomes a structure, a list an ordered array."""
    if value is None:
        return
    element = Xml.SubElement(parent, _tag(name))
    if isinstance(value, dict):
        element.set(_tag("rdf:parseType"), "Resource")
        for key, one in value.items():
            _add(element, key, one)
    elif isinstance(value, list):
        sequence = Xml.SubElement(element, _tag("rdf:Seq"))
        for one in value:
            _add(sequence, "rdf:li", one)
    else:
        element.text = NOT_XML.sub("\ufffd", _plain(value))


def _plain(value: Any) -> str:
    """A value as XMP writes it: True and False with capitals."""
    return value if isinstance(value, str) else json.dumps(value).title()


def _tag(name: str) -> str:
    prefix, _, local = name.partition(":")
    return f"{{{NAMESPACES[prefix]}}}{local}"
