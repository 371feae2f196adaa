"""``oldrestore convert``: the published weights into one file."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from oldrestore.cli.terminal import DONE
from oldrestore.jobs import UsageError


def convert(
    *sources: Path,
    output: Annotated[Path, Parameter(alias="-o")],
    variant: str,
    vae_old: Path | None = None,
    vae_clean: Path | None = None,
    mapping: Path | None = None,
    detector: Path | None = None,
    face: Path | None = None,
    half: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Bring the published weights of Wan et al. into one file for --weights.

    Args:
        sources: Their folder "checkpoints", its zip archive, or files in folders named as there.
        output: The safetensors file to write.
        variant: "quality" (blur and noise), "scratch" (holes too) or "hr" (holes in large photos);
            "face" or "face-512" for a file of the face stage, --face-weights.
        vae_old: File of the old photos' VAE, whatever it is called.
        vae_clean: File of the clean photos' VAE.
        mapping: File of the mapping network.
        detector: File of the scratch detector.
        face: File of the face generator, of the variants "face" and "face-512".
        half: Store in 16 bits: half the size, no longer exact.
    """
    from oldrestore.face.published import FACE_VARIANTS, convert_face
    from oldrestore.published import convert as convert_published

    given = {"vae_old": vae_old, "vae_clean": vae_clean, "mapping": mapping, "detector": detector}
    if not sources and not any(given.values()) and face is None:
        raise UsageError("SOURCES: expected the published folder, its zip archive or its files")
    if output.suffix != ".safetensors":
        raise UsageError(f"--output: expected a name ending in .safetensors, got {output}")
    if variant in FACE_VARIANTS:
        if any(given.values()):
            raise UsageError(f"--variant {variant}: is one network; expected no file but --face")
        print(f"face: {convert_face(sources, output, variant, file=face, half=half)}")
        print(f"written to {output}")
        return DONE
    if face is not None:
        raise UsageError(f"--face: belongs to the variants {', '.join(FACE_VARIANTS)}")
    parts = {name: path for name, path in given.items() if path is not None}
    found = convert_published(sources, output, variant, parts=parts, half=half)
    for name, origin in found.items():
        print(f"{name}: {origin}")
    if "detector" not in found:
        print("detector: none found; give masks of your own to fill holes")
    print(f"written to {output}")
    return DONE
