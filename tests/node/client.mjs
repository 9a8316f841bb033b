// OpenAI's client for Node against a server of ours: node client.mjs http://127.0.0.1:8000/v1 KEY
import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const model = "gpt2chat";
const question = [{ role: "user", content: "What is your name?" }];

const ask = (options = {}) =>
  client.chat.completions.create({ model, messages: question, max_tokens: 40, temperature: 0, ...options });

async function streamed(options = {}) {
  let text = "";
  let reason = null;
  let usage = null;
  for await (const chunk of await ask({ ...options, stream: true, stream_options: { include_usage: true } })) {
    text += chunk.choices[0]?.delta?.content ?? "";
    reason = chunk.choices[0]?.finish_reason ?? reason;
    usage = chunk.usage ?? usage;
  }
  return { text, reason, usage };
}

const checks = {
  async chat() {
    const { data, request_id } = await ask().withResponse();
    assert.ok(request_id.startsWith("req_"));
    assert.equal(data.object, "chat.completion");
    assert.equal(data.choices[0].message.role, "assistant");
    assert.ok(data.choices[0].message.content.length > 10);
    assert.equal(data.usage.total_tokens, data.usage.prompt_tokens + data.usage.completion_tokens);
  },
  async stream() {
    const whole = await ask();
    const { text, reason, usage } = await streamed();
    assert.equal(text, whole.choices[0].message.content);
    assert.equal(reason, whole.choices[0].finish_reason);
    assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
    const events = client.chat.completions.stream({ model, messages: question, max_tokens: 40, temperature: 0 });
    assert.equal(await events.finalContent(), text);
  },
  async stop() {
    const whole = (await ask()).choices[0].message.content;
    for (const stop of [whole.slice(9, 12), ["never said", whole.slice(14, 15)]]) {
      const last = Array.isArray(stop) ? stop.at(-1) : stop;
      const cut = await ask({ stop });
      assert.equal(cut.choices[0].message.content, whole.slice(0, whole.indexOf(last)));
      assert.equal(cut.choices[0].finish_reason, "stop");
      assert.equal((await streamed({ stop })).text, cut.choices[0].message.content);
    }
  },
  async several() {
    const answer = await ask({ n: 3, seed: 5, temperature: 1 });
    assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1, 2]);
    const third = await ask({ seed: 7, temperature: 1 });
    assert.equal(answer.choices[2].message.content, third.choices[0].message.content);
  },
  async seed() {
    const text = (await ask({ seed: 3, temperature: 1 })).choices[0].message.content;
    const others = await Promise.all([1, 2, 3, 4].map(() => streamed({ seed: 3, temperature: 1 })));
    for (const other of others) assert.equal(other.text, text);
  },
  async logprobs() {
    const { message, logprobs } = (await ask({ logprobs: true, top_logprobs: 2 })).choices[0];
    const bytes = logprobs.content.flatMap((token) => token.bytes);
    assert.equal(Buffer.from(bytes).toString("utf8"), message.content);
    for (const token of logprobs.content) {
      assert.equal(token.top_logprobs.length, 2);
      assert.ok(token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob);
    }
  },
  async texts() {
    const answer = await client.completions.create({
      model, prompt: ["The sea is", "My dog"], echo: true, max_tokens: 6, temperature: 0, logprobs: 1,
    });
    assert.equal(answer.choices.length, 2);
    assert.ok(answer.choices[0].text.startsWith("The sea is") && answer.choices[1].text.startsWith("My dog"));
    assert.equal(answer.choices[0].logprobs.token_logprobs[0], null);
  },
  async models() {
    const names = [];
    for await (const each of client.models.list()) names.push(each.id);
    assert.ok(names.includes(model));
    assert.equal((await client.models.retrieve(model)).object, "model");
  },
  async errors() {
    const refused = [
      [{ temperature: 9 }, OpenAI.BadRequestError, null, "temperature"],
      [{ messages: [] }, OpenAI.BadRequestError, null, "messages"],
      [{ tools: [{ type: "function", function: { name: "f" } }] }, OpenAI.BadRequestError, null, "tools"],
      [{ messages: [{ role: "user", content: "word ".repeat(2000) }] }, OpenAI.BadRequestError,
        "context_length_exceeded", "messages"],
      [{ model: "gpt-9" }, OpenAI.NotFoundError, "model_not_found", "model"],
    ];
    for (const [options, kind, code, param] of refused) {
      for (const stream of [false, true]) {
        await assert.rejects(ask({ ...options, stream }), (error) => {
          assert.ok(error instanceof kind, String(error));
          assert.equal(error.code, code);
          assert.equal(error.param, param);
          assert.ok(error.requestID.startsWith("req_"));
          return true;
        });
      }
    }
    const stranger = new OpenAI({ baseURL, apiKey: "another", maxRetries: 3 });
    await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
  },
  async abort() {
    const stream = await ask({ stream: true, max_tokens: 400, ignore_eos: true });
    let seen = 0;
    for await (const chunk of stream) {
      seen += chunk.choices.length;
      if (seen > 3) stream.controller.abort();
    }
    assert.ok(seen > 3);
    const leaving = new AbortController();
    const answer = client.chat.completions.create(
      { model, messages: question, max_tokens: 450, ignore_eos: true }, { signal: leaving.signal },
    );
    setTimeout(() => leaving.abort(), 5);
    await assert.rejects(answer, OpenAI.APIUserAbortError);
  },
};

for (const [name, check] of Object.entries(checks)) {
  await check();
  console.log(name);
}
