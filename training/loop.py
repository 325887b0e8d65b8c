"""The training loop: shards in, a run folder out; reads from top to bottom.

`accelerate` places the model (CPU, one GPU, several through `accelerate launch`) and chooses the
arithmetic, diffusers averages the weights and plans the learning rate. A step's noise, timesteps
and known frames are drawn from (seed, sample index), so a step is a function of the weights and its
number: a run that was stopped and resumed ends with the same bits on a CPU. Cost of that: random
numbers are made on the CPU, 10 ms for 65 frames of 64 x 64.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
)
from diffusers.training_utils import EMAModel
from pydantic import ValidationError
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from training import (
    adapters,
    checkpoint,
    diffusion,
    heldout,
    models,
    presets,
    pretraining,
    shards,
    validation,
)
from training.checkpoint import Replan, State
from training.errors import LongtakeError, NonFinite, Stopped, UsageError
from training.journal import Journal
from training.presets import Preset
from training.run import Run, check_preset, check_run, is_verified, open_run, remember_verified
from training.shards import Index
from training.stream import Batch, Stream, draw
from training.unet import VideoUNet, flat_digest

MAX_STILL = 10  # steps in a row with a gradient of exactly 0


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended."""

    run: Run
    step: int
    loss: float
    interrupted: bool
    seconds: float


def draw_task(
    preset: Preset, batch: Batch, seed: int, num_timesteps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What a step adds to a batch: known frames `b f` bool, noise `b f c h w`, timesteps `b`; by
    (seed, sample index) alone.
    """
    known, noise, t = [], [], []
    for index in batch.sample_indices:
        generator = torch.Generator().manual_seed(draw("noise", seed, index) % 2**63)
        any_t = torch.randint(num_timesteps, (), generator=generator)
        is_terminal = torch.rand((), generator=generator) < preset.terminal
        t.append(torch.where(is_terminal, num_timesteps - 1, any_t))
        num_frames = batch.window.num_frames
        known.append(diffusion.draw_known(num_frames, preset.tasks, generator, preset.every))
        noise.append(torch.randn(batch.latents.shape[1:], generator=generator))
    return torch.tensor(known), torch.stack(noise), torch.stack(t)


def noisy_known(preset: Preset, batch: Batch, known: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The batch's latents `b f c h w` with noise on known frames, and its level `b`, from 0 to the
    preset's most; by (seed, sample index) alone.
    """
    levels, noise = [], []
    for index in batch.sample_indices:
        generator = torch.Generator().manual_seed(draw("hint noise", seed, index) % 2**63)
        levels.append(torch.rand((), generator=generator) * preset.objective.hint_noise)
        noise.append(torch.randn(batch.latents.shape[1:], generator=generator))
    device = batch.latents.device
    level = torch.stack(levels).to(device)
    return diffusion.with_noise(batch.latents, known, level, torch.stack(noise).to(device)), level


class Trainer:
    """One process of a run: the model, what moves it, and the loop."""

    def __init__(
        self,
        run: Run,
        index: Index,
        device: str,
        workers: int = 0,
        vae: Path | None = None,
        console: Any = None,
        pictures: bool = True,
        verify: Callable[[int], object] | None = None,
    ) -> None:
        """`verify` is told of bytes read while shards are compared with their digests, before the
        first step; without it they are not compared.
        """
        preset = run.preset
        self.accelerator = new_accelerator(preset, device)
        self.index, self.workers, self.run = index, workers, run
        # What cannot go on is said before anything is read or fetched, and leaves no folder.
        check_run(run)
        if run.unet in presets.UNETS:
            self._check_encoders(presets.UNETS[run.unet])
        self.stream = Stream(
            index,
            "train",
            preset.windows,
            preset.batch_size,
            run.seed,
            preset.text_dropout,
            preset.stride_jitter,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        self.main = self.accelerator.is_main_process
        if verify is not None:
            self._verify(verify)
        self._prepare()
        self.accelerator.wait_for_everyone()
        if self.main:
            open_run(run)
            if verify is not None:
                remember_verified(run, index)
        self.journal = Journal(run, self.step, console if self.main else None)
        self.validation: validation.Validation | None = None
        if self.main:
            self.validation = validation.Validation(
                run, index, self.accelerator.device, vae, pictures, self.journal.say
            )

    def _verify(self, progress: Callable[[int], object]) -> None:
        """Compare the shards with their digests, once for a run: the first process reads them, and
        after each shard the others learn whether to go on, so that none waits for longer than
        torch's patience with a silent process.

        Raises ShardError, or Stopped in the processes that did not read.
        """
        if self._agreed(self.main and is_verified(self.run, self.index)):
            return
        files = self.index.files()
        for shard in self.index.shards:
            problem: LongtakeError | None = None
            if self.main:
                try:
                    shards.verify_shard(files, shard, progress)
                except LongtakeError as error:
                    problem = error
            if self._agreed(problem is not None):
                raise problem or Stopped("the first process could not verify the shards")

    def _prepare(self) -> None:
        """Model, optimizer, average and schedule, as the newest checkpoint left them or new."""
        preset = self.run.preset
        newest = checkpoint.checkpoints(self.run)[-1:]
        self.remarks: list[str] = []
        if newest:
            model = checkpoint.load_model(self.run)
        else:
            says = pretraining.check(preset, self.run.unet, from_hub=True)
            self.remarks += pretraining.check_latents(preset, self.run.unet, self.index)
            model = models.new_model(preset, self.run.unet, self.run.seed)
        self._check_encoders(model.unet.config)
        self.parameters = model.select_trainable(preset.trainable)
        self.base = None if newest else self._base_digest()
        if not newest and says is None and not models.begins_random(self.run.unet):
            self.remarks.append(
                f"{self.run.unet} does not say what it was trained for (it has no "
                f"{pretraining.SCHEDULER.as_posix()}): taken for {preset.objective.prediction}"
            )
        if self.run.adapter is not None and not newest:
            self.remarks += adapters.start(model, Path(self.run.adapter), self.base)
        if preset.precision == "bf16":
            model.round_frozen()
        if preset.checkpointing:
            model.enable_gradient_checkpointing()
        model.to(self.accelerator.device, memory_format=torch.channels_last).train()
        self.optimizer = _optimizer(preset, self.parameters)
        self.average = EMAModel(
            self.parameters, decay=preset.ema_decay, use_ema_warmup=True, power=0.75
        )
        self.step = 0
        self.held_out: float | None = None  # validation loss of this very step
        self.planned_steps = preset.steps
        self.replan: Replan | None = None
        self.raw = model
        if newest:
            self._load(checkpoint.load_state(self.run, newest[0][1]))
        self.model, self.optimizer = self.accelerator.prepare(model, self.optimizer)
        self.rate = new_rate(preset, _bare(self.optimizer), self.step, self.replan)
        self.schedule = diffusion.scheduler(preset.objective)

    def _base_digest(self) -> str | None:
        """The 2-D model in which frozen weights are found again; None where everything is kept:
        nothing is frozen, or it began with random weights.
        """
        run = self.run
        if run.preset.trainable == "all" or models.begins_random(run.unet):
            return None
        return run.unet_sha256 or flat_digest(models.flat_source(run.unet), from_hub=True)

    def _check_encoders(self, config: Mapping[str, Any]) -> None:
        """Raises UsageError if a 2-D model's config does not fit what made the shards."""
        channels, width = self.index.frame_shape[0], self.index.null_text.shape[1]
        own_channels, own_width = config["out_channels"], config["cross_attention_dim"]
        if (own_channels, own_width) != (channels, width):
            raise UsageError(
                f"the model of preset {self.run.preset.name} makes {own_channels} latent "
                f"channels and reads text of width {own_width}; the shards of {self.index.name} "
                f"have {channels} and {width}: take the preset whose encoders made them"
            )

    def _load(self, state: State) -> None:
        named = _named(self.raw)
        checkpoint.take(self.raw, state.weights)
        self.average.load_state_dict(
            {
                **self.average.state_dict(),
                "shadow_params": [state.average[name] for name in named],
                "optimization_step": state.average_steps,
            }
        )
        self.average.to(self.accelerator.device)
        self.optimizer.load_state_dict(state.optimizer)
        self.step = state.step
        self.base = state.base
        self.planned_steps = state.planned_steps
        self.replan = state.replan
        if state.planned_steps != self.run.preset.steps:
            rate = state.optimizer["param_groups"][0]["lr"]
            self.replan = Replan(state.step, rate)

    def train(self) -> Outcome:
        """Go on to the preset's last step. Ctrl-C finishes the step under way, writes a checkpoint
        and returns.
        """
        preset, began = self.run.preset, time.monotonic()
        loss = math.nan
        self.journal.begin(self.stream, self.raw, self.step)
        for remark in self.remarks:
            self.journal.say(remark)
        if preset.schedule == "cosine" and self.planned_steps != preset.steps:
            self.journal.say(
                f"the learning rate was planned for {self.planned_steps} steps and is planned anew "
                f"for {preset.steps}: from {self.rate.get_last_lr()[0]:.1e} it goes over to the "
                f"new plan in {preset.warmup} steps"
            )
        if self.step >= preset.steps:
            self.journal.say(
                f"nothing to train: {self.step} steps are done, {preset.steps} were asked for; "
                "STEPS= (--steps) beyond that goes on"
            )
        if self.step == 0:
            usual = presets.find(preset.name).trainable
            if models.begins_random(self.run.unet) and usual != preset.trainable == "all":
                self.journal.say(
                    f"{self.run.unet} gives random weights, so all of them are trained, not "
                    f"'{usual}' alone as {preset.name} says"
                )
            self._validate()
        num_still = 0  # steps in a row without any gradient
        with _asked_to_stop() as asked, self.journal.progress(preset.steps):
            for batch in self.stream.loader(self.step, preset.steps, self.workers):
                loss, norm = self._step(batch.to(self.accelerator.device))
                self.step += 1
                self.held_out = None
                num_still = num_still + 1 if norm == 0 else 0
                if num_still == MAX_STILL:
                    raise UsageError(
                        f"the gradient was exactly 0 in {num_still} steps, up to step {self.step}: "
                        f"nothing is learnt. What preset {preset.name} trains "
                        f"('{preset.trainable}') has no part in the model's answer; take a "
                        "pretrained --unet, or a preset that trains more"
                    )
                self.journal.add(
                    self.step, loss, norm, float(self.rate.get_last_lr()[0]), preset.batch_size
                )
                stop = self._agreed(asked.is_set())
                last = self.step == preset.steps or stop
                if not stop and (last or self.step % preset.validate_every == 0):
                    self._validate()
                if last or self.step % preset.checkpoint_every == 0:
                    self._save()
                if stop:
                    break
        self.journal.end()
        return Outcome(
            self.run, self.step, loss, self.step < preset.steps, time.monotonic() - began
        )

    def _step(self, batch: Batch) -> tuple[float, float]:
        """One optimizer step over this rank's part of a global batch; the loss over all of it, and
        the gradient's norm.
        """
        preset = self.run.preset
        known, noise, t = draw_task(
            preset, batch, self.run.seed, self.schedule.config.num_train_timesteps
        )
        known, noise, t = (part.to(self.accelerator.device) for part in (known, noise, t))
        latents, level = batch.latents, None
        if preset.objective.hint_noise:
            latents, level = noisy_known(preset, batch, known, self.run.seed)
        size = len(latents)
        total = torch.zeros((), device=self.accelerator.device)
        starts = range(0, size, preset.micro_batch)
        parts = [slice(start, min(start + preset.micro_batch, size)) for start in starts]
        for part in parts:
            is_last = part is parts[-1]
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                with self.accelerator.autocast(), self._activations():
                    each = diffusion.losses(
                        self.model,
                        self.schedule,
                        preset.objective,
                        preset.in_channels,
                        latents[part],
                        known[part],
                        batch.text[part],
                        batch.fps[part],
                        noise[part],
                        t[part],
                        None if level is None else level[part],
                    )
                    counted = diffusion.relative(each) if preset.relative_loss else each
                self.accelerator.backward(counted.sum() / size)
            total += each.detach().sum() / size
        norm = self.accelerator.clip_grad_norm_(self.parameters, preset.clip_norm)
        loss, norm = self.accelerator.reduce(
            torch.stack([total, norm.detach().to(total)]), "mean"
        ).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            pairs = zip(batch.keys, batch.starts, strict=True)
            samples = ", ".join(f"{key} at frame {start}" for key, start in pairs)
            raise NonFinite(
                f"step {self.step + 1}: the loss is {loss}, the gradient's norm {norm}; "
                f"samples of this rank: {samples} ({batch.window}). The checkpoint before is "
                "whole. Try a lower learning rate, precision float32, or look at these samples."
            )
        self.optimizer.step()
        self.rate.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.step(self.parameters)
        return loss, norm

    def _activations(self) -> AbstractContextManager[Any]:
        """Where the forward keeps what its backward needs."""
        if not self.run.preset.offload:
            return nullcontext()
        return torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available())

    def _agreed(self, vote: bool) -> bool:
        """Whether any rank says so: all ranks go the same way."""
        if self.accelerator.num_processes == 1:
            return vote
        votes = torch.tensor(float(vote), device=self.accelerator.device)
        return bool(self.accelerator.reduce(votes, "sum") > 0)

    @contextmanager
    def _averaged(self) -> Iterator[VideoUNet]:
        self.average.store(self.parameters)
        self.average.copy_to(self.parameters)
        self.raw.eval()
        try:
            yield self.raw
        finally:
            self.average.restore(self.parameters)
            self.raw.train()

    def _validate(self) -> None:
        if self.validation is not None:
            with self._averaged() as model:
                losses = self.validation.losses(model, self.schedule)
                self.held_out = losses.get("mean")
                self.journal.validated(self.step, losses)
                self.validation.pictures(model, self.step)
        self.accelerator.wait_for_everyone()

    def _save(self) -> None:
        if self.main:
            kept = dict(self.raw.named_parameters()) if self.base is None else _named(self.raw)
            weights = {name: _stored(weight) for name, weight in kept.items()}
            shadows = zip(_named(self.raw), self.average.shadow_params, strict=True)
            average = {name: _stored(shadow) for name, shadow in shadows}
            state = State(
                step=self.step,
                planned_steps=self.run.preset.steps,
                replan=self.replan,
                weights=weights,
                average={**weights, **average},
                average_steps=self.average.optimization_step,
                optimizer=_bare(self.optimizer).state_dict(),
                base=self.base,
                validation=self.held_out,
            )
            checkpoint.save(self.run, self.raw, state)
            self.journal.saved(self.step)
        self.accelerator.wait_for_everyone()


def _stored(weight: Tensor) -> Tensor:
    return weight.detach().cpu().clone().contiguous()


def _named(model: nn.Module) -> dict[str, nn.Parameter]:
    return {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def _bare(optimizer: Any) -> torch.optim.Optimizer:
    bare: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return bare


def new_accelerator(preset: Preset, device: str) -> Accelerator:
    """What places the model: on the device that was asked for, or on each rank's own GPU."""
    if device.startswith("cuda:"):
        # alone in its run, accelerate takes torch's current CUDA device
        torch.cuda.set_device(device)
    mixed_precision = "bf16" if preset.precision == "bf16" else "no"
    return Accelerator(mixed_precision=mixed_precision, cpu=device == "cpu")


def new_rate(
    preset: Preset, optimizer: torch.optim.Optimizer, step: int, replan: Replan | None
) -> LambdaLR:
    """The learning rate's plan, after `step` steps.

    A cosine ends at zero at the last step. Given another last step, it would jump to what the
    longer plan has there, 2e-8 to 5e-4, so a changed plan begins at the rate it was left at, and
    goes over to the new one in as many steps as the warm-up has.
    """
    if preset.schedule == "constant":
        return get_constant_schedule_with_warmup(optimizer, preset.warmup, last_epoch=step - 1)
    plan = get_cosine_schedule_with_warmup(
        optimizer, preset.warmup, preset.steps, last_epoch=step - 1
    )
    if replan is None:
        return plan
    [new_share] = plan.lr_lambdas
    old_share = replan.rate / preset.learning_rate

    def share(at: int) -> float:
        weight = min(1.0, (at - replan.step) / max(1, preset.warmup))
        return old_share + weight * (new_share(at) - old_share)

    return LambdaLR(optimizer, share, last_epoch=step - 1)


def _optimizer(preset: Preset, parameters: list[nn.Parameter]) -> Any:
    options: dict[str, Any] = {
        "lr": preset.learning_rate,
        "betas": (0.9, 0.99),
        "weight_decay": preset.weight_decay,
    }
    if preset.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **options)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise Stopped(
            "8-bit AdamW needs bitsandbytes: install longtake[cuda], or take optimizer adamw"
        ) from error
    return AdamW8bit(parameters, **options)


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event set by the first Ctrl-C or SIGTERM; the second one interrupts for good."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def begin(
    preset: str,
    index: Index,
    folder: Path,
    unet: str | None,
    seed: int,
    steps: int | None,
    settings: Sequence[str] = (),
    adapter: Path | None = None,
) -> Run:
    """The run these arguments describe; nothing is written yet. `settings` change fields of the
    preset: see `presets.with_settings`. `adapter` gives temporal layers to begin with.

    A model that begins with random weights is trained whole, whatever the preset says: temporal
    layers alone cannot learn behind frozen noise.
    """
    row = presets.find(preset)
    if presets.is_file(preset):
        _check_preset(row, preset)
    row = presets.with_settings(row, settings)
    source = unet or row.unet
    if models.begins_random(source):
        row = presets.with_settings(replace(row, trainable="all"), settings)
    _check_preset(row, "--set")
    if steps:
        row = replace(row, steps=steps)
    dataset = dataset_facts(index, models.flat_source(source), adapter)
    run = Run(
        folder,
        row,
        dataset,
        source,
        seed,
        flat_digest(models.flat_source(source)),
        None if adapter is None else adapters.digest(adapter),
        None if adapter is None else str(adapter),
    )
    if not checkpoint.checkpoints(run):
        pretraining.check(row, source)
        pretraining.check_latents(row, source, index)
    return run


def _check_preset(row: Preset, where: str) -> None:
    try:
        check_preset(row)
    except ValidationError as error:
        raise presets.wrong_setting(error, where) from None


def dataset_facts(index: Index, unet: str = "", adapter: Path | None = None) -> dict[str, Any]:
    """What a run remembers of its shards, and of what the model it begins with was trained on."""
    before = None if adapter is None else adapters.facts(adapters.file_of(adapter))
    return {
        "name": index.name,
        "root_digest": index.root_digest,
        "encoders": index.encoders,
        "identity": index.identity(),
        "fps": f"{index.fps.numerator}/{index.fps.denominator}",
        "size": index.size,
        "videos": heldout.training_videos(index, unet, before),
    }
