"""What messages say of our moderators is what the card says."""

from importlib import resources

import pytest

from ttsa_guard.moderators.measured import MEASURED, Measured


@pytest.mark.parametrize("name", ["encoder", "lite"])
def test_the_numbers_are_those_of_the_card(name):
    card = (resources.files("ttsa_guard.embedded") / "MODERATORS_CARD.md").read_text(
        encoding="utf-8"
    )
    lines = card[card.index("| | within: ROC-AUC") :].splitlines()
    auc, pair = next(
        [cell.strip() for cell in line.split("|")[2:4]]
        for line in lines
        if line.startswith(f"| {name} |")
    )
    measured = MEASURED[name]
    assert auc == f"{measured.roc_auc:.3f}"
    assert pair == f"{measured.recall:.0%} / {measured.false_alarms:.1%}"


def test_a_message_says_what_is_found_and_what_is_not():
    assert (
        str(Measured(0.9, 0.5, 0.02, 0.25))
        == "finds 50% of bad answers like those it learned from, 25% of harmful ones of other"
        " origin; 2.0% false alarms"
    )
    assert "origin" not in str(Measured(0.9, 0.5, 0.02))
