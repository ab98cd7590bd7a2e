"use strict";
const part = (id) => document.getElementById(id);
const make = (tag, text = "", properties = {}) => Object.assign(document.createElement(tag), {textContent: text}, properties);
let model = null, labels = new Map(), rows = [], off = new Set(), newest = 0, stream = null, token = "";

function say(text, isError = false) {
  part("status").textContent = text;
  part("status").className = isError ? "error" : "";
}

async function ask(path, options = {}) {
  const headers = token ? {Authorization: `Bearer ${token}`} : {};
  const response = await fetch(path, {...options, headers});
  if (response.ok) return response;
  if (response.status === 401) part("login").hidden = false;
  const problem = await response.json().catch(() => ({error: response.statusText}));
  throw new Error(problem.error);
}

// Hues a golden angle apart, as in the drawings; letters black or white, by how light the color is.
function paint(element, name) {
  const label = labels.get(name) ?? 0, hue = (label * 0.61803398875 + 0.05) % 1, value = 0.95, saturation = 0.75;
  const channel = (n) => { const k = (n + hue * 6) % 6; return value - value * saturation * Math.max(0, Math.min(k, 4 - k, 1)); };
  const [red, green, blue] = [5, 3, 1].map((n) => Math.round(255 * channel(n)));
  element.style.setProperty("--color", `rgb(${red} ${green} ${blue})`);
  element.style.setProperty("--letters", 0.299 * red + 0.587 * green + 0.114 * blue < 140 ? "white" : "black");
}

async function start() {
  try {
    model = await (await ask("model")).json();
  } catch (error) {
    return say(token ? error.message : `This server asks for a token. ${error.message}`, true);
  }
  part("login").hidden = true;
  say("");
  document.title = part("title").textContent = model.name;
  const names = model.classes.map((one) => one.name);
  labels = new Map(names.map((name, label) => [name, label]));
  const shown = names.slice(0, 12).join(", ") + (names.length > 12 ? ", …" : "");
  part("about").textContent = `${model.task}, ${names.length} classes: ${shown}`;
  part("camera").hidden = !(navigator.mediaDevices && model.input.channels === 3);
  part("threshold-row").hidden = part("place").hidden = model.task !== "detection";
  const lowest = model.predict.score_threshold ?? 0;
  part("threshold").min = Math.floor(lowest * 100) / 100;
  part("threshold").value = Math.max(0.4, lowest);
  part("stage").classList.toggle("stored", model.input.exif === "stored");
}

// Results of any task as [{name, score, box}], best first; the server's own drawing shows what a page cannot.
function readable(results) {
  if (model.task === "detection") return results.map((row) => ({name: row.category_name, score: row.score, box: row.bbox}));
  return results.flatMap((row) => Object.keys(row).filter((key) => key.startsWith("label")).map(
    (key) => ({name: row[key], score: row[key.replace("label", "score")], box: null})));
}

async function predict(blob) {
  const began = performance.now();
  const response = await ask("predict", {method: "POST", body: blob});
  const text = await response.text();
  const stages = Object.fromEntries((response.headers.get("Server-Timing") || "").split(", ").map((one) => one.split(";dur=")));
  const total = Math.round(performance.now() - began);
  return {results: JSON.parse(text), text, timing: `${total} ms: decoding ${stages.decode}, waiting ${stages.wait}, model ${stages.model}`};
}

function show(found) {
  rows = readable(found.results);
  const url = part("download").href;
  part("download").href = URL.createObjectURL(new Blob([found.text], {type: "application/json"}));
  if (url) URL.revokeObjectURL(url);
  part("timing").textContent = found.timing;
  part("result").hidden = false;
  listClasses();
  draw();
}

function listClasses() {
  const names = [...new Set(rows.map((row) => row.name))].sort((a, b) => labels.get(a) - labels.get(b));
  const filter = part("filter");
  filter.hidden = model.task !== "detection" || names.length < 2;
  const before = [...filter.querySelectorAll("input")].map((input) => input.value);
  if (before.join("\n") === names.join("\n")) return;  // a camera's images: the focus stays
  filter.replaceChildren(filter.firstElementChild, ...names.map((name) => {
    const label = make("label"), swatch = make("span", "", {className: "swatch"});
    const input = make("input", "", {type: "checkbox", value: name, checked: !off.has(name)});
    input.addEventListener("change", () => { off[input.checked ? "delete" : "add"](name); draw(); });
    paint(swatch, name);
    label.append(input, " ", swatch, name);
    return label;
  }));
}

function draw() {
  const threshold = Number(part("threshold").value), isDetection = model.task === "detection";
  part("threshold-value").textContent = threshold.toFixed(2);
  const shown = rows.filter((row) => !isDetection || (row.score >= threshold && !off.has(row.name)));
  const [width, height] = part("stage").dataset.size.split(",").map(Number);
  const percent = (value, side) => `${100 * value / side}%`;
  const boxes = shown.map((row) => {
    if (!row.box) return null;
    const [x, y, w, h] = row.box, box = make("div");
    Object.assign(box.style, {left: percent(x, width), top: percent(y, height), width: percent(w, width), height: percent(h, height)});
    box.classList.toggle("top", y < 0.06 * height);
    box.classList.toggle("right", x > 0.75 * width);
    box.append(make("span", `${row.name} ${row.score.toFixed(2)}`));
    paint(box, row.name);
    return box;
  });
  part("boxes").replaceChildren(...boxes.filter(Boolean).reverse());  // the best on top
  part("rows").replaceChildren(...shown.map((row, index) => {
    const line = make("tr"), name = make("td"), swatch = make("span", "", {className: "swatch"});
    paint(swatch, row.name);
    name.append(swatch, row.name);
    line.append(name, make("td", row.score.toFixed(3), {className: "number"}));
    if (row.box) {
      line.append(make("td", row.box.map(Math.round).join(", "), {className: "number"}));
      line.tabIndex = 0;
      for (const [event, isOn] of [["focus", true], ["blur", false], ["mouseenter", true], ["mouseleave", false]])
        line.addEventListener(event, () => boxes[index].classList.toggle("chosen", isOn));
    }
    return line;
  }));
  const count = isDetection ? `${shown.length} of ${rows.length} objects` : `the ${shown.length} best classes`;
  part("count").textContent = isDetection ? `${count}, with a score of at least ${threshold.toFixed(2)}` : count;
  part("image").alt = `The image, with ${count}`;
}

const summary = () => (model.task === "detection" ? `${rows.length} objects found` : `${rows[0]?.name}`);

function fit(width, height) {
  part("stage").style.setProperty("--ratio", width / height);
  part("stage").dataset.size = [width, height];
}

// The image as the browser shows it; null where it does not know the format.
function load(url) {
  const image = part("image");
  return new Promise((done) => {
    image.onload = () => done([image.naturalWidth, image.naturalHeight]);
    image.onerror = () => done(null);
    image.src = url;
  });
}

async function open(blob) {
  const number = ++newest;
  stopCamera();
  say(`Looking at ${blob.name || "the image"} …`);
  try {
    const found = await predict(blob);
    if (number !== newest) return;
    if (part("image").src.startsWith("blob:")) URL.revokeObjectURL(part("image").src);
    let size = await load(URL.createObjectURL(blob));
    const isKnown = size !== null && (model.task === "detection" || model.task === "classification");
    if (!isKnown) {  // a TIFF file, or a task whose results only the server draws
      const drawing = await (await ask("predict?output=drawing", {method: "POST", body: blob})).blob();
      size = await load(URL.createObjectURL(drawing));
    }
    fit(...size);
    part("boxes").hidden = !isKnown;
    show(found);
    say(`${blob.name || "The image"}: ${summary()}`);
  } catch (error) {
    if (number === newest) say(error.message, true);
  }
}

async function watch() {
  const video = part("video"), canvas = make("canvas"), own = stream;
  let said = "";
  while (stream === own) {
    const [width, height] = [video.videoWidth, video.videoHeight];
    Object.assign(canvas, {width, height});
    canvas.getContext("2d").drawImage(video, 0, 0);
    try {
      const found = await predict(await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.9)));
      if (stream !== own) return;
      fit(width, height);
      show(found);
      if (said !== summary()) say(`Camera: ${said = summary()}`);
    } catch (error) {
      say(error.message, true);
      await new Promise((done) => setTimeout(done, 1000));
    }
    await new Promise(requestAnimationFrame);
  }
}

async function startCamera() {
  newest++;
  try {
    stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: "environment"}});
  } catch (error) {
    return say(`The camera cannot be used: ${error.message}`, true);
  }
  part("video").srcObject = stream;
  await part("video").play();
  setCamera(true);
  watch();
}

function stopCamera() {
  if (!stream) return;
  stream.getTracks().forEach((track) => track.stop());
  stream = null;
  setCamera(false);
  part("result").hidden = true;
  say("");
}

function setCamera(isOn) {
  part("camera").setAttribute("aria-pressed", isOn);
  part("camera").textContent = isOn ? "Stop the camera" : "Use the camera";
  part("video").hidden = !isOn;
  part("image").hidden = isOn;
  part("boxes").hidden = false;
}

part("file").addEventListener("change", (event) => { if (event.target.files[0]) open(event.target.files[0]); event.target.value = ""; });
part("camera").addEventListener("click", () => (stream ? stopCamera() : startCamera()));
part("threshold").addEventListener("input", draw);
part("login").addEventListener("submit", (event) => { event.preventDefault(); token = part("token").value; start(); });
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    part("drop").classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => { if (event.clipboardData.files[0]) open(event.clipboardData.files[0]); });
start();
