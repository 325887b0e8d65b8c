"""Attention along time: every pixel of the latents looks at the same pixel in other frames.

Sequences are short (5 to 257 frames) and many (one per pixel and head), so overhead decides, not
arithmetic. `sdpa` with a boolean band mask is the reference, on any device, forward and backward.
`plain` is the same arithmetic as two batched products: on a CPU 1.3 to 2 times faster up to 32
frames, slower from 65 on. `auto` takes the better of these two. `xformers` and `flex` need CUDA; a
band skips no work in `flex` below 128 frames.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from einops import rearrange
from torch import Tensor, nn

from training.errors import UsageError

Backend = Literal["auto", "sdpa", "plain", "xformers", "flex"]
PLAIN_FRAMES = 32  # up to here `plain` is the faster one on a CPU
MAX_SEQUENCES = 32768  # CUDA kernels put sequences on a grid axis of at most 65,535


def check_window(window: int | None) -> None:
    """Raise UsageError unless `window` is None (full attention) or odd: 5 sees two frames to each
    side.
    """
    if window is not None and (window < 1 or window % 2 == 0):
        raise UsageError(
            f"A temporal window of {window}: it must be odd and positive (5 sees 2 frames to each "
            "side), or absent for all."
        )


def band_mask(
    num_frames: int,
    window: int | None,
    first_frame: bool = False,
    device: torch.device | str | None = None,
) -> Tensor:
    """Which frame (row) may look at which (column): `f f` bool, True = may look."""
    check_window(window)
    index = torch.arange(num_frames, device=device)
    reach = num_frames if window is None else window // 2
    mask = (index[:, None] - index[None, :]).abs() <= reach
    return mask | (index == 0) if first_frame else mask


def temporal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None = None,
    first_frame: bool = False,
    backend: Backend = "sdpa",
) -> Tensor:
    """Softmax attention over frames: `n heads f d` three times to `n heads f d`, scaled by d**-0.5.

    Raises UsageError for an even window, and for a backend that is not there or cannot do what is
    asked.
    """
    check_window(window)
    num_frames = q.shape[-2]
    if window is not None and window // 2 >= num_frames - 1:
        window = None  # every frame sees every other
    if backend == "auto":
        backend = "plain" if q.device.type == "cpu" and num_frames <= PLAIN_FRAMES else "sdpa"
    if backend not in get_args(Backend):
        raise UsageError(
            f"No attention backend is called {backend!r}; there are {', '.join(get_args(Backend))}."
        )
    attend = {"sdpa": _sdpa, "plain": _plain, "xformers": _xformers, "flex": _flex}[backend]
    if q.device.type == "cuda" and len(q) > MAX_SEQUENCES:
        mixed = []
        for start in range(0, len(q), MAX_SEQUENCES):
            part = slice(start, start + MAX_SEQUENCES)
            mixed.append(attend(q[part], k[part], v[part], window, first_frame))
        return torch.cat(mixed)
    return attend(q, k, v, window, first_frame)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, window: int | None, first_frame: bool) -> Tensor:
    mask = None if window is None else band_mask(q.shape[-2], window, first_frame, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _plain(q: Tensor, k: Tensor, v: Tensor, window: int | None, first_frame: bool) -> Tensor:
    heads, num_frames, width = q.shape[1:]
    q, k, v = (rearrange(x, "n heads f d -> (n heads) f d") for x in (q, k, v))
    bias = q.new_zeros(())
    if window is not None:
        mask = band_mask(num_frames, window, first_frame, q.device)
        bias = q.new_zeros(num_frames, num_frames).masked_fill(~mask, -torch.inf)
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=width**-0.5)
    return rearrange(torch.bmm(scores.softmax(-1), v), "(n heads) f d -> n heads f d", heads=heads)


def _xformers(q: Tensor, k: Tensor, v: Tensor, window: int | None, first_frame: bool) -> Tensor:
    if first_frame and window is not None:
        raise UsageError(
            "xformers has no mask for a window with the first frame always visible; use the "
            "backend `sdpa` or `flex`."
        )
    _want_cuda("xformers", q)
    try:
        ops, biases = import_module("xformers.ops"), import_module("xformers.ops.fmha.attn_bias")
    except ImportError as error:
        raise UsageError(
            f"xformers cannot be imported ({error}); install the extra `cuda`, or use the backend "
            "`sdpa`."
        ) from error
    bias = None
    if window is not None:
        reach = window // 2
        bias = biases.LocalAttentionFromBottomRightMask(window_left=reach, window_right=reach)
    turned = [rearrange(x, "n heads f d -> n f heads d") for x in (q, k, v)]
    try:
        mixed: Tensor = ops.memory_efficient_attention(*turned, attn_bias=bias)
    except NotImplementedError as error:
        what = f"{q.dtype}, {q.shape[-2]} frames, heads of {q.shape[-1]}, window {window}"
        raise UsageError(
            f"xformers has no kernel here for {what}; use the backend `sdpa`.\n{error}"
        ) from error
    return rearrange(mixed, "n f heads d -> n heads f d")


def _flex(q: Tensor, k: Tensor, v: Tensor, window: int | None, first_frame: bool) -> Tensor:
    _want_cuda("flex", q)
    mask = None if window is None else _block_mask(q.shape[-2], window // 2, first_frame, q.device)
    mixed: Tensor = _compiled_flex()(q, k, v, block_mask=mask)
    return mixed


@cache
def _compiled_flex() -> Any:
    import torch._dynamo
    from torch.nn.attention.flex_attention import flex_attention

    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(64, limit)  # one kernel a shape; the default is 8
    return torch.compile(flex_attention, dynamic=False)


@cache
def _block_mask(num_frames: int, reach: int, first_frame: bool, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def may_look(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = (query - key).abs() <= reach
        return near | (key == 0) if first_frame else near

    with torch.inference_mode(False):
        return create_block_mask(may_look, None, None, num_frames, num_frames, device=str(device))


def _want_cuda(backend: str, q: Tensor) -> None:
    if q.device.type != "cuda":
        raise UsageError(
            f"The attention backend `{backend}` needs a CUDA device, the tensors are on "
            f"{q.device.type}; use `auto`."
        )


def rotate(x: Tensor) -> Tensor:
    """Turn pairs of channels by the frame's index: rotary position, so that attention sees
    distances only.

    `n f ... d` with an even d, f on the second axis; same shape and dtype. Source: Su et al. 2021,
    RoFormer, equation 34. One complex product: on a CPU a quarter of the time of the two halves'
    sines and cosines.
    """
    angles = _turns(x.shape[1], x.shape[-1] // 2, x.device)
    pairs = torch.view_as_complex(rearrange(x.float(), "... (pairs two) -> ... pairs two", two=2))
    turned = pairs * angles.view(x.shape[1], *[1] * (x.ndim - 3), -1)
    return rearrange(torch.view_as_real(turned), "... pairs two -> ... (pairs two)").to(x.dtype)


def _turns(num_frames: int, num_pairs: int, device: torch.device, base: float = 10_000.0) -> Tensor:
    """exp(i * frame * base**(-pair / num_pairs)): `f pairs` complex64."""
    speed = base ** -(torch.arange(num_pairs, device=device) / num_pairs)
    angle = torch.outer(torch.arange(num_frames, device=device).float(), speed)
    return torch.polar(torch.ones_like(angle), angle)


class TemporalAttention(nn.Module):
    """Self-attention of every pixel over frames, rotary positions, no text; added to its input,
    zero at first.
    """

    def __init__(
        self, channels: int, heads: int, window: int | None, first_frame: bool, like: Tensor
    ) -> None:
        super().__init__()
        if channels % (2 * heads):
            raise UsageError(
                f"{heads} heads do not divide {channels} channels into even parts, which rotary "
                "positions need."
            )
        place: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        self.heads, self.window, self.first_frame = heads, window, first_frame
        self.backend: Backend = "auto"
        self.norm = nn.LayerNorm(channels, **place)
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False, **place)
        self.to_out = nn.Linear(channels, channels, **place)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """`(b f) c h w` to the same shape."""
        b, h = len(x) // num_frames, x.shape[-2]
        tokens = self.norm(rearrange(x, "(b f) c h w -> (b h w) f c", f=num_frames))
        qkv = rearrange(
            self.to_qkv(tokens),
            "n f (three heads d) -> n f three heads d",
            three=3,
            heads=self.heads,
        )
        q, k = rearrange(rotate(qkv[:, :, :2]), "n f two heads d -> two n heads f d")
        v = rearrange(qkv[:, :, 2], "n f heads d -> n heads f d")
        mixed = temporal_attention(q, k, v, self.window, self.first_frame, self.backend)
        out: Tensor = self.to_out(rearrange(mixed, "n heads f d -> n f (heads d)"))
        return x + rearrange(out, "(b h w) f c -> (b f) c h w", b=b, h=h)
