"""Mistral, before and since version 11 of its tokenizer."""

from tests.parsing.corpus.case import Call, maker

case = maker("mistral")
PARIS = Call("get_weather", {"city": "Paris"})

CASES = (
    case("a call in a list", '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}]', PARIS),
    case("a space before the list", '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}]', PARIS),
    case(
        "two calls in a list",
        '[TOOL_CALLS][{"name": "now", "arguments": {}}, {"name": "get_weather", "arguments": {"city": "Paris"}}]',
        Call("now"),
        PARIS,
    ),
    case("an id before", '[TOOL_CALLS][{"id": "9Ae3bDc2F", "name": "now", "arguments": {}}]', Call("now", id="9Ae3bDc2F")),
    case("an id after the arguments is too late", '[TOOL_CALLS][{"name": "now", "arguments": {}, "id": "9Ae3bDc2F"}]', Call("now")),
    case("a call since version 11", '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}', PARIS),
    case("without the mark of arguments", '[TOOL_CALLS]get_weather{"city": "Paris"}', PARIS),
    case(
        "with an id",
        '[TOOL_CALLS]get_weather[CALL_ID]a1B2c3D4e[ARGS]{"city": "Paris"}',
        Call("get_weather", {"city": "Paris"}, id="a1B2c3D4e"),
    ),
    case("two calls since version 11", '[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}', Call("now"), PARIS),
    case("text before", "Let me see.[TOOL_CALLS]now[ARGS]{}", "Let me see.", Call("now")),
    case("of no tool", '[TOOL_CALLS]fly[ARGS]{"to": "moon"}', Call("fly", {"to": "moon"})),
    case("prose", "The token [TOOL_CALLS] begins calls.", "The token [TOOL_CALLS] begins calls."),
    case("a list of numbers", "[TOOL_CALLS][1, 2]", "[TOOL_CALLS][1, 2]"),
    case("an empty list", "[TOOL_CALLS][]", "[TOOL_CALLS][]"),
    case("arguments a list", "[TOOL_CALLS]now[ARGS][1]", "[TOOL_CALLS]now[ARGS][1]"),
    case("the tag alone", "[TOOL_CALLS]", "[TOOL_CALLS]"),
    case("the list not closed", '[TOOL_CALLS][{"name": "now", "arguments": {}}', Call("now")),
    case("cut in the arguments", '[TOOL_CALLS]get_weather[ARGS]{"city": "Pa', Call("get_weather", {"city": "Pa"}, complete=False)),
    case("cut in the mark", "[TOOL_CALLS]now[ARG", "[TOOL_CALLS]now[ARG"),
    case("wrong in the second call", '[TOOL_CALLS][{"name": "now"}, {"name": 3}]', Call("now"), ', {"name": 3}]'),
    case("lists in text", "a[0] = [TOOL", "a[0] = [TOOL"),
)
