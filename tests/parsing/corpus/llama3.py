"""Llama 3 with JSON: an answer that is calls."""

from tests.parsing.corpus.case import Call, maker

case = maker("llama3_json")

CASES = (
    case("a call", '{"name": "get_weather", "parameters": {"city": "Paris"}}', Call("get_weather", {"city": "Paris"})),
    case("arguments for parameters", '{"name": "get_weather", "arguments": {"city": "Paris"}}', Call("get_weather", {"city": "Paris"})),
    case("after white space", '\n\n{"name": "now", "parameters": {}}', Call("now")),
    case("with a type", '{"type": "function", "name": "now", "parameters": {}}', Call("now")),
    case("no parameters", '{"name": "now"}', Call("now")),
    case("parameters null", '{"name": "now", "parameters": null}', Call("now")),
    case(
        "several",
        '{"name": "now", "parameters": {}}; {"name": "get_weather", "parameters": {"city": "Rome"}}',
        Call("now"),
        Call("get_weather", {"city": "Rome"}),
    ),
    case("several without white space", '{"name": "now"};{"name": "now"};{"name": "now"}', *[Call("now")] * 3),
    case("after the tag", '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}', Call("get_weather", {"city": "Paris"})),
    case("several after the tag", '<|python_tag|>{"name": "now"}; {"name": "now"}', Call("now"), Call("now")),
    case("text, then the tag", 'Sure.\n<|python_tag|>{"name": "now", "parameters": {}}', "Sure.", Call("now")),
    case("of no tool, after the tag", '<|python_tag|>{"name": "fly", "parameters": {}}', Call("fly")),
    case("of no tool", '{"name": "Alice", "parameters": {"age": 7}}', '{"name": "Alice", "parameters": {"age": 7}}'),
    case("an answer in JSON", '{"city": "Paris", "days": [1, 2]}', '{"city": "Paris", "days": [1, 2]}'),
    case("a list in JSON", '[{"name": "now"}]', '[{"name": "now"}]'),
    case("text before is an answer", 'Use {"name": "now", "parameters": {}}', 'Use {"name": "now", "parameters": {}}'),
    case("text after", '{"name": "now", "parameters": {}}\nDone.', Call("now"), "\nDone."),
    case("code after the tag", "<|python_tag|>print(1 + 1)", "<|python_tag|>print(1 + 1)"),
    case("wrong after a semicolon", '{"name": "now"}; and so on', Call("now"), "; and so on"),
    case("of no tool, second", '{"name": "now"}; {"name": "Alice"}', Call("now"), '; {"name": "Alice"}'),
    case(
        "cut in the parameters", '{"name": "get_weather", "parameters": {"city": "Pa', Call("get_weather", {"city": "Pa"}, complete=False)
    ),
    case("cut before the name", '{"nam', '{"nam'),
    case("an empty object", "{}", "{}"),
)
