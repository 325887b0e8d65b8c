"""The video model is the 2-D model until it is trained, and keeps frames, clips and files apart."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tests.making.models import NARROW_UNET
from training.attention import TemporalAttention
from training.errors import Stopped, UsageError
from training.presets import SD15_UNET, SD21_UNET, TINY_UNET
from training.unet import (
    BLOCKS,
    FpsEmbedding,
    TemporalConv,
    Unit,
    VideoUNet,
    flat_digest,
    flat_of,
    load_flat,
)

FAMILIES = {
    "sd1": NARROW_UNET,
    "sd2": {
        **NARROW_UNET,
        "use_linear_projection": True,
        "attention_head_dim": [2, 4],
        "layers_per_block": 2,
    },
    "inpainting": {**NARROW_UNET, "in_channels": 9},
    "tiny": TINY_UNET,
}
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def new_flat(config: dict[str, Any] = NARROW_UNET) -> Any:
    torch.manual_seed(0)
    return UNet2DConditionModel.from_config(config)


def new_inputs(num_frames: int = 5, channels: int = 9, width: int = 8, size: int = 8) -> Inputs:
    random = torch.Generator().manual_seed(num_frames)
    noisy, text = (
        torch.randn(2, num_frames, channels, size, size, generator=random),
        torch.randn(2, 7, width, generator=random),
    )
    return noisy, torch.tensor([3, 700]), text, torch.tensor([10.0, 2.5])


def by_frame(flat: Any, inputs: Inputs, channels: int) -> Tensor:
    """What the 2-D model makes of the folded frames."""
    noisy, t, text, _ = inputs
    f = noisy.shape[1]
    folded = rearrange(noisy[:, :, :channels], "b f c h w -> (b f) c h w")
    output: Tensor = flat(folded, t.repeat_interleave(f), text.repeat_interleave(f, 0)).sample
    return rearrange(output, "(b f) c h w -> b f c h w", f=f)


def shaken(model: VideoUNet) -> VideoUNet:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
            )
    return model


@pytest.fixture
def trained() -> VideoUNet:
    """A small model whose temporal layers are no longer the identity."""
    return shaken(VideoUNet.inflate(new_flat()))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("placement", ["resnets", "convolutions"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_at_first_a_video_is_denoised_as_its_frames_are_bit_for_bit(
    family: str, placement: str, layout: torch.memory_format
) -> None:
    flat = new_flat(FAMILIES[family]).to(memory_format=layout)
    channels = flat.config.in_channels
    for num_channels in {channels, 9}:
        model = VideoUNet.inflate(
            flat, in_channels=num_channels, placement=placement, window=5, first_frame=True
        )
        inputs = new_inputs(channels=num_channels, width=flat.config.cross_attention_dim)
        assert torch.equal(model(*inputs), by_frame(flat, inputs, channels))


@pytest.mark.parametrize(("in_channels", "total"), [(4, 1_100_564_216), (9, 1_100_578_616)])
def test_the_seeds_placement_has_the_seeds_number_of_parameters(
    in_channels: int, total: int
) -> None:
    with torch.device("meta"):
        model = VideoUNet.inflate(
            SD15_UNET, in_channels=in_channels, placement="convolutions", fps_conditioning=False
        )
    convs, attentions = (
        [m for m in model.modules() if isinstance(m, kind)]
        for kind in (TemporalConv, TemporalAttention)
    )
    sizes = [
        sum(p.numel() for module in modules for p in module.parameters())
        for modules in (convs, attentions)
    ]
    assert (len(convs), len(attentions), *sizes) == (66, 16, 191_444_212, 49_599_040)
    assert (
        sum(p.numel() for p in model.parameters())
        == total
        == 859_520_964 + sum(sizes) + (in_channels - 4) * 320 * 9
    )


def test_stable_diffusion_2_is_known_by_its_size() -> None:
    with torch.device("meta"):
        flat = UNet2DConditionModel.from_config(SD21_UNET)
    assert sum(p.numel() for p in flat.parameters()) == 865_910_724


def test_the_default_placement_is_one_convolution_a_resnet_and_one_attention_a_transformer() -> (
    None
):
    with torch.device("meta"):
        model = VideoUNet.inflate(SD15_UNET)
    assert [
        sum(isinstance(m, kind) for m in model.modules())
        for kind in (TemporalConv, TemporalAttention, FpsEmbedding)
    ] == [22, 16, 1]


@torch.no_grad()
def test_frames_of_a_clip_see_each_other_and_clips_do_not(trained: VideoUNet) -> None:
    noisy, *rest = new_inputs()
    before = trained(noisy, *rest)
    noisy[0, 4] += 1
    changed = (trained(noisy, *rest) != before).flatten(2).any(-1)
    assert changed.tolist() == [[True] * 5, [False] * 5]


@torch.no_grad()
def test_one_model_takes_any_number_of_frames(trained: VideoUNet) -> None:
    for num_frames in (1, 2, 17):
        assert trained(*new_inputs(num_frames)).shape == (2, num_frames, 4, 8, 8)


@torch.no_grad()
def test_attention_knows_the_order_of_frames() -> None:
    layer = TemporalAttention(8, 2, window=None, first_frame=False, like=torch.empty(0))
    torch.nn.init.eye_(layer.to_out.weight)
    x = torch.randn(5, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    swapped = torch.tensor([0, 3, 2, 1, 4])
    assert not torch.allclose(layer(x[swapped], 5)[swapped], layer(x, 5), atol=1e-3)


@torch.no_grad()
def test_fps_matter_once_they_are_trained(trained: VideoUNet) -> None:
    *inputs, fps = new_inputs()
    fresh = VideoUNet.inflate(new_flat())
    assert torch.equal(fresh(*inputs, fps), fresh(*inputs, fps * 4))
    assert not torch.allclose(trained(*inputs, fps), trained(*inputs, fps * 4), atol=1e-4)


@torch.no_grad()
def test_fps_can_be_left_out() -> None:
    model = VideoUNet.inflate(new_flat(), fps_conditioning=False)
    assert not any(isinstance(module, FpsEmbedding) for module in model.modules())
    assert model(*new_inputs()).shape == (2, 5, 4, 8, 8)


@pytest.mark.parametrize("placement", ["resnets", "convolutions"])
def test_checkpointing_changes_no_gradient_even_if_a_clip_of_another_length_comes_between(
    placement: str,
) -> None:
    trained = shaken(VideoUNet.inflate(new_flat(), placement=placement))

    def gradients() -> list[Tensor]:
        losses = [trained(*new_inputs(num_frames)).square().mean() for num_frames in (5, 3)]
        return list(torch.autograd.grad(losses[0] + losses[1], list(trained.parameters())))

    straight = gradients()
    trained.enable_gradient_checkpointing()
    assert trained.is_gradient_checkpointing
    assert all(torch.equal(a, b) for a, b in zip(gradients(), straight, strict=True))
    trained.disable_gradient_checkpointing()
    assert not trained.is_gradient_checkpointing


def test_checkpointing_keeps_less_for_the_backward(trained: VideoUNet) -> None:
    def kept() -> int:
        sizes: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            trained(*new_inputs()).sum()
        weights = sum(p.untyped_storage().nbytes() for p in trained.parameters())
        return sum(sizes.values()) - weights

    trained.requires_grad_(True)
    everything = kept()
    trained.enable_gradient_checkpointing()
    assert kept() < everything / 3


def test_a_model_comes_back_from_its_folder(trained: VideoUNet, tmp_path: Path) -> None:
    model = VideoUNet(
        **{**trained.config, "window": 5, "first_frame": True, "placement": "convolutions"}
    )
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    again = VideoUNet.from_pretrained(tmp_path)
    assert {name: again.config[name] for name in model.config if name[0] != "_"} == {
        name: value for name, value in model.config.items() if name[0] != "_"
    }
    assert torch.equal(again(*new_inputs()), model(*new_inputs()))
    assert again.widened


def test_channels_last_weights_are_saved_as_any_others(trained: VideoUNet, tmp_path: Path) -> None:
    trained.to(memory_format=torch.channels_last).save_pretrained(tmp_path)
    again = VideoUNet.from_pretrained(tmp_path).to(memory_format=torch.channels_last)
    assert torch.equal(again(*new_inputs()), trained(*new_inputs()))


@pytest.mark.parametrize("subfolder", ["", "unet"])
def test_a_folder_is_inflated_with_or_without_its_subfolder(tmp_path: Path, subfolder: str) -> None:
    flat = new_flat()
    flat.save_pretrained(tmp_path / subfolder)
    inputs = new_inputs()
    for source in (tmp_path, str(tmp_path)):
        assert torch.equal(VideoUNet.inflate(source)(*inputs), by_frame(flat, inputs, 4))


def test_inflating_leaves_the_source_alone() -> None:
    flat = new_flat()
    before = copy.deepcopy(flat.state_dict())
    model = VideoUNet.inflate(flat)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert flat.config.in_channels == 4
    assert all(torch.equal(value, before[name]) for name, value in flat.state_dict().items())


def test_a_copy_does_not_share_the_count_of_frames(trained: VideoUNet) -> None:
    twin = copy.deepcopy(trained)
    units = [module for module in twin.modules() if isinstance(module, Unit)]
    assert {id(unit.folded) for unit in units} == {id(twin.folded)} != {id(trained.folded)}
    assert torch.equal(twin(*new_inputs()), trained(*new_inputs()))


def test_what_is_trained_is_what_was_chosen() -> None:
    model = VideoUNet.inflate(new_flat())
    chosen = {
        which: set(map(id, model.select_trainable(which)))
        for which in ("all", "temporal+conv", "temporal")
    }  # type: ignore[arg-type]
    names = {
        name for name, parameter in model.named_parameters() if id(parameter) in chosen["temporal"]
    }
    assert {
        name for name, parameter in model.named_parameters() if parameter.requires_grad
    } == names
    temporal = {name for name in names if ".temporal." in name}
    assert names - temporal == {
        *(
            f"unet.{layer}.{part}"
            for layer in ("conv_in.conv", "class_embedding.linear")
            for part in ("weight", "bias")
        ),
        "unet.conv_in.added.weight",
    }
    assert len(temporal) == len(
        {name for name, _ in model.named_parameters() if ".temporal." in name}
    )
    assert (
        chosen["temporal"]
        < chosen["temporal+conv"]
        < chosen["all"]
        == set(map(id, model.parameters()))
    )
    left = {
        name
        for name, parameter in model.named_parameters()
        if id(parameter) not in chosen["temporal+conv"]
    }
    assert {
        name
        for name in left
        if "transformer_blocks" not in name and ".spatial.norm." not in name and "proj_" not in name
    } == {
        f"unet.{layer}.{part}"
        for layer in ("time_embedding.linear_1", "time_embedding.linear_2", "conv_norm_out")
        for part in ("weight", "bias")
    }


def test_a_source_with_all_channels_keeps_its_first_convolution_frozen() -> None:
    model = VideoUNet.inflate(new_flat(FAMILIES["inpainting"]))
    model.select_trainable("temporal")
    assert not model.unet.conv_in.weight.requires_grad


def test_every_temporal_weight_learns_after_one_step() -> None:
    model = VideoUNet.inflate(new_flat())
    optimizer = torch.optim.SGD(model.select_trainable("temporal"), 1.0)
    for _ in range(2):  # what is behind a zero weight has a gradient from the second step on
        optimizer.zero_grad()
        model(*new_inputs()).square().mean().backward()
        optimizer.step()
    assert [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ] == []


@torch.no_grad()
def test_spatial_attention_takes_the_processors_of_diffusers(trained: VideoUNet) -> None:
    before = trained(*new_inputs())
    trained.unet.set_attn_processor(AttnProcessor())
    torch.testing.assert_close(trained(*new_inputs()), before)


@torch.no_grad()
def test_the_temporal_backend_can_be_chosen(trained: VideoUNet) -> None:
    before = trained(*new_inputs())
    trained.set_temporal_backend("sdpa")
    torch.testing.assert_close(trained(*new_inputs()), before)
    trained.set_temporal_backend("flex")
    with pytest.raises(UsageError, match="`flex` needs a CUDA device"):
        trained(*new_inputs())
    with pytest.raises(UsageError, match="'best'"):
        trained.set_temporal_backend("best")  # type: ignore[arg-type]


def test_bfloat16_trains(trained: VideoUNet) -> None:
    trained.enable_gradient_checkpointing()
    with torch.autocast("cpu", torch.bfloat16):
        output = trained(*new_inputs())
    output.float().square().mean().backward()
    assert output.dtype == torch.bfloat16
    assert all(torch.isfinite(p.grad).all() for p in trained.parameters() if p.grad is not None)
    flat = new_flat().to(torch.bfloat16)
    assert {p.dtype for p in VideoUNet.inflate(flat).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"placement": "everywhere"},
            "'everywhere'; there are resnets, convolutions, motion",
        ),
        ({"window": 4}, "window of 4"),
        ({"in_channels": 3}, "has 4 input channels, 3 are wanted"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        VideoUNet.inflate(NARROW_UNET, **options)


@torch.no_grad()
def test_without_temporal_layers_it_is_the_2d_model_in_computing_and_on_disk(
    tmp_path: Path,
) -> None:
    flat = new_flat()
    model = VideoUNet.inflate(flat, in_channels=4, placement="none", fps_conditioning=False)
    inputs = new_inputs(num_frames=1, channels=4)
    assert torch.equal(model(*inputs), by_frame(flat, inputs, 4))
    flat_of(model).half().save_pretrained(tmp_path / "flat")
    stored = load_file(tmp_path / "flat" / "diffusion_pytorch_model.safetensors")
    assert stored.keys() == flat.state_dict().keys()
    assert all(torch.equal(stored[name], w.half()) for name, w in flat.state_dict().items())
    again = load_flat(tmp_path / "flat").state_dict()
    assert all(torch.equal(again[name], stored[name].float()) for name in stored)
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("placement", ["resnets", "convolutions", "motion", "none"])
def test_the_2d_model_comes_back_from_a_video_model(placement: Any) -> None:
    flat = UNet2DConditionModel.from_config(NARROW_UNET)
    model = VideoUNet.inflate(flat, placement=placement, everywhere=placement == "resnets")
    back = flat_of(model).state_dict()
    assert back.keys() == flat.state_dict().keys()
    assert all(torch.equal(back[name], weight) for name, weight in flat.state_dict().items())


def test_the_digest_of_a_2d_model_is_that_of_its_weights(tmp_path: Path) -> None:
    flat = new_flat()
    flat.save_pretrained(tmp_path / "a")
    flat.save_pretrained(tmp_path / "b" / "unet")
    digest = flat_digest(tmp_path / "a")
    assert digest == flat_digest(str(tmp_path / "b"))
    with torch.no_grad():
        flat.conv_out.bias += 1
    flat.save_pretrained(tmp_path / "c")
    assert flat_digest(tmp_path / "c") not in (None, digest)
    assert flat_digest("stable-diffusion-v1-5/stable-diffusion-v1-5") is None


def test_what_to_train_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="'spatial'; there are temporal, temporal\\+conv, all"):
        VideoUNet.inflate(NARROW_UNET).select_trainable("spatial")  # type: ignore[arg-type]


def test_heads_of_odd_width_are_refused() -> None:
    with pytest.raises(UsageError, match="8 heads do not divide 8 channels into even parts"):
        VideoUNet.inflate({**NARROW_UNET, "attention_head_dim": 8})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_class_embeds": 3}, "num_class_embeds = 3"),
        ({"class_embed_type": "timestep"}, "class_embed_type = 'timestep'"),
        ({"in_channels": 5}, "in_channels = 5"),  # depth
        ({"in_channels": 8}, "in_channels = 8"),  # another picture
        ({"time_embedding_type": "fourier"}, "time_embedding_type = 'fourier'"),
        (
            {"encoder_hid_dim_type": "text_proj", "encoder_hid_dim": 8},
            "encoder_hid_dim_type = 'text_proj'",
        ),
        ({"dual_cross_attention": True}, "dual_cross_attention = True"),
        (
            {"down_block_types": ["SimpleCrossAttnDownBlock2D", "DownBlock2D"]},
            "block SimpleCrossAttnDownBlock2D",
        ),
        (
            {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
            "block UNetMidBlock2DSimpleCrossAttn",
        ),
        (
            {
                "down_block_types": ["KCrossAttnDownBlock2D", "KDownBlock2D"],
                "up_block_types": ["KUpBlock2D", "KCrossAttnUpBlock2D"],
            },
            "block KCrossAttnDownBlock2D",
        ),
        ({"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "block AttnDownBlock2D"),
    ],
)
def test_a_unet_that_is_not_understood_is_refused_with_what_it_has(
    changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UsageError, match="time and text alone") as caught:
        VideoUNet.inflate({**NARROW_UNET, **changes})
    assert problem in str(caught.value)


def test_a_spatial_attention_without_a_temporal_one_behind_it_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("training.unet.BLOCKS", {*BLOCKS, "AttnDownBlock2D"})
    with pytest.raises(UsageError, match=r"the attention down_blocks.0.attentions.0 is in no"):
        VideoUNet.inflate({**NARROW_UNET, "down_block_types": ["AttnDownBlock2D", "DownBlock2D"]})


def test_a_folder_without_a_model_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"neither config.json nor unet/config.json"):
        VideoUNet.inflate(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match="describes a thing without a class name"):
        VideoUNet.inflate(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "VideoUNet"}))
    with pytest.raises(UsageError, match="describes a VideoUNet; only a UNet2DConditionModel"):
        VideoUNet.inflate(tmp_path)


def test_weights_that_are_not_safetensors_are_not_read(tmp_path: Path) -> None:
    new_flat().save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    with safe_open(weights, "pt") as file:
        assert len(list(file.keys())) > 100
    weights.rename(tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(
        UsageError,
        match=r"has no diffusion_pytorch_model.safetensors, nor "
        r"diffusion_pytorch_model.fp16.safetensors .*"
        r"diffusion_pytorch_model.bin is a pickle and is never read",
    ):
        VideoUNet.inflate(tmp_path)


def test_half_precision_is_read_where_there_is_nothing_else(tmp_path: Path) -> None:
    flat = new_flat()
    flat.half().save_pretrained(tmp_path / "unet", variant="fp16")
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")
    model = VideoUNet.inflate(tmp_path)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model.unet.conv_out.weight, flat.conv_out.weight.float())


def test_a_hub_repository_with_half_precision_alone_is_asked_for_the_plain_file_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As `stable-diffusion-v1-5/stable-diffusion-inpainting` has it: `.bin` and fp16."""
    new_flat().half().save_pretrained(tmp_path / "abc" / "unet", variant="fp16")
    asked = []

    def snapshot(name: str, allow_patterns: list[str], **_: Any) -> str:
        asked.append(allow_patterns)
        return str(tmp_path / "abc")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    VideoUNet.inflate("owner/name")
    assert asked[0][1] == "unet/diffusion_pytorch_model.safetensors"
    assert asked[1][1] == "unet/diffusion_pytorch_model.fp16.safetensors"
    assert not any(pattern.endswith(".bin") for patterns in asked for pattern in patterns)


@pytest.mark.parametrize("source", [Path("no/such"), "/no/such/folder", "one-word", "a/b/c"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(source: str | Path) -> None:
    with pytest.raises(UsageError, match="is no folder, and no hub id"):
        VideoUNet.inflate(source)


def test_a_hub_that_cannot_be_reached_stops_with_advice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(Stopped, match="cannot get the model 'longtake/no-such-model' from the hub"):
        VideoUNet.inflate("longtake/no-such-model", revision="main")
