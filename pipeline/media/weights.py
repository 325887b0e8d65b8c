"""A model's files: finds them in a folder or on the hub, and says what model they are.

What a model *is*, for task keys and for the shards' index, is the digest of its weights and of what
its config means, never its name or place. Only safetensors are read, and everything that can be
refused is refused here, from config and headers alone, before anything is decoded: torch is not
imported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core import canonical
from pipeline.core.errors import RecipeError, Stopped

TINY = Path(__file__).parent / "tiny"
Layout = tuple[str, str]  # names of a model's config and of its weights
# The names that a model's files may have. The first layout that is there counts: half precision
# (fp16) only where a repository has nothing else.
UNET_LAYOUTS: tuple[Layout, ...] = (
    ("config.json", "diffusion_pytorch_model.safetensors"),
    ("config.json", "diffusion_pytorch_model.fp16.safetensors"),
)
VAE_LAYOUTS = UNET_LAYOUTS
UNET = "unet"  # the folder of a 2-D model in its repository
OPEN_CLIP: Layout = ("open_clip_config.json", "open_clip_model.safetensors")
TEXT_ENCODER: tuple[Layout, ...] = (
    ("config.json", "model.safetensors"),
    ("config.json", "model.fp16.safetensors"),
)
CLIP_LAYOUTS = (OPEN_CLIP, *TEXT_ENCODER)
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
MAX_CONFIG_BYTES = 1_000_000
VOCABULARY = 49408  # tokens of CLIP's tokenizer, which is the one there is here
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


@dataclass(frozen=True)
class Weights:
    """One model: its name and revision for people, its digest for everything else."""

    name: str
    revision: str | None
    sha256: str


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
    if subfolder != UNET:  # whose config training checks
        check_config(name, folder / files[0], layouts)
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


# What longtake does, by the fields in which a config could ask for something else; None is silence.
VAE_FIELDS: dict[str, tuple[object, ...]] = {
    "_class_name": (None, "AutoencoderKL"),
    "latents_mean": (None,),  # statistics per channel
    "latents_std": (None,),
}
TEXT_FIELDS: dict[str, tuple[object, ...]] = {
    "vocab_size": (None, VOCABULARY),
    "hf_tokenizer_name": (None, ""),
    "tokenizer_mode": (None, "clip"),
    "tokenizer_kwargs": (None, {}),
    "no_causal_mask": (None, False),
    "embed_cls": (None, False),
    "final_ln_after_pool": (None, False),
}
PICTURE_FIELDS: dict[str, tuple[object, ...]] = {
    "mode": (None, "RGB"),
    "interpolation": (None, "bicubic"),
}
TEXT_ENCODER_FIELDS: dict[str, tuple[object, ...]] = {
    "vocab_size": (None, VOCABULARY),
    "layer_norm_eps": (None, 1e-5),
    "use_attention_mask": (None, False),
}


def check_config(name: str, config: Path, layouts: Sequence[Layout]) -> None:
    """Raises RecipeError for a VAE's or CLIP's config that asks for what longtake does not do: it
    would give other numbers than its makers', without a word.
    """
    facts = read_config(config)
    if layouts == VAE_LAYOUTS:
        _check_fields(name, config, facts, VAE_FIELDS)
    elif config.name == OPEN_CLIP[0]:
        model = facts.get("model_cfg", {})
        _check_fields(name, config, model.get("text_cfg", {}), TEXT_FIELDS)
        _check_fields(name, config, facts.get("preprocess_cfg", {}), PICTURE_FIELDS)
    elif layouts == CLIP_LAYOUTS:
        _check_text_encoder(name, config)
        _check_fields(name, config, facts, TEXT_ENCODER_FIELDS)


def _check_fields(
    name: str, config: Path, facts: dict[str, Any], fields: dict[str, tuple[object, ...]]
) -> None:
    for field, values in fields.items():
        value = facts.get(field)
        if value not in values:
            wanted = " or ".join("nothing" if known is None else repr(known) for known in values)
            raise RecipeError(
                f"the model '{name}' asks for what longtake does not do: {field} is "
                f"{str(value)!a:.60} in {config}, wanted is {wanted}; take another model"
            )


def cannot_be_half(folder: Path) -> bool:
    """Whether a VAE's config says that float16 is too narrow for it."""
    layout = layout_of(folder, VAE_LAYOUTS)
    return layout is not None and read_config(folder / layout[0]).get("force_upcast") is True


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


def stored_shapes(path: Path) -> dict[str, list[int]]:
    """The shapes of all weights in a safetensors file, by name; only its header is read."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


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


def hub_file(name: str, file: str) -> Path | None:
    """A small file of a model's repository on the hub; None if it has none of that name. Raises
    RecipeError for a name that is no hub id, Stopped if the hub cannot be reached.
    """
    path = _from_hub(name, None, "", (file,), offline=False) / file
    return path if path.is_file() else None


def variant_of(folder: Path) -> str | None:
    """Which file of a diffusers model's folder is read: "fp16" if that is all there is."""
    plain, half = VAE_LAYOUTS
    return "fp16" if layout_of(folder, [plain]) is None and layout_of(folder, [half]) else None


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
