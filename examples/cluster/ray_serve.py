"""The same model on Ray Serve LLM: python -m pip install 'ray[llm]', then: python ray_serve.py"""

from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app

MODEL = "meta-llama/Llama-3.1-8B-Instruct"

config = LLMConfig(
    model_loading_config={"model_id": MODEL, "model_source": MODEL},
    deployment_config={"num_replicas": 2},
    engine_kwargs={"enable_prompt_embeds": True, "max_model_len": 8192},
)
app = build_openai_app({"llm_configs": [config]})

if __name__ == "__main__":
    # Ray asks nobody for a key: it stays on this machine unless a proxy that does stands in front.
    serve.start(http_options={"host": "127.0.0.1", "port": 8000})
    serve.run(app, blocking=True)
