"""The diffusion task: what is noised, what the model sees, what counts as loss.

Input channels follow SD-inpainting: noisy latents, mask (1 = unknown, 0 = known), hint latents.
Known frames carry their own latents in the hint, the loss counts unknown frames alone. In training
these are true frames, in sampling often generated ones, so noise may be added to them, of a level
that the mask tells (as Ho et al. 2021, section 4, and Stable Video Diffusion do). Schedules come
from diffusers. With `target="residual"` what is diffused is (latents - hint) / residual_std: the
same process about another origin, so a model that still predicts zeros gives the hint, where one
that diffuses latents must first learn to copy it. A backbone trained on images needs
`target="latents"`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from training import flow, frames
from training.presets import Hint, Objective, Tasks

# inputs `b f c h w`, t `b`, text `b n d`, fps `b`, to `b f c h w`
Network = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

EVEN = 1e-6  # squared latents: a change that nobody sees
LEAST_LOSS = 1e-6  # from which on a loss counts as what it is
MAX_DETAIL = 15.0  # times the mean change of a frame, from which on all change counts alike


# Stable Diffusion's noise schedule, as diffusers' schedulers call it
NOISE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


def scheduler(objective: Objective, kind: Literal["ddpm", "ddim", "dpm"] = "ddpm") -> Any:
    """Stable Diffusion's noise schedule as a diffusers scheduler: for training, or one to sample
    with.
    """
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

    options: dict[str, Any] = {
        **NOISE,
        "prediction_type": objective.prediction,
        "rescale_betas_zero_snr": objective.zero_snr,
    }
    kinds: dict[str, Any] = {
        "ddpm": DDPMScheduler,
        "ddim": DDIMScheduler,
        "dpm": DPMSolverMultistepScheduler,
    }
    if kind != "ddpm":
        options["timestep_spacing"] = "trailing"
    if kind != "dpm":
        options["clip_sample"] = False
    if kind == "ddim":
        options["set_alpha_to_one"] = True
    return kinds[kind](**options)


def hints(latents: Tensor, known: Tensor, mode: Hint) -> Tensor:
    """The hint channels of each frame: known frames have their own latents, unknown ones what
    `mode` says.

    `latents` `b f c h w`, of which only known frames are read; `known` `b f` bool. An unknown frame
    with one known neighbour only takes that one; with none, zeros. "flow" is computed on the CPU,
    wherever the latents are.
    """
    rows = []
    for clip, flags in zip(latents, known.tolist(), strict=True):
        row = torch.zeros_like(clip)
        for index, (left, right, weight) in enumerate(frames.neighbours(flags)):
            if flags[index]:
                row[index] = clip[index]
            elif mode != "zeros" and (left is not None or right is not None):
                row[index] = _between(clip, left, right, 0.0 if mode == "left" else weight)
        rows.append(flow.moved(row, flags) if mode == "flow" else row)
    return torch.stack(rows)


def _between(latents: Tensor, left: int | None, right: int | None, weight: float) -> Tensor:
    if left is None:
        return latents[right]
    if right is None:
        return latents[left]
    return latents[left] if weight == 0 else torch.lerp(latents[left], latents[right], weight)


def with_noise(latents: Tensor, known: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """Latents `b f c h w` whose known frames, `b f` bool, have noise of a level `b` added."""
    levels = rearrange(level, "b -> b 1 1 1 1")
    is_known = rearrange(known, "b f -> b f 1 1 1")
    return torch.where(is_known, latents + levels * noise, latents)


def to_target(latents: Tensor, hint: Tensor, objective: Objective) -> Tensor:
    """Scaled latents to what is diffused, `b f c h w`."""
    return (latents - hint) / objective.residual_std if objective.target == "residual" else latents


def from_target(target: Tensor, hint: Tensor, objective: Objective) -> Tensor:
    """What is diffused back to scaled latents."""
    return hint + objective.residual_std * target if objective.target == "residual" else target


def gates(latents: Tensor, known: Tensor, gate: float) -> Tensor:
    """How much of a residual counts at each place, 0 to 1, `b f 1 h w`.

    Where the known frames on both sides of a frame are alike, nothing moves, and what a model adds
    there is only to take their noise away: frames in between are then smoother than known ones, a
    pulse that one sees. One half counts where they differ by `gate`: root mean square of scaled
    latents, over 3 x 3 places. With one known neighbour, or none, or a `gate` of 0, all counts.
    """
    shares = latents.new_ones(*latents.shape[:2], 1, *latents.shape[3:])
    if not gate:
        return shares
    for clip, flags, share in zip(latents, known.tolist(), shares, strict=True):
        for index, (left, right, _) in enumerate(frames.neighbours(flags)):
            if not flags[index] and left is not None and right is not None:
                change = (clip[right] - clip[left]).square().mean(0, keepdim=True)
                around = functional.avg_pool2d(
                    change, 3, stride=1, padding=1, count_include_pad=False
                )
                share[index] = around.square() / (around.square() + gate**4)
    return shares


def model_input(
    noisy: Tensor,
    known: Tensor,
    hint: Tensor,
    objective: Objective,
    num_channels: int,
    level: Tensor | None = None,
) -> Tensor:
    """The channels a model sees, `b f c h w`: noisy latents alone, or with mask and hint behind
    them.

    A model of residuals sees hints as residuals, too: see `_differences`. `level` `b`, how much
    noise known frames have, stands in their mask: 0 is exact, 1 unknown.
    """
    if num_channels == noisy.shape[2]:
        return noisy
    if objective.target == "residual":
        hint = _differences(hint, known, objective.residual_std)
    unknown = torch.zeros_like(known) if objective.mask == "seed" else ~known
    flags = unknown.to(noisy.dtype)
    if level is not None:
        flags = torch.where(known, level[:, None].to(noisy.dtype), flags)
    mask = rearrange(flags, "b f -> b f 1 1 1").expand(-1, -1, 1, *noisy.shape[3:])
    return torch.cat([noisy, mask, hint.to(noisy.dtype)], dim=2)


def _differences(hint: Tensor, known: Tensor, std: float) -> Tensor:
    """Hints less the mean of the known frames, in units of `std`, `b f c h w`; of a clip with one
    known frame, or none, the hints as they are.

    What stands still is seven times what moves, and would drown it. One frame is its own mean:
    less that nothing would be left to see.
    """
    weights = rearrange(known.to(hint.dtype), "b f -> b f 1 1 1")
    num_known = weights.sum(1, keepdim=True)
    mean = (hint * weights).sum(1, keepdim=True) / num_known.clamp(min=1)
    return torch.where(num_known > 1, (hint - mean) / std, hint)


def draw_known(
    num_frames: int, tasks: Tasks, generator: torch.Generator, every: int = 4
) -> tuple[bool, ...]:
    """Which frames a sample is given, drawn from (task, weight) pairs; see `frames.TASKS`."""
    weights = torch.tensor([weight for _, weight in tasks], dtype=torch.float64)
    task = tasks[int(torch.multinomial(weights, 1, generator=generator))][0]
    prefix = int(torch.randint(1, max(2, num_frames), (), generator=generator))
    return frames.known_frames(task, num_frames, every=every, prefix=prefix)


def loss_weight(schedule: Any, t: Tensor, objective: Objective) -> Tensor:
    """Weight of each sample's loss, `b`: min-SNR-gamma (Hang et al. 2023, eq. 4 and section 3.4),
    or ones.
    """
    if not objective.min_snr:
        return torch.ones_like(t, dtype=torch.float32)
    alphas = schedule.alphas_cumprod.to(t.device)[t]
    snr = alphas / (1 - alphas)
    capped = snr.clamp(max=objective.min_snr)
    if objective.prediction == "v_prediction":
        weight: Tensor = capped / (snr + 1)
        return weight
    return torch.where(snr > 0, capped / snr, 1.0)


def detail_weight(latents: Tensor, share: float) -> Tensor:
    """Weight of each place's loss, `b f 1 h w`, of mean 1 in every frame.

    Small things on flat ground (fish in a dish) are a few of a thousand places, and a mean over all
    of them hardly says whether they are there. `share` of the weight follows the squared distance
    of a place from the mean of its surroundings, in units of the frame's mean of it.
    """
    pictures = rearrange(latents, "b f c h w -> (b f) c h w")
    around = functional.avg_pool2d(pictures, 5, stride=1, padding=2, count_include_pad=False)
    change = (pictures - around).square().mean(1, keepdim=True)
    change = change + EVEN  # a frame of one colour counts all its places alike
    relative = (change / change.mean((2, 3), keepdim=True)).clamp(max=MAX_DETAIL)
    relative = relative / relative.mean((2, 3), keepdim=True)
    weight = 1 - share + share * relative
    return rearrange(weight, "(b f) 1 h w -> b f 1 h w", b=len(latents))


def relative(losses: Tensor) -> Tensor:
    """Losses `b`, each divided by its own size, with the gradients of their logarithms.

    A film of which little changes, such as a dark earth, has small errors whatever is learnt of it,
    and in a mean beside a street it hardly counts. So each counts by its share that can still be
    learnt: weighting by uncertainty (Kendall, Gal and Cipolla 2018), one of its own to each sample.
    """
    return losses / losses.detach().clamp(min=LEAST_LOSS)


def losses(
    network: Network,
    schedule: Any,
    objective: Objective,
    num_channels: int,
    latents: Tensor,
    known: Tensor,
    text: Tensor,
    fps: Tensor,
    noise: Tensor,
    t: Tensor,
    level: Tensor | None = None,
) -> Tensor:
    """Each sample's loss, `b` float32: mean squared error over its unknown frames, weighted.

    `latents` and `noise` `b f c h w`, scaled; `known` `b f` bool, at least one frame of each
    unknown; `text` `b n d`; `fps` and `t` `b`; `level` `b`: how much noise known frames have been
    given, if any.
    """
    hint = hints(latents, known, objective.hint)
    target = to_target(latents, hint, objective)
    noisy = schedule.add_noise(target, noise, t)
    shown = model_input(noisy, known, hint, objective, num_channels, level)
    predicted = network(shown, t, text, fps)
    is_epsilon = objective.prediction == "epsilon"
    answer = noise if is_epsilon else schedule.get_velocity(target, noise, t)
    squares = (predicted.float() - answer.float()).square()
    if objective.detail:
        squares = squares * detail_weight(latents, objective.detail)
    if objective.gate:
        squares = squares * gates(latents, known, objective.gate).square()
    error = squares.mean(dim=(2, 3, 4))
    unknown = (~known).float()
    return (error * unknown).sum(1) / unknown.sum(1) * loss_weight(schedule, t, objective)
