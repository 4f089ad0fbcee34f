"""A LangGraph agent whose answers the guard reviews: python agent.py openai:gpt-4o-mini "..." """

import asyncio
import sys
from pathlib import Path

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langgraph.graph.state import CompiledStateGraph
from nemoguardrails.integrations.langchain.middleware import OutputRailsMiddleware

CONFIG = Path(__file__).parents[1] / "configs" / "colang_1"


def agent(model: str | BaseChatModel, config: Path = CONFIG) -> CompiledStateGraph:
    """An agent on any chat model of LangChain. The model of `config` mends what is flagged."""
    return create_agent(model, middleware=[OutputRailsMiddleware(config_path=str(config))])


async def main(model: str, question: str) -> None:
    state = await agent(model).ainvoke({"messages": [{"role": "user", "content": question}]})
    print(state["messages"][-1].content)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
