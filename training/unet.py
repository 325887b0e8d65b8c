"""A 2-D diffusion UNet inflated to video.

For every layer of diffusers the frames are folded into the batch. Temporal layers stand behind
these layers, in place: a `TemporalConv` behind resnets (or behind every
convolution, the seeds' placement), a `TemporalAttention` behind every spatial transformer. Both are
the identity at first, bit for bit, so the video forward starts as the 2-D forward of each frame.
Wrapping in place keeps every block type and attention processor of diffusers working; the price is
that the number of frames travels beside the tensors, in `Folded`.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.media import encoders
from training.attention import Backend, TemporalAttention, check_window
from training.codec import errors_of_training
from training.errors import Stopped, UsageError

Placement = Literal["resnets", "convolutions", "motion", "none"]
Trainable = Literal["temporal", "temporal+conv", "all"]
Source = str | Path | Mapping[str, Any] | UNet2DConditionModel
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# log(fps) in steps that the timestep embedding tells apart: 10 and 40 fps lie 139 steps from each
# other
FPS_SCALE = 100.0

MOTION_HEADS = 8  # of AnimateDiff's modules
MOTION_FRAMES = 512  # positions that a module can tell apart; sinusoids, so no weights
HEAD_WIDTH = 16  # of temporal attention where no spatial transformer says how many heads there are


class Folded:
    """How many frames the batch under way is folded from; shared by all temporal layers of a
    model.
    """

    def __init__(self) -> None:
        self.num_frames = 1

    @contextmanager
    def folding(self, num_frames: int) -> Iterator[None]:
        before = self.num_frames
        self.num_frames = num_frames
        try:
            yield
        finally:
            self.num_frames = before


class TemporalConv(nn.Module):
    """A convolution over frames, zeros beyond both ends; the identity at first (Dirac weight, zero
    bias).

    Frames and pixels become rows and columns of a channels-last picture: of nine ways to write it
    the fastest, forward and backward, on a CPU (1.2 to 2.7 times faster than conv1d), and cuDNN's
    own layout on a GPU.
    """

    def __init__(self, channels: int, kernel: int, like: Tensor) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels,
            channels,
            (kernel, 1),
            padding=(kernel // 2, 0),
            device=like.device,
            dtype=like.dtype,
        )
        nn.init.dirac_(self.conv.weight)
        nn.init.zeros_(cast(Tensor, self.conv.bias))

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """`(b f) c h w` to the same shape."""
        rows = rearrange(x, "(b f) c h w -> b f (h w) c", f=num_frames).contiguous()
        mixed: Tensor = self.conv(rearrange(rows, "b f p c -> b c f p"))
        frames = rearrange(mixed, "b c f (h w) -> (b f) c h w", h=x.shape[-2])
        # diffusers' convolutions pick their algorithm by the memory format, and each rounds in its
        # own way: the output has the input's strides, of which a picture of one pixel has several
        if frames.stride() == x.stride():
            return frames
        same: Tensor = torch.empty_like(x, memory_format=torch.preserve_format).copy_(frames)
        return same


class WidenedConv(nn.Module):
    """A convolution with more input channels, of zero weight at first; apart, so that the rounding
    stays the old one's.
    """

    def __init__(self, conv: nn.Conv2d, channels: int) -> None:
        super().__init__()
        self.conv = conv
        self.split = [conv.in_channels, channels - conv.in_channels]
        self.added = nn.Conv2d(
            self.split[1],
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            padding=conv.padding,  # type: ignore[arg-type]
            bias=False,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )
        nn.init.zeros_(self.added.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`n c h w`, the old channels first."""
        old, new = torch.split(x, self.split, dim=1)
        total: Tensor = self.conv(old) + self.added(new)
        return total


class MotionModule(AnimateDiffTransformer3D):
    """AnimateDiff's temporal layer (Guo et al. 2023): two self-attentions over frames, with
    sinusoidal positions, and a feed-forward layer; the identity at first (zero last layer).

    diffusers' layers under their names, so that published weights fit. Its own forward normalises
    over all frames together, where the published modules were trained on each frame alone.
    """

    def __init__(self, channels: int, num_groups: int, like: Tensor) -> None:
        if channels % MOTION_HEADS:
            raise UsageError(f"{MOTION_HEADS} heads of a motion module do not divide {channels}")
        super().__init__(
            num_attention_heads=MOTION_HEADS,
            attention_head_dim=channels // MOTION_HEADS,
            in_channels=channels,
            norm_num_groups=num_groups,
            positional_embeddings="sinusoidal",
            num_positional_embeddings=MOTION_FRAMES,
        )
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)
        self.to(like)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:  # type: ignore[override]
        """`(b f) c h w` to the same shape."""
        b, h = len(x) // num_frames, x.shape[-2]
        tokens = rearrange(self.norm(x), "(b f) c h w -> (b h w) f c", f=num_frames)
        tokens = self.proj_in(tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens)
        change = rearrange(self.proj_out(tokens), "(b h w) f c -> (b f) c h w", b=b, h=h)
        moved: Tensor = x + change
        return moved


class Both(nn.Module):
    """A temporal convolution, then a temporal attention."""

    def __init__(self, conv: nn.Module, attention: nn.Module) -> None:
        super().__init__()
        self.conv, self.attention = conv, attention

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        mixed: Tensor = self.attention(self.conv(x, num_frames), num_frames)
        return mixed


class FpsEmbedding(nn.Module):
    """Frames per second, to be added to the time embedding: a sinusoid of log(fps), then a layer
    that is zero at first.
    """

    def __init__(self, channels: int, time_channels: int, like: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, time_channels, device=like.device, dtype=like.dtype)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, fps: Tensor) -> Tensor:
        """`n` frames per second to `n c`."""
        wave = get_timestep_embedding(
            fps.float().log() * FPS_SCALE,
            self.linear.in_features,
            flip_sin_to_cos=True,
            downscale_freq_shift=0,
        )
        embedding: Tensor = self.linear(wave.to(self.linear.weight.dtype))
        return embedding


class Unit(nn.Module):
    """A layer of the 2-D model, and the temporal layer behind it if there is one: what is
    checkpointed as one.
    """

    def __init__(
        self,
        spatial: nn.Module,
        temporal: nn.Module | None,
        folded: Folded,
        may_checkpoint: bool = True,
    ) -> None:
        super().__init__()
        self.spatial = spatial
        self.temporal = temporal
        self.folded = folded
        self.may_checkpoint = may_checkpoint
        self.gradient_checkpointing = False

    def forward(self, *args: Any, **options: Any) -> Any:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(
                self._run, self.folded.num_frames, *args, use_reentrant=False, **options
            )
        return self._run(self.folded.num_frames, *args, **options)

    def _run(self, num_frames: int, *args: Any, **options: Any) -> Any:
        # `num_frames` is handed over, as a recomputation may come after another forward
        with self.folded.folding(num_frames):
            output = self.spatial(*args, **options)
            if self.temporal is None:
                return output
            if isinstance(output, tuple):  # a transformer's
                return (self.temporal(output[0], num_frames), *output[1:])
            return self.temporal(output, num_frames)


class VideoUNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A `UNet2DConditionModel` with temporal layers.

    `flat_config` is the 2-D config; `flat`, if given, is a model of that config whose layers are
    taken over. `in_channels` beyond the 2-D model's are added to `conv_in` with zero weights. Make
    one with `VideoUNet.inflate`.
    """

    _supports_gradient_checkpointing = True
    ignore_for_config = ["flat"]  # noqa: RUF012 - as ConfigMixin wants it

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        flat_config: dict[str, Any],
        in_channels: int = 9,
        placement: Placement = "resnets",
        window: int | None = None,
        first_frame: bool = False,
        fps_conditioning: bool = True,
        kernel: int = 3,
        everywhere: bool = False,
        flat: UNet2DConditionModel | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        check_window(window)
        if placement not in get_args(Placement):
            raise UsageError(
                f"No placement of temporal layers is called {placement!r}; there are "
                f"{', '.join(get_args(Placement))}."
            )
        base: Any = UNet2DConditionModel.from_config(dict(flat_config)) if flat is None else flat
        _check_kind(base)
        self.unet = base
        self.folded = Folded()
        like = base.conv_in.weight
        if fps_conditioning:
            # diffusers adds what this layer makes of `class_labels` to the time embedding
            channels = base.time_proj.num_channels
            time_channels = base.time_embedding.linear_2.out_features
            base.class_embedding = FpsEmbedding(channels, time_channels, like)
        if placement == "motion" and (window is not None or first_frame):
            raise UsageError(
                "Motion modules attend to all frames: placement = motion needs frame_window = null "
                "and first_frame = false."
            )
        if placement == "convolutions":
            self._follow_convolutions(like)
        if placement != "none":
            self._follow_blocks(like, placement, window, first_frame, kernel, everywhere)
            self._check_attentions()
        self.widened = in_channels != base.config.in_channels
        if self.widened:
            self._widen(in_channels)

    @classmethod
    def inflate(
        cls, source: Source, in_channels: int = 9, revision: str | None = None, **options: Any
    ) -> VideoUNet:
        """A video model that starts as the 2-D model `source`, applied frame by frame.

        `source`: a folder (the UNet's or one with a subfolder `unet`), a hub id, a config (random
        weights), or a model, which is copied. `options` are `VideoUNet`'s. Only safetensors are
        read. Raises UsageError if there is no UNet that can be inflated, Stopped if the hub cannot
        be reached.
        """
        if isinstance(source, Mapping):
            options["flat_config"] = _plain_config(source)
        else:
            if isinstance(source, str | Path):
                flat = load_flat(source, revision)
            else:
                flat = copy.deepcopy(source)
            options |= {"flat_config": _plain_config(flat.config), "flat": flat}
        model: VideoUNet = cls(in_channels=in_channels, **options)
        return model

    def forward(self, noisy: Tensor, t: Tensor, text: Tensor, fps: Tensor) -> Tensor:
        """One denoising step: `b f c h w` noisy latents and conditioning, `b` timesteps, `b n d`
        text, `b` fps, to `b f 4 h w`.
        """
        f = noisy.shape[1]
        rates = None if self.unet.class_embedding is None else repeat(fps, "b -> (b f)", f=f)
        with self.folded.folding(f):
            predicted: Tensor = self.unet(
                rearrange(noisy, "b f c h w -> (b f) c h w"),
                repeat(t, "b -> (b f)", f=f),
                repeat(text, "b n d -> (b f) n d", f=f),
                class_labels=rates,
                return_dict=False,
            )[0]
        return rearrange(predicted, "(b f) c h w -> b f c h w", f=f)

    def select_trainable(self, which: Trainable = "temporal") -> list[nn.Parameter]:
        """Freeze everything else, and return the parameters to train.

        `temporal`: temporal layers, the fps projection, and `conv_in` if it was widened;
        `temporal+conv`: and all resnets and 2-D convolutions outside the transformers; `all`.
        """
        if which not in get_args(Trainable):
            raise UsageError(
                f"No choice of what to train is called {which!r}; there are "
                f"{', '.join(get_args(Trainable))}."
            )
        self.requires_grad_(which == "all")
        kinds: tuple[type[nn.Module], ...]
        kinds = (TemporalConv, TemporalAttention, MotionModule, FpsEmbedding)
        if which == "temporal+conv":
            kinds = (*kinds, ResnetBlock2D, nn.Conv2d)
        for name, module in self.named_modules():
            if isinstance(module, kinds) and not name.endswith((".proj_in", ".proj_out")):
                module.requires_grad_(True)
        if self.widened:
            self.unet.conv_in.requires_grad_(True)
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def round_frozen(self) -> None:
        """Frozen convolutions and linear layers to bf16: what autocast makes of them for each step,
        so the same numbers in half the memory.
        """
        for module in self.modules():
            own = list(module.parameters(recurse=False))
            is_frozen = not any(parameter.requires_grad for parameter in own)
            if isinstance(module, nn.Conv2d | nn.Linear) and is_frozen:
                module.to(torch.bfloat16)

    def set_temporal_backend(self, backend: Backend) -> None:
        """Choose what computes the temporal attention; no property of the model, so it is not
        saved.
        """
        if backend not in get_args(Backend):
            raise UsageError(
                f"No attention backend is called {backend!r}; there are "
                f"{', '.join(get_args(Backend))}."
            )
        for module in self.modules():
            if isinstance(module, TemporalAttention):
                module.backend = backend

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = None
    ) -> None:
        """Ours alone: a unit keeps its input, where diffusers' own would keep four tensors of a
        transformer.
        """
        for module in self.modules():
            if isinstance(module, Unit):
                module.gradient_checkpointing = enable and module.may_checkpoint

    def _widen(self, in_channels: int) -> None:
        old = self.unet.config.in_channels
        if in_channels < old:
            raise UsageError(
                f"The UNet has {old} input channels, {in_channels} are wanted; channels can be "
                "added only."
            )
        first = self.unet.conv_in
        if isinstance(first, Unit):
            first.spatial = WidenedConv(cast(nn.Conv2d, first.spatial), in_channels)
        else:
            self.unet.conv_in = WidenedConv(first, in_channels)
        self.unet.register_to_config(in_channels=in_channels)

    def _check_attentions(self) -> None:
        """Raises UsageError if spatial attention stands where no temporal attention follows it."""
        followed = [
            f"{name}."
            for name, unit in self.unet.named_modules()
            if isinstance(unit, Unit)
            and isinstance(unit.temporal, TemporalAttention | MotionModule)
        ]
        for name, module in self.unet.named_modules():
            if isinstance(module, Attention) and not name.startswith(tuple(followed)):
                raise UsageError(
                    f"This UNet cannot be inflated: the attention {name} is in no "
                    f"{Transformer2DModel.__name__}, so no temporal attention follows it."
                )

    def _follow_convolutions(self, like: Tensor) -> None:
        modules = list(self.unet.named_modules())  # a list, as modules are replaced on the way
        for name, conv in modules:
            is_of_transformer = name.endswith((".proj_in", ".proj_out"))
            if isinstance(conv, nn.Conv2d) and not is_of_transformer:
                temporal = TemporalConv(conv.out_channels, 3, like)
                unit = Unit(conv, temporal, self.folded, may_checkpoint=False)
                self.unet.set_submodule(name, unit)

    def _follow_blocks(
        self,
        like: Tensor,
        placement: Placement,
        window: int | None,
        first_frame: bool,
        kernel: int,
        everywhere: bool,
    ) -> None:
        modules = list(self.unet.named_modules())  # a list, as modules are replaced on the way
        for name, block in modules:
            temporal: nn.Module | None = None
            if not isinstance(block, Transformer2DModel | ResnetBlock2D):
                continue
            parent = self.unet.get_submodule(name.rpartition(".")[0].rpartition(".")[0])
            if placement == "motion":
                is_last = isinstance(block, Transformer2DModel) or not hasattr(parent, "attentions")
                if is_last:
                    groups = self.unet.config.norm_num_groups
                    temporal = MotionModule(block.out_channels, groups, like)
            elif isinstance(block, Transformer2DModel):
                heads = block.config.num_attention_heads
                temporal = TemporalAttention(block.in_channels, heads, window, first_frame, like)
            elif placement == "resnets":
                channels = block.out_channels
                temporal = TemporalConv(channels, kernel, like)
                if everywhere and not hasattr(parent, "attentions"):
                    heads = max(1, channels // HEAD_WIDTH)
                    attention = TemporalAttention(channels, heads, window, first_frame, like)
                    temporal = Both(temporal, attention)
            self.unet.set_submodule(name, Unit(block, temporal, self.folded))


def load_flat(source: str | Path, revision: str | None = None) -> UNet2DConditionModel:
    """The 2-D UNet of a folder or a hub id, from safetensors, as float32; its subfolder `unet` if
    there is one. Half precision (`fp16`) is read where nothing else is there.
    """
    folder = Path(source)
    if not folder.is_dir() and (isinstance(source, Path) or not HUB_ID.fullmatch(source)):
        raise UsageError(
            f"{source} is no folder, and no hub id such as "
            "stable-diffusion-v1-5/stable-diffusion-v1-5."
        )
    if folder.is_dir():
        _check_folder(folder)
    try:
        with errors_of_training():
            place, _, _ = encoders.locate(
                str(source), revision, "unet", encoders.UNET_LAYOUTS, Path()
            )
    except Stopped as error:
        raise Stopped(
            f"{error}\nCheck the id and the connection; or download the model elsewhere and give "
            "its folder."
        ) from error
    _check_class(place / "config.json")
    _check_files(place)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")  # diffusers' own
            flat, report = UNet2DConditionModel.from_pretrained(
                str(place),
                use_safetensors=True,
                variant=encoders.variant_of(place),
                torch_dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
            )
            encoders.check_loading(report)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        first = str(error).strip().partition("\n")[0]
        raise UsageError(f"{place}: no UNet can be read from its safetensors: {first}") from error
    model: UNet2DConditionModel = flat
    return model


def flat_digest(source: str | Path, from_hub: bool = False) -> str | None:
    """The identity of the 2-D model that `load_flat` reads from a folder; None for one that is not
    there, unless it is a hub id and may be fetched (`from_hub`). Raises what `load_flat` raises.
    """
    if not Path(source).is_dir():
        if not from_hub:
            return None
        if not HUB_ID.fullmatch(str(source)):
            raise UsageError(f"{source} is no folder, and no hub id")
    else:
        _check_folder(Path(source))
    with errors_of_training():
        _, weights = encoders.find_weights(str(source), None, "unet", encoders.UNET_LAYOUTS, Path())
    return weights.sha256


def flat_name(name: str) -> str | None:
    """What a parameter of a video model is called in its 2-D model; None for a temporal one, that
    is one that the 2-D model has not.
    """
    parts = name.split(".")[1:]  # without `unet`
    if parts[0] == "class_embedding" or "temporal" in parts or "added" in parts:
        return None
    parts = [part for part in parts if part != "spatial"]
    if parts[:2] == ["conv_in", "conv"]:  # widened
        del parts[1]
    return ".".join(parts)


def flat_of(model: VideoUNet) -> UNet2DConditionModel:
    """The 2-D model of a video model, as it is now: without its temporal layers, and without the
    input channels that were added.
    """
    config: Any = model.config
    flat: UNet2DConditionModel = UNet2DConditionModel.from_config(dict(config.flat_config))
    names = {name: flat_name(name) for name in model.state_dict()}
    weights = {flat: model.state_dict()[name] for name, flat in names.items() if flat is not None}
    flat.load_state_dict(weights)
    return flat


def _check_files(folder: Path) -> None:
    """Raises UsageError for a config or weights that must not be loaded."""
    for path in (folder / "config.json", *sorted(folder.glob("*.safetensors"))):
        try:
            encoders.check_file(path)
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: no UNet can be read from it: {error}") from error


def _check_folder(folder: Path) -> None:
    """Raises UsageError for a folder that is no model, or that of another class."""
    for config in (folder / "unet" / "config.json", folder / "config.json"):
        if config.is_file():
            _check_class(config)
            return
    raise UsageError(f"{folder} is not a model: neither config.json nor unet/config.json is in it.")


def _check_class(config: Path) -> None:
    kind = _class_name(config)
    if kind != UNet2DConditionModel.__name__:
        raise UsageError(
            f"{config} describes a {kind}; only a {UNet2DConditionModel.__name__} can be inflated."
        )


def _class_name(config: Path) -> Any:
    try:
        return encoders.read_config(config)["_class_name"]
    except (ValueError, KeyError):
        return "thing without a class name"


def _plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in dict(config).items() if not key.startswith("_")}


BLOCKS = {  # what is known to be inflated rightly: the blocks of Stable Diffusion 1 and 2
    "DownBlock2D",
    "CrossAttnDownBlock2D",
    "UpBlock2D",
    "CrossAttnUpBlock2D",
    "UNetMidBlock2DCrossAttn",
}
# Options of a 2-D UNet that add an input or change what a layer is. Each must be off.
UNKNOWN_INPUTS = (
    "addition_embed_type",
    "attention_type",
    "class_embed_type",
    "conv_in_kernel",
    "cross_attention_norm",
    "dual_cross_attention",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "num_class_embeds",
    "time_embedding_act_fn",
    "time_embedding_dim",
    "timestep_post_act",
)
OFF = {"attention_type": "default", "conv_in_kernel": 3}
IN_CHANNELS = (4, 9)  # latents; latents, mask and a masked picture (inpainting)


def _check_kind(unet: UNet2DConditionModel) -> None:
    """Raises UsageError for a 2-D model that would be inflated wrongly: only those conditioned on
    time and text alone, with blocks that are known, can be.
    """
    config: Any = unet.config
    blocks = {*config.down_block_types, *config.up_block_types}
    if config.mid_block_type is not None:
        blocks.add(config.mid_block_type)
    problems = [f"block {block}" for block in sorted(blocks - BLOCKS)]
    for option in UNKNOWN_INPUTS:
        value = config.get(option)
        if value not in (None, False, OFF.get(option)):
            problems.append(f"{option} = {value!r}")
    if config.time_embedding_type != "positional":
        problems.append(f"time_embedding_type = {config.time_embedding_type!r}")
    if config.in_channels not in IN_CHANNELS:
        problems.append(f"in_channels = {config.in_channels}")
    if problems:
        raise UsageError(
            f"This UNet cannot be inflated: it has {', '.join(problems)}. longtake inflates UNets "
            "with the blocks of Stable Diffusion 1 and 2, conditioned on time and text alone, not "
            "on classes, sizes, depth or another picture."
        )
