// Shows the values under the pointer on every chart of curves. The page is complete without it.
"use strict";
const round = (value) => {
  const size = Math.abs(value);
  return size !== 0 && size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
};
const nearest = (places, x) => places.reduce((best, place, k) => (Math.abs(place - x) < Math.abs(places[best] - x) ? k : best), 0);

for (const svg of document.querySelectorAll("svg[data-chart]")) {
  const chart = JSON.parse(svg.dataset.chart);
  const [left, top, right, bottom] = chart.plot;
  const placeOf = (value) => (chart.log ? Math.log10(value) : value);
  const [first, last] = chart.x.map(placeOf);
  const write = (value) => (chart.percent ? `${round(100 * value)} %` : round(value));
  const cursor = svg.querySelector(".cursor");
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  svg.parentNode.append(tip);

  const show = (event) => {
    const box = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / box.width;
    const place = Math.min(Math.max((event.clientX - box.left) * scale, left), right);
    const along = first + ((place - left) / (right - left)) * (last - first);
    const at = chart.log ? 10 ** along : along;
    const finest = chart.curves.reduce((a, b) => (b.x.length > a.x.length ? b : a));
    const update = finest.x[nearest(finest.x, at)];
    const x = left + ((placeOf(update) - first) / (last - first)) * (right - left);
    for (const [name, value] of [["x1", x], ["x2", x], ["y1", top], ["y2", bottom]]) cursor.setAttribute(name, value);
    cursor.style.visibility = "visible";
    tip.textContent = "";
    const lines = [`${chart.name} ${round(update)}`];
    for (const curve of chart.curves) lines.push(`${curve.label}: ${write(curve.y[nearest(curve.x, update)])}`);
    for (const line of lines) tip.append(Object.assign(document.createElement("div"), { textContent: line }));
    tip.hidden = false;
    const beside = x / scale + 10;
    tip.style.left = `${beside + tip.offsetWidth > box.width ? Math.max(x / scale - tip.offsetWidth - 10, 0) : beside}px`;
  };
  const hide = () => {
    tip.hidden = true;
    cursor.style.visibility = "hidden";
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}
