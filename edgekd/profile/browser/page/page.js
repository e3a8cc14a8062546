// The page: claims the link, measures with `procedure.js` and one worker per model, shows it, and sends it back.

import { median, medianInterval, rounds } from "./procedure.js";

const $ = (id) => document.getElementById(id);
const TELL_MILLISECONDS = 500;
const ALIVE_MILLISECONDS = 5000;

// ---- Talking to edgekd

let session = null;

// One after the other: what ends the measurement must be the last that edgekd hears of it.
let before = Promise.resolve();

function post(path, body) {
  const sent = before.then(() => send(path, body));
  before = sent.catch(() => {});
  return sent;
}

async function send(path, body) {
  const response = await fetch(new URL(path, session ?? location.href), {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  }).catch(() => {
    throw new Error("edgekd does not answer: was it stopped, or is this device in another network?");
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

async function get(path) {
  const response = await fetch(new URL(path.split("/").map(encodeURIComponent).join("/"), session));
  if (!response.ok) throw new Error(`${path}: ${response.status} ${response.statusText}`);
  return response.arrayBuffer();
}

// ---- Models

class Model {
  constructor(spec) {
    this.id = spec.id;
    this.spec = spec;
    this.worker = new Worker(new URL("worker.js", session), { type: "module", name: spec.id });
    this.worker.onmessage = ({ data }) =>
      data.error ? this.reject(new Error(`${this.id}: ${data.error}`)) : this.resolve(data);
    this.worker.onerror = (event) =>
      this.reject?.(new Error(`${this.id}: ${event.message ?? "its worker could not be started"}`));
  }

  ask(request) {
    return new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
      this.worker.postMessage(request);
    });
  }

  async load(plan) {
    const [model, ...parts] = await Promise.all(this.spec.files.map(get));
    const names = this.spec.files.slice(1).map((path) => path.split("/").pop());
    const { tick, ...result } = await this.ask({
      do: "load",
      ...this.spec,
      module: new URL(this.spec.module, session).href,
      model: new Uint8Array(model),
      parts: parts.map((data, i) => ({ path: names[i], data: new Uint8Array(data) })),
      oneNode: bytes(plan.one_node),
    });
    this.tick = tick;
    return result;
  }
}

const bytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

function base64(floats) {
  let text = "";
  for (const byte of new Uint8Array(floats.buffer)) text += String.fromCharCode(byte);
  return btoa(text);
}

// Everything about the models of one runtime, which take turns.
async function measureTogether(specs, plan, inputs, view) {
  const workers = specs.map((spec) => new Model(spec));
  const results = {};
  try {
    for (const worker of workers) {
      view.status(`Loading ${short(worker.id)}`);
      results[worker.id] = await worker.load(plan);
    }
    for (const phase of plan.phases) {
      const batchSize = plan.batch_sizes[phase];
      view.phase(phase, batchSize, workers);
      const outputs = [];
      for (const worker of workers) {
        const bound = await worker.ask({
          do: "bind",
          batchSize,
          inputs,
          shape: plan.input_shape,
          limit: plan.output_limit,
        });
        outputs.push(base64(bound.outputs));
        if (phase === plan.phases[0]) results[worker.id].first = bound.first;
      }
      const measured = await rounds(workers, plan, phase, view.told);
      for (const [position, worker] of workers.entries()) {
        results[worker.id][phase] = {
          batch_size: batchSize,
          outputs: outputs[position],
          ...measured[position],
        };
        const { peak } = await worker.ask({ do: "peak" });
        const { heap } = results[worker.id];
        // Before the larger batch needs more.
        if (heap && phase === plan.phases[0]) heap.peak = peak;
      }
    }
  } finally {
    for (const { worker } of workers) worker.terminate();
  }
  return [results, workers[0].tick];
}

// ---- What the browser says of itself; null where it does not

async function environment(tick, hidden) {
  const agent = navigator.userAgentData;
  const hints = ["model", "architecture", "bitness", "platformVersion"];
  const more = (await agent?.getHighEntropyValues?.(hints).catch(() => null)) ?? {};
  const known = (value) => (value ? String(value).slice(0, 300) : null);
  return {
    user_agent: known(navigator.userAgent),
    device: known(more.model),
    architecture: known(more.architecture && `${more.architecture} ${more.bitness ?? ""}`.trim()),
    system: known(`${agent?.platform ?? navigator.platform} ${more.platformVersion ?? ""}`.trim()),
    cores: navigator.hardwareConcurrency ?? null,
    memory_gib_rounded: navigator.deviceMemory ?? null,
    cross_origin_isolated: self.crossOriginIsolated === true,
    clock_tick_seconds: tick,
    page_was_hidden: hidden,
  };
}

// A screen that goes dark would stop the measurement.
async function keepAwake() {
  await navigator.wakeLock?.request("screen").catch(() => {});
}

// ---- What people see

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const short = (id) => id.split("/").pop();

function byRuntime(plan) {
  const groups = new Map();
  for (const spec of plan.models) groups.set(spec.runtime, [...(groups.get(spec.runtime) ?? []), spec]);
  return groups;
}

function time(seconds) {
  const [unit, factor] = [["s", 1], ["ms", 1e-3], ["µs", 1e-6]].find(([, f]) => seconds >= f) ?? ["ns", 1e-9];
  return `${Number((seconds / factor).toPrecision(3))} ${unit}`;
}

function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

class View {
  constructor(plan) {
    this.plan = plan;
    this.cards = new Map();
    this.done = 0;
    this.last = 0;
    // Every model once per phase, for max_seconds at worst.
    this.total = plan.models.length * plan.phases.length;
    for (const [runtime, specs] of byRuntime(plan)) {
      const section = element("section");
      section.append(element("h2", runtime));
      const list = element("ul", "", "cards");
      list.append(...specs.map(({ id }) => this.card(id)));
      section.append(list);
      $("models").append(section);
    }
    $("running").hidden = false;
  }

  card(id) {
    const card = element("li", "", `card ${short(id).split("-")[0]}`);
    const figure = element("p", "…", "figure");
    const detail = element("p", "waiting", "detail");
    const track = element("div", "", "track");
    const bar = element("div", "", "bar");
    track.append(bar);
    card.append(element("h3", short(id)), figure, track, detail);
    this.cards.set(id, { figure, detail, bar });
    return card;
  }

  status = (text) => {
    $("status").textContent = text;
  };

  phase(phase, batchSize, workers) {
    this.current = { phase, count: workers.length };
    this.status(`${phase === "latency" ? "Latency" : "Throughput"}, batch ${batchSize}, ${workers[0].spec.runtime}`);
    for (const { id } of workers) this.cards.get(id).detail.textContent = "warming up";
    $("progress").value = this.done / this.total;
    this.done += workers.length;
  }

  told = ({ phase, models, spent, widths, p50 }) => {
    if (failed) throw new Error("stopped");
    if (performance.now() - this.last < TELL_MILLISECONDS) return;
    this.last = performance.now();
    const longest = Math.max(...p50);
    for (const [i, id] of models.entries()) {
      const card = this.cards.get(id);
      if (phase === "latency") card.figure.textContent = time(p50[i]);
      const width = Number.isFinite(widths[i]) ? `±${(50 * widths[i]).toFixed(1)} %` : "±…";
      card.detail.textContent = `${phase} ${width} · ${spent[i].toFixed(1)} s`;
      if (phase === "latency") card.bar.style.width = `${(100 * p50[i]) / longest}%`;
    }
    const share = Math.min(1, Math.max(...spent) / this.plan.max_seconds);
    $("progress").value = (this.done - (1 - share) * models.length) / this.total;
    const width = Math.max(...widths);
    post("progress", {
      phase,
      models,
      spent: spent.reduce((sum, value) => sum + value, 0),
      width: Number.isFinite(width) ? width : null,
      p50,
    }).catch(fail);
  };

  result(models) {
    $("running").hidden = true;
    $("title").textContent = "Measured in this browser";
    const phases = Object.entries(models).map(([id, model]) => [id, model.latency]);
    const medians = new Map(phases.map(([id, { seconds }]) => [id, median(seconds)]));
    const longest = Math.max(...medians.values());
    for (const [id, { seconds, batch_size }] of phases) {
      const card = this.cards.get(id);
      card.figure.textContent = time(medians.get(id));
      card.bar.style.width = `${(100 * medians.get(id)) / longest}%`;
      const interval = medianInterval(seconds);
      const details = [interval ? `${time(interval[0])} – ${time(interval[1])}` : "too few samples"];
      const throughput = models[id].throughput;
      if (throughput) {
        const rate = throughput.batch_size / mean(throughput.seconds);
        details.push(`${Number(rate.toPrecision(3)).toLocaleString("en")} /s at batch ${throughput.batch_size}`);
      }
      card.detail.textContent = details.join(" · ");
      card.detail.title = `median at batch ${batch_size} and its 95 % interval; throughput`;
    }
    const lines = [...medians.keys()]
      .filter((id) => short(id).startsWith("student"))
      .map((id) => [id, medians.get(id.replace(/student[^/]*$/, "teacher")) / medians.get(id)])
      .filter(([, ratio]) => Number.isFinite(ratio))
      .map(([id, ratio]) => {
        const times = Number((ratio < 1 ? 1 / ratio : ratio).toPrecision(3));
        return `${short(id)} ${times}× ${ratio < 1 ? "slower" : "faster"}`;
      });
    $("headline").textContent = lines.join(", ");
    $("headline").hidden = lines.length === 0;
  }

  facts(facts) {
    const names = { ...facts, clock_tick_seconds: time(facts.clock_tick_seconds) };
    for (const [name, value] of Object.entries(names)) {
      const row = element("div");
      row.append(element("dt", name.replaceAll("_", " ")), element("dd", String(value ?? "not told")));
      $("facts").querySelector("dl").append(row);
    }
    $("facts").hidden = false;
  }
}

function advise(plan) {
  if (self.crossOriginIsolated) return;
  const threads = plan.models.some((model) => model.threads > 1) ? "one thread instead of more and " : "";
  $("advice").textContent =
    `Browsers give pages over plain http ${threads}a coarse clock. Https, or localhost through a cable (adb reverse), gives both.`;
  $("advice").hidden = false;
}

let failed = false;

function fail(error) {
  if (failed) return;
  failed = true;
  $("running").hidden = true;
  $("title").textContent = "Not measured";
  $("status").textContent = "";
  $("error").textContent = error.message;
  $("error").hidden = false;
  if (session) post("failed", { error: error.message.slice(0, 500) }).catch(() => {});
}

// ---- The whole of it

async function main() {
  const claimed = await post("claim", {});
  session = new URL(`/${claimed.session}/`, location.href);
  const { plan } = claimed;
  const view = new View(plan);
  advise(plan);
  $("stop").onclick = () => fail(new Error("stopped by hand in the browser"));
  let hidden = document.hidden;
  document.addEventListener("visibilitychange", () => (hidden ||= document.hidden));
  const alive = setInterval(() => failed || post("alive", {}).catch(fail), ALIVE_MILLISECONDS);
  await keepAwake();
  const inputs = new Float32Array(await get(plan.inputs));
  const models = {};
  let tick = 0;
  for (const specs of byRuntime(plan).values()) {
    const [results, measuredTick] = await measureTogether(specs, plan, inputs, view);
    Object.assign(models, results);
    tick = Math.max(tick, measuredTick);
  }
  clearInterval(alive);
  view.status("Sending the result");
  const facts = await environment(tick, hidden);
  await post("result", { models, environment: facts });
  view.status("The result is with edgekd. This page can be closed.");
  view.result(models);
  view.facts(facts);
}

main().catch(fail);
