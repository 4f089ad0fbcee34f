"""Languages are told apart by one sentence."""

import pytest

from ttsa_guard.languages import is_latin, language, may_be_english


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The house is old and it is on a hill with many trees.", "en"),
        ("La casa es vieja y está en una colina con muchos árboles.", "es"),
        ("La maison est vieille et elle est sur une colline avec des arbres.", "fr"),
        ("Das Haus ist alt und es ist auf einem Hügel mit vielen Bäumen.", "de"),
        ("La casa è vecchia e si trova su una collina con gli alberi.", "it"),
        ("A casa é velha e não está em uma colina com as árvores.", "pt"),
        ("Hoe leer ik een kind veters strikken?", "nl"),
        ("Дом старый и стоит на холме.", "ru"),
        ("家は古くて丘の上にあります。", "ja"),
        ("How do I clean a wooden table?", "en"),
        ("Why do leap years skip some centuries?", "en"),
        ("Yes.", None),
        ("Paris.", None),
        ("42", None),
        ("", None),
    ],
)
def test_the_language_of_a_sentence(text, expected):
    assert language(text) == expected


def test_how_sure_it_has_to_be():
    text = "Why do leap years skip some centuries?"
    assert language(text, sure=0) == "en"
    assert language(text, sure=1) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("How do I clean a table?", True), ("Paris.", True), ("", True), ("Comment ça va ?", False)],
)
def test_what_may_be_english(text, expected):
    assert may_be_english(text) is expected


def test_letters_of_other_scripts():
    assert is_latin("Où est l'été? 42")
    assert is_latin("")
    assert not is_latin("Привет, Anna")
