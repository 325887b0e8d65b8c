"""The only module that touches models: a diffusers VAE and an open_clip CLIP, found, loaded, run.

A model is a folder or a hub id with a revision; only safetensors are read. What a model *is*, for
task keys and for the shards' index, is the digest of its config and weights, never its name or
place. On a CPU everything runs on one thread, so numbers do not depend on the machine's number of
cores.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.core import canonical
from pipeline.core.errors import BadData, RecipeError, Stopped

Precision = Literal["float32", "bfloat16", "float16"]
Layer = Literal["last", "penultimate"]
TINY = Path(__file__).parent / "tiny"
VAE_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors")


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


def find(
    name: str,
    revision: str | None,
    subfolder: str,
    files: Sequence[str],
    beside: Path,
    offline: bool = False,
) -> tuple[Path, Weights]:
    """A model's folder and identity: a folder (a relative one begins at the recipe's), else a hub
    id.

    Raises RecipeError for a folder without the files, or with damaged ones, Stopped if the hub
    cannot be reached or has no such model.
    """
    folder = next((path for path in (beside / name, Path(name)) if path.is_dir()), None)
    found_revision = None
    if folder is None:
        folder = _from_hub(name, revision, subfolder, files, offline)
        found_revision = folder.name
    folder = folder / subfolder if (folder / subfolder).is_dir() else folder
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise RecipeError(
            f"the model '{name}' has no {missing[0]} (longtake reads safetensors only): looked in {folder}"
        )
    for file in files:
        _check(name, folder / file)
    digest = canonical.digest(
        [[file, canonical.file_digest_once(folder / file)] for file in sorted(files)]
    )
    shown = (
        "longtake/tiny-" + folder.name
        if folder.is_relative_to(TINY)
        else (name if found_revision else folder.name)
    )
    return folder, Weights(shown, found_revision, digest)


def _check(name: str, path: Path) -> None:
    """Before hours of decoding: whether a model's file can be read at all, and leads to no other
    model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".json":
            config = json.loads(path.read_text("utf-8"))
            towers = config.get("model_cfg", {})
            text, pictures = (
                towers.get("text_cfg", {}).get("hf_model_name"),
                towers.get("vision_cfg", {}).get("timm_model_name"),
            )
            if text or ":" in (pictures or ""):
                raise RecipeError(
                    f"the model '{name}' is made of another one, '{text or pictures}', which longtake does not fetch: {path}"
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


@contextlib.contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """What torch, diffusers and open_clip say of a model they cannot make, and of too little
    memory, as one line.
    """
    try:
        yield
    except Exception as error:
        said = next(iter(str(error).strip().splitlines()), "")
        raise Stopped(
            f"the model in {folder} cannot be loaded: {type(error).__name__}: {said}"
        ) from error


def _from_hub(
    name: str, revision: str | None, subfolder: str, files: Sequence[str], offline: bool
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = [f"{subfolder}/{file}" if subfolder else file for file in files]
    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=wanted, local_files_only=offline
            )
        )
    except HFValidationError as error:
        raise RecipeError(f"'{name}' is neither a folder nor a hub id (OWNER/NAME)") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        said = str(error).strip().splitlines()[0]
        raise Stopped(
            f"cannot get the model '{name}' from the hub: {said} - go online, or name a folder that holds {', '.join(wanted)}"
        ) from error


def choose_device(wanted: str) -> str:
    """A torch device: "auto" is the GPU if there is one. Several workers share the GPUs out among
    them.
    """
    import torch

    device = wanted
    if wanted == "auto":
        device = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise Stopped("this machine has no CUDA device: use --device cpu or auto")
    if ":" in device and int(device.partition(":")[2]) >= torch.cuda.device_count():
        raise Stopped(
            f"this machine has no {device}: it has {torch.cuda.device_count()} CUDA devices"
        )
    if device == "mps" and not torch.backends.mps.is_available():
        raise Stopped("this machine has no MPS device: use --device cpu or auto")
    if device == "cuda" and "LONGTAKE_WORKER" in os.environ:
        device = f"cuda:{int(os.environ['LONGTAKE_WORKER']) % torch.cuda.device_count()}"
    return device


def num_gpus(wanted: str) -> int:
    """How many of this machine's GPUs the device means: all for "cuda", one for "cuda:1", none for
    "cpu".
    """
    import torch

    device = choose_device(wanted)
    return torch.cuda.device_count() if device == "cuda" else int(device.startswith("cuda"))


def device_name(device: str) -> str:
    """What is written down: the GPU's name, "mps", or "cpu" with the kind of vector instructions,
    on which last bits depend.
    """
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"cpu {torch.backends.cpu.get_cpu_capability()}" if device == "cpu" else device


def _settle(device: str) -> Any:
    """Make torch repeat itself: one CPU thread, and no algorithm chosen by a race."""
    import torch

    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device(device)


@lru_cache(maxsize=1)
def load_vae(folder: Path, precision: Precision, device: str) -> Any:
    """The VAE, ready to encode."""
    import torch
    from diffusers import AutoencoderKL

    place = _settle(device)
    with _loading(folder):
        vae: Any = AutoencoderKL.from_pretrained(  # type: ignore[no-untyped-call]
            folder,
            use_safetensors=True,
            torch_dtype=getattr(torch, precision),
            local_files_only=True,
        )
    return vae.to(place, memory_format=torch.channels_last).eval().requires_grad_(False)


@lru_cache(maxsize=1)
def load_clip(folder: Path, precision: Precision, device: str) -> Any:
    """The CLIP model, both towers."""
    import open_clip
    import torch
    from safetensors.torch import load_file

    place = _settle(device)
    logging.disable(logging.WARNING)  # that it is created without weights, which follow
    try:
        with _loading(folder):
            clip: Any = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
            clip.load_state_dict(load_file(folder / CLIP_FILES[1]))
    finally:
        logging.disable(logging.NOTSET)
    return clip.to(place, getattr(torch, precision)).eval().requires_grad_(False)


def vae_facts(folder: Path) -> dict[str, Any]:
    """Scaling factor, latent channels and down-scaling of a VAE, from its config."""
    config = json.loads((folder / VAE_FILES[0]).read_text())
    return {
        "scaling_factor": config.get("scaling_factor", 0.18215),
        "latent_channels": config.get(
            "latent_channels", 4
        ),  # as diffusers takes it where it is not said
        "factor": 2 ** (len(config.get("block_out_channels", (64,))) - 1),
    }


def _pixels(frames: NDArray[np.uint8], like: Any) -> Any:
    """`f h w c` uint8 RGB to `f c h w` in [-1, 1], where and as precise as the model."""
    import torch

    made = torch.from_numpy(np.ascontiguousarray(frames)).to(like.device).permute(0, 3, 1, 2)
    return made.to(like.dtype).div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def latents(
    vae: Any, frames: NDArray[np.uint8], chunk: int, with_std: bool
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
            filled = np.concatenate([part, np.repeat(part[-1:], chunk - len(part), axis=0)])
            posterior = vae.encode(_pixels(filled, vae)).latent_dist
            means.append(posterior.mean[: len(part)].float().cpu().numpy())
            stds.append(posterior.std[: len(part)].float().cpu().numpy())
    mean = _half(np.concatenate(means), "latents")
    return mean, _half(np.concatenate(stds), "latent deviations") if with_std else None


def decode(vae: Any, stored: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Unscaled latents `f c h w` back to frames `f h w c` uint8."""
    import torch

    with torch.inference_mode():
        pictures = (
            vae.decode(torch.from_numpy(stored).to(vae.device, vae.dtype)).sample.float().cpu()
        )
    shown: NDArray[np.uint8] = (
        pictures.add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    )
    return shown


def psnr_db(shown: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures; 99 for equal ones."""
    error = float(np.mean((shown.astype(np.float32) - wanted.astype(np.float32)) ** 2))
    return round(min(99.0, 10 * float(np.log10(255**2 / error))), 2) if error else 99.0


def images(clip: Any, frames: NDArray[np.uint8]) -> NDArray[np.float16]:
    """CLIP's projected embeddings of `k h w c` uint8 frames: `k d` float16, not normalised."""
    import torch
    from torch.nn import functional as F  # noqa: N812  torch's own name for it

    side = (
        clip.visual.image_size[0]
        if isinstance(clip.visual.image_size, tuple)
        else clip.visual.image_size
    )
    weight = next(clip.parameters())
    with torch.inference_mode():
        pixels = _pixels(frames, weight).float().add(1).div(2)
        small = F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (
            torch.tensor(values, device=weight.device).view(3, 1, 1)
            for values in (clip.visual.image_mean, clip.visual.image_std)
        )
        embedded = clip.encode_image(((small - mean) / std).to(weight.dtype), normalize=False)
    return _half(embedded.float().cpu().numpy(), "image embeddings")


@lru_cache(maxsize=1)
def tokenizer(length: int) -> Any:
    """CLIP's byte-pair tokenizer; it takes longer to make than a caption takes to embed."""
    import open_clip

    return open_clip.SimpleTokenizer(context_length=length)


def text(clip: Any, caption: str, layer: Layer, pad_token: int) -> NDArray[np.float16]:
    """Hidden states of a caption: `77 d` float16, after the final norm, from the last or last but
    one block.
    """
    import torch

    tower = getattr(clip, "text", clip)
    length = tower.positional_embedding.shape[0]
    tokens = tokenizer(length)(caption)
    end = int(tokens[0].argmax())  # the end token has the highest number
    tokens[0, end + 1 :] = pad_token
    with torch.inference_mode():
        x = (
            tower.token_embedding(tokens.to(tower.positional_embedding.device))
            + tower.positional_embedding
        )
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
