/* The gallery: order, size, filter, keys, and one class at a time in a dialog. `page` is what the program wrote. */
"use strict";
const page = JSON.parse(document.getElementById("page").textContent);
const byNumber = new Map(page.classes.map(one => [one.number, one]));
const gallery = document.getElementById("gallery");
const dialog = document.getElementById("one");
let shown = null;

const tiles = () => [...gallery.querySelectorAll(".tile:not(.hidden)")].filter(tile => !tile.parentElement.classList.contains("hidden"));
const tileOf = number => gallery.querySelector(`.tile[data-number="${number}"]`);

const KEYS = {size: one => -one.size, resolution: one => one.resolution || 1e9, score: one => -(one.score ?? -1), number: one => one.number};
function sortBy(name) {
  const order = [...page.classes].sort((a, b) => (a.size === 0) - (b.size === 0) || KEYS[name](a) - KEYS[name](b) || a.number - b.number);
  gallery.append(...order.map(one => tileOf(one.number).parentElement));
}
function zoom(pixels) { document.documentElement.style.setProperty("--tile", `${pixels}px`); }
function filter() {
  const least = Number(document.getElementById("least").value) || 0;
  for (const one of page.classes) tileOf(one.number).parentElement.classList.toggle("hidden", one.size < least);
}

function move(event) {
  const here = event.target.closest(".tile"), all = tiles(), at = all.indexOf(here);
  if (at < 0) return;
  const columns = all.filter(tile => tile.offsetTop === all[0].offsetTop).length;
  const step = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -at, End: all.length - 1 - at}[event.key];
  if (step === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  all[Math.max(0, Math.min(all.length - 1, at + step))].focus();
}

function facts(one) {
  const rows = [["particles", `${one.size.toLocaleString("en")} (${(100 * one.share).toFixed(1)} %)`], ["resolution", one.resolution ? `${one.resolution.toFixed(1)} Å` : "none"], ...one.facts];
  return element("ul", {class: "facts"}, ...rows.map(([name, value]) => element("li", {}, element("span", {class: "name"}, name), " ", element("span", {}, value))));
}
function curves(one) {
  const found = [];
  const resolved = page.frequency.map((f, i) => [f, i ? (1 / f).toFixed(f > 0.1 ? 1 : 0) : ""]).filter((_, i, all) => i && i % Math.ceil(all.length / 6) === 0);
  found.push({title: page.measured ? "Fourier ring correlation of half-sets" : "Fourier ring correlation expected from the SSNR", words: "Resolution in Å.", x: page.frequency, ticks: resolved,
    xlabel: "resolution [Å]", ylabel: "FRC", range: [Math.min(0, ...one.frc), 1], kind: "line", series: [{name: "FRC", y: one.frc}, {name: "0.143", y: one.frc.map(() => 0.143), dashed: true}]});
  for (const [name, histogram] of Object.entries(one.histograms)) {
    const shared = page.histograms[name];
    found.push({title: shared.title, words: "", x: shared.x, xlabel: shared.xlabel, ylabel: "particles", kind: "bars", series: [{name: "particles", y: histogram}]});
  }
  return found.map(plot => figure(plot));
}
function show(number) {
  const one = byNumber.get(number);
  shown = number;
  dialog.querySelector("h2").textContent = one.name || `Class ${number}`;
  const image = element("img", {class: "large", src: tileOf(number).querySelector("img").src, alt: `Class average ${number}`});
  const reasons = one.score !== null ? [element("h3", {}, `Score ${one.score.toFixed(2)}`), element("ul", {}, ...one.reasons.map(each => element("li", {}, each)))] : [];
  dialog.querySelector(".inside").replaceChildren(element("div", {class: "split"}, element("div", {}, image), element("div", {}, facts(one), ...reasons)),
    element("div", {class: "plots"}, ...(one.size ? curves(one) : [])));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  document.dispatchEvent(new CustomEvent("shown", {detail: number}));
}
function neighbour(step) {
  const all = tiles(), at = all.findIndex(tile => Number(tile.dataset.number) === shown);
  const next = all[at + step];
  if (next) show(Number(next.dataset.number));
}
function closed() { const tile = shown && tileOf(shown); if (tile) tile.focus(); }

if (gallery) {
  document.getElementById("sort").addEventListener("change", event => sortBy(event.target.value));
  document.getElementById("zoom").addEventListener("input", event => zoom(event.target.value));
  document.getElementById("least").addEventListener("input", filter);
  gallery.addEventListener("keydown", move);
  document.addEventListener("click", event => {
    const tile = event.target.closest(".tile[data-number]");
    if (tile && !tile.hasAttribute("aria-pressed")) show(Number(tile.dataset.number));
  });
  dialog.addEventListener("close", closed);
  dialog.querySelector("[data-step='-1']").addEventListener("click", () => neighbour(-1));
  dialog.querySelector("[data-step='1']").addEventListener("click", () => neighbour(1));
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", event => {
    if (event.key === "ArrowLeft") neighbour(-1);
    else if (event.key === "ArrowRight") neighbour(1);
    else return;
    event.preventDefault();
  });
}
/* The latent map and the tree show the gallery's pictures again: the file holds each of them once. */
for (const tile of document.querySelectorAll("[data-copy]")) {
  const number = Number(tile.dataset.number), from = tileOf(number);
  if (!from) continue;
  tile.prepend(from.querySelector("img").cloneNode());
}
for (const map of document.querySelectorAll("[data-columns]")) {
  const columns = Number(map.dataset.columns);
  map.style.gridTemplateColumns = columns > 24 ? "repeat(auto-fill, minmax(64px, 1fr))" : `repeat(${columns}, minmax(40px, 128px))`;
}
for (const place of document.querySelectorAll("[data-plots]"))
  place.append(...(page.plots[place.dataset.plots] || []).map(plot => figure(plot)));
