import asyncio
import time
from statistics import median

import pytest
import torch

from ttsa_guard.errors import ConfigError, ModelError
from ttsa_guard.moderators.classifier import Classifier, ClassifierOptions
from ttsa_guard.testing import check_moderator, scripted_guard

TEXTS = [
    "the kettle",
    "a",
    "the other kettle is in the kitchen and the kettle is clean",
    "漢字 🙂",
    "kettle " * 300,
    "",
    "bad \ud800",
]


@pytest.fixture(scope="module")
def make(tiny_model, tmp_path_factory):
    """A random classifier with the given labels, on the tiny model's tokenizer, as a moderator."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def save(*labels, problem=None, spoil=lambda _: None, **options):
        folder = tmp_path_factory.mktemp("classifier")
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=128,
            initializer_range=0.25,
            pad_token_id=tokenizer.pad_token_id,
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
            problem_type=problem,
        )
        model = LlamaForSequenceClassification(config)
        spoil(model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return Classifier(
            ClassifierOptions(model=str(folder), device="cpu", dtype="float32", **options)
        )

    return save


def judge(moderator, texts):
    return asyncio.run(moderator.moderate(texts, prompts=[""] * len(texts)))


def by_pipeline(moderator, texts):
    from transformers import pipeline

    found = pipeline(
        "text-classification",
        model=moderator.options.model,
        top_k=None,
        truncation=True,
        max_length=128,
    )
    return [{entry["label"]: entry["score"] for entry in found([text])[0]} for text in texts]


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (("safe", "hate", "violence"), "single_label_classification"),
        (("toxicity", "threat", "insult"), "multi_label_classification"),
        (("toxic",), None),
    ],
)
def test_scores_are_those_of_the_pipeline(make, labels, problem):
    moderator, short = (
        make(*labels, problem=problem),
        [text for text in TEXTS if 0 < len(text) < 100 and text.isprintable()],
    )
    for ours, theirs in zip(moderator.scores(short), by_pipeline(moderator, short), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_the_function_can_be_named(make):
    labels = ("hate", "safe")
    soft, independent = (
        make(*labels).scores(["the kettle"]),
        make(*labels, function="sigmoid").scores(["the kettle"]),
    )
    assert sum(soft[0].values()) == pytest.approx(1)
    assert sum(independent[0].values()) != pytest.approx(1)


def test_a_long_text_counts_as_its_worst_window(make):
    moderator = make(
        "toxicity", "threat", problem="multi_label_classification", window=32, overlap=8
    )
    pieces = moderator._windows("kettle clean other " * 40)
    assert len(pieces) > 3
    assert max(map(len, pieces)) <= 32
    whole = moderator.scores(["kettle clean other " * 40])[0]
    single = [moderator._logits([ids]).sigmoid()[0] for ids in pieces]
    assert list(whole.values()) == pytest.approx(torch.stack(single).amax(0).tolist(), abs=1e-5)


def test_a_text_in_disguise_is_judged_as_it_reads_too(make):
    moderator = make("toxic", "insult", problem="multi_label_classification")
    plain, hidden = "clean the kettle", "cl\u200bean the ke\u200bttle"
    as_it_reads = moderator.scores([plain])[0]
    [found] = moderator.scores([hidden])
    written = {
        label: float(p) for label, p in zip(found, probabilities(moderator, hidden), strict=True)
    }
    assert found == {label: max(written[label], as_it_reads[label]) for label in found}
    assert found != written


def probabilities(moderator, text):
    """Of the text as it is written."""
    ids = moderator._tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        return moderator._model(**ids).logits[0].sigmoid()


def test_a_text_does_not_depend_on_its_batch(make):
    moderator = make("toxicity", "threat", problem="multi_label_classification", batch_size=3)
    together, alone = moderator.scores(TEXTS), [moderator.scores([text])[0] for text in TEXTS]
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_verdicts(make):
    [verdict] = judge(make("safe", "hate", threshold=0.0), ["the kettle"])
    assert verdict.flagged
    assert set(verdict.categories) == {"hate"}
    assert judge(make("safe", "hate"), []) == []


@pytest.mark.parametrize(
    ("labels", "problem", "options", "harms"),
    [
        (("non_toxic", "toxic"), None, {}, ("toxic",)),
        (("NEUTRAL", "hate", "offensive"), None, {}, ("hate", "offensive")),
        (("a", "b"), None, {"categories": ["b"]}, ("b",)),
        (("obscene", "threat"), "multi_label_classification", {}, ("obscene", "threat")),
    ],
)
def test_labels_that_count(make, labels, problem, options, harms):
    assert make(*labels, problem=problem, **options).options.categories == harms


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (("LABEL_0", "LABEL_1"), {}, "do not say which are harms"),
        (("joy", "anger"), {}, "do not say which are harms"),
        (("safe", "hate"), {"categories": ["hatred"]}, "has no label 'hatred'"),
        (
            ("safe", "hate"),
            {"categories": ["hate"], "thresholds": {"hatred": 0.3}},
            "has no label 'hatred'",
        ),
    ],
)
def test_labels_that_are_not_clear(make, labels, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make(*labels, **options)
    assert ", ".join(labels) in caught.value.hint


def test_a_model_that_cannot_be_loaded(tmp_path):
    with pytest.raises(ModelError, match="cannot be loaded"):
        Classifier(ClassifierOptions(model=str(tmp_path)))


def test_a_broken_model_ends_closed(make):
    moderator = make(
        "safe", "hate", spoil=lambda model: model.score.weight.data.fill_(float("nan"))
    )
    outcome = asyncio.run(scripted_guard([], gate=moderator).review("q", "a fine answer"))
    assert (outcome.action, outcome.record.reason) == ("fallback", "gate failed: ModeratorError")


@pytest.mark.slow
@pytest.mark.timing
def test_batches_are_at_least_as_fast_as_the_pipeline(make):
    from transformers import pipeline

    moderator = make("toxicity", "threat", problem="multi_label_classification")
    theirs = pipeline(
        "text-classification", model=moderator.options.model, top_k=None, batch_size=32
    )
    texts = ["the kettle is clean " * (1 + i % 9) for i in range(256)]

    def seconds(work):
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    pairs = [
        (seconds(lambda: moderator.scores(texts)), seconds(lambda: theirs(texts))) for _ in range(5)
    ]
    ratio = median(ours / other for ours, other in pairs)
    print(f"time against the pipeline's: {ratio:.2f}")
    assert ratio <= 1


def test_it_keeps_the_contract(make):
    check_moderator(make("toxicity", "threat", problem="multi_label_classification"))
