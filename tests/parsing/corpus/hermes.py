"""Hermes and Qwen: `<tool_call>{"name": …, "arguments": …}</tool_call>`."""

from tests.parsing.corpus.case import Call, Thought, maker

case = maker("hermes", "think")
PARIS = Call("get_weather", {"city": "Paris"})

CASES = (
    case("a call", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>', PARIS),
    case("a call on one line", '<tool_call>{"name":"get_weather","arguments":{"city":"Paris"}}</tool_call>', PARIS),
    case(
        "text before",
        'I will look that up.\n\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        "I will look that up.",
        PARIS,
    ),
    case(
        "text after",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\nOne moment.',
        PARIS,
        "\nOne moment.",
    ),
    case(
        "two calls",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "days": 2}}\n</tool_call>',
        PARIS,
        Call("get_weather", {"city": "Rome", "days": 2}),
    ),
    case(
        "text between",
        '<tool_call>{"name": "now"}</tool_call> and then <tool_call>{"name": "now"}</tool_call>',
        Call("now"),
        " and then",
        Call("now"),
    ),
    case("no arguments", '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', Call("now")),
    case("arguments missing", '<tool_call>\n{"name": "now"}\n</tool_call>', Call("now")),
    case("arguments null", '<tool_call>\n{"name": "now", "arguments": null}\n</tool_call>', Call("now")),
    case("arguments in a string", '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}</tool_call>', PARIS),
    case("arguments an empty string", '<tool_call>{"name": "now", "arguments": ""}</tool_call>', Call("now")),
    case(
        "arguments in a string, with half a character",
        '<tool_call>{"name": "now", "arguments": "{\\"a\\": \\"\\ud800\\"}"}</tool_call>',
        '<tool_call>{"name": "now", "arguments": "{\\"a\\": \\"\\ud800\\"}"}</tool_call>',
    ),
    case("name last", '<tool_call>{"arguments": {"city": "Paris"}, "name": "get_weather"}</tool_call>', PARIS),
    case(
        "other keys", '<tool_call>{"type": "function", "name": "now", "strict": [1, {"a": null}], "arguments": {}}</tool_call>', Call("now")
    ),
    case("an id", '<tool_call>{"id": "call_7", "name": "now", "arguments": {}}</tool_call>', Call("now", id="call_7")),
    case("a name of no tool", '<tool_call>{"name": "fly", "arguments": {"to": "moon"}}</tool_call>', Call("fly", {"to": "moon"})),
    case("not closed", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n', PARIS),
    case("not closed, then another", '<tool_call>{"name": "now"}\n<tool_call>{"name": "now"}</tool_call>', Call("now"), Call("now")),
    case(
        "nested values",
        '<tool_call>{"name": "search", "arguments": {"query": "a \\"b\\" \\\\ \\u00e9 {[", "tags": ["x", []], '
        '"filters": {"a": {"b": [1, -2.5e3]}}}}'
        "</tool_call>",
        Call("search", {"query": 'a "b" \\ é {[', "tags": ["x", []], "filters": {"a": {"b": [1, -2500.0]}}}),
    ),
    case(
        "an emoji by escapes",
        '<tool_call>{"name": "search", "arguments": {"query": "\\ud83d\\ude00 😀"}}</tool_call>',
        Call("search", {"query": "😀 😀"}),
    ),
    case(
        "a closing tag in a string",
        '<tool_call>{"name": "write_file", "arguments": {"content": "</tool_call>\\n<tool_call>"}}</tool_call>',
        Call("write_file", {"content": "</tool_call>\n<tool_call>"}),
    ),
    case(
        "raw line breaks in a string",
        '<tool_call>{"name": "write_file", "arguments": {"content": "a\n\tb"}}</tool_call>',
        Call("write_file", {"content": "a\n\tb"}),
    ),
    case("no tags", "Just an answer with <b>markup</b> & {braces}.", "Just an answer with <b>markup</b> & {braces}."),
    case("white space alone", " \n\n ", " \n\n "),
    case("nothing", ""),
    case("ends in half a tag", "a < b <tool_cal", "a < b <tool_cal"),
    case("a tag in prose", "Use the <tool_call> tag.", "Use the <tool_call> tag."),
    case("a tag at the end", "So: <tool_call>\n", "So: <tool_call>\n"),
    case("JSON that is no object", "<tool_call>\n[1, 2]\n</tool_call>", "<tool_call>\n[1, 2]\n</tool_call>"),
    case("no name", '<tool_call>{"arguments": {"a": 1}}</tool_call>', '<tool_call>{"arguments": {"a": 1}}</tool_call>'),
    case("an empty name", '<tool_call>{"name": "", "arguments": {}}</tool_call>', '<tool_call>{"name": "", "arguments": {}}</tool_call>'),
    case("a name that is a number", '<tool_call>{"name": 7}</tool_call>', '<tool_call>{"name": 7}</tool_call>'),
    case(
        "arguments a list",
        '<tool_call>{"name": "now", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "now", "arguments": [1]}</tool_call>',
    ),
    case("Python for JSON", "<tool_call>{'name': 'now'}</tool_call>", "<tool_call>{'name': 'now'}</tool_call>"),
    case("cut in the name", '<tool_call>\n{"name": "get_wea', '<tool_call>\n{"name": "get_wea'),
    case(
        "cut in a string",
        '<tool_call>{"name": "search", "arguments": {"query": "how to',
        Call("search", {"query": "how to"}, complete=False),
    ),
    case("cut in a key", '<tool_call>{"name": "search", "arguments": {"query": "x", "li', Call("search", {"query": "x"}, complete=False)),
    case(
        "cut in a number",
        '<tool_call>{"name": "search", "arguments": {"query": "x", "limit": 1',
        Call("search", {"query": "x"}, complete=False),
    ),
    case(
        "cut deep inside",
        '<tool_call>{"name": "search", "arguments": {"filters": {"a": [1, {"b": "c',
        Call("search", {"filters": {"a": [1, {"b": "c"}]}}, complete=False),
    ),
    case(
        "cut in an escape", '<tool_call>{"name": "search", "arguments": {"query": "a\\u00', Call("search", {"query": "a"}, complete=False)
    ),
    case("cut after the arguments", '<tool_call>{"name": "now", "arguments": {}', Call("now")),
    case(
        "wrong within the arguments",
        '<tool_call>{"name": "search", "arguments": {"query": "x", limit: 3}}</tool_call>',
        Call("search", {"query": "x"}, complete=False),
        ", limit: 3}}</tool_call>",
    ),
    case(
        "a bad escape in the arguments",
        '<tool_call>{"name": "search", "arguments": {"query": "a\\d"}}</tool_call>',
        Call("search", {"query": "a"}, complete=False),
        '\\d"}}</tool_call>',
    ),
    case(
        "a bad number in the arguments",
        '<tool_call>{"name": "search", "arguments": {"limit": 01}}</tool_call>',
        Call("search", {}, complete=False),
        '"limit": 01}}</tool_call>',
    ),
    case("wrong after the arguments", '<tool_call>{"name": "now", "arguments": {}, oops}</tool_call>', Call("now"), ", oops}</tool_call>"),
    case("a brace too many", '<tool_call>{"name": "now", "arguments": {}}}</tool_call>', Call("now"), "}</tool_call>"),
    case(
        "a malformed call, then a good one",
        '<tool_call>{oops}</tool_call><tool_call>{"name": "now"}</tool_call>',
        "<tool_call>{oops}</tool_call>",
        Call("now"),
    ),
    case("a call within a malformed one", '<tool_call>{"name": <tool_call>{"name": "now"}</tool_call>', '<tool_call>{"name":', Call("now")),
    case(
        "reasoning, then a call",
        '<think>\nThey want weather.\n</think>\n\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        Thought("They want weather."),
        PARIS,
    ),
    case(
        "a call within reasoning is text",
        '<think>I could <tool_call>{"name": "now"}</tool_call> here.</think>No.',
        Thought('I could <tool_call>{"name": "now"}</tool_call> here.'),
        "No.",
    ),
)
