// The worker of one model, with a runtime of its own: loads it, then times blocks of inferences as it is told.

// The runtime keeps its memory to itself; its size is what is wanted.
const heaps = [];
WebAssembly.Memory = class extends WebAssembly.Memory {
  constructor(descriptor) {
    super(descriptor);
    heaps.push(this);
  }
};

const PRECISIONS = { float32: "f32", float16: "f16" };
let ort, session, feeds;

const seconds = () => performance.now() / 1000;
const heap = () => Math.max(...heaps.map((memory) => memory.buffer.byteLength));

// The seconds between two values of the clock, which browsers make coarse on purpose.
function tick() {
  const steps = [];
  for (let before = seconds(); steps.length < 11; ) {
    const now = seconds();
    if (now > before) {
      steps.push(now - before);
      before = now;
    }
  }
  return steps.sort((a, b) => a - b)[5];
}

async function open(bytes, provider, externalData) {
  return ort.InferenceSession.create(bytes, {
    executionProviders: [provider],
    externalData,
    logSeverityLevel: 3,
  });
}

const actions = {
  // Load the runtime, a model of one node, then the model.
  async load({ module, provider, threads, precision, model, parts, oneNode }) {
    if (provider === "webgpu" && !(await navigator.gpu?.requestAdapter())) {
      throw new Error("this browser offers no WebGPU here (it needs https or localhost)");
    }
    ort = await import(module);
    ort.env.logLevel = "error";
    ort.env.wasm.numThreads = threads;
    const small = await open(oneNode, provider);
    await small.run({ x: new ort.Tensor("float32", new Float32Array(1), [1]) });
    const baseline = heap();
    const started = seconds();
    session = await open(model, provider, parts);
    const load = seconds() - started;
    const type = session.inputMetadata[0].type;
    const executed = PRECISIONS[type] ?? "unknown";
    if (executed !== precision) {
      throw new Error(`onnxruntime-web executes this file in ${executed}, not in ${precision}`);
    }
    return {
      load,
      version: ort.env.versions.web,
      precision: executed,
      threads: ort.env.wasm.numThreads,
      heap: provider === "wasm" ? { baseline, peak: heap() } : null,
      tick: tick(),
    };
  },

  // Use the first samples, repeated to the batch size: seconds of the first inference, and its outputs.
  async bind({ batchSize, inputs, shape, limit }) {
    const size = inputs.length / shape[0];
    const x = new Float32Array(batchSize * size);
    for (let i = 0; i < x.length; i++) x[i] = inputs[i % inputs.length];
    feeds = { [session.inputNames[0]]: new ort.Tensor("float32", x, [batchSize, ...shape.slice(1)]) };
    const started = seconds();
    const results = await session.run(feeds);
    const first = seconds() - started;
    const values = new Float32Array(
      Math.min(limit, session.outputNames.reduce((sum, name) => sum + results[name].size, 0)),
    );
    let used = 0;
    for (const name of session.outputNames) {
      const part = results[name].data.subarray(0, limit - used);
      values.set(Float32Array.from(part, Number), used);
      used += part.length;
    }
    return { first, outputs: values };
  },

  // Infer for `seconds`, at least once; every sample is the mean of `calls` calls.
  async block({ seconds: long, calls }) {
    const samples = [];
    let count = 0;
    const started = seconds();
    let before = started;
    for (;;) {
      let now;
      let made = 0;
      do {
        for (let i = 0; i < calls; i++) await session.run(feeds);
        made += calls;
        now = seconds();
      } while (now === before);
      samples.push((now - before) / made);
      count += made;
      if (now >= started + long) return { samples, count, total: now - started };
      before = now;
    }
  },

  // The most memory that WebAssembly has held: it never gives any back.
  async peak() {
    return { peak: heap() };
  },
};

self.onmessage = async ({ data }) => {
  try {
    self.postMessage(await actions[data.do](data));
  } catch (error) {
    self.postMessage({ error: String(error?.message ?? error) });
  }
};
