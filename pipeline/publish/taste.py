"""A person's taste from a few dozen picks: a logistic head over the clips' CLIP image embeddings,
for the scorer `head`.

How good it is, is said before it is written: its accuracy on picks it was not fitted to, beside
that of always giving the more frequent answer. One that is no better is not written. Clips of one
film look alike, so picks of enough films are held out film by film.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core import picks as hand
from pipeline.core.errors import BadData, RecipeError
from pipeline.core.files import replace_file
from pipeline.core.picks import Pick
from pipeline.core.records import Clip
from pipeline.core.stage import Progress
from pipeline.dataset.build import opened
from pipeline.dataset.chain import read_manifest
from pipeline.dataset.recipe import Loaded
from pipeline.media import scorers
from pipeline.media.scorers.head import clip_of, embedding_of, encoded
from pipeline.publish.page.report import picks_path
from pipeline.stages import keep

MIN_PICKS = 50
MIN_EACH = 10  # kept, and rejected
FOLDS = 5
REPEATS = 3  # of the folds, each with another shuffle
INNER_FOLDS = 3  # that choose the strength of the regularisation
STRENGTHS = [1e-3, 1e-2, 1e-1, 1.0]
LUCK = 0.01  # how often a head that knows nothing may pass
SUFFIX = ".taste.safetensors"
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """A head (`weight` of `d` numbers) and what it is worth. Accuracies are shares of picks;
    `spread` is their standard deviation over the folds, `chance` what the more frequent answer has.
    `luck` is how likely so many are right by chance (a binomial test).
    """

    weight: Numbers
    bias: float
    accuracy: float
    spread: float
    chance: float
    luck: float
    by_film: bool

    @property
    def is_better_than_chance(self) -> bool:
        return self.luck < LUCK


@dataclass(frozen=True)
class Taste:
    """What was fitted to which picks. `path` is the head's file, None if it was not written."""

    fit: Fit
    num_kept: int
    num_rejected: int
    num_elsewhere: int  # picks of clips that are not in the dataset, or have no embedding
    path: Path | None


def path_of(recipe: Path) -> Path:
    """Where a recipe's taste is written: beside it."""
    return recipe.with_name(f"{recipe.stem}{SUFFIX}")


def taste(loaded: Loaded, data: Path, device: str, progress: Progress) -> Taste:
    """Fit a head to the recipe's picks, and write it if it is better than chance. Raises
    RecipeError for too few picks.
    """
    picks = hand.last_of_each(hand.read(picks_path(loaded)))
    clips = [clip for clip in clips_of(loaded, data) if clip.blob.sha256 in picks]
    _check_enough(clips, picks, picks_path(loaded))
    params, models = clip_of(loaded.setup(device))
    embedded: dict[str, list[float]] = {}
    with opened(data) as store:
        progress.start("embeddings", len(clips), float(len(clips)))
        for clip in clips:
            with contextlib.suppress(BadData):  # then it is no sample either
                embedded[clip.key] = embedding_of(clip, store, params, models, device)
            progress.advance("embeddings", 1, 1.0)
    clips = [clip for clip in clips if clip.key in embedded]
    _check_enough(clips, picks, picks_path(loaded))
    liked = [picks[clip.blob.sha256].pick == "keep" for clip in clips]
    films = [clip.scene.video.blob.sha256 for clip in clips]
    fit = fit_head(np.array([embedded[clip.key] for clip in clips]), np.array(liked), films)
    path = None
    if fit.is_better_than_chance:
        path = path_of(loaded.path)
        replace_file(path, encoded(fit.weight, fit.bias, models.clip.sha256))
    num_kept = sum(liked)
    return Taste(fit, num_kept, len(liked) - num_kept, len(picks) - len(clips), path)


def clips_of(loaded: Loaded, data: Path) -> list[Clip]:
    """Every clip that was extracted, one of those of equal bytes. Raises RecipeError where none
    was.
    """
    records = read_manifest(data / loaded.recipe.name, "extract").records
    clips = [record for record in records if isinstance(record, Clip)]
    return list({clip.blob.sha256: clip for clip in clips}.values())


def _check_enough(clips: Sequence[Clip], picks: dict[str, Pick], path: Path) -> None:
    num_kept = sum(picks[clip.blob.sha256].pick == "keep" for clip in clips)
    num_rejected = len(clips) - num_kept
    if len(clips) < MIN_PICKS or min(num_kept, num_rejected) < MIN_EACH:
        raise RecipeError(
            f"{path.name} keeps {num_kept} and rejects {num_rejected} of the clips that are here: "
            f"a taste takes {MIN_PICKS} picks, {MIN_EACH} of each kind (`make browse`: K keeps, X "
            "rejects)"
        )


def fit_head(embeddings: Numbers, liked: NDArray[np.bool_], films: Sequence[str]) -> Fit:
    """Fit a logistic regression of `liked` (`n`) on embeddings (`n d`), and cross-validate it: by
    film if both kinds of picks come from enough films, else by clip.

    Each column is scaled to variance 1 first; the head is over the embeddings as they are. The same
    picks give the same folds. On one thread, so that cores do not wait for each other, and sums do
    not depend on how many there are.
    """
    from scipy.stats import binomtest
    from threadpoolctl import threadpool_limits

    by_film = all(
        len({film for film, is_liked in zip(films, liked, strict=True) if is_liked == kind})
        >= 2 * FOLDS
        for kind in (True, False)
    )
    right: list[NDArray[np.bool_]] = []  # by fold: which of its picks the head gets right
    with threadpool_limits(1):
        for repeat in range(REPEATS):
            for train, test in _folds(embeddings, liked, films if by_film else None, repeat):
                regression = _fitted(embeddings[train], liked[train])
                right.append(regression.predict(embeddings[test]) == liked[test])
        scaler, regression = _fitted(embeddings, liked).best_estimator_
    accuracy = float(np.concatenate(right).mean())
    spread = float(np.std([fold.mean() for fold in right]))
    chance = max(float(liked.mean()), 1 - float(liked.mean()))
    luck = binomtest(round(accuracy * len(liked)), len(liked), chance, "greater").pvalue
    weight = regression.coef_[0] / scaler.scale_
    bias = float(regression.intercept_[0] - weight @ scaler.mean_)
    return Fit(weight, bias, accuracy, spread, chance, float(luck), by_film)


def _folds(
    embeddings: Numbers, liked: NDArray[np.bool_], films: Sequence[str] | None, repeat: int
) -> Any:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    kind = StratifiedKFold if films is None else StratifiedGroupKFold
    return kind(FOLDS, shuffle=True, random_state=repeat).split(embeddings, liked, films)


def _fitted(embeddings: Numbers, liked: NDArray[np.bool_]) -> Any:
    """A regression, its strength chosen by cross-validation within these picks alone."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=10_000))
    inner = StratifiedKFold(INNER_FOLDS, shuffle=True, random_state=0)
    strengths = {"logisticregression__C": STRENGTHS}
    return GridSearchCV(model, strengths, scoring="neg_log_loss", cv=inner).fit(embeddings, liked)


def recipe_lines(loaded: Loaded, path: Path) -> list[str]:
    """What to write into the recipe so that clips are scored by a head and chosen by it; the rules
    that hold where there is no [keep], too. Nothing if the recipe names the head already.
    """
    setup = loaded.setup("auto", offline=True)
    table = setup.table(scorers.Params)
    if any(path in scorer.files(loaded.folder).values() for scorer in table.chosen):
        return []
    names = [name for name in scorers.SCORERS if name in {*table.scorers, "head"}]
    quoted = ", ".join(f'"{name}"' for name in names)
    default_rules: list[str] = []
    if setup.table(keep.Params) == keep.WITHOUT:
        rules = keep.rules_of(setup)
        default_rules = [f'{name} = "{rule.text}"' for name, rule in rules.items()]
    return [
        "[score]",
        f"scorers = [{quoted}]",
        "[score.head]",
        f'taste = "{path.name}"',
        "[keep]",
        *default_rules,
        'taste = "taste > 0.5"',
    ]
