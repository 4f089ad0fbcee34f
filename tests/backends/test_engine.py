"""The synchronous half of the transformers backend."""

import threading

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from ttsa_guard.backends.base import Continuation
from ttsa_guard.backends.local.engine import Engine, ScoringRequest
from ttsa_guard.hf.chat_template import render
from ttsa_guard.hf.source import Source
from ttsa_guard.messages import GenerationRequest, Message


def test_the_output_layer_reads_no_views():
    """A view of a batch's last tokens is multiplied some hundred times slower on a CPU."""
    tokenizer = AutoTokenizer.from_pretrained(Source.of("embedded").path)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    engine = Engine(model, tokenizer, batch_size=8)
    read = []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: read.append(inputs))
    prompts = [
        render(tokenizer, Message.conversation(text), scope="user") for text in ("Hi.", "Is it so?")
    ]
    for n in (1, 2):
        requests = [GenerationRequest(prompt, max_new_tokens=2) for prompt in prompts[:n]]
        engine.generate(requests, [threading.Event()] * n)
        scored = Continuation((("Yes, it is.", 1.0),))
        engine.values([ScoringRequest(prompt, None, scored) for prompt in prompts[:n]])
    assert len(read) > 4
    assert all(states.stride() == torch.empty(states.shape).stride() for [states] in read)
