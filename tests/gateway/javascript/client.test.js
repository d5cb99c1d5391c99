// Replicate's official JavaScript client, unchanged, against a gateway: node --test, with GATEWAY_URL set.

import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import Replicate from "replicate";

const replicate = new Replicate({ auth: "any", baseUrl: `${process.env.GATEWAY_URL}/v1` });
const FINAL = ["succeeded", "failed", "canceled"];

// The client makes file objects of https links alone; those of a gateway without TLS stay links.
async function content(link) {
  return Buffer.from(await (await fetch(link)).arrayBuffer());
}

test("a model is run by its name and its outputs are links to files", async () => {
  const pictures = await replicate.run("local/lora", { input: { prompt: "a cat", num_outputs: 2 } });
  assert.equal(pictures.length, 2);
  const [first, second] = await Promise.all(pictures.map(content));
  assert.equal(first.subarray(1, 4).toString(), "PNG");
  assert.notDeepEqual(first, second);
});

test("a version is run by polling, with its progress", async () => {
  const { latest_version: version } = await replicate.models.get("local", "lora");
  const states = [];
  const options = { input: { seconds: 1 }, wait: { mode: "poll", interval: 100 } };
  const pictures = await replicate.run(`local/lora:${version.id}`, options, (prediction) => states.push(prediction.status));
  assert.equal(pictures.length, 1);
  assert.equal(states.at(-1), "succeeded");
});

test("a prediction is created, waited for and listed", async () => {
  const created = await replicate.predictions.create({ model: "local/lora", input: { prompt: "a cat" } });
  const ended = await replicate.wait(created, { interval: 100 });
  assert.equal(ended.status, "succeeded");
  assert.equal(ended.logs, "drawing a cat\n");
  const listed = [];
  for await (const page of replicate.paginate(replicate.predictions.list)) listed.push(...page);
  assert.ok(listed.some((prediction) => prediction.id === created.id));
});

test("a failed job raises its error", async () => {
  await assert.rejects(replicate.run("local/lora", { input: { behaviour: "fail" } }), /asked to fail/);
});

test("an invalid input is refused", async () => {
  await assert.rejects(replicate.run("local/lora", { input: { num_outputs: 99 } }), (error) => {
    assert.equal(error.response.status, 422);
    return true;
  });
});

test("a running job is cancelled", async () => {
  let prediction = await replicate.predictions.create({ model: "local/lora", input: { seconds: 600 } });
  while (prediction.status === "starting") {
    await sleep(100);
    prediction = await replicate.predictions.get(prediction.id);
  }
  assert.equal((await replicate.predictions.cancel(prediction.id)).status, "canceled");
  assert.equal((await replicate.run("local/lora", { input: {} })).length, 1);
});

test("events are streamed", async () => {
  const events = [];
  for await (const event of replicate.stream("local/lora", { input: { prompt: "a cat", seconds: 0.5 } })) {
    events.push(event);
  }
  assert.equal(events.filter((event) => event.event === "output").length, 1);
  assert.equal(events.at(-1).event, "done");
});

test("a file is uploaded, given, listed and removed", async () => {
  const file = await replicate.files.create(new Blob([Buffer.alloc(12345, "x")], { type: "image/png" }), { what: "cat" });
  assert.equal(file.size, 12345);
  assert.deepEqual((await replicate.files.get(file.id)).metadata, { what: "cat" });
  assert.ok((await replicate.files.list()).results.some((each) => each.id === file.id));
  const options = { model: "local/lora", input: { image: file.urls.get }, wait: 60 };
  assert.equal((await replicate.predictions.create(options)).metrics.bytes, 12345);
  await replicate.files.delete(file.id);
  await assert.rejects(replicate.files.get(file.id));
});

test("a blob is an input", async () => {
  const input = { image: new Blob([Buffer.alloc(777, "y")]) };
  const prediction = await replicate.predictions.create({ model: "local/lora", input, wait: 60 });
  assert.equal(prediction.metrics.bytes, 777);
});

test("what was taught is drawn with", async () => {
  const { latest_version: version } = await replicate.models.get("local", "lora-training");
  const data = await replicate.files.create(new Blob([Buffer.alloc(99, "z")])); // trainings take no blobs as inputs
  const options = { destination: "me/javascript", input: { instance_data: data.urls.get, steps: 5 } };
  let training = await replicate.trainings.create("local", "lora-training", version.id, options);
  while (!FINAL.includes(training.status)) {
    await sleep(100);
    training = await replicate.trainings.get(training.id);
  }
  assert.equal(training.status, "succeeded");
  assert.equal(await (await fetch(training.output.weights)).text(), "99 bytes, 5 steps");
  assert.ok((await replicate.trainings.list()).results.some((each) => each.id === training.id));
  assert.equal((await replicate.run("me/javascript", { input: { prompt: "a photo of <1>" } })).length, 1);
  const drawn = await replicate.predictions.create({ version: training.output.version.split(":")[1], input: {}, wait: 60 });
  assert.match(drawn.logs, /weights: http/);
});
