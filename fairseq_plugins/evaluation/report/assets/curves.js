// Training curves of the selected runs. Panels without data are left out.
const PANELS = [
  { title: "Loss, validation", subtitle: "Label-smoothed cross entropy in bits per token; comparable between criterions.", name: "valid_loss" },
  { title: "BLEU, validation", subtitle: "As logged by fairseq during training (--eval-bleu).", name: "valid_bleu" },
  { title: "Loss, training", subtitle: "The training objective in bits per token; not comparable between criterions.", name: "train_loss" },
  { title: "Reference in the beam", subtitle: "Fraction of steps after which the reference is in the beam.", name: "train_gold_in_beam", percent: true },
  { title: "Epsilon", subtitle: "Smoothing of SOFT top-k, in nats.", name: "train_epsilon" },
  { title: "Cost of the best hypothesis", subtitle: "1 − sentence BLEU, or the cost that the run minimizes, of the hypothesis with the highest score.", name: "train_cost" },
  { title: "Lowest cost in the beam", subtitle: "The lowest cost of all finished hypotheses.", name: "train_oracle_cost" },
  { title: "Cross entropy, training", subtitle: "Cross-entropy part of the loss, in bits per token.", name: "train_ce_loss" },
  { title: "Beam loss", subtitle: "Beam part of the loss.", name: "train_beam_loss" },
  { title: "Beam size in training", name: "train_beam" },
  { title: "Learning rate", name: "train_lr" },
  { title: "Gradient norm", name: "train_gnorm" },
  { title: "Words per second", name: "train_wps" },
];
const FIRST_PANELS = 5;
let runsDrawn = [];

function drawCurve(place, panel) {
  const runs = runsDrawn.filter((run) => DATA.runs[run].curves[panel.name]?.[0].length);
  if (!runs.length) return;
  const scale = panel.percent ? 100 : 1;
  const points = (run) => {
    const [updates, values] = DATA.runs[run].curves[panel.name];
    return updates.map((x, i) => ({ x, y: scale * values[i] }));
  };
  const last = (run) => fixed(points(run).at(-1).y, panel.percent ? 1 : 3);
  chart(place, {
    title: panel.title, subtitle: panel.subtitle, runs,
    summary: `At the end: ${runs.map((run) => `${nameOf(run)} ${last(run)}${panel.percent ? " %" : ""}`).join(", ")}.`,
    config: () => ({
      type: "line",
      data: {
        datasets: runs.map((run) => {
          const data = points(run);
          return line(run, data, { pointRadius: data.length > 12 ? 0 : 3, borderWidth: 1.8 });
        }),
      },
      options: options(
        axis("updates", { type: "linear", min: 0, ticks: { maxTicksLimit: 7 } }),
        axis("", { grace: "6%", ticks: { callback: (value) => panel.percent ? `${value} %` : value.toLocaleString("en") } }),
        { tooltip: { callbacks: { title: ([item]) => `${grouped(item.parsed.x)} updates` } },
          interaction: { mode: "nearest", axis: "x", intersect: false } }),
    }),
  });
}

function showCurves() {
  const first = byId("curve-charts"), more = byId("more-curves").lastElementChild;
  clearCharts(first);
  clearCharts(more);
  for (const panel of PANELS.slice(0, FIRST_PANELS)) drawCurve(first, panel);
  if (byId("more-curves").open) for (const panel of PANELS.slice(FIRST_PANELS)) drawCurve(more, panel);
  byId("more-curves").hidden = !PANELS.slice(FIRST_PANELS).some((panel) =>
    runsDrawn.some((run) => DATA.runs[run].curves[panel.name]));
}

function showTraining() {
  const all = DATA.runs.map((_, run) => run);
  // A starting model is trained much longer than the runs that continue from it.
  const continued = all.filter((run) => DATA.runs[run].config.start_from);
  runsDrawn = continued.length ? continued : all;
  byId("training-note").textContent = continued.length && continued.length < all.length
    ? "Updates are counted from the start of each run. Only runs that continue from a checkpoint are selected at first."
    : "Updates are counted from the start of each run.";
  byId("run-choice").append(...all.map((run) => h("button", {
    type: "button", "aria-pressed": String(runsDrawn.includes(run)),
    onclick: (event) => {
      const on = event.currentTarget.getAttribute("aria-pressed") !== "true";
      event.currentTarget.setAttribute("aria-pressed", String(on));
      runsDrawn = on ? [...runsDrawn, run].sort((a, b) => a - b) : runsDrawn.filter((other) => other !== run);
      showCurves();
    },
  }, dot(run), nameOf(run))));
  byId("more-curves").addEventListener("toggle", showCurves);
  showCurves();
}
