// One search: the fate of the reference, the tree, a step and the finished hypotheses.
const now = { step: 0, ladder: 1, node: null, tree: null, language: "" };

function describeFate(search) {
  const { gold, finished, beam } = search;
  const mean = `${fixed(gold.score)} nats per token`, best = finished[0] && `${fixed(finished[0].score)}`;
  if (gold.fate === "best") return [h("strong", {}, "The search returned the reference itself"), `, at ${mean}.`];
  if (gold.fate === "finished") return [h("strong", {}, "The reference was found, but not chosen"), `: its score is ${mean}, and that of the returned hypothesis ${best}.`];
  const where = [];
  if (gold.lost !== null) {
    const step = search.steps[gold.lost], ends = step.gold >= step.candidates.length;
    const word = ends ? "its end" : `“${step.candidates[step.gold][1].replaceAll("▁", "") || "␣"}”`;
    const last = step.rank >= step.candidates.length - 1 && !ends;
    where.push("The reference ", h("strong", {}, `was pruned at step ${gold.lost + 1}`),
      `: ${word} was ${last ? `not among the ${step.candidates.length - 1} best candidates` : `candidate ${step.rank + 1}`}, and the beam keeps ${beam}. `);
  } else where.push("The search ended before the reference did. ");
  where.push(gold.fate === "search error"
    ? `Its score is ${mean}${best ? `, higher than ${best} of the best hypothesis` : ""}: a search error.`
    : `Its score is ${mean}, lower than ${best} of the best hypothesis: a model error, not a search error.`);
  return where;
}

function describeNode(search) {
  const { node } = now, description = byId("description");
  if (!node) { description.textContent = "Click a column to choose a step, or a node to choose a hypothesis. Arrow keys work when the tree has the focus."; return; }
  const text = hypothesisText(node) || "(start)";
  const parts = [h("b", {}, text), ` — ${fixed(node.score)} nats`];
  if (node.alone !== undefined) parts.push(`, the last token ${fixed(node.alone)}`);
  if (node.ends) parts.push(`; ends here, rank ${node.ends.rank + 1} of ${search.finished.length}, length-normalized score ${fixed(node.ends.score)}`);
  else if (node.lost) parts.push("; the reference, pruned here");
  else if (!node.alive) parts.push("; all its continuations are pruned later");
  if (node.gold && !node.lost) parts.push("; a prefix of the reference");
  description.replaceChildren(...parts);
}

function showStep(search) {
  const { tree, step } = now;
  tree.markStep(step);
  byId("step-range").value = String(step + 1);
  byId("step-name").textContent = `Step ${step + 1} of ${search.steps.length}`;
  byId("step-back").disabled = step === 0;
  byId("step-forward").disabled = step === search.steps.length - 1;
  byId("candidates").replaceChildren(buildCandidateTable(search, step, tree.columns, now.ladder));
}

function keepInView(column) {
  const box = byId("tree"), x = xOf(column);
  if (x < box.scrollLeft) box.scrollLeft = x - 20;
  else if (x + BOX.width > box.scrollLeft + box.clientWidth) box.scrollLeft = x + BOX.width + 20 - box.clientWidth;
}

function chooseStep(search, step) {
  now.step = Math.max(0, Math.min(search.steps.length - 1, step));
  showStep(search);
  keepInView(now.step + 1);
}

function chooseNode(search, node) {
  now.node = node;
  now.tree.markNode(node);
  describeNode(search);
  if (node.column) chooseStep(search, node.column - 1);
}

function moveByKey(search, event) {
  const moves = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
  const move = moves[event.key];
  if (!move || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  const { columns } = now.tree;
  const from = now.node && !now.node.lost ? now.node : now.node?.parent ?? { column: now.step + 1, slot: 0 };
  const column = Math.max(0, Math.min(columns.length - 1, from.column + (now.node ? move[0] : 0)));
  const slot = Math.max(0, Math.min(columns[column].length - 1, from.slot + (now.node ? move[1] : 0)));
  chooseNode(search, columns[column][slot]);
}

function buildFinishedTable(search) {
  return h("table", {}, h("caption", { class: "hidden" }, "Finished hypotheses, best first"),
    h("thead", {}, h("tr", {}, ["#", "Finished hypothesis", "Score", "log p", "Tokens"].map((title, i) =>
      h("th", { scope: "col", style: i === 1 ? { textAlign: "left" } : {} }, title)))),
    h("tbody", {}, search.finished.map((each, rank) => h("tr", {}, h("td", {}, String(rank + 1)),
      h("td", { lang: now.language }, pieceText(each.pieces)), h("td", {}, fixed(each.score)), h("td", {}, fixed(each.log_prob)), h("td", {}, String(each.tokens.length))))));
}

function key(kind, text) {
  return h("span", {}, h("i", { class: kind, "aria-hidden": "true" }), text);
}

function drawStage(search) {
  now.tree = drawTree(search, {
    ladder: now.ladder, onStep: (step) => chooseStep(search, step), onNode: (node) => chooseNode(search, node),
  });
  return h("div", { class: "stage" },
    h("div", { class: "tree", id: "tree", tabindex: "0", role: "group", "aria-label": "Tree of hypotheses. Arrow keys move between steps and slots.", onkeydown: (event) => moveByKey(search, event) }, now.tree.svg),
    h("p", { class: "description", id: "description", role: "status" }),
    h("div", { class: "keys" }, key("best", "leads to the returned hypothesis"), search.gold && [key("gold", "the reference"),
      key("lost", "the reference, pruned")], key("", "leads to a finished hypothesis"), key("dead", "pruned later"), key("round", "a hypothesis ends here (its rank)"),
      h("span", {}, "· continues a word")));
}

function drawStepper(search) {
  const to = (step) => () => chooseStep(search, step());
  return h("div", { class: "stepper" },
    h("h3", { id: "step-name" }),
    h("button", { type: "button", id: "step-back", "aria-label": "Step back", onclick: to(() => now.step - 1) }, "←"),
    h("input", { type: "range", id: "step-range", min: 1, max: search.steps.length, "aria-label": "Step", oninput: (event) => chooseStep(search, Number(event.target.value) - 1) }),
    h("button", { type: "button", id: "step-forward", "aria-label": "Step forward", onclick: to(() => now.step + 1) }, "→"),
    segments("Smoothing of the SOFT top-k", search.epsilons.map((epsilon) => `ε = ${Number(epsilon.toPrecision(3))}`), now.ladder, (ladder) => {
      now.ladder = ladder;
      const left = byId("tree").scrollLeft;
      document.querySelector(".stage").replaceWith(drawStage(search));
      byId("tree").scrollLeft = left;
      now.node = null;
      describeNode(search);
      showStep(search);
    }));
}

// Show a search in an element, after other elements. `language` is that of the target.
function showSearch(place, search, { before = [], language }) {
  now.node = null;
  now.step = search.gold?.lost ?? 0;
  now.language = language;
  place.replaceChildren(...before, ...(search.gold ? [h("div", { class: "fate", id: "fate" }, h("p", {}, describeFate(search)))] : []), drawStage(search), drawStepper(search),
    h("p", { class: "note small" }, `Candidates are ranked by their scores, the sums of log p; the beam keeps the ${search.beam} best that do not end. “In” is the SOFT top-${search.beam} membership of a candidate, and the last columns are its shares of the slots by the sorted operator, both in percent. The dashed line is the edge of the beam.`),
    h("div", { class: "scroll", id: "candidates", tabindex: "0", role: "region", "aria-label": "Candidates of the step" }),
    h("div", { class: "scroll found", tabindex: "0", role: "region", "aria-label": "Finished hypotheses" }, buildFinishedTable(search)));
  describeNode(search);
  showStep(search);
  keepInView(now.step + 2);
}

// A source and its reference, if there is one, above a search.
function buildPair(source, reference, languages) {
  const text = (title, body, lang) => body && h("div", {}, h("h4", {}, title), h("p", { lang, dir: "auto" }, body));
  return h("div", { class: "pair" }, text(`Source, ${languages[0]}`, source, languages[0]), text("Reference", reference, languages[1]));
}
