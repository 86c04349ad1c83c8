// Draws what the server tells (lssvwm_gym/play/web.py) and tells it what is pressed (lssvwm_gym/play/visitor.py).

const at = (id) => document.getElementById(id);
const style = getComputedStyle(document.documentElement);
const colour = (name) => style.getPropertyValue(`--${name}`);
const NAMES = { ArrowUp: "up", ArrowLeft: "left", ArrowDown: "down", ArrowRight: "right", " ": "space", Backspace: "backspace", Enter: "return" };
const ENDED = { 1006: "the connection is lost", 1009: "a message of this page was too long" };
const SMALLEST = 4; // units of length that the map shows at least

const address = new URL("socket", location.href);
address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
address.search = location.search; // the token
const socket = new WebSocket(address);
socket.binaryType = "arraybuffer";

let keys = new Set();
let now = { paused: false, films: false };
let trail = [];
let hasEnded = false;
let turn = Promise.resolve(); // one message after the other

const tell = (name, value = null) => socket.readyState === WebSocket.OPEN && socket.send(JSON.stringify({ [name]: value }));

socket.onmessage = ({ data }) => { turn = turn.then(() => hear(data)); };
socket.onclose = ({ code }) => hasEnded || say(`${ENDED[code] ?? "the connection has ended"}: reload the page for a new dream`, true);

async function hear(data) {
  const length = new DataView(data).getUint32(0);
  const told = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  let begin = 4 + length;
  const files = told.sizes.map((size) => new Uint8Array(data, (begin += size) - size, size));
  await { world: setUp, frame: show, film: download, end }[told.is](told, files);
}

function end({ message }) {
  hasEnded = true;
  say(message, true);
}

function say(message, isWrong) {
  at("message").textContent = message;
  at("message").className = isWrong ? "wrong" : "";
}

// ---- what is shown ----

async function show(told, [frame, ...marks]) {
  const picture = await createImageBitmap(new Blob([frame], { type: "image/png" }));
  const canvas = at("frame");
  if (canvas.width !== picture.width || canvas.height !== picture.height) [canvas.width, canvas.height] = [picture.width, picture.height];
  canvas.getContext("2d").drawImage(picture, 0, 0);
  now = told;
  tell("seen", told.number);
  trail = [...trail.slice(0, told.trail.keep), ...told.trail.add];
  say(told.message, told.wrong);
  at("acts").textContent = told.acts;
  at("filming").hidden = !told.films;
  at("profile").value = told.profile;
  at("numbers").replaceChildren(...told.numbers.map(([name, value, isWrong]) => row([name, "name"], [value, isWrong ? "wrong" : ""])));
  at("gauges").replaceChildren(...told.gauges.map(([name, share]) => gauge(name, share)));
  at("inventory").replaceChildren(...told.inventory.map(([name, count, reward, hasBeen]) =>
    row([name, count ? "" : "none"], [String(count), count ? "" : "none"], [reward === null ? "" : `+${reward}`, hasBeen ? "has" : "none"])));
  for (const button of at("actions").children) button.classList.toggle("acting", button.dataset.action === told.action);
  if (marks.length) showMarks(marks);
  if (trail.length) drawMap();
  document.body.dataset.number = told.number;
}

function element(tag, text, className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

function row(...cells) {
  const made = document.createElement("tr");
  made.append(...cells.map(([text, className]) => element("td", text, className)));
  return made;
}

function gauge(name, share) {
  const made = element("div", "", "gauge");
  const bar = share === null ? element("span", "not with this profile", "none without") : document.createElement("progress");
  if (share !== null) [bar.value, bar.className] = [share, name];
  made.append(element("span", name, "name"), bar);
  return made;
}

function showMarks(marks) {
  for (const image of at("marks").querySelectorAll("img")) URL.revokeObjectURL(image.src);
  at("marks").replaceChildren(...marks.map((mark, number) => {
    const button = commandButton(`f${number + 1}`, "", `back to mark ${number + 1}`);
    const image = document.createElement("img");
    image.src = URL.createObjectURL(new Blob([mark], { type: "image/png" }));
    image.alt = "";
    button.prepend(image);
    return button;
  }));
}

function drawMap() {
  const [x, y, cos, sin, ...up] = trail.at(-1);
  const turned = Math.round((Math.atan2(sin, cos) * 180) / Math.PI);
  at("place").hidden = false;
  at("where").textContent = `ahead ${x.toFixed(1)}  left ${y.toFixed(1)}  turned ${turned}°` + (up.length ? `  up ${up[0].toFixed(1)}` : "");
  const canvas = at("map"), size = canvas.width, pen = canvas.getContext("2d");
  const points = trail.map((pose) => [-pose[1], -pose[0]]); // ahead is up
  const [low, high] = [Math.min, Math.max].map((most) => [0, 1].map((axis) => points.reduce((so, point) => most(so, point[axis]), points[0][axis])));
  const unit = size / Math.max(SMALLEST, 1.15 * Math.max(high[0] - low[0], high[1] - low[1]));
  const placed = points.map((point) => [0, 1].map((axis) => (point[axis] - (low[axis] + high[axis]) / 2) * unit + size / 2));
  pen.clearRect(0, 0, size, size);
  pen.strokeStyle = pen.fillStyle = colour("accent");
  pen.beginPath();
  placed.forEach(([left, top]) => pen.lineTo(left, top));
  pen.stroke();
  const [left, top] = placed.at(-1), [right, down] = [-sin, -cos]; // an arrow, the way it looks
  pen.beginPath();
  pen.moveTo(left + 9 * right, top + 9 * down);
  pen.lineTo(left - 6 * right - 6 * down, top - 6 * down + 6 * right);
  pen.lineTo(left - 6 * right + 6 * down, top - 6 * down - 6 * right);
  pen.fill();
  const length = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e9].find((length) => length * unit > 24);
  pen.fillStyle = colour("dim");
  pen.fillRect(8, size - 10, Math.min(length * unit, size - 40), 2);
  pen.fillText(length, 14 + Math.min(length * unit, size - 40), size - 6);
}

function download({ name }, [file]) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([file]));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  document.body.dataset.film = file.length;
}

// ---- what is pressed ----

function setUp({ title, actions, commands, keys: known, profiles }) {
  document.title = `${title}: a dream`;
  at("title").textContent = title;
  keys = new Set(known);
  at("profile").replaceChildren(...profiles.map((name) => element("option", name)));
  at("actions").replaceChildren(...actions.map(([key, name]) => holdButton(key, name)));
  at("commands").replaceChildren(
    ...commands.map(([key, name, about]) => (key === "backspace" ? holdButton(key, name) : commandButton(key, name, about))),
    filmButton("mp4"), filmButton("gif"));
  at("keys").replaceChildren(...[...actions, ...commands.map(([key, , about]) => [key, about]), ["v", "begin or end a film"], ["h", "these keys"]]
    .flatMap(([key, name]) => [element("dt", key === "backspace" ? "bksp" : key), element("dd", name)]));
}

function named(key, name) {
  const made = document.createElement("button");
  made.type = "button";
  made.append(element("b", key === "backspace" ? "bksp" : key), name ? ` ${name}` : "");
  return made;
}

function holdButton(key, name) {
  const button = named(key, name);
  button.dataset.action = name;
  button.onpointerdown = (event) => { event.preventDefault(); button.setPointerCapture(event.pointerId); tell("down", key); };
  button.onpointerup = button.onpointercancel = () => tell("up", key);
  button.oncontextmenu = (event) => event.preventDefault();
  return button;
}

function commandButton(key, name, about) {
  const button = named(key, name);
  button.title = about;
  button.onclick = () => { button.blur(); tell("down", key); };
  return button;
}

function filmButton(ending) {
  const button = named("film", ending);
  button.title = "begin a film, or end it and download it";
  button.onclick = () => { button.blur(); tell("film", ending); };
  return button;
}

at("profile").onchange = () => { tell("profile", at("profile").value); at("profile").blur(); };

function pressed(event) {
  const name = NAMES[event.key] ?? event.key.toLowerCase();
  const isTyped = event.target.matches?.("button, select, summary") && (event.key === "Enter" || (event.key === " " && !keys.has(" ")));
  return event.ctrlKey || event.altKey || event.metaKey || isTyped || !(keys.has(name) || ["v", "h"].includes(name)) ? null : name;
}

addEventListener("keydown", (event) => {
  const name = pressed(event);
  if (name === null) return;
  event.preventDefault();
  if (event.repeat) return;
  if (name === "v" && !keys.has("v")) tell("film", "mp4");
  else if (name === "h" && !keys.has("h")) at("help").open = !at("help").open;
  else tell("down", name);
});
addEventListener("keyup", (event) => {
  const name = pressed(event);
  if (name === null) return;
  event.preventDefault();
  tell("up", name);
});
addEventListener("blur", () => tell("release")); // a page without the focus isn't told of keys
document.addEventListener("visibilitychange", () => {
  if (document.hidden && !now.paused && keys.size) tell("down", "p");
});
