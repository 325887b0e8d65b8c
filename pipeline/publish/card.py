"""`card`: a dataset's README for a model hub, from the recipe and its lock alone. Equal locks make
equal bytes.

The header is YAML, with every scalar quoted as in JSON (which YAML is, but for what it cannot
print: that is escaped). Captions and licences are strangers' words: they can neither end the header
nor open a link, a tag or a table cell. Which fields and licences a hub knows:
github.com/huggingface/hub-docs, datasetcard.md and docs/hub/repositories-licenses.md.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from pipeline.core.errors import Damaged
from pipeline.core.files import replace_file
from pipeline.dataset import lock, removals
from pipeline.dataset.lock import Lock, LockedSample
from pipeline.dataset.recipe import Loaded

LICENSES = frozenset(  # that a hub knows, of those that could be a video's or a dataset's
    (
        *(
            "cc0-1.0",
            "cc-by-2.0",
            "cc-by-2.5",
            "cc-by-3.0",
            "cc-by-4.0",
            "cc-by-sa-3.0",
            "cc-by-sa-4.0",
            "cc-by-nd-4.0",
        ),
        *("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0"),
        *(
            "cc-by-nc-sa-2.0",
            "cc-by-nc-sa-3.0",
            "cc-by-nc-sa-4.0",
            "c-uda",
            "cdla-sharing-1.0",
            "cdla-permissive-1.0",
        ),
        *(
            "cdla-permissive-2.0",
            "odbl",
            "odc-by",
            "pddl",
            "etalab-2.0",
            "gfdl",
            "apache-2.0",
            "mit",
            "isc",
            "zlib",
            "unlicense",
        ),
        *(
            "bsd-2-clause",
            "bsd-3-clause",
            "bsl-1.0",
            "mpl-2.0",
            "gpl-2.0",
            "gpl-3.0",
            "agpl-3.0",
            "lgpl-2.1",
            "lgpl-3.0",
            "wtfpl",
        ),
    )
)
SPELT = {
    "odbl-1.0": "odbl",
    "odc-by-1.0": "odc-by",
    "pddl-1.0": "pddl",
}  # SPDX's spelling and the hub's
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)
NONE = "none stated"
EXAMPLES = 3
SHORT = 100  # characters of a caption, a licence, a reason
MEMBERS = {
    "json": "captions, frame rate, source and licence, place in the source, crop",
    "latents.npy": "the VAE's posterior mean, `f c h w` float16, unscaled",
    "latents_std.npy": "the posterior's standard deviation, same shape",
    "text.npy": "CLIP's hidden states of the first caption, `77 d` float16",
    "image.npy": "CLIP's embeddings of a few evenly spaced frames, `k d` float16",
}


def path_of(recipe: Path) -> Path:
    return recipe.with_name(f"{recipe.stem}.card.md")


def write(loaded: Loaded, found: Lock, path: Path, with_shards: bool) -> None:
    """Write the card to a file."""
    replace_file(path, markdown(loaded, found, with_shards).encode())


def markdown(loaded: Loaded, found: Lock, with_shards: bool = False) -> str:
    """The whole card; `with_shards` if it is to lie beside the folder `shards/`. Raises Damaged for
    a header without a build's facts.
    """
    try:
        lines = [
            "---",
            *_yaml(_metadata(loaded, found, with_shards)),
            "---",
            "",
            *_body(loaded, found, with_shards),
        ]
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise Damaged(
            f"{lock.path_of(loaded.path).name}: line 1: the header is not one of a build: {error!r}"
        ) from error
    return "\n".join(lines) + "\n"


def _metadata(loaded: Loaded, found: Lock, with_shards: bool) -> dict[str, Any]:
    made: dict[str, Any] = {
        **_license(found),
        "pretty_name": loaded.recipe.name,
        "task_categories": ["text-to-video"],
        "tags": ["video", "latents", "webdataset", "longtake"],
        "size_categories": [
            next((name for limit, name in SIZES if len(found.samples) < limit), "n>10M")
        ],
    }
    if with_shards:
        patterns = {"train": "shards/[0-9]*.tar", "validation": "shards/validation-*.tar"}
        files = [
            {"split": split, "path": patterns[split]} for split in patterns if _splits(found)[split]
        ]
        made["configs"] = [{"config_name": "default", "data_files": files}]
    return made


def _license(found: Lock) -> dict[str, str]:
    """The licence all sources have, or that they differ. Sources without a clip count too: the
    recipe names them.
    """
    counts = _licenses(found)
    spelt = {SPELT.get(name.lower(), name.lower()) for name in counts}
    if len(spelt) == 1 and spelt <= LICENSES:
        return {"license": spelt.pop()}
    if counts.keys() <= {NONE}:
        return {"license": "unknown"}
    listed = "; ".join(
        f"{_plain(name)}: {count} {_of(count, 'source')}" for name, count in counts.items()
    )
    name = (
        "mixed"
        if len(counts) > 1
        else re.sub(r"[^a-z0-9.-]+", "-", next(iter(counts)).lower()).strip("-") or "custom"
    )
    return {"license": "other", "license_name": name, "license_details": listed}


def _licenses(found: Lock) -> dict[str, int]:
    """Sources by licence, as the first of them spells it; none last."""
    spelt: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for video in found.videos.values():
        name = (video.license or "").strip() or NONE
        counts[spelt.setdefault(name.lower(), name)] += 1
    return {
        name: counts[name] for name in sorted(counts, key=lambda name: (name == NONE, name.lower()))
    }


def _splits(found: Lock) -> Counter[str]:
    """Samples by split."""
    counts: Counter[str] = Counter()
    for made in found.shards.values():
        counts[made.split] += len(made.samples)
    return counts


def _body(loaded: Loaded, found: Lock, with_shards: bool) -> Iterator[str]:
    yield f"# {_text(loaded.recipe.name)}"
    yield from (
        ("", _text(loaded.recipe.description, 2000)) if loaded.recipe.description.strip() else ()
    )
    kept = f"addresses, time stamps, captions, digests, and of every array {lock.PROBES} values"
    yield from ("", f"**No footage is in here.** Recipe and lock hold {kept}, no more.")
    if with_shards:
        yield "The shards hold latents and embeddings. A VAE decodes latents to pictures near the originals, so licences hold for them too."
    else:
        yield "The shards are not here either: anybody builds them from the files named below."
    for section in (
        _what(loaded, found),
        _by_license(found),
        _funnel(found),
        _sample(found),
        _made_with(loaded, found),
    ):
        yield ""
        yield from section
    yield ""
    yield from _taken_down(loaded)
    yield ""
    yield from _reproduce(loaded, found)


def _what(loaded: Loaded, found: Lock) -> Iterator[str]:
    frames = sum(found.clips[key].num_frames for key in found.samples)
    fps, size = Fraction(found.params("extract")["fps"]), found.params("extract")["size"]
    cut = (
        "; each clip is of one shot"
        if found.params("cut")["detector"] != "none"
        else "; cuts were not looked for"
    )
    splits = _splits(found)
    held = ", ".join(
        f"{splits[split]} {split}" for split in ("train", "validation") if splits[split]
    )
    yield "## What it is"
    yield ""
    yield f"- {len(found.samples)} {_of(len(found.samples), 'sample')} ({held}) in {len(found.shards)} {_of(len(found.shards), 'shard')}"
    yield f"- {frames} frames, {float(frames / fps) / 3600:.2f} hours, {size} x {size} at {_number(fps)} fps{cut}"
    used = {found.clips[key].video for key in found.samples}
    yield f"- from {len(used)} of {len(found.videos)} {_of(len(found.videos), 'video')}"
    scores = sorted(
        one.round_trip_psnr_db
        for one in found.samples.values()
        if one.round_trip_psnr_db is not None
    )
    if scores:
        yield f"- VAE round trip: {scores[len(scores) // 2]:.1f} dB PSNR in the median of {len(scores)} {_of(len(scores), 'clip')}"
    captions = sorted({caption for key in used for caption in found.videos[key].captions})
    if captions:
        yield f"- {len(captions)} different {_of(len(captions), 'caption')}; in which language is not recorded. For example:"
        yield from (f"  - {_text(caption)}" for caption in captions[:EXAMPLES])


def _by_license(found: Lock) -> Iterator[str]:
    counts = _licenses(found)
    fps = Fraction(found.params("extract")["fps"])
    clips: Counter[str] = Counter()
    frames: Counter[str] = Counter()
    of_video = {
        video.key: (video.license or "").strip().lower() or NONE for video in found.videos.values()
    }
    for key in found.samples:
        clip = found.clips[key]
        clips[of_video[clip.video]] += 1
        frames[of_video[clip.video]] += clip.num_frames
    rows = [
        (_code(name), count, f"{float(frames[name.lower()] / fps) / 3600:.2f}", clips[name.lower()])
        for name, count in counts.items()
    ]
    yield "## Sources by licence"
    yield ""
    if none := counts.get(NONE):
        yield f"> **WARNING: without a licence: {none} of {len(found.videos)} {_of(len(found.videos), 'source')}.**"
        yield "> Nobody has said that they may be copied, shown or trained on: find out before you do."
        yield ""
    yield from _table(("licence", "sources", "hours in clips", "clips"), rows)


def _funnel(found: Lock) -> Iterator[str]:
    yield "## What became of every record"
    yield ""
    stages = found.header["stages"]
    rows = []
    for name in sorted(stages, key=lambda name: (_order(name), name)):
        one = stages[name]
        why = ", ".join(
            f"{int(count)} {_code(reason)}" for reason, count in sorted(one["rejected"].items())
        )
        rows.append(
            (_code(name), int(one["in"]), int(one["out"]), sum(one["rejected"].values()), why)
        )
    yield from _table(("stage", "in", "out", "rejected", "why"), rows)
    yield ""
    yield "`download` (of lists of videos), `cut` and `filter` may give several records for one; nothing is dropped without a reason."


def _order(stage: str) -> int:
    order = ("download", "cut", "filter", "extract", "encode", "shard")
    return order.index(stage) if stage in order else len(order)


def _sample(found: Lock) -> Iterator[str]:
    names = sorted(
        {name for sample in found.samples.values() for name in sample.members}, key=_member_order
    )
    rows = [
        (_code(f"KEY.{name}"), _member(name), _share(found.samples.values(), name))
        for name in names
    ]
    yield "## What a sample holds"
    yield ""
    yield from _table(("member", "what", "samples"), rows)


def _member_order(name: str) -> tuple[int, str]:
    first = list(MEMBERS)
    kind = "text.npy" if re.fullmatch(r"text\d+\.npy", name) else name
    return (first.index(kind) if kind in first else len(first), name.zfill(20))


def _member(name: str) -> str:
    if further := re.fullmatch(r"text(\d+)\.npy", name):
        return f"of caption {int(further[1]) + 1}"
    return MEMBERS.get(name, "")


def _share(samples: Any, name: str) -> int:
    return sum(name in sample.members for sample in samples if isinstance(sample, LockedSample))


def _made_with(loaded: Loaded, found: Lock) -> Iterator[str]:
    encode, environment = found.params("encode"), found.header["environment"]
    models = loaded.recipe.encode
    rows = [
        ("encoders", f"preset {_code(models.preset)}"),
        ("VAE", f"sha256 {_code(encode['vae'])}" + _model(models.vae)),
        ("CLIP", f"sha256 {_code(encode['clip'])}" + _model(models.clip)),
        (
            "arithmetic",
            f"{_code(encode['precision'])}, {int(encode['chunk_frames'])} frames at a time",
        ),
        (
            "device",
            ", ".join(_code(device) for device in environment["devices"])
            + f" on {_code(environment['machine'])}",
        ),
        (
            "versions",
            ", ".join(
                f"{_text(name)} {_code(version)}"
                for name, version in sorted(environment["versions"].items())
            ),
        ),
    ]
    yield "## Made with"
    yield ""
    yield from _table(("", ""), rows)


def _model(name: str | None) -> str:
    """A model the recipe names, without the folders of anybody's machine."""
    return (
        f", {_code(os.path.basename(name.rstrip('/')) if os.path.isabs(name) else name)}"
        if name
        else ""
    )


def _taken_down(loaded: Loaded) -> Iterator[str]:
    count = len(loaded.removed)
    yield "## Taken down"
    yield ""
    told = f" (`{removals.path_of(loaded.path).name}`); a rebuild leaves them out" if count else ""
    yield f"{count} {_of(count, 'source')} {'was' if count == 1 else 'were'} taken down{told}."


def _reproduce(loaded: Loaded, found: Lock) -> Iterator[str]:
    path = loaded.path
    files = [path.name, lock.path_of(path).name]
    files += [loaded.recipe.sources] if loaded.recipe.sources else []
    files += [removals.path_of(path).name] if loaded.removed else []
    yield "## Build it again"
    yield ""
    yield f"Copy {_and([_code(name) for name in files])} to `manifests/` of longtake, and there:"
    yield from ("", "```", f"make reproduce DATASET={shlex.quote(path.stem)}", "```", "")
    if local := sum(
        found.videos[key].uri.startswith("file:")
        for key in {clip.video for clip in found.clips.values()}
    ):
        yield f"> **{local} of the videos {'is a local file' if local == 1 else 'are local files'}:**"
        yield "> who has no copy in the place the recipe names gets a dataset without them, and is told so."
        yield ""
    yield f"Root digest of the shards: {_code(found.root_digest)}"
    yield ""
    yield "On the same kind of machine, with the versions above, the rebuild has this digest; elsewhere it says how near it comes."


def _yaml(value: Mapping[str, Any] | Sequence[Any], indent: str = "") -> Iterator[str]:
    """Block style, keys plain, scalars quoted."""
    pairs = value.items() if isinstance(value, Mapping) else (("-", one) for one in value)
    for name, one in pairs:
        head = f"{indent}-" if name == "-" else f"{indent}{name}:"
        if isinstance(one, str):
            yield f"{head} {quoted(one)}"
        elif name == "-":
            first, *rest = _yaml(one, f"{indent}  ")
            yield from (f"{head} {first.strip()}", *rest)
        else:
            yield head
            yield from _yaml(one, indent)


def quoted(text: str) -> str:
    """A double-quoted scalar that YAML reads back as it was."""
    unprintable = (
        "[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
    )
    return re.sub(
        unprintable, lambda found: f"\\U{ord(found[0]):08x}", json.dumps(text, ensure_ascii=False)
    )


def _plain(text: str, limit: int = SHORT) -> str:
    """One line without characters that are not seen."""
    seen = "".join(
        " "
        if unicodedata.category(c) in ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")
        and c not in "\u200c\u200d"
        else c
        for c in text
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


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    right = [
        all(re.fullmatch(r"[\d.]+", str(row[index])) for row in rows) for index in range(len(head))
    ]
    yield f"| {' | '.join(head)} |"
    yield f"|{'|'.join('--:' if number else '---' for number in right)}|"
    yield from (f"| {' | '.join(map(str, row))} |" for row in rows)


def _of(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _number(fps: Fraction) -> str:
    return str(fps.numerator) if fps.denominator == 1 else f"{float(fps):.3f}"
