"""How many faces are found in the photos of a folder, how surely, and how fast.

python benchmarks/bench_faces.py FOLDER             # as they are
python benchmarks/bench_faces.py FOLDER --turned    # each turned by 90, 180 and 270 degrees too

Turned, a face counts as found if the eyes lie above the mouth once the photo is turned back.
"""

import statistics
import sys
import time
from pathlib import Path

import torch

from oldrestore.face.detect import Face, make_face_detector
from oldrestore.image import decode
from oldrestore.train.data import SUFFIXES


def is_upright_after(face: Face, quarters: int) -> bool:
    """Whether its landmarks are those of a head turned by so many quarters to the left."""
    eyes, mouth = face.landmarks[:2], face.landmarks[3:]
    across = sum(x for x, _ in mouth) - sum(x for x, _ in eyes)
    down = sum(y for _, y in mouth) - sum(y for _, y in eyes)
    return (down, across, -down, -across)[quarters] > abs((across, down)[quarters % 2])


def main() -> None:
    """Print a line for each way the photos were turned."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    paths = sorted(p for p in Path(sys.argv[1]).iterdir() if p.suffix.lower() in SUFFIXES)
    detector = make_face_detector()
    for quarters in range(4 if "--turned" in sys.argv else 1):
        photos, right, boxes, scores, seconds = 0, 0, 0, [], []
        for path in paths:
            image = torch.rot90(decode(path).image[0], quarters, (1, 2)).contiguous()
            start = time.perf_counter()
            faces = detector.detect(image)
            seconds.append(time.perf_counter() - start)
            photos += bool(faces)
            right += any(is_upright_after(face, quarters) for face in faces)
            boxes += len(faces)
            scores += [max(face.score for face in faces)] if faces else []
        least = f"{min(scores):.2f}" if scores else "-"
        sys.stdout.write(
            f"turned by {90 * quarters}: a face in {photos} of {len(paths)} photos, the right way "
            f"up in {right}, {boxes} boxes; the best of a photo scores {least} at least; "
            f"{statistics.median(seconds):.2f} s a photo\n"
        )


if __name__ == "__main__":
    main()
