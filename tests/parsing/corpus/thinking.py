"""Reasoning between tags, with and without the opening one."""

from tests.parsing.corpus.case import Call, Thought, maker

think = maker(None, "think")
magistral = maker("mistral", "magistral")

CASES = (
    think("reasoning and an answer", "<think>\nLet me see.\n</think>\n\nIt is 4.", Thought("Let me see."), "It is 4."),
    think("opening tag in the prompt", "Let me see.\n</think>\n\nIt is 4.", Thought("Let me see."), "It is 4.", inside=True),
    think("opening tag in prompt and answer", "\n<think>\nLet me see.</think>It is 4.", Thought("Let me see."), "It is 4.", inside=True),
    think("none", "It is 4.", "It is 4."),
    think("none, after white space", "\n\nIt is 4.", "\n\nIt is 4."),
    think("empty", "<think>\n\n</think>\n\nIt is 4.", "It is 4."),
    think("nothing between the tags", "<think></think>\nIt is 4.", "It is 4."),
    think("no answer", "<think>Let me see.</think>\n", Thought("Let me see.")),
    think("cut", "<think>\nLet me s", Thought("Let me s")),
    think("cut in the closing tag", "<think>\nLet me see.\n</thi", Thought("Let me see.\n</thi")),
    think("cut, opening tag in the prompt", "Let me s", Thought("Let me s"), inside=True),
    think("an answer that never came", "", inside=True),
    think("markup within", "<think>if a </b> or <think> then</think>ok", Thought("if a </b> or <think> then"), "ok"),
    think("a second closing tag is text", "<think>a</think>b</think>c", Thought("a"), "b</think>c"),
    think("a closing tag alone is text", "a</think>b", "a</think>b"),
    think("an opening tag later is text", "Hm, <think>no</think>.", "Hm, <think>no</think>."),
    think("begins like the tag", "<thinking>x", "<thinking>x"),
    think("white space within is kept", "<think>a\n\n  b</think>c\n\n  d ", Thought("a\n\n  b"), "c\n\n  d "),
    think(
        "calls are text where there is no parser for them",
        '<think>x</think><tool_call>{"name": "now"}',
        Thought("x"),
        '<tool_call>{"name": "now"}',
    ),
    magistral("reasoning and an answer", "[THINK]Let me see.[/THINK]It is 4.", Thought("Let me see."), "It is 4."),
    magistral("reasoning and a call", "[THINK]Hm.[/THINK][TOOL_CALLS]now[ARGS]{}", Thought("Hm."), Call("now")),
    magistral("the other family's tags", "<think>Hm.</think>", "<think>Hm.</think>"),
)
