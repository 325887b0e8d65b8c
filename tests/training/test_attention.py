"""Which frame sees which, and that every way to compute it gives the same."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from training import attention
from training.attention import Backend, band_mask, rotate, temporal_attention
from training.errors import UsageError

WINDOWS = [(None, False), (1, False), (3, False), (5, True), (7, False), (63, True)]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def new_qkv(
    num_frames: int, device: str = "cpu", width: int = 16, sequences: int = 12
) -> list[Tensor]:
    random = torch.Generator().manual_seed(num_frames)
    tensors = [torch.randn(sequences, 3, num_frames, width, generator=random) for _ in range(3)]
    return [x.to(device).requires_grad_() for x in tensors]


def with_gradients(
    qkv: Sequence[Tensor], window: int | None, first_frame: bool, backend: Backend
) -> list[Tensor]:
    mixed = temporal_attention(*qkv, window, first_frame, backend)
    return [mixed, *torch.autograd.grad(mixed.square().sum(), qkv)]


def test_a_window_of_five_sees_two_frames_to_each_side() -> None:
    assert band_mask(6, 5).int().tolist() == [
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [0, 1, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 1],
        [0, 0, 0, 1, 1, 1],
    ]


def test_the_first_frame_can_be_seen_by_all_without_seeing_more_itself() -> None:
    assert band_mask(4, 3, first_frame=True).int().tolist() == [
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [1, 1, 1, 1],
        [1, 0, 1, 1],
    ]


def test_without_a_window_all_see_all() -> None:
    assert band_mask(3, None).all()


def test_a_window_of_seven_shows_both_keyframes_to_all_between_them_and_five_does_not() -> None:
    def blind(window: int) -> list[int]:
        mask = band_mask(17, window)
        return [
            frame
            for frame in range(17)
            if not (mask[frame, frame - frame % 4] and mask[frame, min(16, frame + -frame % 4)])
        ]

    assert blind(7) == []
    assert blind(5) == [1, 3, 5, 7, 9, 11, 13, 15]


@pytest.mark.parametrize("window", [1, 3, 5, 7, 9, 33])
@pytest.mark.parametrize("num_frames", [1, 5, 17, 65])
def test_the_band_is_that_of_xformers(num_frames: int, window: int) -> None:
    masks = pytest.importorskip("xformers.ops.fmha.attn_bias")
    theirs = masks.LocalAttentionFromBottomRightMask(
        window_left=window // 2, window_right=window // 2
    )
    assert torch.equal(
        theirs.materialize((num_frames, num_frames)) == 0, band_mask(num_frames, window)
    )


@pytest.mark.parametrize(("window", "first_frame"), WINDOWS)
@pytest.mark.parametrize("num_frames", [1, 5, 17, 65])
def test_the_reference_is_the_textbook_formula(
    num_frames: int, window: int | None, first_frame: bool
) -> None:
    q, k, v = (x.detach().double() for x in new_qkv(num_frames))
    scores = (q @ k.mT / 4).masked_fill(~band_mask(num_frames, window, first_frame), -torch.inf)
    torch.testing.assert_close(
        temporal_attention(q, k, v, window, first_frame), scores.softmax(-1) @ v
    )


@pytest.mark.parametrize(("window", "first_frame"), WINDOWS)
@pytest.mark.parametrize("num_frames", [1, 5, 17, 65])
def test_the_plain_backend_equals_the_reference_forward_and_backward(
    num_frames: int, window: int | None, first_frame: bool
) -> None:
    qkv = new_qkv(num_frames)
    reference = with_gradients(qkv, window, first_frame, "sdpa")
    torch.testing.assert_close(
        with_gradients(qkv, window, first_frame, "plain"), reference, rtol=1e-4, atol=1e-5
    )
    assert torch.equal(
        temporal_attention(*qkv, window, first_frame, "auto"),
        temporal_attention(*qkv, window, first_frame, _auto(num_frames)),
    )


def _auto(num_frames: int) -> Backend:
    return "plain" if num_frames <= attention.PLAIN_FRAMES else "sdpa"


@needs_cuda
@pytest.mark.parametrize(("window", "first_frame"), WINDOWS)
@pytest.mark.parametrize("num_frames", [5, 17, 65, 257])
@pytest.mark.parametrize("backend", ["auto", "plain", "xformers", "flex"])
def test_cuda_backends_equal_the_reference(
    backend: Backend, num_frames: int, window: int | None, first_frame: bool
) -> None:
    if backend == "xformers":
        pytest.importorskip("xformers.ops")
        if first_frame:
            pytest.skip("xformers has no such mask")
    qkv = new_qkv(num_frames, "cuda", width=32)
    reference = with_gradients(qkv, window, first_frame, "sdpa")
    torch.testing.assert_close(
        with_gradients(qkv, window, first_frame, backend), reference, rtol=2e-3, atol=2e-3
    )


@needs_cuda
def test_more_sequences_than_a_cuda_grid_holds_are_attended_in_parts() -> None:
    q, k, v = (x.detach() for x in new_qkv(5, "cuda", sequences=attention.MAX_SEQUENCES * 2 + 1))
    torch.testing.assert_close(
        temporal_attention(q, k, v)[-3:], temporal_attention(q[-3:], k[-3:], v[-3:])
    )


def test_a_frame_out_of_sight_changes_nothing() -> None:
    q, k, v = (x.detach() for x in new_qkv(9))
    before = temporal_attention(q, k, v, window=3)
    k[:, :, 8], v[:, :, 8] = 100.0, 100.0
    after = temporal_attention(q, k, v, window=3)
    assert torch.equal(after[:, :, :7], before[:, :, :7])
    assert not torch.equal(after[:, :, 7], before[:, :, 7])


@pytest.mark.parametrize("window", [0, -1, 4])
def test_an_even_window_is_refused(window: int) -> None:
    with pytest.raises(UsageError, match=f"window of {window}: it must be odd"):
        temporal_attention(*new_qkv(5), window)


@pytest.mark.parametrize("backend", ["xformers", "flex"])
def test_accelerators_say_that_they_need_cuda(backend: Backend) -> None:
    with pytest.raises(
        UsageError, match=f"`{backend}` needs a CUDA device, the tensors are on cpu"
    ):
        temporal_attention(*new_qkv(5), 3, backend=backend)


def test_xformers_says_what_it_has_no_mask_for() -> None:
    with pytest.raises(UsageError, match="no mask for a window with the first frame"):
        temporal_attention(*new_qkv(5), 3, True, backend="xformers")


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(UsageError, match="'fast'"):
        temporal_attention(*new_qkv(5), backend="fast")  # type: ignore[arg-type]


def test_rotated_products_depend_on_the_distance_of_frames_alone() -> None:
    q, k = (
        torch.randn(8, generator=torch.Generator().manual_seed(seed)).expand(1, 40, 8)
        for seed in (1, 2)
    )
    products = rotate(q)[0] @ rotate(k)[0].T
    for distance in (-7, 0, 3):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=1e-4, atol=1e-5)
    assert products.diagonal(0)[0] != products.diagonal(3)[0]


def test_rotation_keeps_lengths_and_kinds_and_leaves_frame_zero_alone() -> None:
    x = torch.randn(2, 6, 2, 3, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    turned = rotate(x)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned[:, 0], x[:, 0])
    torch.testing.assert_close(
        turned.float().norm(dim=-1), x.float().norm(dim=-1), rtol=1e-2, atol=1e-2
    )
