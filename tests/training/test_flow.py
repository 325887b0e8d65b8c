"""The hint "flow": latents between known ones follow what moves, without pixels, to the bit."""

from __future__ import annotations

import math

import cv2
import pytest
import torch
from torch import Tensor

from training import diffusion
from training.frames import known_frames
from training.presets import Hint


def drifting(num_frames: int = 17, step: float = 0.25, channels: int = 4) -> Tensor:
    """Smooth latents `1 f c 32 32` that move to the right by `step` a frame."""
    across = torch.arange(32.0)
    down = across[:, None]
    generator = torch.Generator().manual_seed(0)
    frames = []
    waves = 6
    freq = torch.rand(channels, waves, 2, generator=generator) * 0.9
    phase = torch.rand(channels, waves, generator=generator) * 2 * math.pi
    for number in range(num_frames):
        at = across - step * number
        angle = freq[..., :1, None] * at + freq[..., 1:, None] * down + phase[..., None, None]
        frames.append(angle.sin().mean(1))
    return torch.stack(frames)[None]


def every(num_frames: int = 17) -> Tensor:
    return torch.tensor(known_frames("every", num_frames))[None]


def error(latents: Tensor, known: Tensor, mode: Hint) -> float:
    """Mean squared error of the hints of unknown frames."""
    hint = diffusion.hints(latents, known, mode)
    return float((hint - latents)[~known].square().mean())


def test_what_drifts_is_followed_far_better_than_by_a_blend() -> None:
    latents = drifting(step=0.75)
    assert error(latents, every(), "flow") < error(latents, every(), "blend") / 4


def test_what_stands_still_stays_a_blend() -> None:
    still = drifting(step=0.0)
    torch.testing.assert_close(diffusion.hints(still, every(), "flow"), still)


def test_the_ground_beside_what_moves_is_seen_where_one_side_alone_shows_it() -> None:
    # A square over a textured ground, which it covers here in the first frame and there in the last
    ground = drifting(num_frames=1)[0, 0]
    latents = ground.expand(5, -1, -1, -1).clone()
    square = 3 * drifting(num_frames=1)[0, 0].flip(-1)[:, :10, :10]
    for number in range(5):
        latents[number, :, 11:21, 6 + number : 16 + number] = square
    known = every(5)
    hint = diffusion.hints(latents[None], known, "flow")[0, 2]
    blend = diffusion.hints(latents[None], known, "blend")[0, 2]
    bared = slice(6, 7)  # covered in the first frame alone
    covered = slice(19, 20)  # covered in the last frame alone
    for where in (bared, covered):
        truth = latents[2, :, 12:20, where]
        ours = (hint[:, 12:20, where] - truth).square().mean()
        theirs = (blend[:, 12:20, where] - truth).square().mean()
        assert ours < theirs / 8


@pytest.mark.parametrize("shape", [(5, 4, 1, 1), (5, 4, 1, 9), (5, 4, 2, 2), (5, 16, 6, 10)])
def test_latents_of_any_size_and_number_of_channels_have_hints(shape: tuple[int, ...]) -> None:
    latents = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    hint = diffusion.hints(latents, every(5), "flow")
    assert hint.shape == latents.shape
    assert hint.isfinite().all()
    flat = torch.full_like(latents, 0.5)
    assert torch.equal(diffusion.hints(flat, every(5), "flow"), flat)


def test_latents_that_are_no_numbers_are_left_to_the_loss_to_name() -> None:
    latents = drifting(5)
    latents[0, 4, 0, 3, 3] = torch.nan
    hint = diffusion.hints(latents, every(5), "flow")
    assert hint[0, 2].isnan().sum() == 1


def test_the_same_latents_give_the_same_bits_however_many_threads_opencv_has() -> None:
    latents = drifting(step=0.4) + 0.05 * torch.randn(1, 17, 4, 32, 32)
    before = cv2.getNumThreads()
    try:
        hints = []
        for threads in (1, 4):
            cv2.setNumThreads(threads)
            hints.append(diffusion.hints(latents, every(), "flow"))
            assert cv2.getNumThreads() == threads
    finally:
        cv2.setNumThreads(before)
    assert torch.equal(*hints)
    # nor does a clip's hint depend on the clips beside it
    both = torch.cat([drifting(), latents])
    beside = diffusion.hints(both, every().expand(2, -1), "flow")
    assert torch.equal(beside[1:], hints[0])


def test_hints_keep_the_kind_of_number_of_their_latents() -> None:
    latents = drifting(5).to(torch.bfloat16)
    assert diffusion.hints(latents, every(5), "flow").dtype == torch.bfloat16
