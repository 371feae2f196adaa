"""The threshold that a release gets."""

import json
from pathlib import Path

import pytest
import torch

from oldrestore.detection import DetectionScores
from oldrestore.train import cli
from oldrestore.train import mask as mask_stage
from oldrestore.train.config import MaskSettings
from oldrestore.train.loop import Trainer
from oldrestore.train.presets import preset
from oldrestore.train.threshold import MOST_FLAGGED, report


def scores(probability: torch.Tensor, damaged: torch.Tensor) -> DetectionScores:
    made = DetectionScores(tolerance_px=0)
    made.add(probability, damaged, damaged)
    return made


def test_the_best_threshold_that_leaves_undamaged_photos_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    damaged = torch.zeros(1, 1, 100, 100)
    damaged[..., :20] = 1
    # damage is found at 0.3 and above, all else at 0.2 and below: 0.2 to 0.3 is perfect
    found = torch.where(damaged > 0, 0.3, 0.2 * torch.rand(1, 1, 100, 100, generator=generator))
    pairs = [scores(found, damaged) for _ in range(2)]
    quiet = scores(torch.zeros(1, 1, 100, 100), torch.zeros(1, 1, 100, 100))
    assert 0.19 < report([*pairs, quiet])["threshold"] <= 0.3
    # ... but undamaged photos go up to 0.28 in one pixel of a hundred
    loud = torch.zeros(1, 1, 100, 100)
    loud[..., 0] = 0.28
    chosen = report([*pairs, scores(loud, torch.zeros(1, 1, 100, 100))])
    assert 0.27 < chosen["threshold"] <= 0.3
    assert chosen["undamaged"]["flagged"] < MOST_FLAGGED
    assert chosen["film"]["f1"] == pytest.approx(1)


def test_of_thresholds_as_good_the_highest_is_taken() -> None:
    damaged = torch.zeros(1, 1, 100, 100)
    damaged[..., :50] = 1
    # 5 pixels of 5000 are lost from 0.5 on, 1000 more from 0.8 on
    found = torch.where(damaged > 0, 0.9, 0.0)
    found[..., :5, :1] = 0.5
    found[..., 60:, :25] = 0.8
    pairs = [scores(found, damaged) for _ in range(2)]
    quiet = scores(torch.zeros(1, 1, 100, 100), torch.zeros(1, 1, 100, 100))
    assert 0.79 < report([*pairs, quiet])["threshold"] <= 0.8


def test_the_command_judges_a_run(
    clean_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = preset(MaskSettings, "tiny")
    stage = mask_stage.make_stage(settings, clean=[clean_folder])
    Trainer(stage, settings, tmp_path, torch.device("cpu")).save()
    where = ["--clean", str(clean_folder)]
    cli.app(
        ["threshold", str(tmp_path), *where, "--preset", "tiny", "--crops", "9"],
        result_action="return_value",
    )
    found = json.loads(capsys.readouterr().out)
    assert 0 <= found["threshold"] <= 1
    assert set(found) == {"threshold", "ordinary", "film", "undamaged"}
    assert 0 <= found["film"]["average_precision"] <= 1
