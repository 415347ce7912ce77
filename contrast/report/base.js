"use strict";
// What all parts of the page use: elements, images, tables and the tip beside the pointer.
// Every text is set as text, never as HTML: names of files and classes come from the data.
const data = JSON.parse(document.getElementById("data").textContent);
const items = data.items || {}, sprite = data.sprite, classes = items.classes || [];
const tip = document.getElementById("tip");
const PALETTE = ["#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#9c755f", "#d37295", "#8c8c8c", "#b6992d", "#499894"];

function el(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

function shape(tag, attributes, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  return node;
}

function colour(number, count) {
  return count <= PALETTE.length ? PALETTE[number % PALETTE.length] : `hsl(${(number * 137.508) % 360} 60% 55%)`;
}

function short(value) {
  if (typeof value !== "number") return value;
  const size = Math.abs(value);
  return (size >= 1e6 && !Number.isInteger(value)) || (size < 0.0001 && size > 0) ? value.toExponential(2) : String(+value.toPrecision(4));
}

// The image of an item, `side` pixels high.
function thumb(i, side, className = "") {
  const scale = side / sprite.height, column = i % sprite.columns, row = Math.floor(i / sprite.columns);
  const node = el("span", { className: `thumb ${sprite.pixelated ? "pixelated" : ""} ${className}` });
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", named(i));
  node.style.width = `${sprite.width * scale}px`;
  node.style.height = `${side}px`;
  node.style.backgroundSize = `${sprite.columns * sprite.width * scale}px auto`;
  node.style.backgroundPosition = `${-column * sprite.width * scale}px ${-row * side}px`;
  return node;
}

const label = (i, column = "label") => (items[column] && items[column][i] >= 0 ? classes[items[column][i]] : "");
const named = (i) => label(i) || items.name[i];

function describe(i) {
  const lines = [el("p", {}, items.name[i])];
  if (label(i)) lines.push(el("p", {}, `class ${label(i)}`));
  if (items.predicted) lines.push(el("p", {}, `probe: ${label(i, "predicted")}, ${short(items.probability[i])}`));
  if (items.caption) lines.push(el("p", {}, items.caption[i]));
  return lines;
}

function showTip(event, ...children) {
  tip.replaceChildren(...children);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = event.clientX + 16 + box.width > innerWidth ? event.clientX - box.width - 16 : event.clientX + 16;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + 12, innerHeight - box.height - 4))}px`;
}

function hideTip() {
  tip.hidden = true;
}

function button(text, pressed, act) {
  const node = el("button", { type: "button", onclick: act }, text);
  node.setAttribute("aria-pressed", pressed);
  return node;
}

const facts = (pairs) => el("dl", { className: "facts" }, pairs.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value)))));

function table(section) {
  const body = el("tbody", {});
  const rows = section.rows.map((cells, i) => {
    const link = (section.links || [])[i];
    const node = el("tr", {}, cells.map((cell, j) => el("td", {}, link && j === 0 ? el("a", { href: link }, cell) : short(cell))));
    return { cells, node };
  });
  let last = null, up = true;
  const sort = (j) => {
    up = last === j ? !up : true;
    last = j;
    const key = (row) => (row.cells[j] === "" || isNaN(parseFloat(row.cells[j])) ? row.cells[j] : parseFloat(row.cells[j]));
    const order = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
    rows.sort((a, b) => (up ? 1 : -1) * order(key(a), key(b)));
    body.replaceChildren(...rows.map((row) => row.node));
  };
  body.replaceChildren(...rows.map((row) => row.node));
  const heads = section.heads.map((head, j) => el("th", { onclick: () => sort(j) }, head));
  return el("div", { className: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, heads)), body));
}
