"""What the model is told and what counts as loss."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from training import diffusion
from training.errors import UsageError
from training.frames import known_frames
from training.presets import Hint, Objective

EPSILON = Objective("epsilon", "blend")
RESIDUAL = Objective("v_prediction", "blend", target="residual", residual_std=0.2, zero_snr=True)
OBJECTIVES = [
    EPSILON,
    Objective("v_prediction", "left", zero_snr=True),
    RESIDUAL,
    Objective("epsilon", "zeros", min_snr=5.0),
    Objective("v_prediction", "flow", target="residual", residual_std=0.2),
]


def latents(b: int = 2, f: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(b, f, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


def every(b: int = 2, f: int = 5) -> Tensor:
    return torch.tensor(known_frames("every", f)).expand(b, f)


def test_known_frames_carry_their_own_latents_in_every_mode() -> None:
    x, known = latents(), every()
    for mode in ("zeros", "left", "blend", "flow"):
        assert torch.equal(diffusion.hints(x, known, mode)[known], x[known])  # type: ignore[arg-type]


def test_unknown_frames_carry_zeros_the_left_keyframe_or_the_blend() -> None:
    x, known = latents(), every()
    zeros, left, blend = (diffusion.hints(x, known, mode) for mode in ("zeros", "left", "blend"))  # type: ignore[arg-type]
    assert not zeros[:, 1:4].any()
    assert torch.equal(left[:, 1:4], x[:, :1].expand(-1, 3, -1, -1, -1))
    torch.testing.assert_close(blend[:, 1], 0.75 * x[:, 0] + 0.25 * x[:, 4])
    torch.testing.assert_close(blend[:, 2], 0.5 * x[:, 0] + 0.5 * x[:, 4])


def test_a_frame_with_one_known_neighbour_takes_that_one_and_with_none_zeros() -> None:
    x = latents()
    first = torch.tensor(known_frames("first", 5)).expand(2, 5)
    modes: tuple[Hint, ...] = ("blend", "flow")
    for mode in modes:
        hint = diffusion.hints(x, first, mode)
        assert torch.equal(hint[:, 1:], x[:, :1].expand(-1, 4, -1, -1, -1))
        assert not diffusion.hints(x, torch.zeros_like(first), mode).any()


@pytest.mark.parametrize("mode", ["zeros", "left", "blend", "flow"])
def test_hints_never_read_an_unknown_frame(mode: Any) -> None:
    x, known = latents(), every()
    other = torch.where(known[:, :, None, None, None], x, torch.nan)
    assert torch.equal(diffusion.hints(x, known, mode), diffusion.hints(other, known, mode))


def test_the_mask_is_one_where_unknown_and_zero_everywhere_in_the_seeds_mode() -> None:
    x, known = latents(), every()
    ours = diffusion.model_input(x, known, x, EPSILON, 9)
    assert ours.shape == (2, 5, 9, 3, 3)
    assert torch.equal(ours[:, :, :4], x)
    assert torch.equal(ours[0, :, 4, 0, 0], torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0]))
    assert torch.equal(ours[:, :, 5:], x)
    seeds = diffusion.model_input(x, known, x, Objective("epsilon", "left", mask="seed"), 9)
    assert not seeds[:, :, 4].any()
    assert torch.equal(diffusion.model_input(x, known, x, EPSILON, 4), x)


def test_a_residual_model_sees_the_one_frame_that_is_known() -> None:
    x = latents()
    known = torch.tensor([known_frames("first", 5), known_frames("every", 5)])
    hint = diffusion.hints(x, known, "blend")
    shown = diffusion.model_input(x, known, hint, RESIDUAL, 9)[:, :, 5:]
    assert torch.equal(shown[0], x[0, :1].expand(5, -1, -1, -1))
    # with more than one, what they share is left out
    mean = (x[1, 0] + x[1, 4]) / 2
    torch.testing.assert_close(shown[1], (hint[1] - mean) / 0.2)


def test_noise_is_added_to_known_frames_alone_and_their_mask_tells_how_much() -> None:
    x, known, level = latents(), every(), torch.tensor([0.0, 0.25])
    given = diffusion.with_noise(x, known, level, torch.ones_like(x))
    assert torch.equal(given[0], x[0])
    assert torch.equal(given[1, 1:4], x[1, 1:4])
    assert torch.equal(given[1, ::4], x[1, ::4] + 0.25)
    shown = diffusion.model_input(x, known, x, EPSILON, 9, level)
    exact = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0])
    assert torch.equal(shown[0, :, 4, 0, 0], exact)
    assert torch.equal(shown[1, :, 4, 0, 0], torch.where(exact == 1, 1.0, 0.25))


def test_a_level_of_noise_that_cannot_be_told_is_refused() -> None:
    with pytest.raises(UsageError, match="mask = unknown"):
        Objective("epsilon", "left", mask="seed", hint_noise=0.1)
    for level in (-0.1, 1.0):
        with pytest.raises(UsageError, match="below 1"):
            Objective("epsilon", "left", hint_noise=level)


def test_a_residual_counts_where_the_known_frames_differ() -> None:
    x, known = torch.zeros(1, 9, 4, 8, 8), torch.tensor([[True, *[False] * 3] * 2 + [True]])
    x[:, 4, :, 4:] = 1.0  # the lower half changes by 1, then stays
    x[:, 8, :, 4:] = 1.0
    shares = diffusion.gates(x, known, 0.5)
    assert shares.shape == (1, 9, 1, 8, 8)
    assert shares[0, 1:4, 0, :3].max() == 0
    torch.testing.assert_close(shares[0, 1:4, 0, 6], torch.full((3, 8), 16 / 17))
    assert shares[0, 5:8].max() == 0
    assert torch.equal(diffusion.gates(x, known, 0.0), torch.ones_like(shares))
    first = torch.arange(9)[None] == 0
    assert torch.equal(diffusion.gates(x, first, 0.5), torch.ones_like(shares))  # no second one


def test_a_gate_is_a_weight_of_the_loss_and_needs_residuals() -> None:
    with pytest.raises(UsageError, match="gate needs target = residual"):
        Objective("v_prediction", "flow", gate=0.2)
    still = latents()[:, :1].expand(-1, 5, -1, -1, -1)
    gated = replace(RESIDUAL, gate=0.2)
    net, noise = Net(), latents(seed=1)
    assert loss_and_gradient(net, gated, noise, still)[0].max() == 0
    assert loss_and_gradient(net, RESIDUAL, noise, still)[0].min() > 0
    assert loss_and_gradient(net, gated, noise)[0].min() > 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_is_diffused_comes_back(objective: Objective) -> None:
    x, known = latents(), every()
    hint = diffusion.hints(x, known, objective.hint)
    torch.testing.assert_close(
        diffusion.from_target(diffusion.to_target(x, hint, objective), hint, objective), x
    )


def test_a_residual_model_that_says_nothing_gives_the_hint() -> None:
    x, known = latents(), every()
    hint = diffusion.hints(x, known, "blend")
    assert torch.equal(diffusion.from_target(torch.zeros_like(x), hint, RESIDUAL), hint)


class Net(torch.nn.Module):
    """A network with one weight per frame; `off` is added to what it says of known frames."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(0.1, 1, 5))
        self.off: Tensor | float = 0.0

    def forward(self, x: Tensor, t: Tensor, text: Tensor, fps: Tensor) -> Tensor:
        return x[:, :, :4] * self.weight[None, :, None, None, None] + self.off


def loss_and_gradient(
    net: Net, objective: Objective, noise: Tensor, clean: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    net.zero_grad()
    each = diffusion.losses(
        net,
        diffusion.scheduler(objective),
        objective,
        9,
        latents() if clean is None else clean,
        every(),
        torch.zeros(2, 7, 8),
        torch.ones(2),
        noise,
        torch.tensor([10, 700]),
    )
    each.sum().backward()
    assert net.weight.grad is not None
    return each.detach(), net.weight.grad.clone()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_ignores_known_frames(objective: Objective) -> None:
    net, noise, known = Net(), latents(seed=1), every()[:, :, None, None, None]
    loss, gradient = loss_and_gradient(net, objective, noise)
    net.off = torch.where(known, 100.0, 0.0)  # other words about known frames
    assert all(
        torch.equal(a, b)
        for a, b in zip(loss_and_gradient(net, objective, noise), (loss, gradient), strict=True)
    )
    net.off = 0.0
    other_noise = torch.where(known, noise + 3, noise)  # other noise on known frames
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            loss_and_gradient(net, objective, other_noise), (loss, gradient), strict=True
        )
    )
    net.off = torch.where(known, 0.0, 0.1)  # and other words about unknown ones are not ignored
    assert not torch.equal(loss_and_gradient(net, objective, noise)[0], loss)


def test_min_snr_caps_the_weight_of_easy_timesteps() -> None:
    for prediction in ("epsilon", "v_prediction"):
        objective = Objective(prediction, "blend", min_snr=5.0)  # type: ignore[arg-type]
        schedule = diffusion.scheduler(objective)
        snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
        t = torch.tensor([0, 300, 999])
        weight = snr[t].clamp(max=5) / (snr[t] + (prediction == "v_prediction"))
        torch.testing.assert_close(diffusion.loss_weight(schedule, t, objective), weight)
    assert torch.equal(
        diffusion.loss_weight(diffusion.scheduler(EPSILON), t, EPSILON), torch.ones(3)
    )


def test_zero_terminal_snr_leaves_no_signal_and_needs_v_prediction() -> None:
    schedule = diffusion.scheduler(RESIDUAL)
    x, noise = latents(), latents(seed=1)
    torch.testing.assert_close(
        schedule.add_noise(x, noise, torch.tensor([999, 999])), noise, atol=1e-3, rtol=0
    )
    with pytest.raises(UsageError, match="v_prediction"):
        Objective("epsilon", "blend", zero_snr=True)


def test_tasks_are_drawn_by_weight_and_repeat() -> None:
    tasks: Any = (("unconditional", 0.5), ("first", 0.5), ("prefix", 0.0))
    drawn = [
        diffusion.draw_known(5, tasks, torch.Generator().manual_seed(seed)) for seed in range(200)
    ]
    assert set(drawn) == {(False,) * 5, (True, False, False, False, False)}
    assert 60 < sum(not any(known) for known in drawn) < 140
    assert drawn == [
        diffusion.draw_known(5, tasks, torch.Generator().manual_seed(seed)) for seed in range(200)
    ]
    for seed in range(50):
        known = diffusion.draw_known(5, (("prefix", 1.0),), torch.Generator().manual_seed(seed))
        assert 1 <= sum(known) <= 4
        assert sorted(known, reverse=True) == list(known)


def test_a_relative_loss_counts_a_dark_film_as_much_as_a_bright_one() -> None:
    weights = torch.ones(2, requires_grad=True)
    diffusion.relative(torch.tensor([1e-3, 1e1]) * weights.square()).sum().backward()
    torch.testing.assert_close(weights.grad, torch.full((2,), 2.0))  # of log w^2, at w = 1
    still = torch.zeros(1, requires_grad=True)
    diffusion.relative(still.square()).sum().backward()
    assert torch.equal(still.grad, torch.zeros(1))  # what is learnt to the end is left alone


def test_detail_counts_more_where_the_picture_changes_and_a_frame_as_much_as_before() -> None:
    generator = torch.Generator().manual_seed(0)
    latents = 0.1 * torch.randn(2, 3, 4, 16, 16, generator=generator)
    latents[..., 5, 6] += 2  # a fish in every frame
    weight = diffusion.detail_weight(latents, 0.5)
    assert weight.shape == (2, 3, 1, 16, 16)
    torch.testing.assert_close(weight.mean((2, 3, 4)), torch.ones(2, 3))
    fish = weight[..., 5, 6]
    assert (fish > 5 * weight.median()).all()
    assert (weight >= 0.5).all()
    even = diffusion.detail_weight(torch.zeros(1, 1, 4, 8, 8), 0.5)
    assert torch.equal(even, torch.ones(1, 1, 1, 8, 8))
