// Charts by uPlot: days across, counts as stacked bars, rates and durations as lines. Each has its numbers as a table.

const charts = [];

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// series: [{ name, label, colour (a name of the style), values, format }]; stacked: they are bars that stand on each
// other, the first one lowest. seconds: the days. range: of the axis, e.g. [0, 1].
function chart({ id, title, summary, seconds, series, stacked = false, format = number, axisFormat = format, range = null }) {
  const canvas = h("div", { class: "chart", role: "img", "aria-label": `${title}. ${summary}` });
  charts.push({ canvas, seconds, series, stacked, format, axisFormat, range, plot: null });
  const columns = [
    { name: "day", label: "Day (UTC)", of: (row) => row.second, cell: (row) => isoDay(row.second), first: "desc" },
    ...series.map((one) => ({
      name: one.name, label: one.label, numeric: true, of: (row) => row[one.name],
      cell: (row) => value(one.name, row[one.name], (one.format || format)(row[one.name]), "td", { class: "n" }),
    })),
  ];
  const rows = seconds.map((second, i) =>
    ({ second, ...Object.fromEntries(series.map((one) => [one.name, one.values[i]])) })).reverse();
  const numbers = h("details", { class: "numbers" }, h("summary", {}, "Numbers as a table"));
  numbers.addEventListener("toggle", () => {
    if (numbers.open && !numbers.querySelector("table")) {
      numbers.append(table({ id: `${id}-numbers`, caption: title, columns, rows, limit: 31, keyOf: (row) => isoDay(row.second) }));
    }
  });
  return h("figure", { id }, h("figcaption", {}, title), canvas, numbers);
}

// Where the lines of an axis may stand: whole percents, whole counts, whole seconds, minutes, hours and days.
const STEPS = new Map([
  [percent, [0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5]],
  [number, [1, 10, 100, 1e3, 1e4, 1e5, 1e6].flatMap((unit) => [unit, 2 * unit, 5 * unit])],
  [duration, [[1, [1, 5, 20, 100, 500]], [1e3, [1, 2, 5, 10, 20]], [6e4, [1, 2, 5, 10, 20]], [3.6e6, [1, 2, 4, 8]],
    [8.64e7, [1, 2, 4, 7, 14, 28, 56]]].flatMap(([unit, counts]) => counts.map((count) => count * unit))],
]);

function drawCharts() {
  for (const one of charts) {
    if (one.plot) one.plot.destroy();
    one.plot = draw(one);
  }
}

function forgetCharts() {
  for (const { plot } of charts) if (plot) plot.destroy();
  charts.length = 0;
}

function draw({ canvas, seconds, series, stacked, format, axisFormat, range }) {
  const width = Math.floor(canvas.clientWidth);
  if (!width) return null;
  const text = colour("muted"), line = colour("line");
  // Bars stand on each other by being drawn from the highest to the lowest: each covers the sum of those below it.
  const heights = series.map((_, s) => seconds.map((_, i) =>
    stacked ? series.slice(0, s + 1).reduce((sum, one) => sum + (one.values[i] || 0), 0) : series[s].values[i]));
  const order = series.map((_, s) => s);
  if (stacked) order.reverse();
  const bars = uPlot.paths.bars({ size: [0.82, 48], align: 0 });
  const axis = { stroke: text, grid: { stroke: line, width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  const most = Math.max(0, ...heights.flat().filter((height) => height !== null));
  const plot = new uPlot({
    width,
    height: 180,
    padding: [10, 8, 0, 0],
    tzDate: (second) => uPlot.tzDate(new Date(second * 1000), "Etc/UTC"),
    cursor: { drag: { x: false, y: false }, points: { size: 7 } },
    legend: { live: true },
    scales: {
      x: { time: true, range: [seconds[0] - DAY * 0.6, seconds[seconds.length - 1] + DAY * 0.6] },
      y: { range: () => range || [0, most ? most * 1.08 : 1] },
    },
    axes: [
      { ...axis, size: 30, grid: { show: false }, incrs: [1, 2, 3, 7, 14, 28, 56, 112, 224].map((days) => days * DAY), space: 56,
        values: (_, splits) => splits.map(shortDay) },
      { ...axis, size: 58, values: (_, splits) => splits.map((split) => axisFormat(split)),
        incrs: STEPS.get(format) },
    ],
    series: [
      { label: "Day (UTC)", value: (_, second) => (second === null ? "–" : isoDay(second)) },
      ...order.map((s) => ({
        label: series[s].label,
        stroke: colour(series[s].colour),
        fill: stacked ? colour(series[s].colour) : undefined,
        width: stacked ? 0 : 2,
        paths: stacked ? bars : undefined,
        points: { show: !stacked && seconds.length < 62, size: 5, fill: colour(series[s].colour) },
        spanGaps: false,
        value: (_, __, ___, i) => (i === null ? "–" : (series[s].format || format)(series[s].values[i])),
      })),
    ],
  }, [seconds, ...order.map((s) => heights[s])], canvas);
  // The legend in the order of the series, whatever the bars needed; its last place is the day's.
  plot.root.querySelectorAll(".u-series").forEach((entry, i) => { entry.style.order = i ? order[i - 1] : series.length; });
  return plot;
}
