// A dream that runs in the page: what `lssvwm-gym export` wrote, by onnxruntime-web on one core or by WebGPU. Nothing is sent anywhere.
// docs/_scripts/live.py puts the files that this reads into docs/live/.

const ARROWS = { ArrowUp: "w", ArrowLeft: "a", ArrowDown: "s", ArrowRight: "d" };
const ARRAYS = { float32: Float32Array, int64: BigInt64Array };
const SAFETENSORS = { F16: [Uint16Array, "float16"], F32: [Float32Array, "float32"], I64: [BigInt64Array, "int64"] };
const PROCESSORS = { wasm: "WebAssembly", webgpu: "WebGPU" };
const NEXT = "next_"; // before the name of a part of the state, as an output

/** Standard normal numbers from a seed: mulberry32, then Box-Muller. */
export class Normals {
  constructor(seed) {
    this.seed = seed >>> 0;
  }

  uniform() {
    this.seed = (this.seed + 0x6d2b79f5) >>> 0;
    let t = this.seed;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  draw(count) {
    return Float32Array.from({ length: count }, () => Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform()));
  }
}

/** A file as bytes. Throws an error that says what is wrong with it, where it is not of the size and hash that were expected. */
async function download(url, expected, progress) {
  let response;
  try {
    response = await fetch(url);
  } catch (error) {
    throw new Error(`${url} can't be fetched (${error.message}). Is there still a connection?`);
  }
  if (!response.ok) throw new Error(`${url} can't be fetched: the server answers ${response.status}.`);
  const parts = [];
  for (let reader = response.body.getReader(), part; !(part = await reader.read()).done; ) {
    parts.push(part.value);
    progress(part.value.length);
  }
  const bytes = new Uint8Array(await new Blob(parts).arrayBuffer());
  if (bytes.length !== expected.bytes) throw new Error(`${url} came with ${bytes.length} bytes instead of ${expected.bytes}. Load the page again.`);
  if (globalThis.crypto?.subtle && (await sha256(bytes)) !== expected.sha256) throw new Error(`${url} is not the file that was exported. Load the page again.`);
  return bytes;
}

/** The bytes that were compressed with gzip. */
async function unpacked(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function json(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status}`);
  return response.json();
}

/** The tensors of a safetensors file, by name. */
function tensorsOf(bytes, ort) {
  const size = Number(new DataView(bytes.buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + size)));
  delete header.__metadata__;
  const tensor = ({ dtype, shape, data_offsets: [start, end] }) => {
    const [kind, type] = SAFETENSORS[dtype];
    return new ort.Tensor(type, new kind(bytes.slice(8 + size + start, 8 + size + end).buffer), shape);
  };
  return Object.fromEntries(Object.entries(header).map(([name, entry]) => [name, tensor(entry)]));
}

/** The number that 16 bits stand for. */
function half(bits) {
  const exponent = (bits >> 10) & 31;
  return (bits >> 15 ? -1 : 1) * (exponent ? 2 ** (exponent - 25) * (1024 + (bits & 1023)) : 2 ** -24 * (bits & 1023));
}

const runtimes = {}; // opened ones, by processor: each is a module that keeps its memory

/** Onnxruntime, with one thread: pages on plain servers may not have more. */
function openRuntime(base, build, processor, progress) {
  const open = async ({ script, wasm }) => {
    const [code, packed] = await Promise.all([script, wasm].map((file) => download(base + file.file, file, progress)));
    const ort = await import(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
    ort.env.wasm.wasmBinary = (await unpacked(packed)).buffer;
    ort.env.wasm.numThreads = 1;
    ort.env.logLevel = "error";
    return ort;
  };
  runtimes[processor] ??= open(build.runtimes[processor]);
  runtimes[processor].catch(() => delete runtimes[processor]);
  return runtimes[processor];
}

/** Why this browser can't compute with WebGPU; empty where it can. */
async function lackOfWebgpu() {
  if (!navigator.gpu) return isSecureContext ? "No WebGPU in this browser." : "WebGPU needs https.";
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  return adapter ? "" : "No graphics adapter for WebGPU.";
}

/** A dream of one row. Its state is an object of tensors in the main memory, a value: a step makes a new one. */
export class Dream {
  /**
   * `base` is the folder of what docs/_scripts/live.py wrote, `processor` one of PROCESSORS; `progress(bytes)` is told of all that arrives.
   * Where WebGPU fails, now or in a later step, `failed(error)` is told and all goes on with WebAssembly.
   */
  static async open(base, world, { processor = "wasm", progress = () => {}, failed = () => {} } = {}) {
    const dream = Object.assign(new Dream(), { base, processor, progress, failed });
    dream.build = await json(`${base}live.json`);
    dream.manifest = await json(`${base}${world}/manifest.json`);
    const files = Object.entries(dream.build.worlds.find(({ name }) => name === world).files);
    const fetched = async ([name, file]) => [name, await unpacked(await download(`${base}${world}/${file.file}`, file, progress))];
    dream.files = Object.fromEntries(await Promise.all(files.map(fetched)));
    await dream.compute(() => {});
    dream.contexts = tensorsOf(dream.files["contexts.safetensors"], dream.ort);
    return dream;
  }

  /** What `call` makes of the two programs. */
  async compute(call) {
    try {
      this.programs ??= await this.load();
      return await call(this.programs);
    } catch (error) {
      if (this.processor === "wasm") throw error;
      this.failed(error);
      delete runtimes[this.processor]; // what has lost its device stays without
      Object.assign(this, { processor: "wasm", programs: null });
      return this.compute(call);
    }
  }

  async load() {
    this.ort = await openRuntime(this.base, this.build, this.processor, this.progress);
    const provider = { name: this.processor, forceCpuNodeNames: ["from_float16"] }; // not every graphics processor has float16
    const options = { executionProviders: [provider], externalData: [{ path: "weights.bin", data: this.files["weights.bin"] }] };
    const programs = {};
    for (const name of ["step", "prefill"]) programs[name] = await this.ort.InferenceSession.create(this.files[`${name}.onnx`], options);
    return programs;
  }

  close() {
    for (const program of Object.values(this.programs ?? {})) program.release();
  }

  get noiseSize() {
    return this.manifest.noise.reduce((a, b) => a * b);
  }

  firstState() {
    const tensor = ({ dtype, shape, value }) => {
      const size = shape.reduce((a, b) => a * b, 1);
      const number = dtype === "int64" ? BigInt : Number;
      return new this.ort.Tensor(dtype, ARRAYS[dtype].from({ length: size }, (_, i) => number(Array.isArray(value) ? value[i] : value)), shape);
    };
    return Object.fromEntries(Object.entries(this.manifest.state).map(([name, first]) => [name, tensor(first)]));
  }

  /** What is imagined of a map that shows little, as the state has it: from one of the `starts`, or after a context. */
  imagined(prefix) {
    const names = Object.keys(this.contexts).filter((name) => name === prefix || name.startsWith(`${prefix}.`));
    const number = (data) => (data instanceof Uint16Array ? half : Number); // 16 bits, where a browser knows no such floats
    const wide = ({ data, dims }) => new this.ort.Tensor("float32", Float32Array.from(data, number(data)), dims);
    return Object.fromEntries(names.map((name) => [name === prefix ? "layout" : name.slice(prefix.length + 1), wide(this.contexts[name])]));
  }

  /** How many layouts there are for dreams that begin with nothing. */
  get starts() {
    return Object.keys(this.contexts).filter((name) => /^cold\.\d+\.layout$/.test(name)).length;
  }

  /** A dream that begins with nothing, with one of the `starts`, if any. */
  cold(noise, start = 0) {
    return this.step({ ...this.firstState(), ...this.imagined(`cold.${start}`) }, this.manifest.unknown_action, noise);
  }

  /** The state after a context's real frames, each of which `shown` is given as a picture. */
  async begin(context, shown = async () => {}) {
    const given = (name) => this.contexts[`${context}.${name}`];
    const part = (name, t) => {
      const { data, dims, type } = given(name);
      const rest = dims.slice(2);
      const size = rest.reduce((a, b) => a * b, 1);
      return new this.ort.Tensor(type, data.slice(t * size, (t + 1) * size), [1, ...rest]);
    };
    let state = { ...this.firstState(), pose_known: part("pose_known", 0) };
    const parts = ["latent", "action", "pose"];
    if ("inventory" in state) {
      parts.push("inventory");
      state.inventory = part("inventory", 0);
      if (`${context}.inventory_peak` in this.contexts) state.inventory_peak = part("inventory_peak", 0); // not of older weights
    }
    let result;
    for (let t = 0; t < this.manifest.contexts[context].frames; t++) {
      result = await this.run("prefill", state, Object.fromEntries(parts.map((name) => [`given_${name}`, part(name, t)])));
      state = result.state;
      await shown(result.frame);
    }
    return { ...result, state: { ...result.state, ...this.imagined(`layout.${context}`) } };
  }

  /** One frame on: { frame (RGB bytes), reward, terminated, state }. `noise` are as many standard normal numbers as `noiseSize`. */
  step(state, action, noise) {
    const tensors = {
      action: new this.ort.Tensor("int64", BigInt64Array.of(BigInt(action)), [1]),
      noise: new this.ort.Tensor("float32", noise, this.manifest.noise),
    };
    return this.run("step", state, tensors);
  }

  async run(program, state, tensors) {
    const results = await this.compute((programs) => programs[program].run({ ...state, ...tensors }));
    const next = Object.entries(results).filter(([name]) => name.startsWith(NEXT));
    return {
      frame: results.frame.data,
      reward: Number(results.reward?.data[0] ?? 0),
      terminated: Boolean(results.terminated?.data[0]),
      state: { ...state, ...Object.fromEntries(next.map(([name, tensor]) => [name.slice(NEXT.length), tensor])) },
    };
  }
}

/** The action for keys that are held: that of the most of them together. */
export function actionOf(keys, held) {
  const meant = Object.keys(keys).filter((key) => [...key].every((one) => held.has(one)));
  meant.sort((a, b) => b.length - a.length);
  return meant.length ? keys[meant[0]] : 0;
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

function made(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** What is played: draws into a canvas, reads keys and buttons. */
class Game {
  constructor(root, base, build) {
    Object.assign(this, { root, base, build, held: new Set(), pressed: null, times: [], busy: false });
    this.world = made("select", {}, ...build.worlds.map(({ name }) => made("option", { value: name }, name)));
    this.processor = made("select", { disabled: true }, ...Object.entries(PROCESSORS).map(([value, name]) => made("option", { value }, name)));
    this.lack = made("small");
    this.start = made("button", { className: "md-button md-button--primary", onclick: () => this.open() });
    this.canvas = made("canvas", { width: 64, height: 64, tabIndex: 0, style: "width: min(100%, 384px); image-rendering: pixelated; background: #000" });
    this.message = made("p", { role: "status" });
    this.warning = made("p", { role: "alert" });
    this.controls = made("p");
    this.buttons = made("p");
    this.world.onchange = this.processor.onchange = () => this.offer();
    lackOfWebgpu().then((lack) => {
      this.processor.disabled = Boolean(lack);
      this.lack.textContent = lack;
    });
    root.replaceChildren(made("p", {}, this.world, " ", this.processor, " ", this.start, " ", this.lack), this.warning, this.message, this.canvas, this.controls, this.buttons);
    this.canvas.addEventListener("keydown", (event) => this.key(event, true));
    this.canvas.addEventListener("keyup", (event) => this.key(event, false));
    this.canvas.addEventListener("blur", () => this.held.clear());
    this.offer();
  }

  offer() {
    const { bytes } = this.build.worlds.find(({ name }) => name === this.world.value);
    this.start.textContent = `Start (downloads ${megabytes(bytes + this.build.runtimes[this.processor.value].bytes)})`;
  }

  say(text) {
    this.message.textContent = text;
  }

  fail(error) {
    this.turn = null;
    this.say(`The dream can't go on: ${error.message}`);
    console.error(error);
  }

  async open() {
    this.turn = null;
    this.start.disabled = true;
    this.warning.textContent = "";
    let [arrived, opening] = [0, true];
    const progress = (bytes) => {
      arrived += bytes;
      if (opening) this.say(`${megabytes(arrived)} have arrived`);
    };
    const failed = (error) => {
      console.error(error);
      const reason = String(error.message ?? error).replace(/.*(ERROR_MESSAGE:|was false\.) /s, ""); // without where in onnxruntime
      this.warning.textContent = `WebGPU has failed here (${reason.slice(0, 200).trim()}), so the dream goes on with WebAssembly.`;
      this.processor.value = "wasm";
      this.offer();
    };
    try {
      const dream = await Dream.open(this.base, this.world.value, { processor: this.processor.value, progress, failed });
      while (this.busy) await pause(5);
      this.dream?.close();
      this.dream = dream;
      this.arrange();
      this.anew();
    } catch (error) {
      this.fail(error);
    }
    opening = false; // where one file was wrong, others may still come
    this.start.disabled = false;
  }

  /** Controls for the world that was opened. */
  arrange() {
    const { world, contexts } = this.dream.manifest;
    Object.assign(this.canvas, { width: world.image_size, height: world.image_size });
    const offered = contexts.map(({ frames }, number) => made("option", { value: number }, `${frames} real frames, no. ${number + 1}`));
    this.context = made("select", { onchange: () => this.anew() }, ...offered, made("option", { value: "cold" }, "nothing: all is made up"));
    const paces = [...new Set([world.fps, 8, 15, 30])];
    this.pace = made("select", {}, ...paces.map((pace) => made("option", { value: pace }, `${pace} frames/s`)));
    const again = made("button", { className: "md-button", onclick: () => this.anew() }, "Dream anew");
    this.controls.replaceChildren("Begin with ", this.context, " at ", this.pace, " ", again);
    const keys = Object.fromEntries(Object.entries(world.keys).map(([key, action]) => [action, key]));
    const buttons = world.actions.map((name, action) => {
      const button = made("button", { className: "md-button", style: "touch-action: none; padding: .3em .6em; margin: .1em" }, name, keys[action] ? ` (${keys[action]})` : "");
      button.onpointerdown = () => (this.pressed = action);
      button.onpointerup = button.onpointerleave = button.onpointercancel = () => (this.pressed = null);
      return button;
    });
    this.buttons.replaceChildren(...buttons.slice(1));
  }

  key(event, down) {
    const key = ARROWS[event.key] ?? event.key.toLowerCase();
    if (event.ctrlKey || event.metaKey || event.altKey || !Object.keys(this.dream?.manifest.world.keys ?? {}).some((keys) => keys.includes(key))) return;
    event.preventDefault();
    event.stopPropagation(); // the page has keys of its own
    if (down) this.held.add(key);
    else this.held.delete(key);
  }

  /** Begin with what was chosen, and with noise that nobody has seen. */
  async anew() {
    const turn = (this.turn = {}); // whoever holds another is to stop
    while (this.busy) await pause(5);
    if (turn !== this.turn) return;
    this.busy = true;
    try {
      await this.play(turn);
    } catch (error) {
      this.fail(error);
    }
    this.busy = false;
  }

  async play(turn) {
    const { dream } = this;
    const { world } = dream.manifest;
    const noise = new Normals(crypto.getRandomValues(new Uint32Array(1))[0]);
    const draw = () => noise.draw(dream.noiseSize);
    this.canvas.focus({ preventScroll: true });
    this.say("real frames, as the model sees them");
    let now;
    if (this.context.value === "cold") now = await dream.cold(draw(), Math.floor(Math.random() * dream.starts));
    else {
      const shown = async (frame) => {
        this.show(frame);
        await pause(0);
        if (turn !== this.turn) throw turn;
      };
      try {
        now = await dream.begin(Number(this.context.value), shown);
      } catch (error) {
        if (error === turn) return;
        throw error;
      }
    }
    this.show(now.frame);
    let [rewards, steps, due] = [0, 0, performance.now()];
    this.times = [];
    while (turn === this.turn) {
      due = Math.max(due + 1000 / this.pace.value, performance.now());
      const begun = performance.now();
      now = await dream.step(now.state, this.pressed ?? actionOf(world.keys, this.held), draw());
      const took = performance.now() - begun;
      this.show(now.frame);
      rewards += now.reward;
      steps += 1;
      this.tell(now.state, steps, rewards, took);
      if (now.terminated) return this.say(`The episode has ended after ${steps} steps. Dream anew?`);
      await pause(Math.max(0, due - performance.now()));
    }
  }

  tell(state, steps, rewards, took) {
    const { world } = this.dream.manifest;
    this.times = [...this.times.slice(-20), performance.now()];
    const rate = (1000 * (this.times.length - 1)) / (this.times.at(-1) - this.times[0]) || 0;
    const told = [`step ${steps}`, `${rate.toFixed(1)} frames/s with ${PROCESSORS[this.dream.processor]}`, `${took.toFixed(0)} ms a step`, `rewards ${+rewards.toFixed(2)}`];
    if (state.observed) told.push(`familiarity ${(1 - state.posterior_variance.data[0]).toFixed(2)}`);
    world.inventory.forEach((name, number) => state.inventory.data[number] && told.push(`${name} ${+state.inventory.data[number].toFixed(1)}`));
    this.say(told.join(" · "));
  }

  show(frame) {
    const picture = new ImageData(this.canvas.width, this.canvas.height);
    for (let i = 0, j = 0; i < frame.length; i += 3, j += 4) picture.data.set([frame[i], frame[i + 1], frame[i + 2], 255], j);
    this.canvas.getContext("2d").putImageData(picture, 0, 0);
  }
}

/** Put the game into an element; where the site was built without the dream, say so. */
export async function mount(root) {
  const base = root.dataset.base;
  try {
    if (!("DecompressionStream" in globalThis) || !("WebAssembly" in globalThis)) throw new Error("this browser is too old for it: it needs WebAssembly and DecompressionStream");
    return new Game(root, base, await json(`${base}live.json`));
  } catch (error) {
    const disk = location.protocol === "file:" ? " Pages on disk may not load it: serve the site, as by python -m http.server in its folder." : "";
    root.replaceChildren(made("p", {}, made("em", {}, `The live dream isn't part of this build of the site (${error.message}).${disk}`)));
    return null;
  }
}

const root = document.querySelector("#live");
if (root) mount(root);
