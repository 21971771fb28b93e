// The main finding, a card for each run, two charts and the table of scores.
let testNumber = DATA.shown;
const control = 0;

const rowOf = (test, run, beam) =>
  test.rows.find((row) => row.run === run && row.beam === beam);

const systemName = (row) => (row.system === undefined ? nameOf(row.run) : DATA.systems[row.system].label);

function describeFinding(test) {
  const seeds = DATA.systems[0].seeds;
  if (seeds > 1) return describeChange(test.pooled.filter((row) => row.beam === test.beam), `, over ${seeds} seeds`);
  const others = DATA.runs.map((_, run) => run).slice(1);
  const rows = others.map((run) => rowOf(test, run, test.beam)).filter((row) => row.change !== undefined);
  return describeChange([rowOf(test, control, test.beam), ...rows], "");
}

function describeChange([base, ...rows], how) {
  if (!rows.length) return `${systemName(base)}: ${fixed(base.bleu)} BLEU at beam ${base.beam}${how}`;
  const best = rows.reduce((one, other) => (other.change > one.change ? other : one));
  const size = Math.abs(best.change);
  const where = best.change > 0 ? "ahead of" : "behind";
  if (size < 0.005) return `${systemName(best)} and ${systemName(base)} have the same BLEU${how}`;
  return `${systemName(best)} is ${fixed(size)} BLEU ${where} ${systemName(base)}${how}`;
}

function describeRow(row) {
  if (row.p_bleu === undefined) return "control";
  const chance = row.p_bleu < 0.05 ? "unlikely to be chance" : "may be chance";
  return [h("strong", { class: row.p_bleu < 0.05 ? tone(row.change) : "" }, signed(row.change)),
    ` against the control: ${chance} (p ${row.p_bleu < 0.001 ? "" : "= "}${pValue(row.p_bleu)})`];
}

function showCards(test) {
  const rows = DATA.runs.map((_, run) => rowOf(test, run, test.beam));
  const low = Math.min(...rows.map((row) => row.ci[0])), high = Math.max(...rows.map((row) => row.ci[1]));
  const at = (value) => `${(100 * (value - low)) / Math.max(high - low, 1e-9)}%`;
  byId("cards").replaceChildren(...rows.map((row, run) =>
    h("article", { class: "card", color: colorOf(run) },
      h("h3", {}, dot(run), nameOf(run)),
      h("p", { class: "big" }, fixed(row.bleu), h("span", { class: "unit" }, `BLEU, beam ${row.beam}`)),
      h("div", {
        class: "range", role: "img",
        "aria-label": `95 % confidence interval ${fixed(row.ci[0])} to ${fixed(row.ci[1])}`,
        title: `95 % confidence interval ${fixed(row.ci[0])} to ${fixed(row.ci[1])}`,
      },
      h("span", { class: "bar-of", style: { left: at(row.ci[0]), right: `calc(100% - ${at(row.ci[1])})` } }),
      h("span", { class: "control", style: { left: at(rows[control].bleu) } }),
      h("span", { class: "at", style: { left: at(row.bleu) } })),
      h("p", { class: "verdict" }, describeRow(row)))));
}

function drawBeamChart(place, test) {
  const beams = [...new Set(test.rows.map((row) => row.beam))].sort((a, b) => a - b);
  const data = (run) => beams.map((beam) => rowOf(test, run, beam)?.bleu ?? null);
  chart(place, {
    title: "BLEU by beam size", runs: DATA.runs.map((_, run) => run),
    subtitle: "Beam 1 is greedy search. A drop at large beams is the beam search curse.",
    summary: DATA.runs.map((_, run) =>
      `${nameOf(run)}: ${beams.map((beam, i) => `${fixed(data(run)[i])} at ${beam}`).join(", ")}`).join(". "),
    config: () => ({
      type: "line",
      data: { labels: beams, datasets: DATA.runs.map((_, run) => line(run, data(run))) },
      options: options(axis("beam size"), axis("", { grace: "8%" }), {
        tooltip: { callbacks: { title: ([item]) => `beam ${item.label}` } },
      }),
    }),
  });
}

function drawLengthChart(place, test) {
  const { buckets, counts, bleu } = test.lengths;
  const labels = buckets.map(([first, last]) => (first === last ? `${first}` : `${first}–${last}`));
  const numbers = h("table", {},
    h("thead", {}, h("tr", {}, ["words", "sentences", ...DATA.runs.map((run) => run.label)]
      .map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", {}, labels.map((label, i) => h("tr", {}, h("td", {}, label), h("td", {}, grouped(counts[i])),
      DATA.runs.map((_, run) => h("td", {}, fixed(bleu[run][i])))))));
  chart(place, {
    title: "BLEU by length", subtitle: `Words in the reference, beam ${test.beam}.`, numbers,
    summary: "The numbers are in the table below.", runs: DATA.runs.map((_, run) => run),
    config: () => ({
      type: "bar",
      data: {
        labels,
        datasets: DATA.runs.map((_, run) => ({
          label: nameOf(run), data: bleu[run], backgroundColor: runColor(run), borderRadius: 3,
          categoryPercentage: 0.72, barPercentage: 0.9,
        })),
      },
      options: options(axis("words in the reference", { grid: { display: false } }), axis("", { beginAtZero: true }), {
        tooltip: { callbacks: { title: ([item]) => `${item.label} words, ${grouped(counts[item.dataIndex])} sentences` } },
      }),
    }),
  });
}

function buildScoreTable(test) {
  const number = (title, name, show) => ({ title, value: (row) => row[name], show: (row) => show(row[name]) });
  const rows = [...test.pooled, ...test.rows];
  const extras = [...new Set(rows.flatMap((row) => Object.keys(row.extra)))];
  const isPooled = (row) => row.system !== undefined;
  const systemOf = (row) => DATA.systems[row.system];
  const runsOf = (row) => (isPooled(row)
    ? DATA.runs.slice(systemOf(row).first, systemOf(row).first + systemOf(row).seeds) : [DATA.runs[row.run]]);
  const mean = (row, name) => runsOf(row).reduce((sum, run) => sum + (run[name] ?? NaN), 0) / runsOf(row).length;
  const range = (ends, show) => (ends ? `${show(ends[0], 1)} – ${show(ends[1], 1)}` : fixed(null));
  const columns = [
    {
      title: "System", value: systemName,
      show: (row) => (isPooled(row)
        ? [dot(systemOf(row).first), `${systemName(row)}, mean of ${systemOf(row).seeds} seeds`]
        : [dot(row.run), nameOf(row.run)]),
    },
    number("Beam", "beam", grouped),
    number("BLEU", "bleu", fixed),
    ...(test.pooled.length ? [number("± over seeds", "deviation", fixed)] : []),
    { title: "95 % interval", value: (row) => row.ci?.[0], show: (row) => range(row.ci, fixed) },
    { title: "Change", value: (row) => row.change, show: (row) => h("span", { class: row.p_bleu < 0.05 && tone(row.change) }, signed(row.change)) },
    ...(test.pooled.length
      ? [{ title: "Change, 95 % interval", value: (row) => row.change_interval?.[0], show: (row) => range(row.change_interval, signed) }] : []),
    number("p", "p_bleu", pValue),
    number("chrF", "chrf", fixed),
    number("p of chrF", "p_chrf", pValue),
    ...extras.map((name) => ({ title: name, value: (row) => row.extra[name], show: (row) => fixed(row.extra[name]) })),
    number("Brevity penalty", "brevity_penalty", (value) => fixed(value, 3)),
    number("Tokens/s", "tokens_per_second", (value) => grouped(Math.round(value))),
    { title: "Updates", value: (row) => mean(row, "updates"), show: (row) => grouped(Math.round(mean(row, "updates"))) },
    { title: "Training (min)", value: (row) => mean(row, "seconds"), show: (row) => fixed(mean(row, "seconds") / 60, 1) },
    { title: "Checkpoint", value: (row) => row.checkpoint, show: (row) => row.checkpoint.replace(/^checkpoint_|\.pt$/g, "") },
  ];
  return buildSortableTable(columns, rows, {
    caption: `Scores on ${test.title}`,
    rowClass: (row) => [row.beam === test.beam && "judged", isPooled(row) && "pooled"].filter(Boolean).join(" ") || null,
  });
}

function showTest() {
  const test = DATA.tests[testNumber];
  byId("finding").textContent = describeFinding(test);
  byId("lead").textContent = `On the ${grouped(test.sentences)} sentences of ${test.title}, translated with beam ${test.beam}.`;
  showCards(test);
  const place = byId("score-charts");
  clearCharts(place);
  drawBeamChart(place, test);
  drawLengthChart(place, test);
  byId("score-table").replaceChildren(buildScoreTable(test));
  byId("signatures").textContent = `Signatures: ${test.signatures.join("  ·  ")}`;
}

function showSummary() {
  byId("eyebrow").textContent = `${DATA.title} · ${DATA.corpus.pair} · ${DATA.made.slice(0, 10)}`;
  byId("scores-note").textContent = "Detokenized translations against the raw reference. Change and p are against the control " +
    `(${nameOf(control)}) at the same beam size; p is the probability of such a difference between equally good systems. ` +
    "Intervals are bootstrapped over the sentences of the test set." + (DATA.systems[0].seeds > 1
      ? " Each run is compared with the control's run of the same seed. The rows of means pool the seeds, " +
        "and the interval of their change resamples sentences and seeds." : "");
  if (DATA.tests.length > 1) {
    byId("test-choice").append(segments("Test set", DATA.tests.map((test) => test.title), testNumber, (number) => {
      testNumber = number;
      showTest();
    }));
  }
  showTest();
}
