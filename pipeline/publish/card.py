"""`card`: a dataset's README for a model hub, from the recipe and its lock alone. Equal locks make
equal bytes.

Captions and licences are strangers' words: they can neither end the header nor open a link, a tag
or a table cell. Which fields and licences a hub knows: github.com/huggingface/hub-docs,
datasetcard.md and docs/hub/repositories-licenses.md.
"""

from __future__ import annotations

import os
import re
import shlex
import statistics
import unicodedata
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from pipeline.core.errors import Damaged
from pipeline.core.files import replace_file
from pipeline.dataset import lock, removals
from pipeline.dataset.lock import Lock
from pipeline.dataset.probe import PROBES
from pipeline.dataset.recipe import Loaded
from pipeline.media import scorers
from pipeline.media.captions import TOKENS, num_long
from pipeline.stages import NAMES, keep

# those a hub knows that could be a video's or a dataset's
KNOWN = """
cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nd-4.0
cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 c-uda cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 odbl odc-by pddl etalab-2.0 gfdl apache-2.0 mit isc zlib unlicense
bsd-2-clause bsd-3-clause bsl-1.0 mpl-2.0 gpl-2.0 gpl-3.0 agpl-3.0 lgpl-2.1 lgpl-3.0 wtfpl
"""
LICENSES = frozenset(KNOWN.split())
SPELT = {"odbl-1.0": "odbl", "odc-by-1.0": "odc-by", "pddl-1.0": "pddl"}  # SPDX's and the hub's
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "n>10M")
LIMITS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)  # samples from which on the next holds
SHARDS = {"train": "shards/[0-9]*.tar", "validation": "shards/validation-*.tar"}
NONE = "none stated"
EXAMPLES = 3
SHORT = 100  # characters of a caption, a licence, a reason
LONG = 2000  # of the recipe's description
INVISIBLE = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")  # Unicode's categories
JOINERS = "\u200c\u200d"  # of letters and of emoji: invisible, and part of a word
MEMBERS = {
    "json": "captions, frame rate, source and licence, place in the source, crop, scores",
    "latents.npy": "the VAE's posterior mean, `f c h w` float16, unscaled",
    "latents_std.npy": "the posterior's standard deviation, same shape",
    "text.npy": "CLIP's hidden states of the `n` captions, `n 77 d` float16",
    "image.npy": "CLIP's embeddings of a few evenly spaced frames, `k d` float16",
}

# The card, with the names of what is filled in. Paragraphs that are there only if there is
# something to say bring their empty lines along.
TEMPLATE = Path(__file__).with_name("card.md")


def path_of(recipe: Path) -> Path:
    return recipe.with_name(f"{recipe.stem}.card.md")


def write(loaded: Loaded, locked: Lock, path: Path, with_shards: bool) -> None:
    """Write the card to a file."""
    replace_file(path, markdown(loaded, locked, with_shards).encode())


def markdown(loaded: Loaded, locked: Lock, with_shards: bool = False) -> str:
    """The whole card; `with_shards` if it is to lie beside the folder `shards/`. Raises Damaged for
    a header without a build's facts.
    """
    try:
        facts = {
            "header": yaml_of(_metadata(loaded, locked, with_shards)),
            **_introduction(loaded, with_shards),
            **_counts(locked),
            **_licenses(locked),
            "scores": _scores(loaded, locked),
            **_funnel(locked),
            "members": _members(locked),
            "made_with": _made_with(loaded, locked),
            **_to_build_it_again(loaded, locked),
        }
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        name = lock.path_of(loaded.path).name
        raise Damaged(f"{name}: line 1: the header is not one of a build: {error!r}") from error
    return TEMPLATE.read_text("utf-8").format(**facts)


def yaml_of(metadata: Mapping[str, Any]) -> str:
    """The card's header as YAML: one line a scalar, every one quoted."""
    from huggingface_hub import DatasetCardData
    from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined]  # in its __init__

    fields: dict[str, Any] = DatasetCardData(**metadata).to_dict()  # type: ignore[no-untyped-call]
    # quoted, for readers of YAML 1.2 see numbers where YAML 1.1 sees words
    text: str = yaml_dump(fields, sort_keys=False, default_style='"', width=float("inf"))
    return text


def _metadata(loaded: Loaded, locked: Lock, with_shards: bool) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        **_license(locked),
        "pretty_name": loaded.recipe.name,
        "task_categories": ["text-to-video"],
        "tags": ["video", "latents", "webdataset", "longtake"],
        "size_categories": [SIZES[bisect(LIMITS, len(locked.samples))]],
    }
    if with_shards:
        splits = [{"split": name, "path": SHARDS[name]} for name in _samples_by_split(locked)]
        metadata["configs"] = [{"config_name": "default", "data_files": splits}]
    return metadata


def _license(locked: Lock) -> dict[str, str]:
    """The licence all sources have, or that they differ. Sources without a clip count too: the
    recipe names them.
    """
    tallies = _by_license(locked)
    spelt = {SPELT.get(name.lower(), name.lower()) for name in tallies}
    if len(spelt) == 1 and spelt <= LICENSES:
        return {"license": spelt.pop()}
    if tallies.keys() <= {NONE}:
        return {"license": "unknown"}
    name = "mixed"
    if len(tallies) == 1:
        [words] = tallies
        name = re.sub(r"[^a-z0-9.-]+", "-", words.lower()).strip("-") or "custom"
    details = [
        f"{_plain(words)}: {_count(tally.sources, 'source')}" for words, tally in tallies.items()
    ]
    return {"license": "other", "license_name": name, "license_details": "; ".join(details)}


@dataclass
class Tally:
    """What there is under one licence."""

    sources: int = 0
    clips: int = 0
    frames: int = 0


def _by_license(locked: Lock) -> dict[str, Tally]:
    """A tally for each licence, as the first source spells it; sources without one last."""
    spelt: dict[str, str] = {}
    names: dict[str, str] = {}  # by video
    tallies: dict[str, Tally] = defaultdict(Tally)
    for key, video in locked.videos.items():
        name = (video.license or "").strip() or NONE
        names[key] = spelt.setdefault(name.lower(), name)
        tallies[names[key]].sources += 1
    for key in locked.samples:
        clip = locked.clips[key]
        tallies[names[clip.video]].clips += 1
        tallies[names[clip.video]].frames += clip.num_frames
    order = sorted(tallies, key=lambda name: (name == NONE, name.lower()))
    return {name: tallies[name] for name in order}


def _samples_by_split(locked: Lock) -> dict[str, int]:
    """How many samples each split has that has some."""
    counts = dict.fromkeys(SHARDS, 0)
    for shard in locked.shards.values():
        counts[shard.split] += len(shard.samples)
    return {split: count for split, count in counts.items() if count}


def _introduction(loaded: Loaded, with_shards: bool) -> dict[str, object]:
    description = _text(loaded.recipe.description, LONG)
    shards = "The shards are not here either: anybody builds them from the files named below."
    if with_shards:
        shards = (
            "The shards hold latents and embeddings. A VAE decodes latents to pictures near the "
            "originals, so licences hold for them too."
        )
    return {
        "name": _text(loaded.recipe.name),
        "description": f"{description}\n\n" if loaded.recipe.description.strip() else "",
        "num_probes": PROBES,
        "shards_here": shards,
    }


def _counts(locked: Lock) -> dict[str, object]:
    """What the section "What it is" says."""
    extract = locked.params("extract")
    fps = Fraction(extract["fps"])
    frames = sum(locked.clips[key].num_frames for key in locked.samples)
    used = {locked.clips[key].video for key in locked.samples}
    splits = [f"{count} {split}" for split, count in _samples_by_split(locked).items()]
    has_cuts = locked.params("cut")["detector"] != "none"
    scores = [sample.round_trip_psnr_db for sample in locked.samples.values()]
    measured = sorted(score for score in scores if score is not None)
    round_trip = ""
    if measured:
        median, clips = measured[len(measured) // 2], _count(len(measured), "clip")
        round_trip = f"\n- VAE round trip: {median:.1f} dB PSNR in the median of {clips}"
    scans = [locked.videos[key].container.scan for key in used]
    num_interlaced = len(scans) - scans.count("progressive")
    captions = sorted({caption for key in locked.samples for caption in _captions(locked, key)})
    examples = [f"\n  - {_text(caption)}" for caption in captions[:EXAMPLES]]
    if captions:
        different = _count(len(captions), "different caption")
        if count := num_long(captions):
            different += f", {count} of them longer than the {TOKENS} tokens that CLIP reads"
        head = f"\n- {different}; in which language is not recorded. For example:"
        examples.insert(0, head)
    return {
        "samples": _count(len(locked.samples), "sample"),
        "splits": ", ".join(splits),
        "shards": _count(len(locked.shards), "shard"),
        "frames": frames,
        "hours": _hours(frames, fps),
        "size": extract["size"],
        "fps": str(fps) if fps.denominator == 1 else f"{float(fps):.3f}",
        "cuts": "each clip is of one shot" if has_cuts else "cuts were not looked for",
        "used": len(used),
        "videos": _count(len(locked.videos), "video"),
        "interlaced": f", {num_interlaced} of them deinterlaced" if num_interlaced else "",
        "round_trip": round_trip,
        "faces": _faces(locked),
        "captions": "".join(examples),
    }


def _faces(locked: Lock) -> str:
    """What was done about faces; nothing where none were looked for."""
    choice = locked.params("extract").get("faces")
    if choice is None:
        return ""
    line = "\n- CenterFace, a detector, looked for faces in every frame of every clip; "
    if choice["do"] == "reject":
        return f"{line}clips with some are not in it. A face that it does not see may still be"
    blurred = sum(bool(locked.clips[key].covers) for key in locked.samples)
    clips = _count(blurred, "clip")
    return f"{line}they are blurred in {clips}. A face that it does not see is not"


def _captions(locked: Lock, key: str) -> Sequence[str]:
    """The captions of a sample: of its clip, or else of its video."""
    clip = locked.clips[key]
    return locked.videos[clip.video].captions if clip.captions is None else clip.captions


def _licenses(locked: Lock) -> dict[str, str]:
    fps = Fraction(locked.params("extract")["fps"])
    tallies = _by_license(locked)
    rows = [
        (_code(name), tally.sources, _hours(tally.frames, fps), tally.clips)
        for name, tally in tallies.items()
    ]
    warning = ""
    if NONE in tallies:
        sources = _count(len(locked.videos), "source")
        warning = (
            f"> **WARNING: without a licence: {tallies[NONE].sources} of {sources}.**\n"
            "> Nobody has said that they may be copied, shown or trained on: find out before you "
            "do.\n\n"
        )
    table = _table(("licence", "sources", "hours in clips", "clips"), rows)
    return {"warning": warning, "licenses": table}


def _scores(loaded: Loaded, locked: Lock) -> str:
    """What was measured of the clips that are in the shards; nothing where nothing was."""
    clips = [locked.clips[key] for key in sorted(locked.samples)]
    names = dict.fromkeys(name for clip in clips for name, _ in clip.scores)
    if not names:
        return ""
    table = loaded.setup("auto", offline=True).table(scorers.Params)
    meanings = table.described(loaded.folder)
    rows = []
    for name in names:
        values = [dict(clip.scores).get(name) for clip in clips]
        numbers = [value for value in values if value is not None]
        spread = [f"{f(numbers):.4g}" if numbers else "" for f in (min, statistics.median, max)]
        meaning = _text(meanings[name].meaning, LONG) if name in meanings else ""
        rows.append((_code(name), *spread, len(values) - len(numbers), meaning))
    head = ("score", "least", "median", "most", "not measured", "what")
    return f"## Scores of the clips\n\n{_table(head, rows)}\n\n"


def _funnel(locked: Lock) -> dict[str, str]:
    stages = locked.header["stages"]
    names = [name for name in NAMES if name in stages]
    rows = []
    for name in [*names, *sorted(stages.keys() - set(NAMES))]:
        stage = stages[name]
        rejected = {reason: int(count) for reason, count in sorted(stage["rejected"].items())}
        why = ", ".join(f"{count} {_code(reason)}" for reason, count in rejected.items())
        counts = (int(stage["in"]), int(stage["out"]), sum(rejected.values()))
        rows.append((_code(name), *counts, why))
    table = _table(("stage", "in", "out", "rejected", "why"), rows)
    if suspected := lock.num_suspected(locked.header):
        noun = "record was" if suspected == 1 else "records were"
        table += (
            f"\n\n{suspected} {noun} rejected on suspicion, as `crashed` or `timed-out`: another "
            "machine may not reject the same."
        )
    if alike := locked.params("keep").get(keep.DUPLICATES):
        gone = int(stages["keep"]["rejected"].get("duplicate", 0))
        mirrored = ", mirrored or not" if alike["mirrored"] else ""
        table += (
            f"\n\nOf clips that show the same{mirrored}, the best one is here: "
            f"{_count(gone, 'near-duplicate')} went. Videos that share one are in one split."
        )
    return {"funnel": table, "first": "expand" if "expand" in stages else "download"}


def _members(locked: Lock) -> str:
    counts = Counter(name for sample in locked.samples.values() for name in sample.members)
    rows = []
    for name, count in counts.items():
        order = ([*MEMBERS, name].index(name), name)
        rows.append((order, (_code(f"KEY.{name}"), MEMBERS.get(name, ""), count)))
    return _table(("member", "what", "samples"), [row for _, row in sorted(rows)])


def _made_with(loaded: Loaded, locked: Lock) -> str:
    encode, environment = locked.params("encode"), locked.header["environment"]
    models = loaded.recipe.encode
    devices = ", ".join(_code(device) for device in environment["devices"])
    versions = sorted(environment["versions"].items())
    arithmetic = f"{_code(encode['precision'])}, {int(encode['chunk_frames'])} frames at a time"
    rows = [
        ("encoders", f"preset {_code(models.preset)}"),
        ("VAE", f"sha256 {_code(encode['vae'])}{_model(models.vae)}"),
        ("CLIP", f"sha256 {_code(encode['clip'])}{_model(models.clip)}"),
        ("arithmetic", arithmetic),
        ("device", f"{devices} on {_code(environment['machine'])}"),
        ("versions", ", ".join(f"{_text(name)} {_code(version)}" for name, version in versions)),
    ]
    return _table(("", ""), rows)


def _model(name: str | None) -> str:
    """A model the recipe names, without the folders of anybody's machine."""
    if not name:
        return ""
    return f", {_code(os.path.basename(name.rstrip('/')) if os.path.isabs(name) else name)}"


def _to_build_it_again(loaded: Loaded, locked: Lock) -> dict[str, str]:
    """What the last two sections say."""
    path = loaded.path
    names = [path.name, lock.path_of(path).name]
    if loaded.recipe.sources:
        names.append(loaded.recipe.sources)
    setup = loaded.setup("auto", offline=True)
    if keep.picks_path(setup) is not None:
        names.append(str(setup.table(keep.Params).picks))
    for scorer in setup.table(scorers.Params).chosen:
        names += dict.fromkeys(file.name for file in scorer.files(path.parent).values())
    removed = removals.path_of(path).name
    taken_down = "0 sources were taken down"
    if loaded.removed:
        names.append(removed)
        count = len(loaded.removed)
        were = f"{_count(count, 'source')} {'was' if count == 1 else 'were'}"
        taken_down = f"{were} taken down (`{removed}`); a rebuild leaves them out"
    *files, last = [_code(name) for name in names]
    used = {clip.video for clip in locked.clips.values()}
    num_local = sum(locked.videos[key].uri.startswith("file:") for key in used)
    are = "is a local file" if num_local == 1 else "are local files"
    local = (
        f"> **{num_local} of the videos {are}:**\n"
        "> who has no copy in the place the recipe names gets a dataset without them, and is told "
        "so.\n\n"
    )
    return {
        "taken_down": taken_down,
        "files": f"{', '.join(files)} and {last}",
        "dataset": shlex.quote(path.stem),
        "local": local if num_local else "",
        "root_digest": _code(locked.root_digest),
    }


def _plain(text: str, limit: int = SHORT) -> str:
    """One line without characters that are not seen."""
    seen = "".join(
        " " if unicodedata.category(char) in INVISIBLE and char not in JOINERS else char
        for char in text
    )
    line = " ".join(seen.split())
    return line if len(line) <= limit else f"{line[: limit - 3].rstrip()}..."


def _text(text: str, limit: int = SHORT) -> str:
    """A stranger's words as words: no markup, no link, no tag, no mention, no emoji by name."""
    line = re.sub(r"([\\`*_{}\[\]()#+!|~$<>@&=^]|:(?=\S))", r"\\\1", _plain(text, limit))
    line = re.sub(r"(?i)\b(www)\.", r"\1\\.", line)
    return re.sub(r"^(\d*)([-.)])", r"\1\\\2", line)


def _code(text: object) -> str:
    """A stranger's words as code, in a table too."""
    return f"`{_plain(str(text)).replace('`', chr(39)).replace('|', chr(0xA6)) or ' '}`"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; columns of numbers are set to the right."""
    columns = range(len(head))
    is_number = [all(re.fullmatch(r"[\d.]+", str(row[at])) for row in rows) for at in columns]
    rule = "|".join("--:" if number else "---" for number in is_number)
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", f"|{rule}|", *lines])


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _hours(frames: int, fps: Fraction) -> str:
    return f"{float(frames / fps) / 3600:.2f}"
