"""Numbers about moderators on labelled texts."""

import pytest

from ttsa_guard.moderators.comparison import calibration_error, compare, measure
from ttsa_guard.moderators.tuning import tuned, wilson_interval
from ttsa_guard.verdict import Verdict


def verdicts(*scores):
    return [Verdict("m", "flag" if score >= 0.5 else "pass", score) for score in scores]


def test_calibration_error_by_hand():
    assert calibration_error([1, 0, 1, 1], [0.9, 0.92, 0.31, 1.0]) == pytest.approx(
        (abs((1 - 0.9) + (0 - 0.92) + (1 - 1.0)) + abs(1 - 0.31)) / 4
    )


def test_what_labels_of_one_kind_cannot_say():
    harmless = measure([False, False], verdicts(0.2, 0.6))
    assert (harmless.roc_auc, harmless.pr_auc, harmless.precision, harmless.recall) == (None,) * 4
    assert harmless.false_alarms == 0.5
    harmful = measure([True, True], verdicts(0.2, 0.6))
    assert (harmful.recall, harmful.false_alarms) == (0.5, None)


def test_two_moderators_on_two_sources():
    labels = [True, False, True, False]
    judged = {"right": verdicts(0.9, 0.1, 0.9, 0.1), "wrong": verdicts(0.1, 0.9, 0.1, 0.9)}
    compared = compare(labels, judged, ["chat", "chat", "mail", "mail"])
    assert compared.kappa == {"right / wrong": -1.0}
    assert {name: (part.texts, part.harmful) for name, part in compared.sources.items()} == {
        "chat": (2, 1),
        "mail": (2, 1),
    }
    assert compared.sources["mail"].moderators["wrong"].roc_auc == 0
    assert "sources" not in compare(labels, judged, ["chat"] * 4).as_dict()


def test_wilsons_interval_of_no_successes_by_hand():
    z2 = 1.96**2
    assert wilson_interval(0, 100) == (pytest.approx(0, abs=1e-12), pytest.approx(z2 / (100 + z2)))


def test_a_threshold_lies_between_the_scores_that_it_parts():
    threshold = tuned([i / 100 for i in range(100)], [0.5, 0.995], 0.02)
    assert 0.97 < threshold.value <= 0.98
    assert (threshold.false_alarms.value, threshold.false_alarms.texts) == (0.02, 100)
    assert threshold.low < threshold.value < threshold.high
    assert threshold.recall.value == 0.5
    assert tuned([0.1, 0.2], [], 0.5).recall is None
