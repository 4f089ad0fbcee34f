import pytest

from ttsa_guard.text import (
    as_prose,
    ended_sentences,
    is_ended,
    settled_sentences,
    split_sentences,
    through_sentence,
    without_loop,
)

SCRIPTS = {
    "latin": ("The kettle is clean.", " ", "Is it dry?"),
    "cyrillic": ("Чайник чист.", " ", "Он сухой?"),
    "greek": ("Ο βραστήρας είναι καθαρός.", " ", "Είναι στεγνός\u037e"),
    "arabic": ("الإبريق نظيف.", " ", "هل هو جاف؟"),
    "urdu": ("کیتلی صاف ہے۔", " ", "کیا یہ خشک ہے؟"),
    "hindi": ("केतली साफ है।", " ", "क्या यह सूखी है?"),
    "armenian": ("Թեյնիկը մաքուր է։", " ", "Այն չոր է։"),
    "amharic": ("ማንቆርቆሪያው ንጹህ ነው።", " ", "ደረቅ ነው፧"),
    "hebrew": ("הקומקום נקי.", " ", "האם הוא יבש?"),
    "korean": ("주전자가 깨끗합니다.", " ", "말랐나요?"),
    "chinese": ("水壶是干净的。", "", "它干了吗？"),
    "japanese": ("やかんはきれいです。", "", "乾いていますか？"),
    "burmese": ("ရေနွေးအိုး သန့်ရှင်းသည်။", " ", "ခြောက်သွေ့သည်။"),
    "khmer": ("កំសៀវស្អាត។", " ", "វាស្ងួត។"),
}
scripts = pytest.mark.parametrize(("first", "space", "second"), SCRIPTS.values(), ids=SCRIPTS)


@scripts
def test_sentences_of_many_scripts_are_told_apart(first, space, second):
    assert split_sentences(f"{first}{space}{second}") == [first, second]
    assert through_sentence(f"{first}{space}{second}", 2) == first


@scripts
def test_a_growing_text_of_any_script_is_shown_up_to_its_last_sentence(first, space, second):
    assert settled_sentences(f"{first}{space}{second[:-1]}") == first
    assert ended_sentences(f"{first}{space}{second[:-1]}") == first


@scripts
def test_a_text_of_any_script_ends_where_its_sentence_does(first, space, second):
    assert is_ended(f"{first}{space}{second}")
    assert not is_ended(f"{first}{space}{second[:-1]}")


@pytest.mark.parametrize(
    "text", ['He said "yes"', "Call `main()`", "It ends (here)", "好」", "Well…", "**Done.**"]
)
def test_quotes_brackets_and_code_end_a_text_too(text):
    assert is_ended(text)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("", ""),
        ("No end", ""),
        ("An end.", ""),
        ("An end. ", "An end."),
        ('He said "yes." Then', 'He said "yes."'),
        ("3.5 grams", ""),
        ("A list:\n- one\n- tw", "A list:\n- one"),
        ("Is it? Yes! No", "Is it? Yes!"),
        ("这很好。然后", "这很好。"),
    ],
)
def test_of_a_growing_text_the_last_sentence_is_left_out(text, whole):
    assert settled_sentences(text) == whole


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("One. Two. Thr", "One. Two."),
        ("One. Two.", "One. Two."),
        ("No end", ""),
        ("Take:\n1. A cup.\n2.", "Take:\n1. A cup."),
        ("Take these.\n1. A cup.\nThen do this:\n", "Take these.\n1. A cup."),
        ("It is easy. Here is how:\n\n1. Take a cup:", "It is easy."),
        ("- a cup\n- a plate\n- a sp", "- a cup\n- a plate"),
        ("- a cup\n- a plate\n-", "- a cup\n- a plate"),
        ("1. **Tables**:\n\n* 1. Wipe them.\n* 2.", "1. **Tables**:\n\n* 1. Wipe them."),
        ("Some tips:\n\n1. **Tables**:\n\n2. **Chairs**:\n\n* 4.", ""),
        ("Wipe it. 1. Dry it. 2. Wax it. 3.", "Wipe it. 1. Dry it. 2. Wax it."),
        ("I won 3.", "I won 3."),
        ("你好。再", "你好。"),
        ("यह अच्छा है। और", "यह अच्छा है।"),
        ('He said "yes." And', 'He said "yes."'),
        ("", ""),
    ],
)
def test_text_up_to_its_last_whole_sentence(text, whole):
    assert ended_sentences(text) == whole


SAID = "You can use a strong password for every account."


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        pytest.param(f"{SAID} {SAID}", SAID, id="the-same-again"),
        pytest.param(
            f"Hello there. {SAID} You can use a strong password for every site. You can use a"
            " strong password for every phone.",
            f"Hello there. {SAID}",
            id="nearly-the-same-again",
        ),
        pytest.param(
            "1. Lock the door when you leave.\n2. Lock the door when you leave home.\n3. Lock the"
            " door when you leave work.",
            "1. Lock the door when you leave.",
            id="a-list-of-one-item",
        ),
        pytest.param(
            f"{SAID} Keep it to yourself.", f"{SAID} Keep it to yourself.", id="something-new"
        ),
        pytest.param(
            f"{SAID} You can use a strong password for your bank. Ask for help when you are unsure"
            " about it.",
            f"{SAID} You can use a strong password for your bank. Ask for help when you are unsure"
            " about it.",
            id="a-refrain-once",
        ),
        pytest.param(
            "请用强密码保护账户。请用强密码保护账户。", "请用强密码保护账户。", id="no-spaces"
        ),
        pytest.param("", "", id="nothing"),
    ],
)
def test_text_up_to_where_it_repeats_itself(text, kept):
    assert without_loop(text) == kept


def test_what_stands_before_the_start_may_repeat_itself():
    assert (
        without_loop(f"{SAID} {SAID} New words come here.", len(SAID) * 2)
        == f"{SAID} {SAID} New words come here."
    )


@pytest.mark.parametrize(
    ("text", "length", "through"),
    [
        ("Sorry, no. I could go on.", 5, "Sorry, no."),
        ("Sorry, no. I could go on.", 10, "Sorry, no."),
        ("Sorry, no. I could go on.", 11, "Sorry, no. I could go on."),
        ("Sorry, no", 3, "Sorry, no"),
        ("不行。还有别的。", 2, "不行。"),
    ],
)
def test_text_through_the_sentence_that_is_begun(text, length, through):
    assert through_sentence(text, length) == through


@pytest.mark.parametrize(
    ("text", "prose"),
    [
        pytest.param(
            "To clean it:\n\n1. **Dust**: use a cloth.\n2. Then wax it\n\nThat is all.",
            "To clean it: Dust: use a cloth. Then wax it.\n\nThat is all.",
            id="numbers",
        ),
        pytest.param("Take\n\n- a cup,\n* a spoon", "Take\n\na cup, a spoon.", id="bullets"),
        pytest.param("1. **Wax**:\n\nRub it in.", "Wax: Rub it in.", id="headings"),
        pytest.param("*Dust: a cloth\n2.Wax it.", "Dust: a cloth. Wax it.", id="no-spaces"),
        pytest.param("1. Wax it. 2. Rub it. 3.", "Wax it. Rub it.", id="on-one-line"),
        pytest.param("*Do* it.\n-5 degrees.\n1.5 cups.", None, id="no-list"),
        pytest.param("One line.\nAnother line.", None, id="lines"),
        pytest.param("", None, id="nothing"),
    ],
)
def test_lists_become_prose(text, prose):
    assert as_prose(text) == (text if prose is None else prose)
