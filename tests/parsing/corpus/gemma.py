"""FunctionGemma and Gemma 4."""

from tests.parsing.corpus.case import Call, maker

case = maker("functiongemma")
gemma4 = maker("gemma4")


def call(body: str) -> str:
    return f"<start_function_call>call:{body}<end_function_call>"


CASES = (
    case("a call", call("get_weather{city:<escape>Paris<escape>}"), Call("get_weather", {"city": "Paris"})),
    case("no arguments", call("now{}"), Call("now")),
    case(
        "two calls",
        call("now{}") + call("get_weather{city:<escape>Rome<escape>,days:2}"),
        Call("now"),
        Call("get_weather", {"city": "Rome", "days": 2}),
    ),
    case("text before", "Sure. " + call("now{}"), "Sure.", Call("now")),
    case(
        "numbers and words", call("configure{on:true,level:-0.5,note:null}"), Call("configure", {"on": True, "level": -0.5, "note": None})
    ),
    case(
        "arrays and objects",
        call("search{tags:[<escape>a<escape>,<escape>b<escape>],filters:{a:{b:[1,[]]},c:<escape>d<escape>}}"),
        Call("search", {"tags": ["a", "b"], "filters": {"a": {"b": [1, []]}, "c": "d"}}),
    ),
    case("marks in a string", call('search{query:<escape>a, "b": {c}]\n\\<escape>}'), Call("search", {"query": 'a, "b": {c}]\n\\'})),
    case("white space", call("get_weather{ city : <escape>Paris<escape> , days: 3 }"), Call("get_weather", {"city": "Paris", "days": 3})),
    case("an empty string", call("search{query:<escape><escape>}"), Call("search", {"query": ""})),
    case("of no tool", call("fly{to:<escape>moon<escape>}"), Call("fly", {"to": "moon"})),
    case("not closed", "<start_function_call>call:now{}", Call("now")),
    case("no braces", "<start_function_call>call:now<end_function_call>", "<start_function_call>call:now<end_function_call>"),
    case("prose", "The <start_function_call> tag.", "The <start_function_call> tag."),
    case("a bare word", call("search{query:hello}"), Call("search", {}, complete=False), "query:hello}<end_function_call>"),
    case("cut in a string", "<start_function_call>call:search{query:<escape>hel", Call("search", {"query": "hel"}, complete=False)),
    case("cut in a number", "<start_function_call>call:search{limit:3", Call("search", {}, complete=False)),
    case("cut in a key", "<start_function_call>call:search{limit:3,que", Call("search", {"limit": 3}, complete=False)),
    gemma4(
        "a call", '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:3}<tool_call|>', Call("get_weather", {"city": "Paris", "days": 3})
    ),
    gemma4("a key in quotes", '<|tool_call>call:search{filters:{<|"|>a b<|"|>:1}}<tool_call|>', Call("search", {"filters": {"a b": 1}})),
    gemma4("text around", "Sure.<|tool_call>call:now{}<tool_call|>Done.", "Sure.", Call("now"), "Done."),
    gemma4(
        "code in a string",
        '<|tool_call>call:write_file{content:<|"|>if a < b | c:\n  "x"<|"|>}<tool_call|>',
        Call("write_file", {"content": 'if a < b | c:\n  "x"'}),
    ),
    gemma4("cut", '<|tool_call>call:write_file{content:<|"|>a<|', Call("write_file", {"content": "a<|"}, complete=False)),
)
