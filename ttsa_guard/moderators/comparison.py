"""What moderators are worth on labelled texts: ranking, calibration, decisions, agreement.

A failed verdict counts as a flag with the score 1, as a guard counts it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

from ttsa_guard.errors import ConfigError
from ttsa_guard.verdict import Verdict

_BINS = 10


@dataclass(frozen=True)
class ModeratorMetrics:
    """One moderator on some labelled texts; None is what cannot be said of labels of one kind.

    Args:
        roc_auc, pr_auc: how well its scores rank, 0 to 1.
        brier, ece: how far its scores are from the labels and from the share of harms, 0 to 1.
        precision, recall: of its flags, 0 to 1.
        false_alarms: share of the harmless texts that it flags.
        failed: how many texts it could not judge.
    """

    roc_auc: float | None
    pr_auc: float | None
    brier: float
    ece: float
    precision: float | None
    recall: float | None
    false_alarms: float | None
    failed: int


@dataclass(frozen=True)
class SourceComparison:
    """Moderators on texts of one source, by name."""

    texts: int
    harmful: int
    moderators: dict[str, ModeratorMetrics]


@dataclass(frozen=True)
class Comparison:
    """Moderators on all texts, by name.

    Args:
        kappa: Cohen's, of the flags of two moderators, by "NAME / NAME".
        sources: the texts of each source by themselves, where there are several: the areas of all
            together are partly about which source a text is from.
    """

    texts: int
    harmful: int
    moderators: dict[str, ModeratorMetrics]
    kappa: dict[str, float]
    sources: dict[str, SourceComparison] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        data = asdict(self)
        if not self.sources:
            del data["sources"]
        return data


def check_installed() -> None:
    """Check before the work that `compare` can be called afterwards.

    Raises:
        ConfigError: scikit-learn is missing.
    """
    _metrics()


def compare(
    labels: Sequence[bool], verdicts: Mapping[str, Sequence[Verdict]], sources: Sequence[str]
) -> Comparison:
    """Compare moderators on the same texts.

    Args:
        labels: whether each text is harmful.
        verdicts: by moderator, one for each text.
        sources: the name of each text's source.

    Raises:
        ConfigError: scikit-learn is missing.
    """
    metrics = _metrics()
    kappa = {
        f"{a} / {b}": round(
            float(metrics.cohen_kappa_score(_flags(verdicts[a]), _flags(verdicts[b]))), 4
        )
        for a, b in combinations(verdicts, 2)
    }
    everything = _compared(range(len(labels)), labels, verdicts)
    places = _places(sources)
    parts = (
        {source: _compared(own, labels, verdicts) for source, own in places.items()}
        if len(places) > 1
        else {}
    )
    return Comparison(everything.texts, everything.harmful, everything.moderators, kappa, parts)


def measure(labels: Sequence[bool], verdicts: Sequence[Verdict]) -> ModeratorMetrics:
    """Measure one moderator.

    Raises:
        ConfigError: scikit-learn is missing.
    """
    metrics = _metrics()
    scores, flags = [v.score for v in verdicts], _flags(verdicts)
    harmful = sum(labels)
    harmless = len(labels) - harmful
    both = harmful and harmless
    false_alarms = sum(flag for flag, bad in zip(flags, labels, strict=True) if not bad)
    return ModeratorMetrics(
        roc_auc=_rounded(metrics.roc_auc_score(labels, scores)) if both else None,
        pr_auc=_rounded(metrics.average_precision_score(labels, scores)) if both else None,
        brier=_rounded(metrics.brier_score_loss(labels, scores)),
        ece=_rounded(calibration_error(labels, scores)),
        precision=(
            _rounded(metrics.precision_score(labels, flags, zero_division=0)) if both else None
        ),
        recall=_rounded(metrics.recall_score(labels, flags, zero_division=0)) if harmful else None,
        false_alarms=_rounded(false_alarms / harmless) if harmless else None,
        failed=sum(v.decision == "failed" for v in verdicts),
    )


def calibration_error(labels: Sequence[bool], scores: Sequence[float]) -> float:
    """Return the expected calibration error: the mean distance between score and share of harms in
    ten bins of equal width.
    """
    bins: list[list[tuple[bool, float]]] = [[] for _ in range(_BINS)]
    for label, score in zip(labels, scores, strict=True):
        bins[min(int(score * _BINS), _BINS - 1)].append((label, score))
    return sum(abs(sum(label - score for label, score in members)) for members in bins) / len(
        labels
    )


def _compared(
    places: Sequence[int], labels: Sequence[bool], verdicts: Mapping[str, Sequence[Verdict]]
) -> SourceComparison:
    own = [labels[i] for i in places]
    return SourceComparison(
        len(own),
        sum(own),
        {name: measure(own, [given[i] for i in places]) for name, given in verdicts.items()},
    )


def _places(sources: Sequence[str]) -> dict[str, list[int]]:
    """Return the places of each source's texts."""
    places: dict[str, list[int]] = {}
    for i, source in enumerate(sources):
        places.setdefault(source, []).append(i)
    return places


def _flags(verdicts: Sequence[Verdict]) -> list[int]:
    return [int(v.flagged) for v in verdicts]


def _rounded(value: float) -> float:
    return round(float(value), 4)


def _metrics() -> Any:
    try:
        from sklearn import metrics
    except ImportError as error:
        raise ConfigError(
            "scikit-learn is not installed", hint="pip install 'ttsa-guard[train,plot]'"
        ) from error
    return metrics
