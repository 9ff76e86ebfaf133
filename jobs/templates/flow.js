/* The flow of particles between classes in an iteration: {title, words, kind: "flow", steps: [{at, moves: [[from, to,
   particles], …]}]}. Classes that particles leave stand left, those that they come to right; a ribbon is as wide as its
   particles are many. A slider goes through the iterations; the same scale for all shows how the flow dries up. */
"use strict";
const FLOW = {W: 440, H: 300, left: 70, right: 370, top: 24, gap: 4};

function sides(moves) {
  const sums = [new Map(), new Map()];
  for (const [from, to, n] of moves) [from, to].forEach((number, side) => sums[side].set(number, (sums[side].get(number) || 0) + n));
  return sums.map(sum => [...sum].sort((a, b) => b[1] - a[1] || a[0] - b[0]));
}

function flowSvg(plot, step) {
  const {W, H, left, right, top, gap} = FLOW;
  const svg = drawn("svg", {viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `Iteration ${step.at}: ${flowWords(step)}`});
  const columns = sides(step.moves), most = Math.max(...plot.steps.map(each => each.moves.reduce((sum, [, , n]) => sum + n, 0)), 1);
  const longest = Math.max(...columns.map(column => column.length), 1);
  const scale = Math.max(1, H - top - longest * gap) / most;
  const places = columns.map(column => { let at = top; return new Map(column.map(([number, n]) => { const here = {at, used: 0}; at += n * scale + gap; return [number, here]; })); });
  svg.append(drawn("text", {x: left, y: 12, "text-anchor": "end"}, "from class"), drawn("text", {x: right, y: 12}, "to class"));
  for (const [from, to, n] of step.moves) {
    const [a, b] = [places[0].get(from), places[1].get(to)], wide = n * scale, middle = (left + right) / 2;
    const [y0, y1] = [a.at + a.used, b.at + b.used];
    a.used += wide; b.used += wide;
    svg.append(drawn("path", {d: `M${left} ${y0}C${middle} ${y0} ${middle} ${y1} ${right} ${y1}V${y1 + wide}C${middle} ${y1 + wide} ${middle} ${y0 + wide} ${left} ${y0 + wide}Z`,
      fill: COLOURS[from % COLOURS.length], "fill-opacity": 0.6}, drawn("title", {}, `class ${from} to ${to}: ${n.toLocaleString("en")} particles`)));
  }
  columns.forEach((column, side) => column.forEach(([number, n]) => {
    const y = places[side].get(number).at + n * scale / 2 + 4;
    if (n * scale + gap >= 9) svg.append(drawn("text", {x: side ? right + 6 : left - 6, y, "text-anchor": side ? "start" : "end"}, `${number}`));
  }));
  return svg;
}

function flowWords(step) {
  const all = step.moves.reduce((sum, [, , n]) => sum + n, 0), [from, to, n] = step.moves[0];
  return `the moves shown are of ${all.toLocaleString("en")} particles, the largest of ${n.toLocaleString("en")} from class ${from} to class ${to}.`;
}

function flowTable(plot) {
  const words = ["iteration", "from class", "to class", "particles"];
  const rows = plot.steps.flatMap(step => step.moves.map(move => element("tr", {}, ...[step.at, ...move].map(value => element("td", {}, value.toLocaleString("en"))))));
  return element("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": `${plot.title}, values`},
    element("table", {}, element("thead", {}, element("tr", {}, ...words.map(word => element("th", {scope: "col"}, word)))), element("tbody", {}, ...rows)));
}

function flow(plot) {
  const place = element("div", {}), words = element("figcaption", {"aria-live": "polite"}), more = element("details", {}, element("summary", {}, "Values"));
  const slider = element("input", {type: "range", min: 0, max: plot.steps.length - 1, step: 1, value: plot.steps.length - 1});
  const show = () => {
    const step = plot.steps[slider.value];
    slider.setAttribute("aria-valuetext", `iteration ${step.at}`);
    place.replaceChildren(flowSvg(plot, step));
    words.textContent = `Iteration ${step.at}: ${flowWords(step)} ${plot.words}`;
  };
  slider.addEventListener("input", show);
  more.addEventListener("toggle", () => { if (more.open && more.children.length === 1) more.append(flowTable(plot)); });
  show();
  return element("figure", {class: "flow"}, element("h3", {}, plot.title), element("label", {}, "Iteration ", slider), place, words, more);
}
