// openai-node against a server: prints what came, as JSON, for test_clients.py to check.
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const model = "agent";
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tool = { type: "function", function: { name: "weather", parameters } };
const messages = [{ role: "user", content: "job-node-7: weather?" }];
const found = {};

const stream = client.chat.completions.stream({ model, messages, tools: [tool] });
let pieces = 0;
for await (const chunk of stream) pieces += chunk.choices[0]?.delta.tool_calls ? 1 : 0;
const first = await stream.finalChatCompletion();
found.call = first.choices[0].message.tool_calls[0].function;
found.pieces = pieces;
found.finish = first.choices[0].finish_reason;
messages.push(first.choices[0].message);
messages.push({ role: "tool", tool_call_id: first.choices[0].message.tool_calls[0].id, content: "sun" });
found.answer = (await client.chat.completions.create({ model, messages, tools: [tool] })).choices[0].message.content;

const runner = client.chat.completions.runTools({
  model,
  messages: [{ role: "user", content: "job-node-7: weather?" }],
  tools: [{ type: "function", function: { name: "weather", parameters, parse: JSON.parse, function: ({ city }) => `sun in ${city}` } }],
});
found.ran = await runner.finalContent();

const form = z.object({ color: z.enum(["red", "green"]), count: z.int().min(1).max(9) });
const ask = [{ role: "user", content: "a color" }];
const parsed = await client.chat.completions.parse({ model, messages: ask, response_format: zodResponseFormat(form, "thing") });
found.parsed = parsed.choices[0].message.parsed;

const events = [];
const responses = client.responses.stream({
  model,
  input: "job-node-7: weather?",
  tools: [{ type: "function", name: "weather", parameters, strict: false }],
});
for await (const event of responses) events.push(event.type);
const response = await responses.finalResponse();
found.item = response.output.find((item) => item.type === "function_call");
found.events = [events[0], events.at(-1)];
const next = await client.responses.create({
  model,
  previous_response_id: response.id,
  input: [{ type: "function_call_output", call_id: found.item.call_id, output: "sun" }],
  tools: [{ type: "function", name: "weather", parameters, strict: false }],
});
found.responded = next.output_text;
found.formed = (await client.responses.parse({ model, input: "a color", text: { format: zodTextFormat(form, "thing") } })).output_parsed;
try {
  await client.chat.completions.create({ model, messages: [{ role: "user", content: "x ".repeat(200000) }] });
} catch (error) {
  found.error = [error.constructor.name, error.status, error.code];
}
console.log(JSON.stringify(found));
