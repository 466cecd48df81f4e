"""litellm against a server, by three of its APIs: prints what came, as JSON, for test_clients.py to check."""

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network

import litellm

url = sys.argv[1]
openai = {"model": "openai/agent", "api_base": url, "api_key": "none", "max_retries": 0}
anthropic = {"model": "anthropic/agent", "api_base": url.removesuffix("/v1"), "api_key": "none", "max_retries": 0, "max_tokens": 300}
parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
schema = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green"]}, "count": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["color", "count"],
    "additionalProperties": False,
}
found: dict[str, object] = {}
for name, options in (("openai", openai), ("anthropic", anthropic)):
    messages = [{"role": "user", "content": "job-node-7: weather?"}]
    chunks = list(litellm.completion(messages=messages, tools=tools, stream=True, **options))
    message = litellm.stream_chunk_builder(chunks, messages=messages).choices[0].message
    (call,) = message.tool_calls
    messages += [message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "sun"}]
    answer = litellm.completion(messages=messages, tools=tools, **options)
    found[name] = {
        "call": [call.function.name, json.loads(call.function.arguments)],
        "chunks": len(chunks),
        "answer": answer.choices[0].message.content,
        "usage": answer.usage.prompt_tokens,
    }
form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, "strict": True}}
ask = [{"role": "user", "content": "a color"}]
found["thing"] = json.loads(litellm.completion(messages=ask, response_format=form, **openai).choices[0].message.content)
found["responded"] = litellm.responses(input="job-node-7: weather?", tools=[], **openai).output[0].content[0].text
print(json.dumps(found))
