"""The VAE and the CLIP around a video model: finds them, loads them, runs them.

The pipeline encodes with them, and the trainer decodes and embeds with the same code. A model is a
folder, or a hub id with a revision; only safetensors are read. What a model *is*, for task keys and
for the shards' index, is the digest of its config and weights, never its name or place. In a build
a CPU uses one thread, so that numbers do not depend on how many cores the machine has.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import os
from collections.abc import Iterator, Sequence
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
VAE_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors")
MAX_PSNR_DB = 99.0  # of equal pictures
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Preset:
    """Which encoders a family of models was trained with, and which of CLIP's layers it reads.

    `pad_token` fills a caption up to 77 tokens: SD 1.x was trained with CLIP's end token there, SD
    2.x with 0.
    """

    vae: str
    vae_subfolder: str
    clip: str
    text_layer: Layer
    pad_token: int


PRESETS = {
    "sd15": Preset(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "vae",
        "timm/vit_large_patch14_clip_224.openai",
        "last",
        49407,
    ),
    "sd21": Preset(
        "stabilityai/stable-diffusion-2-1",
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


def find_weights(
    name: str,
    revision: str | None,
    subfolder: str,
    files: Sequence[str],
    beside: Path,
    offline: bool = False,
) -> tuple[Path, Weights]:
    """A model's folder on this machine, and its identity.

    `name` is a folder (a relative one begins at `beside`, else at the working folder) or a hub id;
    the files lie in its `subfolder` or at its top. Raises RecipeError for a folder without the
    files, for damaged ones, and for a config that would fetch another model; Stopped if the hub
    cannot be reached or has no such model.
    """
    folder = next((path for path in (beside / name, Path(name)) if path.is_dir()), None)
    commit = None
    if folder is None:
        folder = _from_hub(name, revision, subfolder, files, offline)
        commit = folder.name
    if (folder / subfolder).is_dir():
        folder = folder / subfolder
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise RecipeError(
            f"the model '{name}' has no {' and '.join(missing)} "
            f"(longtake reads safetensors only): looked in {folder}"
        )
    for file in files:
        _check(name, folder / file)
    digests = [[file, canonical.file_digest_once(folder / file)] for file in sorted(files)]
    if folder.is_relative_to(TINY):
        label = f"longtake/tiny-{folder.name}"
    else:
        label = name if commit else folder.name
    return folder, Weights(label, commit, canonical.digest(digests))


def _check(name: str, path: Path) -> None:
    """Whether a model's file can be read at all, and leads to no other model.

    It is asked before hours of decoding. A CLIP config may name a model of transformers or of timm,
    which open_clip would then fetch from the hub, code and all.
    """
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".json":
            config = json.loads(path.read_text("utf-8"))
            towers = config.get("model_cfg", {})
            text_model = towers.get("text_cfg", {}).get("hf_model_name")
            image_model = towers.get("vision_cfg", {}).get("timm_model_name")
            if text_model or ":" in (image_model or ""):
                raise RecipeError(
                    f"the model '{name}' is made of another one, '{text_model or image_model}', "
                    f"which longtake does not fetch: {path}"
                )
        else:
            with safe_open(path, "np"):
                pass
    except (
        SafetensorError,
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise RecipeError(f"the model '{name}' is damaged: {path}: {error}") from error


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
def load_clip(folder: Path, precision: Precision, device: str) -> Any:
    """The CLIP model, kept until another is asked for. Torch is settled: see `_settle`."""
    _settle()
    return new_clip(folder, precision, device)


def new_vae(folder: Path, precision: Precision, device: str) -> Any:
    """A VAE, ready to encode and decode. Raises Stopped if it cannot be made."""
    import torch
    from diffusers import AutoencoderKL

    with _loading(folder):
        vae: Any = AutoencoderKL.from_pretrained(  # type: ignore[no-untyped-call]
            folder,
            use_safetensors=True,
            torch_dtype=getattr(torch, precision),
            local_files_only=True,
        )
    return vae.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def new_clip(folder: Path, precision: Precision, device: str) -> Any:
    """A CLIP model, both towers. Raises Stopped if it cannot be made."""
    import open_clip
    import torch
    from safetensors.torch import load_file

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # that it is created without weights, which follow
    try:
        with _loading(folder):
            clip: Any = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
            clip.load_state_dict(load_file(folder / CLIP_FILES[1]))
    finally:
        logging.disable(before)
    return clip.to(device, getattr(torch, precision)).eval().requires_grad_(False)


def vae_facts(folder: Path) -> dict[str, Any]:
    """Scaling factor, latent channels and down-scaling of a VAE, from its config."""
    config = json.loads((folder / VAE_FILES[0]).read_text())
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
