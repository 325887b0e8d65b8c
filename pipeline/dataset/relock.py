"""Whether a finished build writes its lock, or leaves the one beside the recipe alone.

A published lock says what its publisher built. Somebody else's build of the same recipe differs in
last bits, and must not replace it without a word; the publisher's own next build must. So every
build also writes the lock of what it made into its own folder, `data/NAME/lock.jsonl`: while the
lock beside the recipe is the same as that one, it is this folder's own. `decide` has the whole
rule, and docs/lock.md says it to people.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from pipeline.core.errors import LongtakeError
from pipeline.core.manifest import Manifest
from pipeline.core.store import Store
from pipeline.dataset import lock, removals
from pipeline.dataset.likeness import compare_locks, sentence_of
from pipeline.dataset.lock import Lock
from pipeline.dataset.recipe import Loaded

OWN = "lock.jsonl"  # in a dataset's folder
Why = Literal["forced", "none", "recipe", "stages", "own", "fewer", "published"]
WRITES: frozenset[Why] = frozenset({"forced", "none", "recipe", "stages", "own"})


def decide(
    locked: Lock | None, new: Lock, is_own: bool, force: bool, removed: Collection[str] = ()
) -> Why:
    """Whether `new`, the lock of what was just built, replaces `locked`, the one that is there: a
    reason of `WRITES`, or one to leave it.

    `is_own`: `locked` was written from this data folder. `force`: the person said `--relock`.
    `removed`: sources that were taken down.
    """
    if force:
        return "forced"
    if locked is None:
        return "none"
    is_same_recipe = locked.header["recipe"] == new.header["recipe"]
    if is_same_recipe and lost_samples(locked, new.samples.keys(), removed):
        return "fewer"
    if not is_same_recipe:
        return "recipe"
    if not _have_same_stages(locked, new):
        return "stages"
    return "own" if is_own else "published"


def lost_samples(locked: Lock, samples: Collection[str], removed: Collection[str]) -> list[str]:
    """Samples of a lock that a build does not have, but for those of sources that were taken
    down.
    """
    lost = sorted(locked.samples.keys() - set(samples))
    return [key for key in lost if not _is_removed(locked.clips[key].video, removed)]


def _is_removed(video: str, removed: Collection[str]) -> bool:
    """Whether a video, or the list it came from, was taken down."""
    return any(video == source or video.startswith(f"{source}-") for source in removed)


def losses(loaded: Loaded, manifests: Sequence[Manifest]) -> dict[str, str]:
    """Why a finished build leaves the lock of this very recipe alone: by the key of each sample it
    does not have, the class of the rejection, or that its scene is cut otherwise now.
    """
    locked = _read_or_none(lock.path_of(loaded.path))
    if locked is None or locked.header["recipe"] != loaded.digest:
        return {}
    samples = {record.key for m in manifests if m.stage == "encode" for record in m.records}
    reasons: dict[str, str] = {}
    rejections = [rejection for manifest in manifests for rejection in manifest.rejections]
    for key in lost_samples(locked, samples, loaded.removed):
        reasons[key] = "no scene gives it"
        for rejection in rejections:
            if key == rejection.key or key.startswith(f"{rejection.key}-"):
                reasons[key] = f"{rejection.stage}: {rejection.reason}"
    return reasons


def _have_same_stages(locked: Lock, new: Lock) -> bool:
    """Whether the stages that both locks know have the same versions and parameters."""
    before, now = locked.header["stages"], new.header["stages"]
    for name in before.keys() & now.keys():
        for fact in ("version", "params"):
            if before[name][fact] != now[name][fact]:
                return False
    return bool(locked.header["packing"] == new.header["packing"])


def check_removals(loaded: Loaded, folder: Path) -> None:
    """Raises RecipeError where a lock, beside the recipe or in the dataset's folder, knows of
    sources that were taken down, and the file that says which has lost lines.
    """
    for plain in (lock.plain_path(loaded.path), folder / OWN):
        path = lock.present_form(plain)
        if head := lock.removals_known(path):
            removals.check(loaded.path, loaded.removed, head, path)


def write_lock(
    loaded: Loaded,
    manifests: Sequence[Manifest],
    folder: Path,
    store: Store,
    force: bool,
) -> Why:
    """Write the lock of a finished build: beside its recipe if the rule says so, and into the
    dataset's folder, `data/NAME`.
    """
    before = own_lock(folder)
    new = lock.lock_of(loaded, manifests, store, before.probes if before else {})
    locked = _read_or_none(lock.path_of(loaded.path))
    is_own = locked is not None and locked == before
    why = decide(locked, new, is_own, force, loaded.removed)
    if why in WRITES:
        lock.write(new, loaded.path)
    if why != "fewer":
        # Last. A build broken off before this finds beside the recipe the lock it would write,
        # which then is its own.
        lock.write_file(new, folder / OWN)
    return why


def remove_locks(recipe: Path, folder: Path) -> None:
    """Remove both locks, of a dataset of which nothing is left."""
    for plain in (lock.plain_path(recipe), folder / OWN):
        lock.remove_file(plain)


def own_lock(folder: Path) -> Lock | None:
    """The lock of what was last built in a dataset's folder; None if there is none."""
    return _read_or_none(lock.present_form(folder / OWN))


def _read_or_none(path: Path) -> Lock | None:
    try:
        return lock.read_file(path)
    except LongtakeError:
        return None


def sentence(recipe: Path, folder: Path, root_digest: str) -> str:
    """What is said of the lock after a build whose shards have this root digest."""
    path = lock.path_of(recipe)
    own, locked = own_lock(folder), _read_or_none(path)
    if own is None or own.root_digest != root_digest:
        fewer = "it has samples that this build does not have; --relock replaces it"
        return f"lock: {path} stays as it was: {fewer}"
    if locked is None or locked == own:
        return f"lock: {path}"
    likeness = compare_locks(locked, own)
    stays = f"stays: it was not written from {folder}, whose samples are {sentence_of(likeness)}"
    hint = "" if likeness.grade == "identical" else "; --relock replaces it"
    return f"lock: {path} {stays}{hint}"
