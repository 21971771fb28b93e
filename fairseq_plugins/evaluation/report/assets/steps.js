// One step of a search: all candidates, their fate and their SOFT top-k memberships.
function fateOf(step, number) {
  const slot = step.held.indexOf(number);
  return slot >= 0 ? `slot ${slot + 1}` : "pruned";
}

function heatCell(percent) {
  // The jump at 50 % keeps the contrast between digits and background above 4.5.
  const isStrong = percent > 50;
  const opacity = isStrong ? 0.88 + 0.0024 * (percent - 50) : 0.008 * percent;
  return h("td", {
    class: "heat", style: { backgroundColor: `rgba(var(--heat), ${opacity})`, color: isStrong ? "var(--on-accent)" : "var(--ink)" },
  }, percent ? String(percent) : "");
}

// The last words of a hypothesis: hypotheses differ at their ends.
function prefixText(text) {
  const most = 24;
  return text.length > most ? `… ${text.slice(-most).replace(/^\S*\s/, "")}` : text;
}

function buildCandidateRow(search, step, number, before, ladder) {
  const [origin, piece, score, alone] = step.candidates[number];
  const isGold = number === step.gold, fate = fateOf(step, number);
  const shares = step.shares[ladder][number] || [];
  return h("tr", { class: [isGold && "gold", fate === "pruned" && "out", number === search.beam - 1 && "edge-row"].filter(Boolean).join(" ") },
    h("td", {}, String(number + 1)),
    h("td", { class: "prefix" }, h("span", {}, before[origin] ? prefixText(hypothesisText(before[origin])) : "", piece.startsWith("▁") ? " " : ""),
      h("b", {}, piece.replace("▁", "") || "␣"), isGold && h("span", { class: "pill", style: { marginLeft: ".5rem" } }, "reference")),
    h("td", {}, fixed(alone)), h("td", {}, fixed(score)), h("td", { class: "fate-of" }, fate),
    heatCell(step.members[ladder][number]), shares.map(heatCell));
}

function buildEndRow(search, step, end, before) {
  const [slot, score, alone, finishes] = end;
  const isGold = step.gold === step.candidates.length + slot;
  return h("tr", { class: `${isGold ? "gold" : ""} ${finishes ? "" : "out"}` },
    h("td", {}, "end"),
    h("td", { class: "prefix" }, h("span", {}, before[slot] ? prefixText(hypothesisText(before[slot])) : ""), h("b", {}, " ■"),
      isGold && h("span", { class: "pill", style: { marginLeft: ".5rem" } }, "reference")),
    h("td", {}, fixed(alone)), h("td", {}, fixed(score)), h("td", { class: "fate-of" }, finishes ? "finished" : "not finished"),
    h("td", { class: "heat" }), Array.from({ length: search.beam }, () => h("td", { class: "heat" })));
}

function buildCandidateTable(search, number, columns, ladder) {
  const step = search.steps[number], before = columns[number] || [];
  const titles = ["#", "Hypothesis and its new token", "log p", "Score", "Fate", "In, %",
    ...Array.from({ length: search.beam }, (_, slot) => `Slot ${slot + 1}`)];
  const lowest = step.candidates[search.beam - 1]?.[2] ?? -Infinity;
  const ends = step.ends.filter((end) => end[3] || end[1] > lowest - 5 || step.gold === step.candidates.length + end[0]);
  return h("table", {},
    h("caption", { class: "hidden" }, `Candidates of step ${number + 1}; memberships and shares of the slots in percent`),
    h("thead", {}, h("tr", {}, titles.map((title, i) => h("th", { scope: "col", class: i === 1 && "prefix" }, title)))),
    h("tbody", {}, step.candidates.map((_, each) => buildCandidateRow(search, step, each, before, ladder)),
      ends.sort((a, b) => b[1] - a[1]).map((end) => buildEndRow(search, step, end, before))));
}
