// The embeddings in the plane, as points or as images, with a zoom.
function map(section) {
  const methods = Object.keys(section.points), canvas = el("canvas", {}), pen = canvas.getContext("2d"), sheet = new Image();
  const columns = [["label", "class"], ["predicted", "prediction"]].filter(([name]) => items[name]);
  const state = { method: methods[0], column: columns.length ? "label" : "", images: false, zoom: 1, x: 0.5, y: 0.5, off: new Set(), at: -1 };
  const side = () => Math.min(canvas.clientWidth, canvas.clientHeight) - 40;
  const place = ([u, v]) => [canvas.clientWidth / 2 + (u - state.x) * side() * state.zoom, canvas.clientHeight / 2 - (v - state.y) * side() * state.zoom];
  const kind = (i) => (state.column ? items[state.column][i] : 0);
  const points = () => section.points[state.method];

  function draw() {
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    pen.scale(ratio, ratio);
    const size = points().length > 800 ? 3 : 4, picture = Math.min(48, 18 * Math.sqrt(state.zoom));
    pen.imageSmoothingEnabled = !sprite.pixelated;
    points().forEach((point, i) => {
      const [px, py] = place(point), faint = state.off.has(kind(i));
      pen.globalAlpha = faint ? 0.08 : 0.85;
      if (state.images && !faint) {
        const w = picture * (sprite.width / sprite.height), sx = (i % sprite.columns) * sprite.width;
        pen.drawImage(sheet, sx, Math.floor(i / sprite.columns) * sprite.height, sprite.width, sprite.height, px - w / 2, py - picture / 2, w, picture);
        pen.strokeStyle = colour(kind(i), classes.length || 1);
        pen.strokeRect(px - w / 2, py - picture / 2, w, picture);
      } else {
        pen.fillStyle = kind(i) < 0 ? "#8886" : colour(kind(i), classes.length || 1);
        pen.beginPath();
        pen.arc(px, py, size, 0, 7);
        pen.fill();
      }
    });
    if (state.at >= 0) {
      const [px, py] = place(points()[state.at]);
      pen.globalAlpha = 1;
      pen.strokeStyle = getComputedStyle(document.body).color;
      pen.lineWidth = 2;
      pen.beginPath();
      pen.arc(px, py, size + 4, 0, 7);
      pen.stroke();
    }
  }

  function nearest(event) {
    const box = canvas.getBoundingClientRect(), [mx, my] = [event.clientX - box.left, event.clientY - box.top];
    let best = -1, least = 18 ** 2;
    points().forEach((point, i) => {
      const [px, py] = place(point), distance = (px - mx) ** 2 + (py - my) ** 2;
      if (distance < least && !state.off.has(kind(i))) [best, least] = [i, distance];
    });
    return best;
  }

  let drag = null;
  canvas.addEventListener("pointerdown", (event) => {
    drag = { x: event.clientX, y: event.clientY, moved: false };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (drag && event.buttons && state.zoom > 1) {
      const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
      if (drag.moved || Math.abs(dx) + Math.abs(dy) > 4) {
        state.x -= dx / (side() * state.zoom);
        state.y += dy / (side() * state.zoom);
        drag = { x: event.clientX, y: event.clientY, moved: true };
        return draw();
      }
    }
    const i = nearest(event);
    if (i !== state.at) {
      state.at = i;
      draw();
    }
    if (i < 0) hideTip();
    else showTip(event, thumb(i, 96), ...describe(i));
  });
  canvas.addEventListener("pointerleave", () => {
    state.at = -1;
    draw();
    hideTip();
  });
  canvas.addEventListener("click", (event) => {
    const i = nearest(event);
    if (i >= 0 && !(drag && drag.moved)) dispatchEvent(new CustomEvent("query", { detail: i }));
  });

  const legend = el("div", { className: "legend" }), bar = el("div", { className: "bar" });
  const change = (values) => {
    Object.assign(state, values);
    bar.replaceChildren(
      ...methods.map((name) => button(name, name === state.method, () => change({ method: name, zoom: 1, x: 0.5, y: 0.5 }))),
      button("images", state.images, () => change({ images: !state.images })),
      button("+", false, () => change({ zoom: state.zoom * 1.6 })),
      button("−", false, () => change(state.zoom <= 1.6 ? { zoom: 1, x: 0.5, y: 0.5 } : { zoom: state.zoom / 1.6 })),
      ...(columns.length > 1 ? columns : []).map(([name, title]) => button(`colour: ${title}`, name === state.column, () => change({ column: name, off: new Set() })))
    );
    legend.replaceChildren(...(state.column && classes.length <= 60 ? classes : []).map((name, i) => {
      const sample = el("i", { className: "dot" });
      sample.style.background = colour(i, classes.length);
      const flip = () => {
        state.off.has(i) ? state.off.delete(i) : state.off.add(i);
        change({});
      };
      return el("button", { type: "button", className: state.off.has(i) ? "off" : "", onclick: flip }, sample, name);
    }));
    draw();
  };
  sheet.onload = draw;
  sheet.src = sprite.uri;
  const fit = () => {
    canvas.style.height = `${Math.min(600, Math.max(300, canvas.clientWidth * 0.9))}px`;
    draw();
  };
  new ResizeObserver(fit).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  requestAnimationFrame(() => change({}));
  return [bar, canvas, legend];
}
