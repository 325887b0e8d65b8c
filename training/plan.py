"""What a training step will cost, before anything is trained: parameters, memory and arithmetic by
part, storage.

The step is run, forward and backward, on the meta device: shapes and types are real, nothing is
allocated or computed, so a model of any size is measured in seconds on any machine. Activations are
the storages that autograd keeps; with checkpointing, the inputs of units and the largest unit's
own. bf16 is played as CUDA's autocast does it: float32 weights with copies, norms in float32;
frozen convolutions and linear layers are bf16 themselves. Not counted: CUDA's context (about 0.5
GiB), workspaces, fragmentation, the gradients of activations on their way. Bytes are of one device.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from rich.console import Group
from rich.table import Table
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from training import presets
from training.attention import TemporalAttention
from training.presets import Preset
from training.unet import (
    MotionModule,
    Placement,
    TemporalConv,
    Trainable,
    Unit,
    VideoUNet,
)

PIXELS = 8  # a latent's side, in pixels
CLIP_FRAMES = 100
GIB = 2**30
# Dense bf16 TFLOP/s of data sheets, and the share of them that well-tuned training reaches; nobody
# has measured longtake on these cards.
GPUS = {"RTX 3090": 71.0, "RTX 4090": 165.0, "A100": 312.0, "H100": 989.0}
SHARE = 0.4
FEW_DAYS = 3
Part = Literal[
    "spatial convolutions", "spatial attention", "temporal convolutions", "temporal attention"
]
KINDS: dict[Part, type[nn.Module] | tuple[type[nn.Module], ...]] = {
    "spatial attention": Transformer2DModel,
    "temporal convolutions": TemporalConv,
    "temporal attention": (TemporalAttention, MotionModule),
}
REST: Part = "spatial convolutions"  # and what little is neither

_ATEN = torch.ops.aten
for _operation, _twin in (
    (_ATEN._scaled_dot_product_flash_attention_for_cpu, _ATEN._scaled_dot_product_flash_attention),
    (
        _ATEN._scaled_dot_product_flash_attention_for_cpu_backward,
        _ATEN._scaled_dot_product_flash_attention_backward,
    ),
):  # older versions of torch do not count these
    flop_registry.setdefault(_operation, flop_registry[_twin])


@dataclass(frozen=True)
class Subject:
    """What is to be trained. `flat_config` is the 2-D config, `size` the side of the latents,
    `batch` windows on a device at a time.
    """

    name: str
    flat_config: Mapping[str, Any]
    frames: tuple[int, ...] = (5, 17, 65)
    size: int = 64
    batch: int = 1
    in_channels: int = 9
    placement: Placement = "resnets"
    window: int | None = None
    first_frame: bool = False
    fps_conditioning: bool = True
    kernel: int = 3
    everywhere: bool = False
    trainable: Trainable = "temporal"
    precision: Literal["float32", "bf16"] = "bf16"
    checkpointing: bool = True
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    text_tokens: int = 77


@dataclass(frozen=True)
class Step:
    """A training step at one length: bytes by what they hold, and FLOPs by part (multiply and add
    are two).
    """

    num_frames: int
    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    flops: dict[Part, int]

    @property
    def memory(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.average + self.activations


@dataclass(frozen=True)
class Plan:
    """What a step costs at each length. `clip_bytes`: a clip's latents and text in a shard."""

    subject: Subject
    parameters: dict[Part, int]
    trainable: dict[Part, int]
    steps: tuple[Step, ...]
    clip_bytes: int

    def plain(self) -> dict[str, Any]:
        """As JSON types; bytes are bytes, FLOPs are FLOPs."""
        steps = [{**asdict(step), "memory": step.memory} for step in self.steps]
        return {**asdict(self), "steps": steps}


def subject_of(row: Preset, pixels: int | None = None) -> Subject:
    """What a preset trains, on pictures of that side; by default of the side its 2-D model was made
    for.
    """
    config = presets.UNETS[row.unet]
    return Subject(
        name=row.name,
        flat_config=config,
        frames=Subject.frames if row.is_video else (1,),
        size=pixels // PIXELS if pixels else int(config["sample_size"]),
        batch=row.micro_batch,
        trainable=row.trainable,
        precision=row.precision,
        checkpointing=row.checkpointing,
        optimizer=row.optimizer,
        **row.inflation,
    )


def plan(subject: Subject) -> Plan:
    """Measure every length of `subject.frames`. Raises UsageError as `VideoUNet` does."""
    with torch.device("meta"), _Fused():
        model = _model(subject)
        parameters = _sizes(model, only_trainable=False)
        trainable = _sizes(model, only_trainable=True)
        steps = tuple(_step(model, subject, num_frames) for num_frames in subject.frames)
    latents = CLIP_FRAMES * int(subject.flat_config.get("out_channels", 4)) * subject.size**2
    text = subject.text_tokens * int(subject.flat_config["cross_attention_dim"])
    return Plan(subject, parameters, trainable, steps, 2 * (latents + text))


def days(result: Plan, row: Preset) -> dict[str, float]:
    """Days that a preset's steps take on one GPU of each kind, by arithmetic alone. Lengths that
    were not measured count as the nearest that was.
    """
    by_length = {step.num_frames: sum(step.flops.values()) for step in result.steps}
    total = 0
    for window in row.windows:
        distances = {abs(length - window.num_frames): length for length in by_length}
        total += by_length[distances[min(distances)]]
    each = total / len(row.windows) / result.subject.batch
    flops = each * row.batch_size * row.steps
    return {gpu: flops / (1e12 * rate * SHARE) / 86_400 for gpu, rate in GPUS.items()}


def time_table(result: Plan, row: Preset) -> Group:
    """How long the preset's steps take, and how many fit into a few days."""
    table = Table(
        "one GPU",
        "TFLOP/s, bf16",
        "days",
        f"steps in {FEW_DAYS} days",
        title=f"Time of {row.steps:,} steps of {row.batch_size} windows",
    )
    for gpu, number in days(result, row).items():
        steps = min(row.steps, int(row.steps * FEW_DAYS / number))
        table.add_row(gpu, f"{GPUS[gpu]:g}", f"{number:.1f}", f"{steps:,}")
    for column in table.columns[1:]:
        column.justify = "right"
    remark = (
        f"At {SHARE:.0%} of the data sheet's rate, by arithmetic, not measured. "
        "Fewer steps: STEPS= (--steps)."
    )
    return Group(table, remark)


def _model(subject: Subject) -> VideoUNet:
    model: VideoUNet = VideoUNet.inflate(
        subject.flat_config,
        subject.in_channels,
        placement=subject.placement,
        window=subject.window,
        first_frame=subject.first_frame,
        fps_conditioning=subject.fps_conditioning,
        kernel=subject.kernel,
        everywhere=subject.everywhere,
    )
    model.select_trainable(subject.trainable)
    model.set_temporal_backend("sdpa")  # what a GPU will run
    if subject.precision == "bf16":
        _play_autocast(model)
    return model


def _play_autocast(model: nn.Module) -> None:
    """Types as under CUDA's autocast: convolutions and linear layers in bf16, norms in float32."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(torch.bfloat16).register_forward_pre_hook(
                lambda _, args: tuple(x.to(torch.bfloat16) for x in args)
            )
        elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, args: tuple(x.float() for x in args))


def _parts(model: VideoUNet) -> dict[str, Part]:
    """The part that a module of this name belongs to with all beneath it."""
    return {
        name: part
        for name, module in model.named_modules()
        for part, kind in KINDS.items()
        if isinstance(module, kind)
    }


def _sizes(model: VideoUNet, only_trainable: bool) -> dict[Part, int]:
    sizes: dict[Part, int] = dict.fromkeys((REST, *KINDS), 0)
    parts = _parts(model)
    for name, parameter in model.named_parameters():
        pieces = name.split(".")
        owners = (parts.get(".".join(pieces[:length])) for length in range(len(pieces)))
        if parameter.requires_grad or not only_trainable:
            sizes[next(filter(None, owners), REST)] += parameter.numel()
    return sizes


def _step(model: VideoUNet, subject: Subject, num_frames: int) -> Step:
    kept, counter = _Kept(model), FlopCounterMode(display=False)
    with counter:
        loss = _loss(model, subject, num_frames, kept)
        forward = _by_part(model, counter)
        loss.backward()  # type: ignore[no-untyped-call]
        both = _by_part(model, counter)
    model.zero_grad()
    num_repeats = 1 if subject.checkpointing else 0  # forward passes made again
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Step(
        num_frames,
        weights=_weight_bytes(model),
        gradients=4 * learned,
        optimizer=(2 if subject.optimizer == "adamw8bit" else 8) * learned,
        average=4 * learned,
        activations=kept.checkpointed() if subject.checkpointing else kept.everything(),
        flops={part: both[part] + num_repeats * forward[part] for part in both},
    )


def _weight_bytes(model: VideoUNet) -> int:
    """Trained weights are float32, whatever they are played as; frozen ones are as they are."""
    weights = model.parameters()
    return sum(w.numel() * (4 if w.requires_grad else w.element_size()) for w in weights)


def _loss(model: VideoUNet, subject: Subject, num_frames: int, kept: _Kept) -> Tensor:
    b, size = subject.batch, subject.size
    noisy = torch.empty(b, num_frames, subject.in_channels, size, size)
    text = torch.empty(b, subject.text_tokens, int(subject.flat_config["cross_attention_dim"]))
    with kept.watch():
        t, fps = torch.zeros(b, dtype=torch.long), torch.ones(b)
        predicted: Tensor = model(noisy, t, text, fps)
    return predicted.float().square().mean()


def _by_part(model: VideoUNet, counter: FlopCounterMode) -> dict[Part, int]:
    by_module = counter.get_flop_counts()
    counts = {name: sum(by_operation.values()) for name, by_operation in by_module.items()}
    flops: dict[Part, int] = dict.fromkeys((REST, *KINDS), 0)
    for name, part in _parts(model).items():
        flops[part] += counts.get(f"{type(model).__name__}.{name}", 0)
    flops[REST] = counts.get("Global", 0) - sum(flops.values())
    return flops


class _Fused(TorchFunctionMode):
    """Fused attention, which keeps no matrix of scores: on the meta device torch would choose the
    plain formula.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        options = kwargs or {}
        named = [options[name] for name in ("query", "key", "value") if name in options]
        q, k, v = [*args, *named]
        mask = options.get("attn_mask")
        bias = None if mask is None else mask.to(q.dtype)
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return attend(q, k, v, attn_mask=bias)[0]


class _Kept:
    """The storages that autograd keeps for the backward, and within which unit."""

    def __init__(self, model: VideoUNet) -> None:
        self.model = model
        self.weights = {
            _identity(p)
            for p in model.parameters()
            if p.dtype == torch.float32 or not p.requires_grad
        }  # autocast keeps copies of the others
        self.within: dict[nn.Module | None, dict[int, Tensor]] = defaultdict(dict)
        self.inputs: dict[int, Tensor] = {}
        self.unit: nn.Module | None = None

    @contextmanager
    def watch(self) -> Iterator[None]:
        handles = []
        for module in self.model.modules():
            if isinstance(module, Unit) and module.may_checkpoint:
                handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
                handles.append(module.register_forward_hook(self._leave))
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._note, lambda x: x):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def everything(self) -> int:
        return _bytes(*self.within.values())

    def checkpointed(self) -> int:
        """Units' inputs and what is kept outside of units, then the largest unit while its backward
        runs.
        """
        lasting = {**self.inputs, **self.within[None]}
        passing = [0]  # bytes of each unit that are freed when its backward is done
        for unit, tensors in self.within.items():
            if unit is not None:
                passing.append(_bytes({key: x for key, x in tensors.items() if key not in lasting}))
        return _bytes(lasting) + max(passing)

    def _enter(self, unit: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.unit = unit
        self.inputs |= {
            _identity(x): x for x in (*args, *options.values()) if isinstance(x, Tensor)
        }

    def _leave(self, *_: object) -> None:
        self.unit = None

    def _note(self, x: Tensor) -> Tensor:
        if _identity(x) not in self.weights:
            self.within[self.unit][_identity(x)] = x
        return x


def _identity(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


def _frames(number: int) -> str:
    return "1 frame" if number == 1 else f"{number} frames"


def _bytes(*stores: Mapping[int, Tensor]) -> int:
    """Bytes of all storages, each counted once."""
    storages: dict[int, Tensor] = {}
    for store in stores:
        storages.update(store)
    return sum(x.untyped_storage().nbytes() for x in storages.values())


def render(plan: Plan) -> Group:
    """Three tables for a terminal: parameters, memory, arithmetic."""
    subject = plan.subject
    side = f"{subject.size * PIXELS} x {subject.size * PIXELS} pixels"
    checkpointing = "checkpointing" if subject.checkpointing else "no checkpointing"
    how = f"{subject.precision}, {checkpointing}, {subject.optimizer}"
    lengths = [_frames(step.num_frames) for step in plan.steps]
    parameters = Table(
        "part",
        "parameters",
        "trained",
        title=f"{subject.name}: parameters, training {subject.trainable}",
    )
    for part, size in plan.parameters.items():
        parameters.add_row(part, f"{size:,}", f"{plan.trainable[part]:,}")
    parameters.add_section()
    total, trained = sum(plan.parameters.values()), sum(plan.trainable.values())
    parameters.add_row("total", f"{total:,}", f"{trained:,}")
    memory = Table(
        "GiB, estimated", *lengths, title=f"Memory of a step: {subject.batch} x {side}, {how}"
    )
    for name in ("weights", "gradients", "optimizer", "average", "activations"):
        label = "EMA" if name == "average" else name
        memory.add_row(label, *(f"{getattr(step, name) / GIB:.2f}" for step in plan.steps))
    memory.add_section()
    memory.add_row("total", *(f"{step.memory / GIB:.2f}" for step in plan.steps))
    passes = "forward, backward" + (", forward again" if subject.checkpointing else "")
    flops = Table("TFLOP", *lengths, title=f"Arithmetic of a step: {passes}")
    for part in plan.parameters:
        flops.add_row(part, *(f"{step.flops[part] / 1e12:.3g}" for step in plan.steps))
    flops.add_section()
    flops.add_row("total", *(f"{sum(step.flops.values()) / 1e12:.3g}" for step in plan.steps))
    for table in (parameters, memory, flops):
        for column in table.columns[1:]:
            column.justify = "right"
    storage = (
        f"A clip of {CLIP_FRAMES} frames takes {plan.clip_bytes / 1e6:.2f} MB in a shard: "
        "latents and text."
    )
    return Group(parameters, memory, flops, storage)
