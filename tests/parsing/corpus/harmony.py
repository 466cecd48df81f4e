"""gpt-oss: the text form of harmony."""

from tests.parsing.corpus.case import Call, Thought, maker

case = maker("harmony")
START = "<|start|>assistant"
ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|channel|>final<|message|>"
WEATHER = "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
PARIS = Call("get_weather", {"city": "Paris"})

CASES = (
    case("an answer", f"{FINAL}It is 4.<|return|>", "It is 4."),
    case("without an end", f"{FINAL}It is 4.", "It is 4."),
    case("reasoning and an answer", f"{ANALYSIS}2 + 2.<|end|>{START}{FINAL}It is 4.<|return|>", Thought("2 + 2."), "It is 4."),
    case("a call", f'{ANALYSIS}Weather.<|end|>{START}{WEATHER}{{"city": "Paris"}}<|call|>', Thought("Weather."), PARIS),
    case("a call without an end", f'{WEATHER}{{"city": "Paris"}}', PARIS),
    case("without a type", '<|channel|>commentary to=functions.get_weather<|message|>{"city": "Paris"}<|call|>', PARIS),
    case("a type without a token", '<|channel|>commentary to=functions.get_weather json<|message|>{"city": "Paris"}<|call|>', PARIS),
    case(
        "the recipient first", ' to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>{"city": "Paris"}<|call|>', PARIS
    ),
    case(
        "the recipient in the role",
        f'{ANALYSIS}x<|end|>{START} to=functions.get_weather<|channel|>commentary json<|message|>{{"city": "Paris"}}',
        Thought("x"),
        PARIS,
    ),
    case("on the channel of reasoning", '<|channel|>analysis to=functions.get_weather code<|message|>{"city": "Paris"}<|call|>', PARIS),
    case("no arguments", "<|channel|>commentary to=functions.now<|message|><|call|>", Call("now")),
    case("an empty object", "<|channel|>commentary to=functions.now<|message|>{}<|call|>", Call("now")),
    case(
        "two calls",
        f'{WEATHER}{{"city": "Paris"}}<|end|>{START}{WEATHER}{{"city": "Rome"}}<|call|>',
        PARIS,
        Call("get_weather", {"city": "Rome"}),
    ),
    case(
        "a tool of the model's own",
        '<|channel|>analysis to=browser.search code<|message|>{"query": "x"}<|call|>',
        Call("browser.search", {"query": "x"}),
    ),
    case(
        "a preamble",
        f'<|channel|>commentary<|message|>I will look.<|end|>{START}{WEATHER}{{"city": "Paris"}}<|call|>',
        "I will look.",
        PARIS,
    ),
    case("a preamble and an answer", f"<|channel|>commentary<|message|>First.<|end|>{START}{FINAL}Then.", "First.\n\nThen."),
    case("reasoning twice", f"{ANALYSIS}a<|end|>{START}{ANALYSIS}b<|end|>{START}{FINAL}c", Thought("a\n\nb"), "c"),
    case("no end between messages", f"{ANALYSIS}a{START}{FINAL}b<|return|>", Thought("a"), "b"),
    case("a channel at once", f"{ANALYSIS}a{FINAL}b<|return|>", Thought("a"), "b"),
    case("no channel", f"{START}<|message|>Hello.<|end|>", "Hello."),
    case("plain text", "It is <4> & {5}.", "It is <4> & {5}."),
    case("marks in an answer", f"{FINAL}a <| b |> <|ends|> c<|return|>", "a <| b |> <|ends|> c"),
    case("cut in reasoning", f"{ANALYSIS}Let me s", Thought("Let me s")),
    case("cut in a header", f"{ANALYSIS}Hm.<|end|>{START}<|channel|>fin", Thought("Hm.")),
    case("cut in the arguments", f'{WEATHER}{{"city": "Pa', Call("get_weather", {"city": "Pa"}, complete=False)),
    case("cut in an end", f"{FINAL}It is 4.<|ret", "It is 4.<|ret"),
    case(
        "arguments that are code",
        "<|channel|>commentary to=python code<|message|>print(1)<|call|>",
        "<|channel|>commentary to=python code<|message|>print(1)<|call|>",
    ),
    case("a header without a message", f"<|channel|>final<oops>{START}{FINAL}x", "<|channel|>final<oops>x"),
)
