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
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from pipeline.core.errors import Damaged
from pipeline.core.files import replace_file
from pipeline.dataset import lock, removals
from pipeline.dataset.lock import Lock
from pipeline.dataset.probe import PROBES
from pipeline.dataset.recipe import Loaded
from pipeline.stages import NAMES

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
SIZES = {
    1_000: "n<1K",
    10_000: "1K<n<10K",
    100_000: "10K<n<100K",
    1_000_000: "100K<n<1M",
    10_000_000: "1M<n<10M",
}
SHARDS = {"train": "shards/[0-9]*.tar", "validation": "shards/validation-*.tar"}
NONE = "none stated"
EXAMPLES = 3
SHORT = 100  # characters of a caption, a licence, a reason
LONG = 2000  # of the recipe's description
INVISIBLE = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")  # Unicode's categories
JOINERS = "\u200c\u200d"  # of letters and of emoji: invisible, and part of a word
MEMBERS = {
    "json": "captions, frame rate, source and licence, place in the source, crop",
    "latents.npy": "the VAE's posterior mean, `f c h w` float16, unscaled",
    "latents_std.npy": "the posterior's standard deviation, same shape",
    "text.npy": "CLIP's hidden states of the first caption, `77 d` float16",
    "image.npy": "CLIP's embeddings of a few evenly spaced frames, `k d` float16",
}


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
        metadata = yaml_of(_metadata(loaded, locked, with_shards))
        sections = [
            _introduction(loaded, with_shards),
            _what_it_is(locked),
            _by_license(locked),
            _funnel(locked),
            _members(locked),
            _made_with(loaded, locked),
            _taken_down(loaded),
            _build_it_again(loaded, locked),
        ]
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        name = lock.path_of(loaded.path).name
        raise Damaged(f"{name}: line 1: the header is not one of a build: {error!r}") from error
    return "\n".join(["---", f"{metadata}---", "", "\n\n".join(sections), ""])


def yaml_of(metadata: Mapping[str, Any]) -> str:
    """The card's header as YAML: one line a scalar, every one quoted."""
    from huggingface_hub import DatasetCardData
    from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined]  # in its __init__

    fields: dict[str, Any] = DatasetCardData(**metadata).to_dict()  # type: ignore[no-untyped-call]
    # quoted, for readers of YAML 1.2 see numbers where YAML 1.1 sees words
    text: str = yaml_dump(fields, sort_keys=False, default_style='"', width=float("inf"))
    return text


def _metadata(loaded: Loaded, locked: Lock, with_shards: bool) -> dict[str, Any]:
    count = len(locked.samples)
    size = next((name for limit, name in SIZES.items() if count < limit), "n>10M")
    metadata: dict[str, Any] = {
        **_license(locked),
        "pretty_name": loaded.recipe.name,
        "task_categories": ["text-to-video"],
        "tags": ["video", "latents", "webdataset", "longtake"],
        "size_categories": [size],
    }
    if with_shards:
        splits = _samples_by_split(locked)
        files = [{"split": split, "path": SHARDS[split]} for split in SHARDS if splits[split]]
        metadata["configs"] = [{"config_name": "default", "data_files": files}]
    return metadata


def _license(locked: Lock) -> dict[str, str]:
    """The licence all sources have, or that they differ. Sources without a clip count too: the
    recipe names them.
    """
    counts = _sources_by_license(locked)
    spelt = {SPELT.get(name.lower(), name.lower()) for name in counts}
    if len(spelt) == 1 and spelt <= LICENSES:
        return {"license": spelt.pop()}
    if counts.keys() <= {NONE}:
        return {"license": "unknown"}
    name = "mixed"
    if len(counts) == 1:
        [words] = counts
        name = re.sub(r"[^a-z0-9.-]+", "-", words.lower()).strip("-") or "custom"
    details = [f"{_plain(words)}: {_count(count, 'source')}" for words, count in counts.items()]
    return {"license": "other", "license_name": name, "license_details": "; ".join(details)}


def _sources_by_license(locked: Lock) -> dict[str, int]:
    """Sources by licence, as the first of them spells it; none last."""
    spelt: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for video in locked.videos.values():
        name = (video.license or "").strip() or NONE
        counts[spelt.setdefault(name.lower(), name)] += 1
    names = sorted(counts, key=lambda name: (name == NONE, name.lower()))
    return {name: counts[name] for name in names}


def _samples_by_split(locked: Lock) -> Counter[str]:
    counts: Counter[str] = Counter()
    for shard in locked.shards.values():
        counts[shard.split] += len(shard.samples)
    return counts


def _introduction(loaded: Loaded, with_shards: bool) -> str:
    recipe = loaded.recipe
    paragraphs = [f"# {_text(recipe.name)}"]
    if recipe.description.strip():
        paragraphs.append(_text(recipe.description, LONG))
    if with_shards:
        shards = (
            "The shards hold latents and embeddings. A VAE decodes latents to pictures near the "
            "originals, so licences hold for them too."
        )
    else:
        shards = "The shards are not here either: anybody builds them from the files named below."
    paragraphs.append(
        "**No footage is in here.** Recipe and lock hold addresses, time stamps, captions, "
        f"digests, and of every array {PROBES} values, no more.\n{shards}"
    )
    return "\n\n".join(paragraphs)


def _what_it_is(locked: Lock) -> str:
    splits, extract = _samples_by_split(locked), locked.params("extract")
    frames = sum(locked.clips[key].num_frames for key in locked.samples)
    used = {locked.clips[key].video for key in locked.samples}
    halves = ", ".join(f"{splits[split]} {split}" for split in SHARDS if splits[split])
    has_cuts = locked.params("cut")["detector"] != "none"
    cuts = "each clip is of one shot" if has_cuts else "cuts were not looked for"
    fps, size = Fraction(extract["fps"]), extract["size"]
    samples, shards = _count(len(locked.samples), "sample"), _count(len(locked.shards), "shard")
    lines = [
        "## What it is",
        "",
        f"- {samples} ({halves}) in {shards}",
        f"- {frames} frames, {_hours(frames, fps)} hours, {size} x {size} at {_number(fps)} fps; "
        f"{cuts}",
        f"- from {len(used)} of {_count(len(locked.videos), 'video')}",
    ]
    scores = [sample.round_trip_psnr_db for sample in locked.samples.values()]
    measured = sorted(score for score in scores if score is not None)
    if measured:
        median, clips = measured[len(measured) // 2], _count(len(measured), "clip")
        lines.append(f"- VAE round trip: {median:.1f} dB PSNR in the median of {clips}")
    captions = sorted({caption for key in used for caption in locked.videos[key].captions})
    if captions:
        different = _count(len(captions), "different caption")
        lines.append(f"- {different}; in which language is not recorded. For example:")
        lines += [f"  - {_text(caption)}" for caption in captions[:EXAMPLES]]
    return "\n".join(lines)


def _by_license(locked: Lock) -> str:
    fps = Fraction(locked.params("extract")["fps"])
    clips: Counter[str] = Counter()
    frames: Counter[str] = Counter()
    for key in locked.samples:
        clip = locked.clips[key]
        name = (locked.videos[clip.video].license or "").strip().lower() or NONE
        clips[name] += 1
        frames[name] += clip.num_frames
    rows = [
        (_code(name), count, _hours(frames[name.lower()], fps), clips[name.lower()])
        for name, count in _sources_by_license(locked).items()
    ]
    lines = ["## Sources by licence", ""]
    if without := _sources_by_license(locked).get(NONE):
        sources = _count(len(locked.videos), "source")
        lines += [
            f"> **WARNING: without a licence: {without} of {sources}.**",
            "> Nobody has said that they may be copied, shown or trained on: find out before you "
            "do.",
            "",
        ]
    return "\n".join([*lines, *_table(("licence", "sources", "hours in clips", "clips"), rows)])


def _funnel(locked: Lock) -> str:
    rows = []
    first = "expand" if "expand" in locked.header["stages"] else "download"
    for name, stage in sorted(locked.header["stages"].items(), key=lambda item: _order(item[0])):
        rejected = sorted(stage["rejected"].items())
        why = ", ".join(f"{int(count)} {_code(reason)}" for reason, count in rejected)
        num_rejected = sum(int(count) for _, count in rejected)
        rows.append((_code(name), int(stage["in"]), int(stage["out"]), num_rejected, why))
    table = "\n".join(_table(("stage", "in", "out", "rejected", "why"), rows))
    return (
        f"## What became of every record\n\n{table}\n\n"
        f"`{first}` (of lists of videos), `cut` and `filter` may give several records for one; "
        "nothing is dropped without a reason."
    )


def _order(stage: str) -> tuple[int, str]:
    return (NAMES.index(stage) if stage in NAMES else len(NAMES), stage)


def _members(locked: Lock) -> str:
    counts = Counter(name for sample in locked.samples.values() for name in sample.members)
    rows = [
        (_code(f"KEY.{name}"), _member(name), counts[name])
        for name in sorted(counts, key=_order_of_member)
    ]
    return "\n".join(["## What a sample holds", "", *_table(("member", "what", "samples"), rows)])


def _order_of_member(name: str) -> tuple[int, str]:
    kinds = list(MEMBERS)
    kind = "text.npy" if re.fullmatch(r"text\d+\.npy", name) else name
    return (kinds.index(kind) if kind in kinds else len(kinds), name.zfill(20))


def _member(name: str) -> str:
    further = re.fullmatch(r"text(\d+)\.npy", name)
    return f"of caption {int(further[1]) + 1}" if further else MEMBERS.get(name, "")


def _made_with(loaded: Loaded, locked: Lock) -> str:
    encode, environment = locked.params("encode"), locked.header["environment"]
    models = loaded.recipe.encode
    devices = ", ".join(_code(device) for device in environment["devices"])
    versions = sorted(environment["versions"].items())
    rows = [
        ("encoders", f"preset {_code(models.preset)}"),
        ("VAE", f"sha256 {_code(encode['vae'])}{_model(models.vae)}"),
        ("CLIP", f"sha256 {_code(encode['clip'])}{_model(models.clip)}"),
        (
            "arithmetic",
            f"{_code(encode['precision'])}, {int(encode['chunk_frames'])} frames at a time",
        ),
        ("device", f"{devices} on {_code(environment['machine'])}"),
        ("versions", ", ".join(f"{_text(name)} {_code(version)}" for name, version in versions)),
    ]
    return "\n".join(["## Made with", "", *_table(("", ""), rows)])


def _model(name: str | None) -> str:
    """A model the recipe names, without the folders of anybody's machine."""
    if not name:
        return ""
    return f", {_code(os.path.basename(name.rstrip('/')) if os.path.isabs(name) else name)}"


def _taken_down(loaded: Loaded) -> str:
    count = len(loaded.removed)
    file = removals.path_of(loaded.path).name
    left_out = f" (`{file}`); a rebuild leaves them out" if count else ""
    were = "was" if count == 1 else "were"
    return f"## Taken down\n\n{_count(count, 'source')} {were} taken down{left_out}."


def _build_it_again(loaded: Loaded, locked: Lock) -> str:
    path = loaded.path
    files = [path.name, lock.path_of(path).name]
    if loaded.recipe.sources:
        files.append(loaded.recipe.sources)
    if loaded.removed:
        files.append(removals.path_of(path).name)
    lines = [
        "## Build it again",
        "",
        f"Copy {_and([_code(name) for name in files])} to `manifests/` of longtake, and there:",
        "",
        "```",
        f"make reproduce DATASET={shlex.quote(path.stem)}",
        "```",
        "",
    ]
    used = {clip.video for clip in locked.clips.values()}
    local = sum(locked.videos[key].uri.startswith("file:") for key in used)
    if local:
        are = "is a local file" if local == 1 else "are local files"
        lines += [
            f"> **{local} of the videos {are}:**",
            "> who has no copy in the place the recipe names gets a dataset without them, and is "
            "told so.",
            "",
        ]
    return "\n".join(
        [
            *lines,
            f"Root digest of the shards: {_code(locked.root_digest)}",
            "",
            "On the same kind of machine, with the versions above, the rebuild has this digest; "
            "elsewhere it says how near it comes.",
        ]
    )


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


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A Markdown table; columns of numbers are set to the right."""
    columns = range(len(head))
    is_number = [all(re.fullmatch(r"[\d.]+", str(row[at])) for row in rows) for at in columns]
    rule = "|".join("--:" if number else "---" for number in is_number)
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return [f"| {' | '.join(head)} |", f"|{rule}|", *lines]


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _hours(frames: int, fps: Fraction) -> str:
    return f"{float(frames / fps) / 3600:.2f}"


def _number(fps: Fraction) -> str:
    return str(fps.numerator) if fps.denominator == 1 else f"{float(fps):.3f}"
