"""Measures a CUDA device at Stable Diffusion's size: step time, peak memory, TFLOP/s, VAE frames/s,
attention backends.

    python -m benchmarks.gpu [--small] [--frames 5 17 65] [--batches 1 2] [--steps 5]

Weights are random and nothing is downloaded. It needs torch >= 2.11 with diffusers, einops and
rich; this repository need not be installed, but the command is given in its folder. A case that
does not fit is a row that says so. TFLOP/s count the step's arithmetic, the forward again under
checkpointing included, as `training.plan` does. `--small` runs the same path with a tiny model on
the CPU: it shows that the script works, and measures nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from training.unet import VideoUNet

GIB = 2**30
HOME_GIB = 22.0  # what a 24 GB card has to give
HOME_FRAMES = 65
NEEDED = ("torch", "diffusers", "einops", "rich")
EXIT_STOPPED = 4
LEARNING_RATE, EMA_DECAY = 1e-5, 0.9999
PEAK_SIDE = 8192  # of the matrices whose product is taken for the device's limit

SMALL_UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
}
SD_VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
SMALL_VAE: dict[str, Any] = {
    **SD_VAE,
    "block_out_channels": [8, 8, 8, 8],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "sample_size": 64,
}


@dataclass(frozen=True)
class Bench:
    """What is measured, on what, how often."""

    device: str
    unet: dict[str, Any]
    vae: dict[str, Any]
    frames: tuple[int, ...]
    batches: tuple[int, ...]
    steps: int
    size: int  # of the latents
    pixels: int
    vae_batch: int
    peak_side: int
    trainable: Any
    attention: tuple[int, int, int]  # sequences, heads, width

    def time(self, act: Callable[[], object], repeats: int) -> float:
        """Median seconds of one call; the first is not counted."""
        import torch

        took = []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            act()
            if self.device == "cuda":
                torch.cuda.synchronize()
            took.append(time.perf_counter() - began)
        return statistics.median(took[1:])


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join([f"### {title}", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def peak_tflops(bench: Bench) -> float:
    """The device's arithmetic limit as measured here: one large bf16 product, TFLOP/s."""
    import torch

    a, b = (
        torch.randn(bench.peak_side, bench.peak_side, device=bench.device, dtype=torch.bfloat16)
        for _ in range(2)
    )
    return 2 * bench.peak_side**3 / bench.time(lambda: a @ b, 5) / 1e12


def vae_rows(bench: Bench, limit: float) -> list[list[str]]:
    """Encoder and decoder, frames/s in bf16 beside what the limit would allow."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device(bench.device):
        vae: Any = AutoencoderKL.from_config(bench.vae).eval()
        pixels = torch.randn(bench.vae_batch, 3, bench.pixels, bench.pixels, dtype=torch.bfloat16)
    torch.nn.Module.to(vae, torch.bfloat16)  # diffusers' own `to` warns
    vae.to(memory_format=torch.channels_last)
    rows = []
    with torch.inference_mode():
        latents = vae.encode(pixels).latent_dist.mean
        acts: dict[str, Callable[[], object]] = {
            "encode": lambda: vae.encode(pixels),
            "decode": lambda: vae.decode(latents),
        }
        for name, act in acts.items():
            with FlopCounterMode(display=False) as counter:
                act()
            each = counter.get_total_flops() / bench.vae_batch / 1e12
            rate, bound = bench.vae_batch / bench.time(act, bench.steps), limit / each
            rows.append(
                [
                    f"VAE {name}, {bench.pixels} px",
                    f"{rate:.1f}",
                    f"{each:.3f}",
                    f"{bound:.1f}",
                    f"{rate / bound:.0%}",
                ]
            )
    return rows


def attention_rows(bench: Bench) -> list[list[str]]:
    """Every backend that runs here against float32 `sdpa`, forward and gradients, and its time."""
    import torch

    from training.attention import temporal_attention
    from training.errors import UsageError

    dtype = torch.bfloat16 if bench.device == "cuda" else torch.float32
    rows = []
    for num_frames in bench.frames:
        shape = (bench.attention[0], bench.attention[1], num_frames, bench.attention[2])
        qkv = [
            torch.randn(shape, device=bench.device, dtype=dtype, requires_grad=True)
            for _ in range(3)
        ]
        for window, first in ((None, False), (7, False), (7, True)):
            qkv32 = [x.detach().float().requires_grad_() for x in qkv]
            reference = _Attend(qkv32, temporal_attention, window, first, "sdpa")
            exact = [x.detach() for x in reference()]
            view = "full" if window is None else f"window {window}{' + first' if first else ''}"
            what = f"{num_frames} frames, {view}"
            for backend in ("sdpa", "plain", "xformers", "flex"):
                act = _Attend(qkv, temporal_attention, window, first, backend)
                try:
                    worst = max(
                        float((a.detach().float() - b).abs().max())
                        for a, b in zip(act(), exact, strict=True)
                    )
                    milliseconds = bench.time(act, bench.steps) * 1e3
                    rows.append([f"{what}, {backend}", f"{worst:.1e}", f"{milliseconds:.2f}"])
                except (UsageError, RuntimeError, ValueError) as error:
                    reason = str(error).partition(";")[0].partition("\n")[0][:90]
                    rows.append([f"{what}, {backend}", reason, ""])
    return rows


@dataclass(frozen=True)
class _Attend:
    """One attention, forward and backward: its output and the gradients of q, k and v."""

    qkv: Sequence[Tensor]
    attention: Any
    window: int | None
    first: bool
    backend: str

    def __call__(self) -> list[Tensor]:
        import torch

        mixed = self.attention(*self.qkv, self.window, self.first, self.backend)
        return [mixed, *torch.autograd.grad(mixed.float().square().sum() / 1e3, self.qkv)]


class Training:
    """A step as `training.loop` makes it: bf16 autocast, AdamW, EMA, channels last; random
    latents.
    """

    def __init__(self, bench: Bench) -> None:
        import torch

        from training.unet import VideoUNet

        self.bench = bench
        with torch.device(bench.device):
            self.model: VideoUNet = VideoUNet.inflate(bench.unet)
        self.model.to(memory_format=torch.channels_last).train()
        self.parameters = self.model.select_trainable(bench.trainable)
        self.model.round_frozen()
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LEARNING_RATE)

    def step(self, num_frames: int, batch: int) -> None:
        """Forward, backward, clip, update, average."""
        import torch

        bench = self.bench
        with torch.device(bench.device):
            noisy = torch.randn(batch, num_frames, 9, bench.size, bench.size)
            text = torch.randn(batch, 77, bench.unet["cross_attention_dim"])
            t = torch.randint(1000, (batch,))
            fps = torch.full((batch,), 10.0)
        with torch.autocast(bench.device, torch.bfloat16):
            loss = self.model(noisy, t, text, fps).float().square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - EMA_DECAY)

    def rows(self, limit: float) -> Iterator[tuple[list[str], str]]:
        """A row a case, and what is said of home cards where the case is the one that must fit."""
        import torch

        for num_frames, batch, checkpointing in itertools.product(
            self.bench.frames, self.bench.batches, (True, False)
        ):
            kind = "keyframe" if num_frames <= 5 else "interp"
            name = f"{kind}, {num_frames} frames, batch {batch}"
            name += ", checkpointing" if checkpointing else ""
            planned = self.planned(num_frames, batch, checkpointing)
            cost = None
            with contextlib.suppress(torch.OutOfMemoryError):
                cost = self.measured(num_frames, batch, checkpointing)
            self.optimizer.zero_grad(set_to_none=True)
            estimate = f"{planned.memory / GIB:.1f}"
            if cost is None:
                yield [name, "out of memory", "", "", estimate, "", ""], ""
                continue
            seconds, reserved, allocated = cost
            rate = sum(planned.flops.values()) / seconds / 1e12
            row = [
                name,
                f"{seconds:.3f}",
                f"{reserved:.1f}",
                f"{allocated:.1f}",
                estimate,
                f"{rate:.2f}",
                f"{rate / limit:.0%}",
            ]
            is_home_case = (num_frames, batch, checkpointing) == (HOME_FRAMES, 1, True)
            yield row, at_home(reserved) if is_home_case else ""

    def measured(
        self, num_frames: int, batch: int, checkpointing: bool
    ) -> tuple[float, float, float]:
        """Seconds a step, and peaks of memory reserved and allocated in GiB (0 on a CPU)."""
        import torch

        if checkpointing:
            self.model.enable_gradient_checkpointing()
        else:
            self.model.disable_gradient_checkpointing()
        gc.collect()
        if self.bench.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        seconds = self.bench.time(lambda: self.step(num_frames, batch), self.bench.steps)
        if self.bench.device != "cuda":
            return seconds, 0.0, 0.0
        return (
            seconds,
            torch.cuda.max_memory_reserved() / GIB,
            torch.cuda.max_memory_allocated() / GIB,
        )

    def planned(self, num_frames: int, batch: int, checkpointing: bool) -> Any:
        """What `training.plan` says of the same step."""
        from training.plan import Subject, plan

        how: dict[str, Any] = {"trainable": self.bench.trainable, "checkpointing": checkpointing}
        return plan(
            Subject("bench", self.bench.unet, (num_frames,), self.bench.size, batch, **how)
        ).steps[0]


def at_home(reserved: float) -> str:
    room = HOME_GIB - reserved
    verdict = f"{room:.1f} GiB below" if room >= 0 else f"{-room:.1f} GiB ABOVE"
    return (
        f"{HOME_FRAMES} frames, batch 1, checkpointing: {reserved:.1f} GiB reserved at the peak, "
        f"{verdict} the {HOME_GIB:g} GiB aimed at."
    )


def report(bench: Bench, say: Callable[[str], object]) -> None:
    """Everything, said part by part, so that an interrupted run has told what it found."""
    import torch

    name = (
        torch.cuda.get_device_name()
        if bench.device == "cuda"
        else "CPU, tiny models: no measurement"
    )
    limit = peak_tflops(bench)
    say(f"## {name}, torch {torch.__version__}\n")
    say(
        f"bf16 product, {bench.peak_side} x {bench.peak_side}: {limit:.3g} TFLOP/s, the limit in "
        "these tables.\n"
    )
    say(
        table(
            "VAE, bf16",
            ["what", "frames/s", "TFLOP a frame", "limit, frames/s", "of the limit"],
            vae_rows(bench, limit),
        )
    )
    say(
        table(
            "Temporal attention, forward + backward",
            ["what", "largest error", "ms"],
            attention_rows(bench),
        )
    )
    training = Training(bench)
    pixels = bench.size * 8
    rows, sentences = [], []
    for row, sentence in training.rows(limit):
        print(" | ".join(row), file=sys.stderr, flush=True)
        rows.append(row)
        sentences += [sentence] if sentence else []
    head = ["step", "s", "peak reserved GiB", "allocated", "planned", "TFLOP/s", "of the limit"]
    say(table(f"Training {bench.trainable}, {pixels}x{pixels}, bf16", head, rows))
    say(
        "\n".join(sentences)
        or f"{HOME_FRAMES} frames with batch 1 and checkpointing were not measured."
    )


def new_bench(options: argparse.Namespace) -> Bench:
    from training.presets import SD15_UNET

    how = {"steps": options.steps, "trainable": options.trainable}
    if options.small:
        return Bench(
            "cpu",
            SMALL_UNET,
            SMALL_VAE,
            (3, 5),
            (1,),
            size=8,
            pixels=64,
            vae_batch=2,
            peak_side=64,
            attention=(4, 2, 16),
            **how,
        )
    lengths: dict[str, Any] = {"frames": tuple(options.frames), "batches": tuple(options.batches)}
    return Bench(
        "cuda",
        SD15_UNET,
        SD_VAE,
        **lengths,
        size=64,
        pixels=512,
        vae_batch=8,
        peak_side=PEAK_SIDE,
        attention=(4096, 8, 40),
        **how,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Measure Stable Diffusion size on a CUDA device.",
    )
    parser.add_argument(
        "--frames", type=int, nargs="+", default=[5, 17, 65], help="lengths of windows"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2], help="windows a step")
    parser.add_argument(
        "--steps", type=int, default=3, help="measured steps a case, after one that is not"
    )
    parser.add_argument(
        "--trainable",
        choices=["temporal", "temporal+conv", "all"],
        default="temporal",
        help="what is trained",
    )
    parser.add_argument(
        "--small",
        action="store_true",
        help="the same path with tiny models on the CPU: does it run?",
    )
    options = parser.parse_args(arguments)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"Missing: {', '.join(missing)}. Install with: {sys.executable} -m pip install "
            f"{' '.join(missing)}",
            file=sys.stderr,
        )
        return EXIT_STOPPED
    import torch

    if not options.small and not torch.cuda.is_available():
        print(
            "No CUDA device: torch.cuda.is_available() is false. Nothing was measured; --small "
            "runs the path on the CPU.",
            file=sys.stderr,
        )
        return EXIT_STOPPED
    report(new_bench(options), lambda text: print(text, flush=True))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
