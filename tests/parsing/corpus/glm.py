"""GLM-4.5: keys and values as tags."""

from tests.parsing.corpus.case import Call, Thought, maker

case = maker("glm", "think")


def call(name: str, **values: str) -> str:
    pairs = "".join(f"\n<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>" for key, value in values.items())
    return f"<tool_call>{name}{pairs}\n</tool_call>"


CASES = (
    case("a call", call("get_weather", city="Paris", days="3"), Call("get_weather", {"city": "Paris", "days": 3})),
    case("text before", "Let me check.\n" + call("get_weather", city="Paris"), "Let me check.", Call("get_weather", {"city": "Paris"})),
    case(
        "without line breaks",
        "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>",
        Call("get_weather", {"city": "Paris"}),
    ),
    case("no arguments", "<tool_call>now\n</tool_call>", Call("now")),
    case("no arguments on one line", "<tool_call>now</tool_call>", Call("now")),
    case(
        "two calls",
        call("get_weather", city="Paris") + "\n" + call("get_weather", city="Rome"),
        *(Call("get_weather", {"city": c}) for c in ("Paris", "Rome")),
    ),
    case("a string keeps its line breaks", call("write_file", content="\na\n"), Call("write_file", {"content": "\na\n"})),
    case("a string that is JSON", call("write_file", content='{"a": 1}'), Call("write_file", {"content": '{"a": 1}'})),
    case("arrays and objects", call("search", tags='["a"]', filters="{}"), Call("search", {"tags": ["a"], "filters": {}})),
    case("of no tool", call("fly", to="moon", seats="2", window="true"), Call("fly", {"to": "moon", "seats": 2, "window": True})),
    case("reasoning", "<think>Hm.</think>\n" + call("now"), Thought("Hm."), Call("now")),
    case("empty reasoning", "<think></think>\nIt is 4.", "It is 4."),
    case("JSON instead", '<tool_call>{"name": "now"}</tool_call>', '<tool_call>{"name": "now"}</tool_call>'),
    case("prose", "Use <tool_call> for it", "Use <tool_call> for it"),
    case("a key without a value", "<tool_call>now<arg_key>a</arg_key></tool_call>", "<tool_call>now<arg_key>a</arg_key></tool_call>"),
    case(
        "cut in a value",
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Par",
        Call("get_weather", {"city": "Par"}, complete=False),
    ),
    case("cut in the name", "<tool_call>get_wea", "<tool_call>get_wea"),
    case(
        "cut between values",
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>da",
        Call("get_weather", {"city": "Paris"}, complete=False),
    ),
)
