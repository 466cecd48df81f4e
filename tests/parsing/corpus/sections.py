"""DeepSeek and Kimi: calls in sections."""

from tests.parsing.corpus.case import Call, Thought, maker

deepseek = maker("deepseek", "think")
kimi = maker("kimi_k2", "think")
BEGIN, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
KIMI_BEGIN, KIMI_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
PARIS = Call("get_weather", {"city": "Paris"})


def v3(name: str, arguments: str) -> str:
    return f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```<｜tool▁call▁end｜>"


def v31(name: str, arguments: str) -> str:
    return f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>"


def k2(id: str, arguments: str) -> str:
    return f"<|tool_call_begin|>{id}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>"


CASES = (
    deepseek("V3", BEGIN + v3("get_weather", '{"city": "Paris"}') + END, PARIS),
    deepseek("V3, two calls", BEGIN + v3("now", "{}") + "\n" + v3("get_weather", '{"city": "Paris"}') + END, Call("now"), PARIS),
    deepseek("V3, text before", "Let me see.\n" + BEGIN + v3("now", "{}") + END, "Let me see.", Call("now")),
    deepseek("V3, indented", BEGIN + v3("get_weather", '{\n  "city": "Paris"\n}') + END, PARIS),
    deepseek("V3, no arguments", BEGIN + v3("now", "") + END, Call("now")),
    deepseek(
        "V3, a fence in a string",
        BEGIN + v3("write_file", '{"content": "```json\\n```"}') + END,
        Call("write_file", {"content": "```json\n```"}),
    ),
    deepseek("V3.1", BEGIN + v31("get_weather", '{"city": "Paris"}') + END, PARIS),
    deepseek("V3.1, two calls", BEGIN + v31("now", "{}") + v31("get_weather", '{"city": "Paris"}') + END, Call("now"), PARIS),
    deepseek("V3.1, no arguments", BEGIN + v31("now", "") + END, Call("now")),
    deepseek("V3.1, of no tool", BEGIN + v31("fly", "{}") + END, Call("fly")),
    deepseek("V3.1, a tool called function", BEGIN + v31("function", "{}") + END, Call("function")),
    deepseek("reasoning", "Hm.</think>" + BEGIN + v31("now", "{}") + END, Thought("Hm."), Call("now"), inside=True),
    deepseek("the section not closed", BEGIN + v31("now", "{}"), Call("now")),
    deepseek("no section", v31("now", "{}"), Call("now")),
    deepseek("text after", BEGIN + v31("now", "{}") + END + "Done.", Call("now"), "Done."),
    deepseek("a section without calls", BEGIN + "oops" + END, BEGIN + "oops" + END),
    deepseek("no separator", BEGIN + "<｜tool▁call▁begin｜>now oops", BEGIN + "<｜tool▁call▁begin｜>now oops"),
    deepseek(
        "V3 without a block",
        BEGIN + "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\nnone",
        BEGIN + "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\nnone",
    ),
    deepseek(
        "cut in the arguments",
        BEGIN + '<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Pa',
        Call("get_weather", {"city": "Pa"}, complete=False),
    ),
    deepseek("cut in a tag", "So <｜tool▁calls", "So <｜tool▁calls"),
    kimi(
        "a call",
        KIMI_BEGIN + k2("functions.get_weather:0", '{"city": "Paris"}') + KIMI_END,
        Call("get_weather", {"city": "Paris"}, id="functions.get_weather:0"),
    ),
    kimi(
        "two calls",
        KIMI_BEGIN + k2("functions.now:0", "{}") + "\n" + k2("functions.now:1", "{}") + KIMI_END,
        Call("now", id="functions.now:0"),
        Call("now", id="functions.now:1"),
    ),
    kimi(
        "text before",
        "Let me see. " + KIMI_BEGIN + k2("functions.now:3", "{}") + KIMI_END,
        "Let me see.",
        Call("now", id="functions.now:3"),
    ),
    kimi("white space around", KIMI_BEGIN + "\n" + k2(" functions.now:0 ", " {} ") + "\n" + KIMI_END, Call("now", id="functions.now:0")),
    kimi("no arguments", KIMI_BEGIN + k2("functions.now:0", "") + KIMI_END, Call("now", id="functions.now:0")),
    kimi("an id without a prefix", KIMI_BEGIN + k2("now:0", "{}") + KIMI_END, Call("now", id="now:0")),
    kimi("an id without a number", KIMI_BEGIN + k2("functions.now", "{}") + KIMI_END, Call("now", id="functions.now")),
    kimi("a name with a dot", KIMI_BEGIN + k2("functions.a.b:12", "{}") + KIMI_END, Call("a.b", id="functions.a.b:12")),
    kimi(
        "reasoning",
        "<think>Hm.</think>" + KIMI_BEGIN + k2("functions.now:0", "{}") + KIMI_END,
        Thought("Hm."),
        Call("now", id="functions.now:0"),
    ),
    kimi("the section not closed", KIMI_BEGIN + k2("functions.now:0", "{}"), Call("now", id="functions.now:0")),
    kimi("arguments a list", KIMI_BEGIN + k2("functions.now:0", "[]") + KIMI_END, KIMI_BEGIN + k2("functions.now:0", "[]") + KIMI_END),
    kimi("no id", KIMI_BEGIN + k2("", "{}"), KIMI_BEGIN + k2("", "{}")),
    kimi("the end of a section alone", "a" + KIMI_END, "a" + KIMI_END),
    kimi(
        "cut in the arguments",
        KIMI_BEGIN + '<|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{"city": "P',
        Call("get_weather", {"city": "P"}, id="functions.get_weather:0", complete=False),
    ),
)
