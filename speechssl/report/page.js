// Draws the curves with uPlot, sorts tables and plays sounds. Without it the page still says its words and numbers.
"use strict";
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const SMALL_DIGITS = "⁰¹²³⁴⁵⁶⁷⁸⁹";
const raise = (n) => (n < 0 ? "⁻" : "") + [...String(Math.abs(n))].map((digit) => SMALL_DIGITS[digit]).join("");
const write = (value) => {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) {
    const [mantissa, exponent] = value.toExponential(1).split("e");
    return `${mantissa.replace(/\.0$/, "")}×10${raise(Number(exponent))}`;
  }
  return Number.isFinite(value) ? value.toLocaleString("en", { maximumSignificantDigits: 4 }).replace(/,/g, "\u202f") : "–";
};

function arrange(chart, logX, logY) {
  // One column for x and one for each curve and edge of a band; a logarithmic axis has no place for 0.
  const shown = chart.series.filter((one) => one.shown);
  const kept = chart.x.map((x, k) => k).filter((k) => (!logX || chart.x[k] > 0) && shown.some((one) => one.y[k] != null));
  const column = (values) => kept.map((k) => (logY && values[k] <= 0 ? null : values[k]));
  const data = [kept.map((k) => chart.x[k])];
  const series = [{ label: chart.xLabel, value: (u, x) => (x == null ? " " : write(x)) }];
  const bands = [];
  for (const [number, one] of chart.series.entries()) {
    const stroke = colour(one.style);
    const values = column(one.y);
    const last = one.y.findLast((y) => y != null);
    const isPoints = one.kind === "points";
    const isBars = one.kind === "bars";
    const own = series.push({
      number, label: one.label, stroke, show: one.shown, spanGaps: true,
      width: isPoints ? 0 : one.kind === "thin" ? 1.2 : one.style === "train" ? 1.6 : 2,
      dash: one.kind === "thin" ? (one.style === "ink" ? [2, 4] : [5, 4]) : undefined,
      fill: isBars ? stroke : undefined,
      paths: isBars ? uPlot.paths.bars({ size: [0.75, 60] }) : undefined,
      points: { show: isPoints || (one.kind === "line" && values.filter((y) => y != null).length <= 30), size: isPoints ? 8 : 6, stroke, fill: stroke },
      value: (u, y) => write(y ?? last ?? NaN),
    }) - 1;
    data.push(values);
    if (!one.low) continue;
    for (const edge of [one.high, one.low]) {
      series.push({ class: "edge", show: one.shown, spanGaps: true, width: 0, points: { show: false }, auto: isPoints });
      data.push(column(edge));
    }
    series[own].edges = [own + 1, own + 2];
    bands.push({ series: [own + 1, own + 2], fill: `${stroke}30` });
  }
  return { data, series, bands };
}

const outward = (value, round) => {
  const power = 10 ** Math.floor(Math.log10(value));
  return round(value / power) * power;
};
const STEPS = [...Array(8).keys()].flatMap((power) => [1, 2, 5].map((step) => step * 10 ** power));

function draw(holder, state) {
  const { chart } = holder;
  const { data, series, bands } = arrange(chart, state.logX, state.logY);
  const ink = colour("soft");
  const rule = { stroke: colour("rule"), width: 1 };
  const font = `12px ${getComputedStyle(document.body).fontFamily}`;
  const axis = (label, size, space) => ({
    label, labelSize: label ? 18 : 0, labelGap: 0, labelFont: font, font, size, space, gap: 4, stroke: ink,
    grid: rule, ticks: { show: false }, values: (u, splits) => splits.map((value) => (value == null ? "" : write(value))),
  });
  const isApart = chart.series.some((one) => one.kind === "bars" || one.kind === "points");
  // On a logarithmic axis 1, 2 and 5 have their label where few powers of ten are seen, and all within one.
  const filter = (u, splits) => {
    const reach = splits.at(-1) / splits[0];
    const seen = reach < 10 ? /^[1-9](\.0*)?e/ : reach > 1e3 ? /^1(\.0*)?e/ : /^[125](\.0*)?e/;
    return splits.map((value) => (seen.test(value.toExponential(6)) ? value : null));
  };
  const options = {
    width: holder.clientWidth, height: chart.small ? 170 : 250, series, bands, padding: [10, 12, 0, 0],
    legend: { markers: { dash: (u, k) => (u.series[k].dash ? "dotted" : "solid") } },
    cursor: { drag: { x: true, y: true, uni: 30 }, hover: { skip: [null] }, points: { size: 7 } },
    scales: {
      x: {
        time: false, distr: state.logX ? 3 : 1,
        range: (u, low, high) => {
          if (low == null || state.logX) return [(low ?? 1) / 1.05, (high ?? 2) * 1.05];
          const pad = isApart ? 0.6 : low === high ? 1 : 0;
          return [low - pad, high + pad];
        },
      },
      y: state.logY ? {
        distr: 3,
        range: (u, low, high) => (low == null ? [1, 10] : [outward(low, Math.floor), outward(high, Math.ceil)]),
      } : {
        range: (u, low, high) => {
          if (low == null) return [0, 1];
          const bottom = chart.zero ? Math.min(low, 0) : low;
          const pad = 0.06 * (high - bottom) || 0.1 * Math.abs(high) || 1;
          return [chart.zero && bottom === 0 ? 0 : bottom - pad, high + pad];
        },
      },
    },
    axes: [
      { ...axis(chart.xLabel, 26, 60), ...(state.logX ? { filter } : { incrs: STEPS }) },
      { ...axis(chart.yLabel, 48, 34), ...(state.logY ? { filter } : {}) },
    ],
    hooks: {
      setSeries: [(u, k, { show }) => {
        const { number, edges } = u.series[k] ?? {};
        if (show == null || number == null) return;
        for (const edge of edges ?? []) u.setSeries(edge, { show });
        chart.series[number].shown = show;
        // What was hidden at first had no part in the axis: it is laid out anew.
        if (chart.hides) setTimeout(holder.draw);
      }],
    },
  };
  holder.uplot?.destroy();
  holder.uplot = new uPlot(options, data, holder);
}

const holders = [...document.querySelectorAll(".plot")];
for (const holder of holders) {
  const chart = (holder.chart = JSON.parse(holder.querySelector("script").textContent));
  // A curve that lacks places of the axis comes with its own points alone, and uPlot wants one value, or null, at each place of the axis.
  for (const one of chart.series.filter((one) => one.at)) {
    for (const name of ["y", "low", "high"].filter((name) => one[name])) {
      const values = one[name];
      one[name] = chart.x.map(() => null);
      one.at.forEach((place, k) => (one[name][place] = values[k]));
    }
  }
  const state = { logX: chart.logX, logY: false };
  chart.hides = chart.series.some((one) => !one.shown);
  holder.draw = () => draw(holder, state);
  const tools = Object.assign(document.createElement("p"), { className: "tools" });
  for (const [key, text] of [["logX", "log x"], ["logY", "log y"]]) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: text });
    button.title = "Logarithmic scale. Drag over the chart to zoom, double-click to go back.";
    button.setAttribute("aria-pressed", state[key]);
    button.addEventListener("click", () => {
      state[key] = !state[key];
      button.setAttribute("aria-pressed", state[key]);
      holder.draw();
    });
    tools.append(button);
  }
  holder.append(tools);
  holder.classList.add("drawn");
  // In a frame of its own: a chart that is drawn while sizes are told would have them told again.
  new ResizeObserver(() => requestAnimationFrame(() => {
    const width = holder.clientWidth;
    if (width && !holder.uplot) holder.draw();
    else if (width && holder.uplot.width !== width) holder.uplot.setSize({ width, height: holder.uplot.height });
  })).observe(holder);
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => holders.forEach((holder) => holder.uplot && holder.draw()));

for (const table of document.querySelectorAll(".scroll table")) {
  const sort = (head) => {
    const k = head.cellIndex;
    const sign = head.ariaSort === "ascending" ? -1 : 1;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const key = (row) => row.cells[k].dataset.value ?? row.cells[k].textContent;
    const compare = (a, b) => sign * key(a).localeCompare(key(b), "en", { numeric: true });
    const byNumber = (a, b) => sign * (key(a) - key(b));
    const rows = [...table.tBodies[0].rows];
    table.tBodies[0].append(...rows.sort(rows.every((row) => row.cells[k].dataset.value != null) ? byNumber : compare));
  };
  for (const head of table.tHead.rows[0].cells) {
    head.tabIndex = 0;
    head.addEventListener("click", () => sort(head));
    head.addEventListener("keydown", (event) => event.key === "Enter" && sort(head));
  }
}

for (const strip of document.querySelectorAll(".lanes")) {
  const audio = strip.closest("figure").querySelector("audio");
  audio?.addEventListener("timeupdate", () => strip.style.setProperty("--at", audio.currentTime / strip.dataset.seconds));
}

const clips = JSON.parse(document.getElementById("clips").textContent);
const player = new Audio();
for (const map of document.querySelectorAll(".map")) {
  map.addEventListener("click", (event) => {
    const mark = event.target.closest("[data-clip]");
    if (!mark) return;
    player.src = clips[mark.dataset.clip];
    player.controls = true;
    map.nextElementSibling.replaceChildren(`${mark.querySelector("title").textContent} `, player);
    player.play();
  });
}
