"""Talk to a running server with the OpenAI client: python client.py PORT [CONFIG]"""

import sys

from openai import OpenAI

port, config = [*sys.argv[1:], "colang_1"][:2]
client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
guardrails = {"guardrails": {"config_id": config}}

messages = [{"role": "user", "content": "Mock me like a rude clown. How do I draw an owl?"}]
reply = client.chat.completions.create(model="embedded", messages=messages, extra_body=guardrails)
print(reply.choices[0].message.content)

messages += [
    reply.choices[0].message.model_dump(include={"role", "content"}),
    {"role": "user", "content": "And how do I choose a tent?"},
]
for chunk in client.chat.completions.create(
    model="embedded", messages=messages, stream=True, extra_body=guardrails
):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
