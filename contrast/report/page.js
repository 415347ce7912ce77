// The other sections, and the page that consists of all of them.
function figure(i, side, text, className = "") {
  const node = el("figure", {}, thumb(i, side, className), el("figcaption", { title: text }, text));
  node.addEventListener("pointermove", (event) => showTip(event, thumb(i, 96), ...describe(i)));
  node.addEventListener("pointerleave", hideTip);
  return node;
}

function neighbours(section) {
  const list = el("div", {}), other = (i, j) => (items.label && items.label[i] !== items.label[j] ? "bad" : "");
  const row = (i) => el("div", { className: "row" }, figure(i, 72, named(i)), section.rows[i].map((j, place) => figure(j, 64, `${section.cosines[i][place].toFixed(3)} ${label(j)}`, other(i, j))));
  const show = (queries) => list.replaceChildren(...queries.map(row));
  let start = 0;
  const more = () => {
    start += section.queries.length;
    show(section.queries.map((_, k) => ((start + k) * 7919) % section.rows.length)); // a prime: they are spread
  };
  addEventListener("query", (event) => {
    show([event.detail, ...section.queries.filter((i) => i !== event.detail).slice(0, -1)]);
    list.scrollIntoView({ behavior: "smooth", block: "center" });
  });
  show(section.queries);
  const note = items.label ? el("span", { className: "note" }, "A red frame: another class.") : null;
  return [el("div", { className: "bar" }, button("other images", false, more), note), list];
}

// A matrix of more than `MOST` classes shows those with the most mistakes.
const MOST = 30;

function confusion(section) {
  const mistakes = classes.map(() => 0), at = {};
  for (const [i, j, count] of section.pairs) {
    at[`${i},${j}`] = count;
    if (i !== j) [mistakes[i], mistakes[j]] = [mistakes[i] + count, mistakes[j] + count];
  }
  const shown = [...classes.keys()].sort((a, b) => mistakes[b] - mistakes[a]).slice(0, MOST).sort((a, b) => a - b);
  const most = Math.max(1, ...section.pairs.map((pair) => pair[2]));
  const row = (i) => el("tr", {}, el("td", { title: classes[i] }, classes[i]), shown.map((j) => {
    const count = at[`${i},${j}`] || 0;
    const cell = el("td", { title: `${classes[i]} taken for ${classes[j]}: ${count}` }, count ? String(count) : "");
    if (count) cell.style.background = i === j ? `rgba(var(--tint), ${0.1 + (0.5 * count) / most})` : `rgba(220, 70, 50, ${0.15 + 0.6 * Math.sqrt(count / most)})`;
    return cell;
  }));
  const heads = el("tr", {}, el("th", {}, ""), shown.map((i) => el("th", { title: classes[i] }, classes[i])));
  const grid = el("div", { className: "scroll" }, el("table", { className: "counts" }, el("thead", {}, heads), el("tbody", {}, shown.map(row))));
  const pairs = section.pairs.filter(([i, j]) => i !== j).sort((a, b) => b[2] - a[2]).slice(0, MOST);
  if (!pairs.length) return [grid];
  const list = table({ heads: ["class", "taken for", "images"], rows: pairs.map(([i, j, count]) => [classes[i], classes[j], count]) });
  return [el("div", { className: "beside" }, grid, el("div", {}, el("h3", {}, "Most frequent"), list))];
}

function captions(section) {
  return section.queries.map((image, k) => {
    const found = section.found[k].map((j, place) => {
      const own = j === section.own[k];
      return el("p", { className: own ? "right" : "" }, `${section.cosines[k][place].toFixed(3)} ${section.texts[j]}${own ? " (its own)" : ""}`);
    });
    return el("div", { className: "row" }, figure(image, 72, named(image)), el("div", {}, found));
  });
}

const draw = {
  facts: (section) => [facts(section.facts)],
  table: (section) => [table(section)],
  curves: (section) => [el("div", { className: "panels" }, section.panels.map(chart))],
  picture: (section) => [el("img", { src: section.uri, alt: section.title })],
  map, neighbours, confusion, captions,
  metrics: (section) => [table({ heads: ["metric", "value"], rows: Object.entries(section.values) })],
  mistakes: (section) => [el("div", { className: "cards" }, section.images.map((i) => {
    const node = figure(i, 96, "");
    node.lastChild.replaceChildren(`${label(i)} → `, el("b", {}, label(i, "predicted")), ` ${items.probability[i].toFixed(2)}`);
    return node;
  }))],
  configuration: (section) => [
    section.command ? el("pre", {}, section.command) : null,
    facts(section.facts),
    el("details", {}, el("summary", {}, "config.yaml, complete"), el("pre", {}, section.text)),
  ],
};

const NOTES = {
  map: () => "Close points have similar features. A click shows the neighbours of an image below.",
  neighbours: () => "Each row is an image of the map and, beside it, those with the most similar features, with the cosine.",
  captions: (section) => `Some images and the most similar of ${section.texts.length} different captions, with the cosine.`,
  confusion: () =>
    "Rows are the classes of the images, columns what the linear probe on frozen features takes them for." +
    (classes.length > MOST ? ` Of ${classes.length} classes, the ${MOST} with the most mistakes.` : ""),
  mistakes: () => "Test images of which the linear probe is surest and wrong: their class, then its class and its probability.",
  curves: () => "The course of the training. Move over a plot to read its values.",
};

document.title = `${data.title}: contrast`;
document.querySelector("h1").textContent = data.title;
document.querySelector("header .note").textContent = data.subtitle;
if (sprite) document.head.append(el("style", {}, `.thumb{background-image:url(${sprite.uri})}`));
data.sections.forEach((section, i) => {
  const text = [section.note, NOTES[section.kind] && NOTES[section.kind](section)].filter(Boolean).join(" ");
  const title = el("h2", {}, section.title), note = text ? el("p", { className: "note" }, text) : null;
  const content = draw[section.kind](section);
  const inside = section.closed ? [el("details", {}, el("summary", {}, title), note, content)] : [title, note, content];
  document.querySelector("main").append(el("section", { id: `part-${i}` }, ...inside));
  document.querySelector("nav").append(el("a", { href: `#part-${i}` }, section.title));
});
