"""Exported models and adapters: what is in them, and that they give the model back."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_motion_model import (
    AnimateDiffTransformer3D,
    MotionAdapter,
    UNetMotionModel,
)
from einops import rearrange, repeat
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.making.models import NARROW_UNET
from tests.making.runs import run_of, save_flat_model, temporal_run, train
from training import adapters, checkpoint, loop
from training.errors import UsageError
from training.export import export
from training.presets import SD15_UNET
from training.run import Run, check_run, load_run
from training.shards import Index
from training.unet import VideoUNet, flat_digest, flat_name

DIFFUSERS_TO_FIRST = {".attn1.": ".attention_blocks.0.", ".attn2.": ".attention_blocks.1."}
DIFFUSERS_TO_FIRST |= {".norm1.": ".norms.0.", ".norm2.": ".norms.1.", ".norm3.": ".ff_norm."}


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


def begin(run: Run, index: Index) -> tuple[loop.Trainer, str]:
    """A run that has begun, and what it says of it."""
    console: Any = Console(file=io.StringIO(), width=500)
    trainer = loop.Trainer(run, index, "cpu", console=console, pictures=False)
    trainer.train()
    return trainer, console.file.getvalue()


def test_temporal_layers_are_one_file_that_is_sampled_like_the_run(
    tmp_path: Path, index: Index
) -> None:
    unet = save_flat_model(tmp_path / "flat")
    run = temporal_run(tmp_path / "run", index, unet, steps=2)
    train(run, index)
    paths = export(run, tmp_path / "out")
    assert {str(path.relative_to(tmp_path / "out")) for path in paths} == {
        "adapter.safetensors",
        "model/config.json",
        "model/diffusion_pytorch_model.safetensors",
        "training.json",
    }
    model = checkpoint.load_model(run)
    stored = load_file(tmp_path / "out" / "adapter.safetensors")
    assert stored.keys() == adapters.temporal(model).keys()
    assert {name for name in stored if flat_name(name)} == {
        "unet.conv_in.conv.weight",
        "unet.conv_in.conv.bias",
    }
    facts: Any = adapters.facts(tmp_path / "out" / "adapter.safetensors")
    assert facts["base"] == {"sha256": flat_digest(unet)}
    assert facts["preset"] == json.loads(json.dumps(run.preset.plain()))
    assert facts["step"] == 2

    whole: Any = VideoUNet.from_pretrained(tmp_path / "out" / "model")
    assert same(whole, model)
    exported = load_run(tmp_path / "out" / "adapter.safetensors")
    assert (exported.preset, exported.dataset) == (run.preset, run.dataset)
    assert same(checkpoint.load_model(exported), model)
    shutil.move(unet, tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="give the folder of the one"):
        checkpoint.load_model(exported)
    found = load_run(tmp_path / "out", [str(tmp_path / "elsewhere")])
    assert same(checkpoint.load_model(found), model)


def test_where_the_2d_model_was_trained_it_comes_back_too(
    tmp_path: Path, index: Index, folder: Path
) -> None:
    run = run_of(tmp_path / "run", index, folder, steps=2)
    train(run, index)
    export(run, tmp_path / "out")
    model = checkpoint.load_model(run)
    flat: Any = UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet")
    names = {flat_name(name): name for name, _ in model.named_parameters()}
    own = dict(model.named_parameters())
    assert all(torch.equal(w, own[names[name]]) for name, w in flat.named_parameters())
    assert same(checkpoint.load_model(load_run(tmp_path / "out")), model)


def test_frozen_weights_want_the_encoders_they_were_trained_with(
    tmp_path: Path, index: Index, folder: Path
) -> None:
    run = run_of(tmp_path / "run", index, folder, steps=1)
    train(run, index)
    export(run, tmp_path / "out")
    unet = str(tmp_path / "out" / "unet")
    _, said = begin(temporal_run(tmp_path / "same", index, unet, steps=1), index)
    assert "other encoders" not in said
    vae = {**index.encoders["vae"], "sha256": "c" * 64}
    other = replace(index, encoders={**index.encoders, "vae": vae}, scaling_factor=0.25)
    with pytest.raises(
        UsageError, match=r"vae.sha256: c{64} in the shards, a{64} wanted"
    ) as refusal:
        loop.begin("tiny-keyframe", other, tmp_path / "frozen", unet, 0, 1)
    assert "latents.scaling_factor: 0.25 in the shards, 0.5 wanted" in str(refusal.value)
    frozen = temporal_run(tmp_path / "frozen", other, unet, steps=1)
    with pytest.raises(UsageError, match="--set trainable=all"):
        train(frozen, other)
    assert not (tmp_path / "frozen").exists()
    whole = replace(frozen.preset, trainable="all")
    _, said = begin(replace(frozen, preset=whole), other)
    assert "of other encoders: a start, no more" in said


def test_a_run_begins_with_an_adapter_and_says_what_it_took(tmp_path: Path, index: Index) -> None:
    unet = save_flat_model(tmp_path / "flat")
    first = temporal_run(tmp_path / "first", index, unet, steps=2)
    first = replace(first, dataset={**first.dataset, "videos": ["a" * 64]})
    train(first, index)
    export(first, tmp_path / "out")
    adapter = tmp_path / "out" / "adapter.safetensors"

    def run_with(name: str, *settings: str) -> Run:
        usual = ['windows=[{"num_frames": 5, "stride": 2}]', "trainable=temporal", *settings]
        return loop.begin("tiny-interp", index, tmp_path / name, unet, 0, 1, usual, adapter)

    run = run_with("second")
    assert run.dataset["videos"] == ["a" * 64, *loop.dataset_facts(index)["videos"]]
    model: Any = VideoUNet.inflate(unet, **run.preset.inflation)
    remarks = adapters.start(model, adapter, run.unet_sha256)
    assert len(remarks) == 1
    assert all(torch.equal(model.state_dict()[n], w) for n, w in load_file(adapter).items())
    _, words = begin(run, index)
    assert f"{len(load_file(adapter))} of {len(load_file(adapter))} temporal weights" in words
    assert load_run(run.folder).adapter_sha256 == adapters.digest(adapter)
    with pytest.raises(UsageError, match="adapter_sha256: '"):
        check_run(replace(run, adapter_sha256=None))

    _, words = begin(run_with("narrow", "kernel=3"), index)
    assert "of its weights do not fit" in words
    assert "temporal weights begin as new" in words
    save_flat_model(tmp_path / "flat", seed=1)
    _, words = begin(run_with("third"), index)
    assert "trained on another 2-D model" in words


def test_what_is_no_adapter_is_refused_by_name(tmp_path: Path, index: Index) -> None:
    unet = save_flat_model(tmp_path / "flat")
    model: Any = VideoUNet.inflate(unet)
    (tmp_path / "mm.ckpt").write_bytes(b"PK\x03\x04" + bytes(60))  # as torch's pickles begin
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match=r"mm\.ckpt is no adapter.*pickle"):
        adapters.start(model, tmp_path / "mm.ckpt", None)
    with pytest.raises(UsageError, match="--set placement=motion"):
        adapters.start(model, tmp_path / "other.safetensors", None)
    motion: Any = VideoUNet.inflate(unet, placement="motion")
    with pytest.raises(UsageError, match="none of its 1 weights fits"):
        adapters.start(motion, tmp_path / "other.safetensors", None)
    with pytest.raises(UsageError, match="no adapter there"):
        adapters.start(model, tmp_path / "nothing", None)
    with pytest.raises(UsageError, match="frame_window = null"):
        VideoUNet.inflate(unet, placement="motion", window=9)


# AnimateDiff


class FrameNorm(nn.Module):
    """Normalises each frame alone, as AnimateDiff did; diffusers' takes all of them together."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        frames = self.norm(rearrange(x, "b c f h w -> (b f) c h w"))
        return rearrange(frames, "(b f) c h w -> b c f h w", b=len(x))


def motion_model() -> Any:
    """diffusers' model of AnimateDiff, with random weights of every layer."""
    torch.manual_seed(3)
    kinds = {
        "down_block_types": ["CrossAttnDownBlockMotion", "DownBlockMotion"],
        "up_block_types": ["UpBlockMotion", "CrossAttnUpBlockMotion"],
    }
    config = {
        name: NARROW_UNET[name]
        for name in (
            "sample_size",
            "in_channels",
            "out_channels",
            "layers_per_block",
            "block_out_channels",
            "norm_num_groups",
            "cross_attention_dim",
        )
    }
    model: Any = UNetMotionModel(
        **config,
        **kinds,
        num_attention_heads=2,
        motion_num_attention_heads=8,
        use_motion_mid_block=True,
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval().requires_grad_(False)


def first_names(model: Any, mid_block: bool) -> dict[str, Tensor]:
    """Motion modules as AnimateDiff's own files name them."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        if ".motion_modules." not in name or (name.startswith("mid_block") and not mid_block):
            continue
        block, number, rest = (
            name.partition(".motion_modules.")[0],
            *name.partition(".motion_modules.")[2].split(".", 1),
        )
        for new, old in DIFFUSERS_TO_FIRST.items():
            rest = rest.replace(new, old)
        if rest.endswith("pos_embed.pe"):
            for attention in range(2):
                prefix = rest.removesuffix("pos_embed.pe")
                place = f"{prefix}attention_blocks.{attention}.pos_encoder.pe"
                tensors[f"{block}.motion_modules.{number}.temporal_transformer.{place}"] = (
                    tensor.clone()
                )
        else:
            tensors[f"{block}.motion_modules.{number}.temporal_transformer.{rest}"] = tensor
    return tensors


@pytest.mark.parametrize("layout", ["first", "diffusers"])
@torch.no_grad()
def test_animatediffs_motion_modules_compute_what_diffusers_computes(
    tmp_path: Path, layout: str
) -> None:
    oracle = motion_model()
    tensors = first_names(oracle, mid_block=True)
    if layout == "diffusers":
        tensors = {n: w for n, w in oracle.state_dict().items() if ".motion_modules." in n}
    save_file(tensors, tmp_path / "mm.safetensors")
    flat: Any = UNet2DConditionModel.from_config(
        {**NARROW_UNET, "resnet_time_scale_shift": "default"}
    )
    spatial = {n: w for n, w in oracle.state_dict().items() if ".motion_modules." not in n}
    flat.load_state_dict(spatial)
    model: Any = VideoUNet.inflate(flat, 4, placement="motion", fps_conditioning=False)
    text, noisy, t = torch.randn(1, 7, 8), torch.randn(1, 6, 4, 8, 8), torch.tensor([9])

    def answer() -> Tensor:
        return model(noisy, t, text, torch.ones(1))

    before = answer()
    remarks = adapters.start(model, tmp_path / "mm.safetensors", None)
    own = adapters.temporal(model)
    assert remarks[0] == f"mm.safetensors: {len(own)} of {len(own)} temporal weights are taken"
    assert len(remarks) == 2
    assert "tables of positions are computed" in remarks[1]

    for module in oracle.modules():
        if isinstance(module, AnimateDiffTransformer3D):
            module.norm = FrameNorm(module.norm)
    truth = oracle(
        rearrange(noisy, "b f c h w -> b c f h w"), t, repeat(text, "b n d -> (b f) n d", f=6)
    ).sample
    after = answer()
    assert torch.allclose(after, rearrange(truth, "b c f h w -> b f c h w"), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(after, before, atol=1e-2)


def test_a_file_without_a_middle_module_leaves_that_one_new(tmp_path: Path) -> None:
    tensors = first_names(motion_model(), mid_block=False)
    tensors = {f"module.{name}": tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "mm.safetensors")
    model: Any = VideoUNet.inflate(NARROW_UNET, placement="motion")
    remarks = adapters.start(model, tmp_path / "mm.safetensors", None)
    assert "temporal weights begin as new: unet.class_embedding.linear.bias" in remarks[-1]
    middle = model.unet.mid_block.attentions[0].temporal
    assert not middle.proj_out.weight.any()


@torch.no_grad()
def test_motion_modules_are_the_identity_at_first() -> None:
    flat: Any = UNet2DConditionModel.from_config(NARROW_UNET).eval()
    model: Any = VideoUNet.inflate(flat, 4, placement="motion").eval()
    noisy, text, t = torch.randn(1, 3, 4, 8, 8), torch.randn(1, 7, 8), torch.tensor([9])
    frames = flat(noisy[0], t.expand(3), repeat(text, "b n d -> (b f) n d", f=3)).sample
    assert torch.equal(model(noisy, t, text, torch.ones(1))[0], frames)


def test_a_model_with_motion_modules_is_trained_and_comes_back(
    tmp_path: Path, index: Index
) -> None:
    unet = save_flat_model(tmp_path / "flat")
    run = temporal_run(tmp_path / "run", index, unet, steps=2, placement="motion")
    train(run, index)
    model = checkpoint.load_model(run)
    assert any(".temporal.proj_out" in name and w.any() for name, w in model.named_parameters())
    export(run, tmp_path / "out")
    assert same(checkpoint.load_model(load_run(tmp_path / "out")), model)


def test_at_stable_diffusions_size_the_modules_are_those_of_diffusers() -> None:
    with torch.device("meta"):
        model: Any = VideoUNet.inflate(SD15_UNET, 9, placement="motion")
        published: Any = MotionAdapter(use_motion_mid_block=True)
    shapes = {name: tensor.shape for name, tensor in published.state_dict().items()}
    renamed = adapters._animatediff(model, Path("mm"), published.state_dict())
    own = adapters.temporal(model)
    others = {name for name in own if ".temporal." not in name}
    assert {name: weight.shape for name, weight in renamed.items()} == {
        name: weight.shape for name, weight in own.items() if name not in others
    }
    assert len(shapes) - len(renamed) == 21  # a table of positions each
    assert {name.rpartition(".")[0] for name in others} == {
        "unet.conv_in.conv",
        "unet.conv_in.added",
        "unet.class_embedding.linear",
    }
