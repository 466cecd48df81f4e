// Vercel's `ai` against a server: prints what came, as JSON, for test_clients.py to check.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({ name: "tsrun", baseURL: process.argv[2], supportsStructuredOutputs: true, includeUsage: true });
const model = provider("agent");
const found = {};

const asked = [];
const tools = {
  weather: tool({
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => {
      asked.push(city);
      return `sun in ${city}`;
    },
  }),
};
const steps = streamText({ model, tools, prompt: "job-node-7: weather?", stopWhen: stepCountIs(4), maxRetries: 0 });
found.kinds = [];
for await (const part of steps.fullStream) if (!found.kinds.includes(part.type)) found.kinds.push(part.type);
found.text = await steps.text;
found.asked = asked;
found.steps = (await steps.steps).length;
found.usage = await steps.totalUsage;

const schema = z.object({ color: z.enum(["red", "green"]), count: z.int().min(1).max(9) });
found.object = (await generateText({ model, prompt: "a color", output: Output.object({ schema }), maxRetries: 0 })).output;
console.log(JSON.stringify(found));
