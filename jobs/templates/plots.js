/* Plots: {title, words, x: [...], xlabel, ylabel, kind: "line" | "area" | "bars", series: [{name, y}], log, zero, mark}
   into SVG with a table beside it. A value that is null breaks a line. */
"use strict";
const COLOURS = ["#2f7ed8", "#d9822b", "#2e9e5b", "#c2453d", "#8662c7", "#7a6a53", "#d05fa2", "#6f7a85", "#9a9a1e", "#1f9fb3"];
const SVG = "http://www.w3.org/2000/svg";

function element(name, attributes, ...inside) {
  const made = attributes && attributes.svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) if (key !== "svg") made.setAttribute(key, value);
  made.append(...inside);
  return made;
}
const drawn = (name, attributes, ...inside) => element(name, {svg: true, ...attributes}, ...inside);

function short(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e6 || size < 1e-3)) return value.toExponential(2).replace("-", "−");
  return Number(value.toPrecision(size >= 1e4 ? 6 : 4)).toLocaleString("en").replace("-", "−");
}

/* Ticks of a logarithmic axis, given its ends as exponents: 1, 2, 5, 10 … where they are few, else powers of ten. */
function powers(low, high) {
  const found = [];
  for (let power = Math.floor(low); power <= high; power++)
    for (const digit of high - low < 2.5 ? [1, 2, 5] : [1]) found.push(Math.log10(digit) + power);
  return found.filter(at => at >= low - 1e-9 && at <= high + 1e-9);
}
function ticks(low, high, wanted) {
  const raw = (high - low) / wanted || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(each => each * power).find(each => each >= raw * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + 1e-9 * step; at += step) found.push(Math.abs(at) < step * 1e-9 ? 0 : at);
  return found;
}

function ends(plot) {
  const sums = plot.kind === "area" ? plot.x.map((_, i) => plot.series.reduce((sum, one) => sum + (one.y[i] || 0), 0)) : [];
  const values = [...plot.series.flatMap(one => one.y), ...sums].filter(value => value !== null && (!plot.log || value > 0));
  let low = Math.min(...values), high = Math.max(...values);
  if (!values.length) [low, high] = [0, 1];
  if (plot.range) [low, high] = plot.range;
  else if (plot.zero || plot.kind !== "line") low = Math.min(0, low);
  if (plot.log) return [Math.log10(low), Math.log10(high) > Math.log10(low) ? Math.log10(high) : Math.log10(low) + 1];
  return high > low ? [low, high] : [low, low + 1];
}

/* A grid of cells, one row for each series: the darker, the lower. */
function heat(plot) {
  const W = 440, columns = plot.x.length, side = Math.min(48, (W - 20) / columns), H = side * plot.series.length + 4;
  const values = plot.series.flatMap(one => one.y).filter(value => value !== null);
  const low = Math.min(...values), span = Math.max(...values) - low || 1;
  const svg = drawn("svg", {viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${plot.title}. ${plot.words || ""}`});
  plot.series.forEach((one, row) => one.y.forEach((y, column) => {
    const share = y === null ? 1 : (y - low) / span;
    svg.append(drawn("rect", {x: column * side + 1, y: row * side + 1, width: side - 2, height: side - 2, rx: 2, stroke: "var(--line)",
      fill: y === null ? "none" : `hsl(${215 + 40 * share} 65% ${28 + 58 * share}%)`}));
    if (side >= 30 && y !== null) svg.append(drawn("text", {x: (column + 0.5) * side, y: (row + 0.5) * side + 4, "text-anchor": "middle",
      class: share > 0.45 ? "dark" : "light"}, short(y)));
  }));
  return svg;
}

function svgOf(plot) {
  if (plot.kind === "heat") return heat(plot);
  const W = 440, H = 240, left = 62, right = 12, top = 24, bottom = 38;
  const svg = drawn("svg", {viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${plot.title}. ${plot.words || ""}`});
  const bars = plot.kind === "bars", width = bars && plot.x.length > 1 ? plot.x[1] - plot.x[0] : bars ? 1 : 0;
  const x0 = Math.min(...plot.x) - width / 2, x1 = Math.max(...plot.x) + width / 2;
  const [low, high] = ends(plot);
  const atX = x => left + (x1 > x0 ? (x - x0) / (x1 - x0) : 0.5) * (W - left - right);
  const height = y => ((plot.log ? Math.log10(y) : y) - low) / (high - low);
  const atY = y => { const up = plot.turned ? 1 - height(y) : height(y); return H - bottom - up * (H - top - bottom); };
  const real = y => plot.log ? 10 ** y : y;
  for (const tick of plot.log ? powers(low, high) : ticks(low, high, 4)) {
    svg.append(drawn("path", {class: "grid", d: `M${left} ${atY(real(tick))}H${W - right}`}),
      drawn("text", {x: left - 5, y: atY(real(tick)) + 4, "text-anchor": "end"}, short(real(tick))));
  }
  for (const tick of plot.ticks || ticks(x0, x1, 6).filter(at => !plot.whole || Number.isInteger(at)).map(at => [at, short(at)]))
    svg.append(drawn("text", {x: atX(tick[0]), y: H - bottom + 14, "text-anchor": "middle"}, tick[1]));
  svg.append(drawn("path", {class: "axis", d: `M${left} ${top}V${H - bottom}H${W - right}`}),
    drawn("text", {x: (left + W - right) / 2, y: H - 6, "text-anchor": "middle"}, plot.xlabel || ""),
    drawn("text", {x: 2, y: 11}, plot.ylabel || ""));
  const base = plot.x.map(() => 0);
  plot.series.forEach((one, place) => {
    const colour = one.colour || COLOURS[place % COLOURS.length];
    if (bars) return one.y.forEach((y, i) => {
      const first = atX(plot.x[i] - width * 0.46), last = atX(plot.x[i] + width * 0.46);
      svg.append(drawn("rect", {x: first, y: atY(base[i] + y), width: Math.max(0.5, last - first), height: Math.max(0, atY(base[i]) - atY(base[i] + y)), fill: colour}));
      base[i] += y;
    });
    if (plot.kind === "area") {
      const up = one.y.map((y, i) => `${atX(plot.x[i]).toFixed(1)} ${atY(base[i] + (y || 0)).toFixed(1)}`);
      const down = one.y.map((_, i) => `${atX(plot.x[i]).toFixed(1)} ${atY(base[i]).toFixed(1)}`).reverse();
      svg.append(drawn("path", {d: `M${up.join("L")}L${down.join("L")}Z`, fill: colour, stroke: "var(--page)", "stroke-width": 0.4}));
      return one.y.forEach((y, i) => { base[i] += y || 0; });
    }
    let line = "", broken = true;
    one.y.forEach((y, i) => {
      const there = y !== null && y !== undefined && (!plot.log || y > 0);
      if (there) line += `${broken ? "M" : "L"}${atX(plot.x[i]).toFixed(1)} ${atY(y).toFixed(1)}`;
      broken = !there;
      if (there && (plot.points || plot.x.length < 40))
        svg.append(drawn("circle", {cx: atX(plot.x[i]), cy: atY(y), r: 2.2, fill: colour}));
    });
    if (!plot.points) svg.append(drawn("path", {d: line, fill: "none", stroke: colour, "stroke-width": 1.6, "stroke-dasharray": one.dashed ? "4 3" : "none"}));
  });
  if (plot.mark !== undefined && plot.mark !== null)
    svg.append(drawn("path", {class: "axis", "stroke-dasharray": "4 3", d: `M${atX(plot.mark)} ${top}V${H - bottom}`}));
  return svg;
}

function legend(plot) {
  if (plot.series.length < 2 || plot.kind === "heat") return "";
  return element("ul", {class: "legend"}, ...plot.series.map((one, place) => element("li", {},
    drawn("svg", {viewBox: "0 0 10 10", "aria-hidden": "true"}, drawn("rect", {width: 10, height: 10, fill: one.colour || COLOURS[place % COLOURS.length]})), one.name)));
}

function table(plot) {
  const head = element("tr", {}, ...[plot.xlabel || "x", ...plot.series.map(one => one.name)].map(word => element("th", {scope: "col"}, word)));
  const rows = plot.x.map((x, i) => element("tr", {}, element("th", {scope: "row"}, plot.ticks ? plot.ticks[i] ? plot.ticks[i][1] : short(x) : short(x)),
    ...plot.series.map(one => element("td", {}, short(one.y[i])))));
  return element("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": `${plot.title}, values`}, element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
}

function figure(plot, level = "h3") {
  if (plot.kind === "flow") return flow(plot);
  const more = element("details", {}, element("summary", {}, "Values"));
  more.addEventListener("toggle", () => { if (more.open && more.children.length === 1) more.append(table(plot)); });
  return element("figure", {}, element(level, {}, plot.title), svgOf(plot), legend(plot), element("figcaption", {}, plot.words || ""), more);
}
