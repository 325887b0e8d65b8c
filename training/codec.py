"""The frozen models around ours: a VAE between latents and pictures, a CLIP from words to
embeddings.

They must be the ones the shards were made with: what decides is the digest of config and weights in
the index, never a name. `longtake/tiny-*` are folders of this repository; anything else is a hub
id, or a folder the user gives. Pictures are decoded one at a time, so that equal latents are equal
pixels whatever stands beside them; on a CPU that costs nothing (one frame at a time takes 190 to
210 ms, sixteen 195 to 520).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from training.errors import ShardError, Stopped, UsageError

VAE_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors")
OURS = (
    Path(__file__).parents[1] / "pipeline" / "media" / "tiny"
)  # a folder of weights: nothing of it is imported
SHIPPED = {"longtake/tiny-vae": OURS / "vae", "longtake/tiny-clip": OURS / "clip"}
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Place:
    """Where a model is on this machine, and what it is anywhere."""

    folder: Path
    sha256: str


def identity(folder: Path, files: Sequence[str]) -> str:
    """sha256 over the canonical JSON of `[[file, sha256 of file], ...]`, sorted: docs/format.md's
    `encoders.*.sha256`.
    """
    pairs = []
    for file in sorted(files):
        with (folder / file).open("rb") as opened:
            pairs.append([file, hashlib.file_digest(opened, "sha256").hexdigest()])
    return hashlib.sha256(
        json.dumps(pairs, separators=(",", ":"), ensure_ascii=False).encode()
    ).hexdigest()


def find(kind: str, said: Mapping[str, Any], given: Path | None = None) -> Place:
    """The model ("vae" or "clip") that `said`, the index's `encoders.KIND`, tells of: `given`, or
    shipped, or from the hub.

    Raises UsageError if `given` is another model or none, or if only a folder's name is known;
    ShardError if what the name leads to is not what made the shards; Stopped if the hub cannot be
    reached.
    """
    files = VAE_FILES if kind == "vae" else CLIP_FILES
    name, option = str(said.get("name")), f"--{kind}"
    if given is not None:
        folder, what = _holding(given, kind, files), str(given)
        if folder is None:
            raise UsageError(
                f"{option} {given}: no {files[0]} and {files[1]} there; only safetensors are read"
            )
    elif name in SHIPPED:
        folder, what = SHIPPED[name], name
        if _holding(folder, kind, files) is None:
            raise Stopped(
                f"{name} is missing from this installation: {folder}; give its folder with {option}"
            )
    else:
        folder, what = _from_hub(name, said.get("revision"), kind, files), name
    if (found := identity(folder, files)) != said["sha256"]:
        wrong = f"{what} is another {kind.upper()} than the one that made the shards: sha256 {found}, {said['sha256']} in their index"
        if given is not None:
            raise UsageError(f"{wrong}; give the folder of {name} with {option}")
        raise ShardError(
            f"{wrong}; give the right one's folder with {option}, or build the shards and train again"
        )
    return Place(folder, found)


def _holding(folder: Path, kind: str, files: Sequence[str]) -> Path | None:
    """The folder, or the one in it that is named like the kind, if the files are there."""
    return next(
        (
            path
            for path in (folder, folder / kind)
            if all((path / file).is_file() for file in files)
        ),
        None,
    )


def _from_hub(name: str, revision: str | None, kind: str, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    advice = f"give a folder that holds {' and '.join(files)} with --{kind}"
    if name.count("/") != 1:
        raise UsageError(
            f"the shards were made with the {kind.upper()} '{name}', a folder of the machine that built them; {advice}"
        )
    wanted = [pattern for file in files for pattern in (file, f"{kind}/{file}")]
    try:
        snapshot = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except HFValidationError as error:
        raise UsageError(
            f"the shards were made with the {kind.upper()} '{name}', which is no hub id; {advice}"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        said = str(error).strip().partition("\n")[0]
        raise Stopped(
            f"cannot get the {kind.upper()} '{name}' from the hub: {said}; go online, or {advice}"
        ) from error
    folder = _holding(snapshot, kind, files)
    if folder is None:
        raise Stopped(f"{name} on the hub has no {files[1]}; {advice}")
    return folder


class Codec:
    """VAE and CLIP as the shards' index describes them; each is loaded when first used. Latents go
    in and come out scaled.

    `encoders` is the index's; `scaling_factor` its latents'. `given` are the user's own folders.
    Arithmetic is as precise as the index says. Raises what `find` raises, when a model is first
    used, or at once by `check`.
    """

    def __init__(
        self,
        encoders: Mapping[str, Any],
        scaling_factor: float,
        vae: Path | None = None,
        clip: Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.encoders, self.scaling_factor, self.device = (
            encoders,
            scaling_factor,
            torch.device(device),
        )
        self._given = {"vae": vae, "clip": clip}
        self._dtype: torch.dtype = getattr(torch, str(encoders.get("precision", "float32")))
        self._places: dict[str, Place] = {}
        self._embedded: dict[str, Tensor] = {}

    @classmethod
    def of_run(
        cls,
        dataset: Mapping[str, Any],
        vae: Path | None = None,
        clip: Path | None = None,
        device: torch.device | str = "cpu",
    ) -> Codec:
        """For the dataset a run tells of in run.json: its `identity`, and `encoders` for the
        names.
        """
        identity = dataset["identity"]
        encoders = dataset.get("encoders") or {
            "vae": {"name": "longtake/tiny-vae", "sha256": identity["encoders.vae.sha256"]},
            "clip": {"name": "longtake/tiny-clip"}
            | {
                field: identity[f"encoders.clip.{field}"]
                for field in ("sha256", "text_layer", "pad_token")
            },
        }
        return cls(encoders, identity["latents.scaling_factor"], vae, clip, device)

    def check(self) -> None:
        """Find both models and compare their digests with the index, before any work."""
        for kind in ("vae", "clip"):
            self._place(kind)

    def _place(self, kind: str) -> Place:
        if kind not in self._places:
            self._places[kind] = find(kind, self.encoders[kind], self._given[kind])
        return self._places[kind]

    @cached_property
    def _vae(self) -> Any:
        from diffusers import AutoencoderKL

        folder = self._place("vae").folder
        vae: Any = AutoencoderKL.from_pretrained(  # type: ignore[no-untyped-call]
            folder, use_safetensors=True, torch_dtype=self._dtype, local_files_only=True
        )
        return vae.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)

    @cached_property
    def _text_tower(self) -> Any:
        import open_clip
        from safetensors.torch import load_file

        folder = self._place("clip").folder
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)  # that it is made without weights, which follow
        try:
            clip: Any = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        finally:
            logging.disable(before)
        clip.load_state_dict(load_file(folder / CLIP_FILES[1]))
        tower = getattr(clip, "text", clip)
        if tower is clip:
            clip.visual = None
        return tower.to(self.device, self._dtype).eval().requires_grad_(False)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Pixels:
        """Scaled latents `f c h w` to pictures `f h w c`, uint8 RGB."""
        pictures = [
            self._vae.decode(self._as_input(one[None] / self.scaling_factor)).sample.float().cpu()
            for one in latents
        ]
        levels = torch.cat(pictures).add(1).mul(127.5).round().clamp(0, 255).byte()
        return np.ascontiguousarray(rearrange(levels, "f c h w -> f h w c").numpy())

    @torch.no_grad()
    def encode(self, frames: Pixels) -> Tensor:
        """Pictures `f h w c`, uint8 RGB, to scaled latents `f c h w` float32 (the posterior's mean)
        as the shards have them.
        """
        chunk = int(self.encoders.get("chunk_frames", 8))
        means = []
        for start in range(0, len(frames), chunk):
            part = frames[start : start + chunk]
            filled = np.concatenate(
                [part, np.repeat(part[-1:], chunk - len(part), axis=0)]
            )  # as the shards were: numbers depend on it
            pixels = (
                rearrange(torch.from_numpy(filled), "f h w c -> f c h w")
                .to(self.device)
                .to(self._dtype)
            )
            means.append(
                self._vae.encode(self._as_input(pixels.div(127.5).sub(1)))
                .latent_dist.mean[: len(part)]
                .cpu()
            )
        return torch.cat(means).half().float() * self.scaling_factor

    def _as_input(self, picture: Tensor) -> Tensor:
        return picture.to(self.device, self._dtype).contiguous(memory_format=torch.channels_last)

    def embed(self, prompt: str) -> Tensor:
        """CLIP's hidden states of a prompt, `n d` float32, rounded to float16 as the shards' are;
        "" is the null text.
        """
        if prompt not in self._embedded:
            self._embedded[prompt] = self._embed(prompt)
        return self._embedded[prompt]

    @torch.no_grad()
    def _embed(self, prompt: str) -> Tensor:
        import open_clip

        tower, said = self._text_tower, self.encoders["clip"]
        tokens = open_clip.SimpleTokenizer(context_length=tower.positional_embedding.shape[0])(
            prompt
        )
        tokens[0, int(tokens[0].argmax()) + 1 :] = said[
            "pad_token"
        ]  # the end token has the highest number
        x = tower.token_embedding(tokens.to(self.device)) + tower.positional_embedding
        blocks = tower.transformer.resblocks
        for block in blocks if said["text_layer"] == "last" else blocks[:-1]:
            x = block(x, attn_mask=tower.attn_mask.to(x.dtype))
        hidden: Tensor = tower.ln_final(x)[0]
        return hidden.half().float().cpu()
