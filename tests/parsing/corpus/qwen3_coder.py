"""Qwen3-Coder: functions and parameters as tags, types from the schema."""

from tests.parsing.corpus.case import Call, Thought, maker

case = maker("qwen3_coder", "think")


def call(name: str, **parameters: str) -> str:
    values = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters.items())
    return f"<tool_call>\n<function={name}>\n{values}</function>\n</tool_call>"


CASES = (
    case("a call", call("get_weather", city="Paris", days="3"), Call("get_weather", {"city": "Paris", "days": 3})),
    case("text before", "I'll check.\n" + call("get_weather", city="Paris"), "I'll check.", Call("get_weather", {"city": "Paris"})),
    case(
        "two calls",
        call("get_weather", city="Paris") + "\n" + call("now"),
        Call("get_weather", {"city": "Paris"}),
        Call("now"),
    ),
    case("no parameters", "<tool_call>\n<function=now>\n</function>\n</tool_call>", Call("now")),
    case("on one line", "<tool_call><function=now></function></tool_call>", Call("now")),
    case(
        "values on one line",
        "<tool_call><function=get_weather><parameter=city>Paris</parameter></function></tool_call>",
        Call("get_weather", {"city": "Paris"}),
    ),
    case("a string that looks like a number", call("get_weather", city="75001"), Call("get_weather", {"city": "75001"})),
    case("an enumeration of strings", call("get_weather", unit="c"), Call("get_weather", {"unit": "c"})),
    case(
        "many lines, with markup",
        call("write_file", path="a.html", content='<p class="x">\n\n  &amp; \\n </p>\n'),
        Call("write_file", {"path": "a.html", "content": '<p class="x">\n\n  &amp; \\n </p>\n'}),
    ),
    case("an empty string", call("write_file", content=""), Call("write_file", {"content": ""})),
    case(
        "an empty string on one line",
        "<function=write_file><parameter=content></parameter></function>",
        Call("write_file", {"content": ""}),
    ),
    case(
        "arrays and objects",
        call("search", tags='["a", "b"]', filters='{"since": {"year": 2020}}'),
        Call("search", {"tags": ["a", "b"], "filters": {"since": {"year": 2020}}}),
    ),
    case("a boolean and a number", call("configure", on="true", level="0.5"), Call("configure", {"on": True, "level": 0.5})),
    case("an integer for a number", call("configure", level="2"), Call("configure", {"level": 2})),
    case("Python's words", call("configure", on="False", note="None"), Call("configure", {"on": False, "note": None})),
    case("a string or null", call("configure", note="null and void"), Call("configure", {"note": "null and void"})),
    case("quotes are part of a string", call("configure", note='"null"', free='"x"'), Call("configure", {"note": '"null"', "free": '"x"'})),
    case("an integer with a fraction", call("get_weather", days="3.0"), Call("get_weather", {"days": 3.0})),
    case("a fraction for an integer", call("get_weather", days="3.5"), Call("get_weather", {"days": "3.5"})),
    case("one of several types", call("search", limit="null"), Call("search", {"limit": None})),
    case("a reference", call("configure", target='{"host": "a"}'), Call("configure", {"target": {"host": "a"}})),
    case("a constant", call("configure", mode="3"), Call("configure", {"mode": 3})),
    case("of no type, JSON", call("configure", free="[1]"), Call("configure", {"free": [1]})),
    case("of no type, text", call("configure", free="so [1]"), Call("configure", {"free": "so [1]"})),
    case("not of its type", call("get_weather", days="a few"), Call("get_weather", {"days": "a few"})),
    case("a parameter of no tool", call("fly", to="moon", stops="2"), Call("fly", {"to": "moon", "stops": 2})),
    case(
        "without the outer tag",
        "<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>",
        Call("get_weather", {"city": "Paris"}),
    ),
    case("without the outer closing tag", "<tool_call>\n<function=now>\n</function>\nDone.", Call("now"), "\nDone."),
    case("without the function's closing tag", "<tool_call>\n<function=now>\n</tool_call>", Call("now")),
    case("prose", "Write <function=name> in <tool_call> tags.", "Write <function=name> in <tool_call> tags."),
    case("JSON instead", '<tool_call>{"name": "now"}</tool_call>', '<tool_call>{"name": "now"}</tool_call>'),
    case("no name", "<tool_call><function=></function>", "<tool_call><function=></function>"),
    case("cut in the function", "<tool_call>\n<function=get_wea", "<tool_call>\n<function=get_wea"),
    case("cut in a string", "<function=get_weather>\n<parameter=city>\nPar", Call("get_weather", {"city": "Par"}, complete=False)),
    case(
        "cut in a closing tag",
        "<function=get_weather><parameter=city>Paris\n</para",
        Call("get_weather", {"city": "Paris\n</para"}, complete=False),
    ),
    case("cut in a number", "<function=get_weather><parameter=days>\n12", Call("get_weather", {}, complete=False)),
    case(
        "wrong between parameters",
        "<function=get_weather><parameter=city>Paris</parameter>oops</function>",
        Call("get_weather", {"city": "Paris"}, complete=False),
        "oops</function>",
    ),
    case("after reasoning", "<think>Hm.</think>" + call("now"), Thought("Hm."), Call("now")),
)
