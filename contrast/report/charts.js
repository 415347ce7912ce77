// Plots of lines over the steps of the training.
// Round numbers between two limits.
function ticks(low, high, count) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step / 1e6; value += step) found.push(+value.toPrecision(12));
  return found;
}

function chart(panel) {
  const width = 360, height = 220, left = 48, right = 8, top = 8, bottom = 34;
  const all = panel.lines.flatMap((line) => [...line.values, line.trained, line.untrained].filter((v) => typeof v === "number"));
  const log = panel.log && Math.min(...all) > 0;
  const f = log ? Math.log10 : (v) => v;
  let low = f(Math.min(...all)), high = f(Math.max(...all));
  if (high - low < 1e-12) [low, high] = [low - (Math.abs(low) * 0.1 || 1), high + (Math.abs(high) * 0.1 || 1)];
  [low, high] = [low - (high - low) * 0.05, high + (high - low) * 0.05];
  const steps = panel.lines.flatMap((line) => line.steps), first = Math.min(...steps), last = Math.max(...steps, first + 1);
  const x = (step) => left + ((step - first) / (last - first)) * (width - left - right - 6);
  const y = (value) => height - bottom - ((f(value) - low) / (high - low)) * (height - top - bottom);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": panel.title });
  let values = log ? ticks(Math.ceil(low), Math.floor(high), 4).filter(Number.isInteger).map((p) => 10 ** p) : ticks(low, high, 5);
  if (log && values.length < 2) values = ticks(10 ** low, 10 ** high, 4);
  for (const value of values) {
    svg.append(shape("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), stroke: "var(--rule)" }));
    svg.append(shape("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, short(value)));
  }
  for (const step of ticks(first, last, 5).filter(Number.isInteger)) {
    svg.append(shape("text", { x: x(step), y: height - bottom + 16, "text-anchor": "middle" }, step.toLocaleString("en")));
  }
  svg.append(shape("text", { x: (left + width) / 2, y: height - 2, "text-anchor": "middle" }, "optimiser step"));
  const legend = el("div", { className: "legend" });
  panel.lines.forEach((line, i) => {
    const tint = colour(i, panel.lines.length);
    const points = line.steps.map((step, j) => `${x(step)},${y(line.values[j])}`).join(" ");
    svg.append(shape("polyline", { points, fill: "none", stroke: tint, "stroke-width": 1.8, "stroke-linejoin": "round" }));
    if (line.steps.length < 20) {
      line.steps.forEach((step, j) => svg.append(shape("circle", { cx: x(step), cy: y(line.values[j]), r: 2.5, fill: tint })));
    }
    const marks = [line.label];
    if (typeof line.untrained === "number") {
      const level = y(line.untrained);
      svg.append(shape("line", { x1: left, x2: width - right, y1: level, y2: level, stroke: tint, "stroke-dasharray": "5 4" }));
      marks.push(`dashed: untrained, test set ${short(line.untrained)}`);
    }
    if (typeof line.trained === "number") {
      const [cx, cy] = [x(last), y(line.trained)];
      svg.append(shape("path", { d: `M${cx},${cy - 6}l6,6l-6,6l-6,-6z`, fill: tint, stroke: "var(--card)" }));
      marks.push(`diamond: test set ${short(line.trained)}`);
    }
    const sample = el("i", {});
    sample.style.background = tint;
    legend.append(el("span", {}, sample, marks.join("; ")));
  });
  const cursor = shape("line", { y1: top, y2: height - bottom, stroke: "var(--grey)", visibility: "hidden" });
  svg.append(cursor);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), at = ((event.clientX - box.left) / box.width) * width;
    const near = (line) => line.steps.reduce((best, step, j) => (Math.abs(x(step) - at) < Math.abs(x(line.steps[best]) - at) ? j : best), 0);
    const step = panel.lines[0].steps[near(panel.lines[0])];
    for (const [name, value] of [["x1", x(step)], ["x2", x(step)], ["visibility", "visible"]]) cursor.setAttribute(name, value);
    const shown = panel.lines.slice(0, 12).map((line) => el("p", {}, `${line.label}: ${short(line.values[near(line)])}`));
    showTip(event, el("p", {}, `step ${step.toLocaleString("en")}`), ...shown);
  });
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    hideTip();
  });
  const head = el("header", {}, el("h3", {}, panel.title), el("span", { className: "note" }, panel.better));
  return el("div", { className: "panel" }, head, el("span", { className: "note" }, panel.unit), svg, panel.lines.length > 1 || legend.textContent.includes(";") ? legend : null);
}
