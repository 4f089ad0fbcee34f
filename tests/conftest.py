import os

# Before anything imports transformers, nemoguardrails or torch: they read these once.
os.environ.update(HF_HUB_OFFLINE="1", NEMO_GUARDRAILS_NO_USAGE_STATS="1", OMP_WAIT_POLICY="PASSIVE")
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # each would take all cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ttsa_guard import testing
from ttsa_guard.request import question

TINY_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(autouse=True)
def no_network():
    with testing.no_network():
        yield


@pytest.fixture(autouse=True)
def output_to_a_pipe(monkeypatch):
    """A width that somebody else has set would fold tables."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def no_sentence_encoder(request, monkeypatch):
    """The same outcomes whether the sentence encoder is installed or not."""

    async def unknown(*_, **__):
        return None

    async def by_rules(text):
        return question(text)

    async def nothing(*_):
        return []

    if not request.node.get_closest_marker("real"):
        monkeypatch.setattr("ttsa_guard.search.harm_of", unknown)
        monkeypatch.setattr("ttsa_guard.search.find_needed", nothing)
        monkeypatch.setattr("ttsa_guard.search.find_question", by_rules)


@pytest.fixture(scope="session")
def tracing():
    """The process's OpenTelemetry tracer provider: it can be set but once."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    trace.set_tracer_provider(TracerProvider())
    return trace.get_tracer_provider()


@pytest.fixture(scope="session")
def _spans(tracing):
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    tracing.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


@pytest.fixture
def spans(_spans):
    """What the test has traced: an exporter that keeps its spans."""
    _spans.clear()
    return _spans


@pytest.fixture(scope="session")
def unused_port():
    """Ports on which nothing listens, a new one each time."""

    def find():
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            return found.getsockname()[1]

    return find


@pytest.fixture(scope="session")
def serving():
    """Runs a server until the end of a ``with``, from when it answers at `url`; what it prints goes
    to the file `log`. Gives the process, which leads a group of its own."""

    @contextmanager
    def run(command, url, log, *, cwd, seconds=60, **environment):
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                stdout=out,
                stderr=out,
                cwd=cwd,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        try:
            end = time.monotonic() + seconds
            while not _answers(url):
                failed = process.poll() is not None or time.monotonic() > end
                assert not failed, f"the server did not start:\n{log.read_text()[-2000:]}"
                time.sleep(0.1)
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the workers that it has started
            process.wait()

    return run


def _answers(url):
    try:
        urllib.request.urlopen(url, timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def interruptible():
    """Ctrl-C raises, which it does not in what runs in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def browser():
    """Chromium. While it is there, no event loop can be run in this thread."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no chromium; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A folder with a random two-layer Llama, a byte-level BPE tokenizer of 280 tokens and a chat
    template.

    Its weights are large, so that what it says depends on all of its prompt.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(
        ["the kettle is clean, and the other kettle is in the kitchen"] * 3, trainer
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<|pad|>", eos_token="<|end|>", model_max_length=256
    )
    tokenizer.chat_template = TINY_TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.25,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_model):
    """The backend over `tiny_model`, in float32."""
    from ttsa_guard.backends.transformers import TransformersBackend, TransformersOptions

    return TransformersBackend(
        TransformersOptions(model=str(tiny_model), device="cpu", dtype="float32", batch_size=256)
    )
