"""Calls in Python: lists of Llama, blocks of Gemma 3."""

from tests.parsing.corpus.case import Call, maker

case = maker("pythonic")
block = maker("gemma3")

CASES = (
    case("a call", '[get_weather(city="Paris", days=3)]', Call("get_weather", {"city": "Paris", "days": 3})),
    case("two calls", "[get_weather(city='Paris'), now()]", Call("get_weather", {"city": "Paris"}), Call("now")),
    case("between tags", '<|python_start|>[get_weather(city="Paris")]<|python_end|>', Call("get_weather", {"city": "Paris"})),
    case("text, then tags", "Let me see.\n<|python_start|>[now()]<|python_end|>", "Let me see.", Call("now")),
    case("of no tool, between tags", "<|python_start|>[fly(to='moon')]<|python_end|>", Call("fly", {"to": "moon"})),
    case("a name with dots", "<|python_start|>[math.add(a=1, b=2)]<|python_end|>", Call("math.add", {"a": 1, "b": 2})),
    case(
        "all kinds of literals",
        "[configure(on=True, level=-1.5e2, note=None, free={'a': [1, (2, 3)], 'b': {}})]",
        Call("configure", {"on": True, "level": -150.0, "note": None, "free": {"a": [1, [2, 3]], "b": {}}}),
    ),
    case("JSON's words", "[configure(on=false, note=null)]", Call("configure", {"on": False, "note": None})),
    case("brackets and quotes in strings", """[search(query="a] ) 'b' \\"c\\" [")]""", Call("search", {"query": "a] ) 'b' \"c\" ["})),
    case("escapes", r'[search(query="tab\t é \u00e9 \d \x41")]', Call("search", {"query": "tab\t é é \\d A"})),
    case("a string over lines", '[write_file(content="""a\n"b"\n""", path=\'\')]', Call("write_file", {"content": 'a\n"b"\n', "path": ""})),
    case("a raw line break in a string", '[write_file(content="a\nb")]', Call("write_file", {"content": "a\nb"})),
    case("over lines", '[\n  get_weather(\n    city="Paris",\n  ),\n]', Call("get_weather", {"city": "Paris"})),
    case("text after", "[now()] Done.", Call("now"), " Done."),
    case("of no tool", "[see(page=3)]", "[see(page=3)]"),
    case("one of no tool", "[now(), see(page=3)]", "[now(), see(page=3)]"),
    case("a list", "[1, 2, 3]", "[1, 2, 3]"),
    case("a link", "[now](https://example.org)", "[now](https://example.org)"),
    case("a list later is text", "Calls: [now()]", "Calls: [now()]"),
    case("positional arguments", "[get_weather('Paris')]", "[get_weather('Paris')]"),
    case("an expression", "[get_weather(days=1+1)]", "[get_weather(days=1+1)]"),
    case("a call in a call", "[get_weather(city=now())]", "[get_weather(city=now())]"),
    case("an f-string", '[get_weather(city=f"{1}")]', '[get_weather(city=f"{1}")]'),
    case("a name for a value", "[get_weather(city=Paris)]", "[get_weather(city=Paris)]"),
    case("a comprehension", "[now() for x in y]", "[now() for x in y]"),
    case("brackets that do not match", "[now(]))", "[now(]))"),
    case("infinity", "[configure(level=1e999)]", "[configure(level=1e999)]"),
    case("cut", "[get_weather(city='Par", "[get_weather(city='Par"),
    case("cut in a backslash", "[get_weather(city='Par\\", "[get_weather(city='Par\\"),
    block("a block", '```tool_code\nget_weather(city="Paris")\n```', Call("get_weather", {"city": "Paris"})),
    block(
        "text around",
        'Sure:\n\n```tool_code\nget_weather(city="Paris")\n```\nDone.',
        "Sure:",
        Call("get_weather", {"city": "Paris"}),
        "\nDone.",
    ),
    block("two lines", "```tool_code\nnow()\nget_weather(city='a')\n```", Call("now"), Call("get_weather", {"city": "a"})),
    block("printed", "```tool_code\nprint(get_weather(city='Paris', days=2))\n```", Call("get_weather", {"city": "Paris", "days": 2})),
    block("a list", "```tool_code\n[now(), now()]\n```", Call("now"), Call("now")),
    block("two blocks", "```tool_code\nnow()\n```\n```tool_code\nnow()\n```", Call("now"), Call("now")),
    block("other code", "```tool_code\nx = 1\n```", "```tool_code\nx = 1\n```"),
    block("of no tool", "```tool_code\nfly()\n```", "```tool_code\nfly()\n```"),
    block("another language", "```python\nnow()\n```", "```python\nnow()\n```"),
    block("nothing in it", "```tool_code\n```", "```tool_code\n```"),
    block("cut", "```tool_code\nnow()", "```tool_code\nnow()"),
)
