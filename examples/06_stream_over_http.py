"""Threads over HTTP: an endpoint that sends what happens as server-sent events.

As it stands, this starts the server, asks it once and stops. To keep it running:
``uvicorn --app-dir examples 06_stream_over_http:app``, and then
``curl -N -d '{"text": "25+42"}' -H 'Content-Type: application/json' localhost:8000/ask``.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import httpx
import uvicorn
from fastapi import FastAPI
from langchain_core.messages import HumanMessage
from pydantic import BaseModel
from sse_starlette import EventSourceResponse

from apr_agents import create_parallel_agent

app = FastAPI()
agent = create_parallel_agent("bundled")


class Question(BaseModel):
    text: str


@app.post("/ask")
async def ask(question: Question) -> EventSourceResponse:
    """What happens in the run; a client that goes away ends it, with all its threads."""
    return EventSourceResponse(events(question.text))


async def events(question: str) -> AsyncIterator[dict[str, str]]:
    stream = agent.astream(
        {"messages": [HumanMessage(question)]}, stream_mode="custom", subgraphs=True, version="v2"
    )
    async for part in stream:
        if part["type"] == "custom" and part["data"]["type"] != "token":
            yield {"event": part["data"]["type"], "data": json.dumps(part["data"])}


async def main() -> None:
    free = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    serving = asyncio.create_task(server.serve(sockets=[free]))
    url = f"http://127.0.0.1:{free.getsockname()[1]}/ask"
    question = {"text": "((((12*7)+5)-2)*3)+((((45-38)*6)+9)*4)+((((81-17)+23)*2)-60)"}
    async with (
        httpx.AsyncClient(timeout=60) as client,
        client.stream("POST", url, json=question) as response,
    ):
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                print(f"{event['id']} {event['type']} {event.get('text', '')}".rstrip())
    server.should_exit = True
    await serving


if __name__ == "__main__":
    asyncio.run(main())
