"use strict";
// The page asks its own server alone. Whatever comes from models, labels and file names is set as
// text, never as markup.

const find = (id) => document.getElementById(id);
const meta = (name) => document.querySelector(`meta[name=${name}]`).content;
const TOKEN = meta("token"), MOST_BYTES = Number(meta("most-bytes"));
const MOST_CARDS = 60, MOST_WAITS = 8;
const state = { overview: null, about: null, last: [], running: false, asked: 0, edited: false, form: null };

// Asking

class Failed extends Error {
  constructor(said) { super(said.message); this.said = said; }
}

async function ask(path, query, body) {
  const url = `/api/${path}?${new URLSearchParams(query)}`;
  const how = body === undefined ? {} : {
    method: "POST", body,
    headers: { "Content-Type": "application/octet-stream", "X-TFKIT-Token": TOKEN },
  };
  for (let tries = 0; ; tries += 1) {
    let response, data;
    try {
      response = await fetch(url, how);
      data = await response.json();
    } catch {
      throw new Failed({ kind: "Page", message: "The playground does not answer.",
        remedy: "start it again in the terminal with tfkit playground, then reload this page" });
    }
    if (response.ok) return data;
    if (response.status === 429 && tries < MOST_WAITS) {
      await new Promise((go) => setTimeout(go, 1000 * Number(response.headers.get("Retry-After"))));
      continue;
    }
    throw new Failed(data.error);
  }
}

// Building what is seen

function made(tag, text, kind) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

const copied = (id) => find(id).content.firstElementChild.cloneNode(true);
const KINDS = {
  ServerUnreachable: "The model server does not answer", ModelNotFound: "Not there",
  InvalidRequest: "The input does not work", DeadlineExceeded: "No answer in time",
  ServerOverloaded: "The model server is full", ServerFault: "The model server failed",
  UsageError: "That cannot be asked", SpecError: "A note or file is wrong", Refused: "Refused",
  Page: "The page has lost its server",
};

function errorBox(error) {
  const said = error instanceof Failed ? error.said
    : { kind: "Page", message: String(error), remedy: "reload the page" };
  const box = copied("error-template");
  box.querySelector(".kind").textContent = KINDS[said.kind] || said.kind;
  box.querySelector(".message").textContent = said.message;
  box.querySelector(".remedy span").textContent = said.remedy;
  box.querySelector(".remedy").hidden = !said.remedy;
  return box;
}

const tell = (text) => { find("live").textContent = text; };
const time = (ms) => `${ms < 100 ? ms.toFixed(1) : Math.round(ms)} ms`;

function option(value, text, isOff) {
  const found = made("option", text);
  found.value = value;
  found.disabled = Boolean(isOff);
  return found;
}

function show(name) {
  for (const each of ["waiting", "empty", "trouble"]) find(each).hidden = each !== name;
}

// What there is to choose

async function load() {
  const chosen = state.overview && choice("version");
  show("waiting");
  find("cards").hidden = true;
  find("dot").className = "dot";
  try {
    state.overview = await ask("overview", {});
  } catch (error) {
    trouble(error);
    return;
  }
  find("server").textContent = state.overview.server;
  const names = state.overview.models.map((each) => each.name);
  find("model").replaceChildren(...names.map((name) => option(name, name)));
  const start = chosen && names.includes(chosen.model) ? chosen : state.overview.start;
  find("model").value = start.model;
  if (!chosen) find("top").value = start.top;
  fillVersions(start);
  await describe(start.signature);
}

function trouble(error) {
  const retry = made("button", "Try again", "main");
  retry.type = "button";
  retry.addEventListener("click", load);
  find("trouble").replaceChildren(errorBox(error), retry);
  find("dot").className = "dot bad";
  if (!state.overview) find("server").textContent = "no answer";
  find("request").hidden = true;
  find("cards").hidden = false;
  show("trouble");
}

const currentModel = () => state.overview.models.find((each) => each.name === find("model").value);

function fillVersions(start) {
  const model = currentModel();
  const choices = () => [
    ...model.versions.map((each) => option(`v${each.version}`,
      each.state === "AVAILABLE" ? `Version ${each.version}` : `Version ${each.version} (${each.state.toLowerCase()})`,
      each.state !== "AVAILABLE")),
    ...Object.entries(model.labels).map(([label, version]) => option(`l${label}`, `${label} (label of ${version})`)),
    option("?", "Another label …"),
  ];
  const newest = model.versions.find((each) => each.state === "AVAILABLE");
  const served = newest ? `In service (${newest.version})` : "In service";
  find("version").replaceChildren(option("", served), ...choices());
  find("other").replaceChildren(option("-", "Nothing"), option("", served), ...choices());
  if (start && start.version !== null && start.version !== undefined) pick("version", `v${start.version}`, `Version ${start.version}`);
  if (start && start.label) pick("version", `l${start.label}`, `${start.label} (label)`);
  find("other").value = "-";
  showLabels();
}

function pick(id, value, text) {
  const select = find(id);
  if (![...select.options].some((each) => each.value === value)) select.append(option(value, text));
  select.value = value;
}

function showLabels() {
  find("label-field").hidden = find("version").value !== "?";
  find("other-label-field").hidden = find("other").value !== "?";
}

function choice(id) {
  const value = find(id).value, typed = find(id === "version" ? "label" : "other-label").value.trim();
  const found = { model: find("model").value, signature: find("signature").value || "", top: find("top").value || "5" };
  if (value.startsWith("v")) found.version = value.slice(1);
  if (value.startsWith("l")) found.label = value.slice(1);
  if (value === "?") found.label = typed;
  return found;
}

function named(chosen) {
  if (chosen.label) return `Label ${chosen.label}`;
  return chosen.version ? `Version ${chosen.version}` : "In service";
}

async function describe(signature) {
  const mine = state.asked += 1;
  showLabels();
  if (find("version").value === "?" && !find("label").value.trim()) return;
  const chosen = choice("version");
  if (signature !== undefined) chosen.signature = signature;
  let about;
  try {
    about = await ask("describe", chosen);
  } catch (error) {
    if (mine !== state.asked) return;
    state.about = null;
    find("request").hidden = false;
    find("pictures").hidden = find("values").hidden = find("about").hidden = true;
    find("dot").className = "dot bad";
    find("trouble").replaceChildren(errorBox(error));
    find("cards").hidden = false;
    show("trouble");
    return;
  }
  if (mine !== state.asked) return;
  state.about = about;
  find("dot").className = "dot fine";
  find("request").hidden = false;
  find("signature").replaceChildren(...about.signatures.map((name) => option(name === "serving_default" ? "" : name, name)));
  find("signature").value = about.signature === "serving_default" ? "" : about.signature;
  find("signature-field").hidden = about.signatures.length < 2;
  showAbout(about);
  find("cards").hidden = false;
  show(find("cards").children.length ? "" : "empty");
}

function showAbout(about) {
  const isPicture = about.takes === "picture";
  find("pictures").hidden = !isPicture;
  find("values").hidden = isPicture;
  find("about").hidden = false;
  const rows = [];
  const types = (list) => list.map((each) => `${each.name}: ${each.type}`).join(", ") || "nothing";
  rows.push(["Input", types(about.inputs)], ["Output", types(about.outputs)]);
  if (about.classes) rows.push(["Classes", String(about.classes)]);
  find("about-list").replaceChildren(...rows.flatMap(([name, text]) => {
    const value = made("dd");
    value.append(made("code", text));
    return [made("dt", name), value];
  }));
  find("not-picture").replaceChildren();
  if (isPicture) {
    find("about-list").append(...facts(about.how));
    find("empty-text").textContent = "Drop a picture, paste one, or choose a file. The classes come as bars.";
    return;
  }
  find("empty-text").textContent = "Type the input of this signature, or fill in an example, and send it.";
  find("not-picture").textContent = `No pictures: ${about.because.message}`;
  fillForms(about);
}

function facts(how) {
  return Object.entries(how).flatMap(([what, each]) => {
    const value = made("dd", each.value);
    value.append(made("span", each.source, each.source === "assumed" ? "chip assumed" : "chip"));
    if (each.because) value.append(made("div", each.because, "hint"));
    return [made("dt", what), value];
  });
}

const FORMS = { numbers: "Numbers", text: "Text", json: "JSON" };
const HINTS = {
  numbers: "A row of numbers on each line, with spaces or commas between. Ctrl+Enter sends.",
  text: "The text is sent as it is, as one row. Ctrl+Enter sends.",
  json: "The body of a REST request, or only its list of instances. Ctrl+Enter sends.",
};

const form = () => document.querySelector("#forms input:checked")?.value || "json";

function fillForms(about) {
  const chosen = about.forms.includes(state.form) ? state.form : about.forms[0];
  const choices = about.forms.map((name) => {
    const label = made("label"), input = made("input");
    Object.assign(input, { type: "radio", name: "form", value: name, checked: name === chosen });
    label.append(input, FORMS[name]);
    return label;
  });
  find("forms").replaceChildren(find("forms").firstElementChild, ...choices);
  find("forms").hidden = about.forms.length < 2;
  showForm();
}

function showForm() {
  find("text-hint").textContent = HINTS[form()];
  find("example").hidden = !state.about.examples[form()];
  if (!state.edited) find("text").value = "";
}

// Sending

function targets() {
  const first = choice("version"), second = find("other").value;
  return second === "-" ? [first] : [first, choice("other")];
}

async function send(inputs) {
  if (!inputs.length || state.running || !state.about) return;
  state.last = inputs;
  busy(true);
  show("");
  const asked = targets();
  const cards = inputs.map((input) => card(input, asked));
  find("cards").prepend(...cards.map((each) => each.element));
  forget();
  find("results").scrollIntoView({ block: "nearest" });
  try {
    for (const each of cards) await each.run();
  } finally {
    busy(false);
  }
}

function busy(isBusy) {
  state.running = isBusy;
  find("again-row").hidden = !state.last.length;
  for (const id of ["again", "clear"]) find(id).disabled = isBusy;
  find("results").setAttribute("aria-busy", String(isBusy));
}

function forget() {
  const cards = find("cards");
  while (cards.children.length > MOST_CARDS) drop(cards.lastElementChild);
}

function drop(element) {
  const picture = element.querySelector(".original");
  if (picture.src) URL.revokeObjectURL(picture.src);
  element.remove();
}

function card(input, asked) {
  const element = copied("card-template");
  element.querySelector("h2").textContent = input.name;
  if (input.blob) {
    const picture = element.querySelector(".original"), save = element.querySelector(".save");
    picture.src = URL.createObjectURL(input.blob);
    picture.addEventListener("error", () => { picture.hidden = true; });
    picture.hidden = false;
    if (input.pasted) {
      Object.assign(save, { href: picture.src, download: input.name, hidden: false });
    }
  }
  const columns = asked.map((chosen) => {
    const column = copied("column-template");
    column.querySelector("h3").textContent = named(chosen);
    element.querySelector(".columns").append(column);
    return { chosen, column };
  });
  return { element, run: () => runCard(element, columns, input) };
}

async function runCard(element, columns, input) {
  const best = [];
  for (const { chosen, column } of columns) {
    try {
      const found = await answer(chosen, input);
      fill(column, chosen, input, found);
      best.push(bestOf(found));
      tell(`${input.name}: ${bestOf(found) ?? "answered"}, ${named(chosen)}`);
    } catch (error) {
      column.querySelector(".pending").replaceWith(errorBox(error));
    }
  }
  if (columns.length === 2 && best.length === 2 && best[0] !== null) {
    const verdict = element.querySelector(".verdict"), same = best[0] === best[1];
    verdict.textContent = same ? `Both say “${best[0]}”.` : `They differ: “${best[0]}” and “${best[1]}”.`;
    verdict.classList.toggle("differ", !same);
    verdict.hidden = false;
  }
}

function answer(chosen, input) {
  if (input.blob && input.blob.size > MOST_BYTES) {
    throw new Failed({ kind: "InvalidRequest",
      message: `${input.name} has ${input.blob.size.toLocaleString("en")} bytes; the page takes ${MOST_BYTES.toLocaleString("en")}`,
      remedy: "make it smaller, or use tfkit predict" });
  }
  return input.blob ? ask("picture", { ...chosen, name: input.name }, input.blob)
    : ask("values", { ...chosen, form: input.form }, input.text);
}

const nameOf = (each) => each.label || (each.index === null ? "?" : `class ${each.index}`);

function bestOf(found) {
  const first = found.rows ? found.rows[0] : found;
  const all = [...(first?.scores || []), ...(first?.detections || [])];
  return all.length ? nameOf(all[0]) : first?.detections ? "nothing detected" : null;
}

function fill(column, chosen, input, found) {
  column.querySelector("h3").textContent = chosen.version ? `Version ${found.version}` : `${named(chosen)}: version ${found.version}`;
  column.querySelector(".pending").remove();
  column.querySelector(".answer").hidden = false;
  const best = bestOf(found), label = column.querySelector(".label");
  label.textContent = best ?? "";
  label.classList.toggle("long", (best || "").length > 14);
  column.querySelector(".best").hidden = best === null;
  column.querySelector(".seen").hidden = best === null && !found.prepared;
  const first = found.rows ? found.rows[0] : found;
  column.querySelector(".meaning").textContent = first?.meaning ? meaning(first) : "";
  const rows = found.rows || [found];
  column.querySelector(".ranks").replaceChildren(...rows.map((row, number) => {
    const part = made("div");
    if (rows.length > 1) part.append(made("h4", `Row ${number + 1}`));
    part.append(bars(row));
    return part;
  }));
  if (found.prepared) fillPrepared(column, input, found);
  if (found.outputs) fillOutputs(column, found.outputs);
  const notes = column.querySelector(".notes");
  notes.replaceChildren(...(found.notes || []).map((text) => made("li", text)));
  notes.hidden = !notes.children.length;
  fillLatency(column.querySelector(".latency"), found.latency);
  fillCommands(column.querySelector(".copy"), chosen, input, found.commands);
}

function meaning(row) {
  const all = [...row.scores, ...(row.detections || [])];
  const top = all.length && all[0].score !== null ? `${score(all[0])} · ` : "";
  return `${top}${row.meaning}`;
}

const score = (each) => each.score === null ? "-" : Number(each.score).toFixed(4);

function bars(row) {
  const list = made("ol", undefined, "bars");
  const all = [...row.scores, ...(row.detections || [])];
  const known = all.map((each) => Number(each.score)).filter(Number.isFinite);
  const are = known.every((each) => each >= 0 && each <= 1);
  const most = are ? 1 : Math.max(...known, 1e-30);
  for (const each of all) {
    const item = made("li"), name = made("span", nameOf(each), "name");
    if (each.label && each.index !== null && each.label !== String(each.index)) name.append(made("span", `#${each.index}`, "index"));
    if (each.box) name.append(made("span", `at ${each.box.map((side) => Number(side).toPrecision(4)).join(", ")}`, "box"));
    const track = made("div", undefined, "track"), fillIn = made("div", undefined, "fill");
    const part = Number(each.score) / most;
    fillIn.style.width = `${Number.isFinite(part) ? Math.min(1, Math.max(0, part)) * 100 : 0}%`;
    track.append(fillIn);
    item.append(name, made("span", score(each), "score"), track);
    list.append(item);
  }
  return list;
}

function fillPrepared(column, input, found) {
  const { prepared } = found, figure = column.querySelector("figure");
  const caption = figure.querySelector("figcaption"), image = figure.querySelector("img");
  figure.hidden = false;
  if (prepared.picture) {
    image.src = prepared.picture;
    image.alt = `What the model sees of ${input.name}`;
    const range = `${Number(prepared.low).toPrecision(3) * 1} to ${Number(prepared.high).toPrecision(3) * 1}`;
    caption.textContent = `The model’s view: ${prepared.width} × ${prepared.height}, ${range}`;
  } else {
    image.src = column.closest(".card").querySelector(".original").src;
    image.alt = input.name;
    caption.textContent = `The model decodes the file itself (sent as ${prepared.encoding})`;
  }
  const details = column.querySelector(".prepared");
  details.hidden = false;
  details.querySelector("dl").replaceChildren(
    made("dt", "input"), made("dd", `${prepared.input}: ${prepared.type}`), ...facts(found.how));
}

function fillOutputs(column, outputs) {
  const rows = outputs.map((each) => {
    const row = made("tr");
    row.append(made("td", each.name), made("td", each.type), made("td", each.values));
    return row;
  });
  column.querySelector("tbody").replaceChildren(...rows);
  column.querySelector(".scroll").hidden = false;
}

function fillLatency(place, latency) {
  const isSplit = latency.server !== undefined;
  const parts = [["prepare", "Prepare", latency.prepare]];
  if (isSplit) parts.push(["send", "Send", latency.send], ["server-time", "Server", latency.server]);
  else parts.push(["request", "Send and server", latency.request]);
  place.querySelector(".parts").replaceChildren(...parts.map(([kind, , ms]) => {
    const part = made("span", undefined, kind);
    part.style.flex = String(Math.max(ms, 0.001));
    return part;
  }));
  place.querySelector(".legend").replaceChildren(...parts.map(([kind, name, ms]) => {
    const item = made("li", `${name} `, kind);
    item.append(made("b", time(ms)));
    return item;
  }));
  const hint = place.querySelector(".hint");
  hint.hidden = false;
  if (!isSplit) hint.textContent = `How much of it is the server's is not known: ${latency.unknown}.`;
  else if (latency.parts.compute !== undefined) {
    const queue = latency.parts.queue ? `, ${time(latency.parts.queue)} waiting for a batch` : "";
    hint.textContent = `Of the server's time, ${time(latency.parts.compute)} in the model${queue}.`;
  } else hint.hidden = true;
}

// Commands to copy

const TABS = { tfkit: "tfkit", python: "Python", curl: "curl" };

function fillCommands(place, chosen, input, commands) {
  const tabs = place.querySelector(".tabs"), pre = place.querySelector("pre");
  const save = place.querySelector(".body"), take = place.querySelector(".take"), hint = place.querySelector(".hint");
  const choose = (name) => {
    for (const each of tabs.children) {
      const isIt = each.dataset.name === name;
      each.setAttribute("aria-selected", String(isIt));
      each.tabIndex = isIt ? 0 : -1;
    }
    const missing = commands.curl_fault || "curl speaks REST, and the server's REST address is not known here: start the page with --rest-url.";
    pre.textContent = commands[name] || missing;
    pre.classList.toggle("wrapped", name === "curl");
    take.disabled = !commands[name];
    take.textContent = "Copy";
    save.hidden = !(name === "curl" && commands.curl_needs_body);
    const needs = !save.hidden ? ["Save request.json first, and run this beside it."]
      : input.blob && (name !== "curl" || (commands.curl || "").includes("base64 <")) ? [`For the folder that ${input.name} is in.`] : [];
    hint.textContent = [...needs, ...commands.notes].join(" ");
    hint.hidden = !hint.textContent;
  };
  tabs.replaceChildren(...Object.entries(TABS).map(([name, text]) => {
    const tab = made("button", text);
    Object.assign(tab, { type: "button" });
    tab.setAttribute("role", "tab");
    tab.dataset.name = name;
    tab.addEventListener("click", () => choose(name));
    return tab;
  }));
  tabs.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const all = [...tabs.children], next = all[(all.indexOf(document.activeElement) + step + all.length) % all.length];
    event.preventDefault();
    choose(next.dataset.name);
    next.focus();
  });
  take.addEventListener("click", async () => {
    take.textContent = await copy(pre) ? "Copied" : "Selected: press Ctrl+C";
    tell(take.textContent);
  });
  save.addEventListener("click", () => saveBody(save, chosen, input));
  choose("tfkit");
}

async function copy(pre) {
  try {
    await navigator.clipboard.writeText(pre.textContent);
    return true;
  } catch { // not for a page that is not of this machine
    const range = document.createRange();
    range.selectNodeContents(pre);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    return document.execCommand("copy");
  }
}

async function saveBody(button, chosen, input) {
  button.disabled = true;
  try {
    const { body } = await ask("body", { ...chosen, name: input.name }, input.blob);
    const link = made("a");
    link.href = URL.createObjectURL(new Blob([body], { type: "application/json" }));
    link.download = "request.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  } catch (error) {
    button.closest(".copy").append(errorBox(error));
  } finally {
    button.disabled = false;
  }
}

// What people do

const pictures = (list, pasted) => [...list].map((blob, number) => ({
  blob, pasted, name: pasted ? `pasted${number ? `-${number + 1}` : ""}.${(blob.type.split("/")[1] || "png").replace(/\W.*/, "")}` : blob.name,
}));
const takesPictures = () => state.about?.takes === "picture";

find("file").addEventListener("change", (event) => {
  const chosen = pictures(event.target.files, false);
  event.target.value = "";
  send(chosen);
});

let depth = 0;
addEventListener("dragenter", () => { depth += 1; if (takesPictures()) document.body.classList.add("dragging"); });
addEventListener("dragleave", () => { depth -= 1; if (!depth) document.body.classList.remove("dragging"); });
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  document.body.classList.remove("dragging");
  if (takesPictures()) send(pictures(event.dataTransfer.files, false));
});
addEventListener("paste", (event) => {
  const found = [...(event.clipboardData?.files || [])];
  if (!found.length || !takesPictures()) return;
  event.preventDefault();
  send(pictures(found, found.every((each) => /^image\.\w+$/.test(each.name))));
});

find("values").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = find("text").value, name = text.trim().slice(0, 60) || "(empty)";
  send([{ text, form: form(), name: text.trim().length > 60 ? `${name} …` : name }]);
});
find("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("values").requestSubmit();
});
find("text").addEventListener("input", () => { state.edited = find("text").value !== ""; });
find("forms").addEventListener("change", () => { state.form = form(); showForm(); });
find("example").addEventListener("click", () => { find("text").value = state.about.examples[form()]; state.edited = true; find("text").focus(); });
find("again").addEventListener("click", () => send(state.last));
find("clear").addEventListener("click", () => {
  for (const each of [...find("cards").children]) drop(each);
  state.last = [];
  busy(false);
  show("empty");
});
find("refresh").addEventListener("click", load);
find("model").addEventListener("change", () => { fillVersions(); state.edited = false; state.form = null; state.last = []; busy(false); describe(""); });
find("version").addEventListener("change", () => describe());
find("other").addEventListener("change", showLabels);
find("label").addEventListener("change", () => describe());
find("signature").addEventListener("change", () => { state.edited = false; describe(); });
load();
