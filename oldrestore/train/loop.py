"""The training loop, written once: step, log, average, save, resume, on one device or many.

A stage is a game of one or more players. A player is a module that holds the networks it trains and
whose forward pass gives its losses by name; the loop weighs them, steps its optimiser, and wraps it
in DistributedDataParallel where ``torchrun`` started several processes.
"""

import contextlib
import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from oldrestore.train.config import LoopSettings
from oldrestore.train.data import Batch, Samples, batches, fixed_batch, validation_crop_px
from oldrestore.train.log import RunLog, save_sheet
from oldrestore.train.state import (
    STATE_FILE,
    STATE_FORMAT,
    check_settings,
    read_state,
    write_state,
)

log = logging.getLogger(__name__)


class DivergedError(ValueError):
    """Training came to numbers that are not finite; the message says where, and what was kept."""


@dataclass
class Player:
    """One optimiser's side of the game.

    module: its forward(batch) -> losses by name; its parameters with gradients are what it trains.
    weights: of each loss; those of weight 0 are not computed by ``module``.
    lr: peak learning rate.
    """

    module: nn.Module
    weights: dict[str, float]
    lr: float


@dataclass
class Stage:
    """What a stage file gives the loop.

    name: "vae_old", "vae_clean", "mapping", "mask", "tone", "denoise", "face".
    config: layouts of the networks by name, and whose they are under "preset", as they stand in a
        released file.
    networks: what is averaged and released.
    players: in the order of their steps.
    samples, validation: crops to train on, and held-out ones.
    validate: figures of (averaged) networks on a batch, by name.
    sheet: (averaged) networks on a batch -> pictures (N, 3, H, W), ``columns`` of them a row.
    judges: networks that no player trains and that only its losses look through.
    validation_crops: how many held-out crops the figures are of.
    """

    name: str
    config: dict[str, Any]
    networks: nn.ModuleDict
    players: dict[str, Player]
    samples: Samples
    validation: Samples
    validate: Callable[[nn.ModuleDict, Batch], dict[str, float]]
    sheet: Callable[[nn.ModuleDict, Batch], Tensor]
    columns: int
    judges: Sequence[nn.Module] = ()
    validation_crops: int = 16


def learning_rate(settings: LoopSettings, step: int) -> float:
    """Learning rate at a step as a share of the peak."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup))
    progress = step / settings.steps
    if settings.schedule == "linear":
        return warm * min(1.0, (1 - progress) / (1 - settings.flat_share))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return warm * (settings.final_lr + (1 - settings.final_lr) * cosine)


class Trainer:
    """Runs a stage in a folder: ``state.pt``, ``metrics.jsonl``, TensorBoard files and sheets.

    Started again in the same folder it continues to the bit (on one device); only the number of
    steps and how often things are written may differ from the run before.

    Raises:
        ValueError: the folder holds a run with other settings.
    """

    def __init__(
        self, stage: Stage, settings: LoopSettings, folder: Path, device: torch.device
    ) -> None:
        self.stage, self.settings, self.folder, self.device = stage, settings, folder, device
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.step = 0
        players = [player.module for player in stage.players.values()]
        for module in (*players, stage.networks, *stage.judges):
            module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        # without an average these are the networks' own tensors, not copies
        self.averaged = {
            k: v.clone() if settings.ema else v for k, v in stage.networks.state_dict().items()
        }
        self.optimizers = {
            name: torch.optim.AdamW(
                [p for p in player.module.parameters() if p.requires_grad],
                lr=player.lr,
                betas=settings.betas,
                weight_decay=settings.weight_decay,
            )
            for name, player in stage.players.items()
        }
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.amp == "fp16")
        folder.mkdir(parents=True, exist_ok=True)
        if self.state_path.exists():
            self._resume()
        self.modules = {name: self._parallel(p.module) for name, p in stage.players.items()}

    @property
    def state_path(self) -> Path:
        return self.folder / STATE_FILE

    def _parallel(self, module: nn.Module) -> nn.Module:
        if self.world == 1 or not any(p.requires_grad for p in module.parameters()):
            return module
        # an empty mask leaves the nonlocal block's parameters without a gradient
        return DistributedDataParallel(module, find_unused_parameters=True)

    def run(self, until: int | None = None) -> None:
        """Train to the end, or to step ``until``.

        Raises:
            KeyboardInterrupt: asked to stop (Ctrl-C, SIGTERM), after saving the step under way; one
                of several processes stops at once and leaves the last saved state.
            DivergedError: a loss or a gradient is not finite. The batch lies in the folder, and
                the state saved last is as it was.
            OSError: the last state could not be written, for want of space say. On the way this is
                only told, and tried again later.
        """
        end = min(self.settings.steps, until or self.settings.steps)
        if self.step >= end:
            return
        held_out = None
        if self.rank == 0:
            crop_px = validation_crop_px(self.settings)
            held_out = fixed_batch(self.stage.validation, self.stage.validation_crops, crop_px)
        with (
            RunLog(
                self.folder,
                self.stage.name,
                self.settings.steps,
                self.rank == 0,
                done=self.step,
            ) as run_log,
            _stop_request(is_alone=self.world == 1) as stop,
        ):
            self._loop(end, held_out, run_log, stop)

    def _loop(
        self, end: int, held_out: Batch | None, run_log: RunLog, stop: threading.Event
    ) -> None:
        settings = self.settings
        source = batches(
            self.stage.samples,
            settings,
            first=self.step,
            rank=self.rank,
            world=self.world,
        )
        saved = time.monotonic()
        while self.step < end:
            waiting = time.perf_counter()
            batch = {name: x.to(self.device) for name, x in next(source).items()}
            waited = time.perf_counter() - waiting
            figures = self.train_step(batch)
            run_log.add(self.step, figures, waited, settings.batch)
            with _told("figures of the run"):
                if self.step % settings.log_every == 0:
                    run_log.write(self.step, learning_rate(settings, self.step) * settings.lr)
                if held_out is not None:
                    self._look(held_out, run_log, is_last=self.step == end)
            if self.step == end or stop.is_set():
                self.save()
            elif time.monotonic() - saved > 60 * settings.save_minutes:
                with _told("state; the one saved before is kept"):
                    self.save()
                saved = time.monotonic()
            if stop.is_set() and self.step < end:
                raise KeyboardInterrupt

    def _look(self, held_out: Batch, run_log: RunLog, *, is_last: bool) -> None:
        """Figures and pictures of the held-out crops, where they are due."""
        if self.step % self.settings.validate_every == 0 or is_last:
            run_log.write_validation(self.step, self._validate(held_out))
        if self.step % self.settings.sheet_every == 0 or is_last:
            self._sheet(held_out)

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """One step of every player; their losses by name, unweighted.

        Raises:
            DivergedError: a loss or a gradient is not finite; the optimiser did not get to see it.
        """
        share = learning_rate(self.settings, self.step)
        figures: dict[str, Tensor] = {}
        for name, player in self.stage.players.items():
            optimizer = self.optimizers[name]
            for group in optimizer.param_groups:
                group["lr"] = player.lr * share
            optimizer.zero_grad(set_to_none=True)
            with self._autocast():
                losses = self.modules[name](batch)
                total = torch.stack([player.weights[k] * v for k, v in losses.items()]).sum()
            if not total.isfinite():
                raise self._diverged(name, "loss", losses, batch)
            self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
            self.scaler.unscale_(optimizer)
            parameters = optimizer.param_groups[0]["params"]
            norm = nn.utils.clip_grad_norm_(parameters, self.settings.clip or math.inf)
            # in fp16 gradients may overflow: the scaler leaves such a step out and scales less
            if not (self.scaler.is_enabled() or norm.isfinite()):
                raise self._diverged(name, "gradient", losses, batch)
            self.scaler.step(optimizer)
            figures |= {k: v.detach() for k, v in losses.items()}
        self.scaler.update()
        self.step += 1
        self._average()
        return figures

    def _diverged(
        self, player: str, what: str, losses: dict[str, Tensor], batch: Batch
    ) -> DivergedError:
        """What to raise, once the batch is saved beside the run."""
        values = {name: float(value.detach()) for name, value in losses.items()}
        path = self.folder / f"diverged-{self.step + 1:07d}-{self.rank}.pt"
        try:
            torch.save({"step": self.step + 1, "losses": values, "batch": batch}, path)
            kept = f"its batch is in {path}"
        except (OSError, RuntimeError) as error:
            kept = f"its batch could not be written: {error}"
        said = ", ".join(f"{name} {value:g}" for name, value in values.items())
        return DivergedError(
            f"{self.folder}: the {what} of {player} is not finite at step {self.step + 1} "
            f"({said}); {kept}; the state saved last is untouched: start again with a lower --lr"
        )

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        dtype = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.settings.amp]
        if dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype)

    def _average(self) -> None:
        if not self.settings.ema:
            return
        # early on the average follows fast, or it would carry the random start along
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.stage.networks.state_dict().items():
            if value.is_floating_point():
                self.averaged[name].lerp_(value, 1 - decay)
            else:  # batch norm counts its batches
                self.averaged[name].copy_(value)

    @contextlib.contextmanager
    def _averaged_networks(self) -> Iterator[nn.ModuleDict]:
        """The networks as they restore, with their averaged weights, while the context lasts."""
        networks = self.stage.networks
        own = {}
        if self.settings.ema:
            own = {k: v.clone() for k, v in networks.state_dict().items()}
            networks.load_state_dict(self.averaged)
        networks.eval()
        try:
            with torch.inference_mode():
                yield networks
        finally:
            networks.train()
            if own:
                networks.load_state_dict(own)

    def _validate(self, held_out: Batch) -> dict[str, float]:
        with self._averaged_networks() as networks:
            return self.stage.validate(
                networks, {k: v.to(self.device) for k, v in held_out.items()}
            )

    def _sheet(self, held_out: Batch) -> None:
        with self._averaged_networks() as networks:
            few = {k: v[:8].to(self.device) for k, v in held_out.items()}
            pictures = self.stage.sheet(networks, few)
        path = self.folder / "sheets" / f"{self.step:07d}.png"
        save_sheet(pictures, self.stage.columns, path)

    def save(self) -> None:
        """Write the state, whole or not at all.

        Raises:
            OSError: it cannot be written; the state that is there is left alone.
            DivergedError: a weight is not finite.
        """
        if self.rank:
            return
        own = self.stage.networks.state_dict()
        for name, value in (*own.items(), *self.averaged.items()):
            if value.is_floating_point() and not value.isfinite().all():
                raise DivergedError(
                    f"{self.folder}: {name} is not finite at step {self.step}, not saved; "
                    "the state saved last is untouched: start again with a lower --lr"
                )
        state = {
            "format": STATE_FORMAT,
            "stage": self.stage.name,
            "settings": json.dumps(asdict(self.settings)),
            "config": json.dumps(self.stage.config),
            "step": self.step,
            "networks": self.stage.networks.state_dict(),
            "averaged": self.averaged,
            "players": {n: p.module.state_dict() for n, p in self.stage.players.items()},
            "optimizers": {n: o.state_dict() for n, o in self.optimizers.items()},
            "scaler": self.scaler.state_dict(),
        }
        write_state(self.state_path, state)

    def _resume(self) -> None:
        state = read_state(self.state_path, self.device)
        check_settings(json.loads(state["settings"]), self.settings, self.folder)
        self.step = state["step"]
        self.stage.networks.load_state_dict(state["networks"])
        if self.settings.ema:
            self.averaged = state["averaged"]
        for name, player in self.stage.players.items():
            player.module.load_state_dict(state["players"][name])
            self.optimizers[name].load_state_dict(state["optimizers"][name])
        self.scaler.load_state_dict(state["scaler"])
        log.info("resumed %s at step %d", self.folder, self.step)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """A file that cannot be written is worth a warning, not the run."""
    try:
        yield
    except OSError as error:
        log.warning("could not write the %s: %s; training goes on", what, error)


@contextlib.contextmanager
def _stop_request(*, is_alone: bool) -> Iterator[threading.Event]:
    """Set once this process is asked to stop, so that a step is never cut in two.

    Processes that train together would not stop at the same step; they are left as they are.
    """
    stop = threading.Event()
    signals: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
    if not is_alone or threading.current_thread() is not threading.main_thread():
        signals = ()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def noise_like(x: Tensor, seeds: Tensor) -> Tensor:
    """Standard normal noise, each sample from its own seed: the same on any number of devices."""
    noise = [
        torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(int(seed)))
        for seed in seeds
    ]
    return torch.stack(noise).to(x)
