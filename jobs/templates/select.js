/* Keeping and rejecting: the state is the set of kept classes; every change can be taken back. */
"use strict";
const kept = new Set(page.kept);
const undone = [];
let saved = false, left = false;
const at = id => document.getElementById(id);

function told(words) { at("told").textContent = words; }
function count() {
  const particles = page.classes.reduce((sum, one) => sum + (kept.has(one.number) ? one.size : 0), 0);
  const all = page.classes.reduce((sum, one) => sum + one.size, 0);
  at("count").textContent = `${kept.size} of ${page.classes.length} classes, ${particles.toLocaleString("en")} of ${all.toLocaleString("en")} particles (${all ? (100 * particles / all).toFixed(1) : 0} %)`;
  at("undo").disabled = !undone.length;
}
function paint(number) { tileOf(number).setAttribute("aria-pressed", kept.has(number)); }

/* Change several classes at once: [number, kept]; what was different before is remembered as one step. */
function change(wanted, remember = true) {
  const before = wanted.filter(([number, keep]) => kept.has(number) !== keep).map(([number, keep]) => [number, !keep]);
  if (!before.length) return;
  if (remember) undone.push(before);
  for (const [number, keep] of wanted) { if (keep) kept.add(number); else kept.delete(number); paint(number); }
  saved = false;
  told("");
  count();
}
function undo() {
  const last = undone.pop();
  if (!last) return;
  change(last, false);
  count();
  if (last.length === 1) tileOf(last[0][0]).focus();
}
const visible = () => tiles().map(tile => Number(tile.dataset.number)).filter(number => byNumber.get(number).size);

async function post(place, message) {
  const answer = await fetch(place, {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(message)});
  const found = await answer.text();
  if (!answer.ok) throw new Error(answer.headers.get("Content-Type") === "application/json" ? JSON.parse(found).error : found);
  return JSON.parse(found);
}
async function save() {
  try {
    const found = await post("save", {kept: [...kept].sort((a, b) => a - b)});
    saved = true;
    told(`Saved: ${found.selected.toLocaleString("en")} particles in ${found.folder}`);
  } catch (error) { told(`Not saved: ${error.message}`); }
}
async function quit() {
  if (!saved && undone.length && !confirm("There are changes that were not saved. Leave without saving?")) return;
  left = true;
  try { await post("quit", {}); } catch (error) { /* the server is gone: that was what was wanted */ }
  told("Done. This page can be closed.");
  for (const button of document.querySelectorAll("main button")) button.disabled = true;
}

gallery.addEventListener("click", event => {
  const tile = event.target.closest(".tile");
  const number = tile && Number(tile.dataset.number);
  if (tile && byNumber.get(number).size) change([[number, !kept.has(number)]]);
});
gallery.addEventListener("keydown", event => {
  const tile = event.target.closest(".tile");
  if (!tile || event.ctrlKey || event.metaKey || event.altKey) return;
  const number = Number(tile.dataset.number), key = event.key.toLowerCase();
  if (key === "k" && byNumber.get(number).size) change([[number, true]]);
  else if (key === "x") change([[number, false]]);
  else if (key === "i") show(number);
  else if (key === "u") undo();
  else return;
  event.preventDefault();
});
at("undo").addEventListener("click", undo);
at("all").addEventListener("click", () => change(visible().map(number => [number, true])));
at("none").addEventListener("click", () => change(visible().map(number => [number, false])));
at("save").addEventListener("click", save);
at("quit").addEventListener("click", quit);
window.addEventListener("beforeunload", event => { if (!saved && undone.length && !left) event.preventDefault(); });
count();
