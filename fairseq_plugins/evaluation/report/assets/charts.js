// Chart.js in the colors of the page. Every chart has its numbers or a summary as text.
const drawn = new Map();
const DASHES = [[6, 4], [], [], [2, 3], [9, 3, 2, 3]];
const POINTS = ["circle", "circle", "rectRot", "triangle", "rect", "star", "cross", "crossRot"];

Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
Chart.defaults.font.size = 12;
Chart.defaults.animation = false;
Chart.defaults.maintainAspectRatio = false;

// Show a chart in a figure; `config` returns its description in the current colors.
function chart(place, { title, subtitle, summary, config, runs, numbers }) {
  const canvas = h("canvas", { role: "img", "aria-label": `${title}. ${summary || ""}` });
  const figure = h("figure", { class: "figure" },
    h("figcaption", {}, title, subtitle && h("small", {}, subtitle)),
    h("div", { class: "canvas" }, canvas),
    runs && h("p", { class: "legend" },
      runs.map((run) => h("span", {}, dot(run), nameOf(run)))),
    numbers && h("details", {}, h("summary", {}, "Numbers"),
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${title}: numbers` }, numbers)));
  place.append(figure);
  const draw = () => {
    drawn.get(canvas)?.chart.destroy();
    drawn.set(canvas, { chart: new Chart(canvas, config()), draw });
  };
  draw();
  return figure;
}

function clearCharts(place) {
  for (const canvas of place.querySelectorAll("canvas")) {
    drawn.get(canvas)?.chart.destroy();
    drawn.delete(canvas);
  }
  place.replaceChildren();
}

themeListeners.push(() => [...drawn.values()].forEach(({ draw }) => draw()));

function axis(title, more = {}) {
  return {
    title: { display: Boolean(title), text: title, color: cssColor("--soft") },
    grid: { color: cssColor("--line"), tickLength: 0, drawTicks: false },
    border: { display: false },
    ...more,
    ticks: { color: cssColor("--soft"), padding: 6, maxRotation: 0, ...more.ticks },
  };
}

function options(x, y, more = {}) {
  return {
    responsive: true, interaction: { mode: "index", intersect: false },
    scales: { x, y }, ...more,
    plugins: {
      legend: { display: false },
      tooltip: {
        backgroundColor: cssColor("--surface"), titleColor: cssColor("--ink"),
        bodyColor: cssColor("--ink"), borderColor: cssColor("--line"), borderWidth: 1,
        padding: 10, boxPadding: 4, usePointStyle: true, ...more.tooltip,
      },
    },
  };
}

function line(run, data, more = {}) {
  const color = runColor(run);
  return {
    label: nameOf(run), data, borderColor: color, backgroundColor: color,
    borderWidth: 2, borderDash: DASHES[Math.min(run, DASHES.length - 1)],
    pointStyle: POINTS[run % POINTS.length], pointRadius: 3.5, pointHoverRadius: 5,
    spanGaps: true, tension: 0, ...more,
  };
}
