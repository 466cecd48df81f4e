"""LangChain against a server: prints what came, as JSON, for test_clients.py to check."""

import json
import sys
from typing import Any, Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import StructuredTool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field


class Thing(BaseModel):
    color: Literal["red", "green"]
    count: int = Field(ge=1, le=9)


def weather(city: str) -> str:
    """Tell how the weather is."""
    return f"sun in {city}"


url = sys.argv[1]
tool = StructuredTool.from_function(weather)
found: dict[str, object] = {}
for name, options in (("chat", {}), ("responses", {"use_responses_api": True, "output_version": "responses/v1"})):
    model = ChatOpenAI(base_url=url, api_key="none", model="agent", max_retries=0, stream_usage=True, **options)
    with_tools = model.bind_tools([tool])
    messages = [HumanMessage("job-node-7: weather?")]
    whole: Any = None
    num_chunks = 0
    for chunk in with_tools.stream(messages):
        whole = chunk if whole is None else whole + chunk
        num_chunks += 1
    (call,) = whole.tool_calls
    messages += [whole, ToolMessage(tool.invoke(call["args"]), tool_call_id=call["id"])]
    answer = with_tools.invoke(messages)
    found[name] = {
        "call": [call["name"], call["args"]],
        "chunks": num_chunks,
        "usage": whole.usage_metadata["input_tokens"],
        "answer": answer.text,
        "thing": model.with_structured_output(Thing, method="json_schema").invoke("a color").model_dump(),
        "required": model.with_structured_output(Thing, method="function_calling").invoke("a color").model_dump(),
    }
completions = OpenAI(base_url=url, api_key="none", model="agent", max_retries=0, max_tokens=5, temperature=0)
found["completion"] = [completions.invoke("Once upon"), "".join(completions.stream("Once upon"))]
print(json.dumps(found))
